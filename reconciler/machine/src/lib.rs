//! The machines that VAs run on.
//!
//! ```text
//! STORE/machines/<name>/va.json       the VA's record (`docs/formats.md`, "Machines")
//! STORE/machines/<name>/private/      its private layer, unless the record says elsewhere
//! STORE/machines/<name>/lock          held by the one command that changes the VA
//! STORE/machines/<name>/suspended/    the state of a machine that is suspended to disk
//! STORE/machines/<name>/console.log   what the VA's first process printed since its start
//! STORE/machines/<name>/run/          the mount point, while the VA runs
//! ```
//!
//! A record says what a VA is, never what it does: whether a VA runs is asked of
//! the kernel each time ([`Machines::run_state`]), so that no crash and no restart
//! of the host can leave a wrong answer behind.
//!
//! The driver [`namespace`] needs no hypervisor: the VA is a set of namespaces
//! whose root is its VLFS. With the driver [`qemu`] it is a virtual machine; [`Machines`] picks the
//! driver that the record names. The crate prints nothing and reads no
//! environment variables.

pub mod cgroup;
mod clone;
mod console;
mod control;
mod destroy;
mod error;
mod libvirt;
mod machines;
mod mounts;
mod namespace;
mod provision;
mod qemu;
mod record;
mod registry;
mod rename;
mod wait;

pub use clone::CloneRequest;
pub use console::Console;
pub use control::{ControlError, Served, served};
pub use error::MachineError;
pub use machines::{
    ExecCommand, Forward, Machines, Network, Observation, Programs, Resting, StartRequest,
};
pub use mounts::Mount;
pub use provision::{ProvisionError, ProvisionRequest, Provisioned, without_batch};
pub use qemu::{AcceleratorChoice, TransportChoice};
pub use record::{Driver, VaRecord};
pub use strata_core::status::RunState;
