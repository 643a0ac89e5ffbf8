//! The driver with a hypervisor: a VA is a virtual machine that boots into its VLFS
//! (`docs/boot.md`).
//!
//! QEMU runs in a control group of its own: that it has processes is that the VA is
//! not stopped, and what it does is asked over its control socket. Nothing else is
//! remembered, but a state that is saved to disk ([`saved`]). The store is shown to the
//! machine without what concerns other VAs, which is hidden from QEMU and from the
//! daemons of its shares (`strata-init conceal`). What the machine serves, it says in its
//! report, which it writes into a directory that it alone has (`reports/<mac>/` of the store).

mod accelerator;
mod command;
mod disk;
mod hardware;
mod power;
mod qmp;
mod saved;
mod shares;
mod suspend;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use strata_core::status::RunState;
use strata_store::Store;

use crate::cgroup::Cgroup;
use crate::error::{Context, MachineError};
use crate::machines::Observation;
use crate::record::VaRecord;

pub use accelerator::AcceleratorChoice;
pub(crate) use command::identity;
pub(crate) use hardware::Hardware;
pub use hardware::HardwareError;
pub use qmp::QmpError;
use qmp::{Activity, Qmp};
pub(crate) use saved::exists as is_saved;
pub use shares::TransportChoice;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Control sockets: their paths must be short, whatever the store's is.
const SOCKETS: &str = "/run/strata/machines";
/// What a machine has where nothing else is asked for.
const MEMORY_MIB: u64 = 512;
const CONSOLE: &str = "console.log";
/// What QEMU may take to answer a question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// What SIGKILL may take to empty a control group.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct QemuVa<'a> {
    record: &'a VaRecord,
    directory: PathBuf,
    store: &'a Store,
    /// All processes of the VA.
    group: Cgroup,
    /// QEMU.
    machine: Cgroup,
    /// The daemons of its shares.
    shares: Cgroup,
    sockets: Sockets,
    /// Where QEMU sees what it needs of what is hidden: the VA's own directory, and the one
    /// that its report goes into.
    own: PathBuf,
    own_reports: PathBuf,
}

/// Where QEMU is reached, and where it reaches the daemons of its shares.
struct Sockets {
    control: PathBuf,
    console: PathBuf,
    store: PathBuf,
    reports: PathBuf,
}

impl<'a> QemuVa<'a> {
    /// `cgroup` is the store's, whose name tells stores apart.
    pub fn new(
        record: &'a VaRecord,
        directory: PathBuf,
        store: &'a Store,
        cgroup: &Cgroup,
    ) -> Self {
        let key = cgroup.path().file_name().unwrap_or_default();
        let beside = |what| Path::new(SOCKETS).join(key).join(format!("{}{what}", record.mac));
        let sockets = Sockets {
            control: beside(".qmp"),
            console: beside(".console"),
            store: beside(".store"),
            reports: beside(".report"),
        };
        let (own, own_reports) = (beside(".own"), beside(".reports"));
        let group = cgroup.child(&format!("va-{}", record.name));
        let (machine, shares) = (group.child("machine"), group.child("shares"));
        QemuVa { record, directory, store, group, machine, shares, sockets, own, own_reports }
    }

    pub fn run_state(&self) -> Result<RunState, MachineError> {
        if saved::exists(&self.directory) {
            return Ok(RunState::Suspended);
        }
        let events = self.machine.events().at("read", self.machine.path())?;
        if !events.populated {
            return Ok(RunState::Stopped);
        }
        let asked =
            self.control(Instant::now() + ANSWER_DEADLINE).and_then(|mut qmp| qmp.activity());
        match asked {
            Ok(Activity::Paused) => Ok(RunState::Suspended),
            Ok(Activity::Running | Activity::Broken) => Ok(RunState::Running),
            Err(error) => {
                // It has just begun, or is about to end.
                tracing::debug!(va = %self.record.name, %error, "the machine does not say what it does");
                Ok(RunState::Running)
            }
        }
    }

    pub fn observe(&self) -> Result<Observation, MachineError> {
        let state = self.run_state()?;
        let processes = self.machine.processes().at("read", self.machine.path())?;
        let (init, daemon, daemon_frozen, mount) = (None, Vec::new(), false, None);
        Ok(Observation { state, init, processes, daemon, daemon_frozen, mount, inside: true })
    }

    /// The socket that leads to the machine's console.
    pub fn console(&self) -> &Path {
        &self.sockets.console
    }

    fn control(&self, deadline: Instant) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.sockets.control, deadline)
    }

    pub fn stop(&self, patience: Duration) -> Result<(), MachineError> {
        if saved::exists(&self.directory) {
            return self.give_up(patience);
        }
        let state = self.run_state()?;
        let deadline = Instant::now() + patience;
        if state != RunState::Stopped && !patience.is_zero() {
            let asked = self.control(Instant::now() + ANSWER_DEADLINE).and_then(|mut qmp| {
                if state == RunState::Suspended {
                    qmp.call("cont", &json!({}))?;
                }
                qmp.ask_to_end()
            });
            match asked {
                Ok(()) => {
                    let ended = self.machine.wait_for(|events| !events.populated, deadline);
                    if !ended.at("wait for", self.machine.path())? {
                        tracing::warn!(va = %self.record.name, ?patience, "the machine did not end by itself and is killed");
                    }
                }
                Err(error) => {
                    tracing::warn!(va = %self.record.name, %error, "the machine cannot be asked to end and is killed");
                }
            }
        }
        self.clear()?;
        if state != RunState::Stopped {
            tracing::info!(va = %self.record.name, "machine stopped");
        }
        Ok(())
    }

    /// Removes whatever there is of a run. Works from any state, at once; what is saved to
    /// disk stays.
    pub fn clear(&self) -> Result<(), MachineError> {
        let ended = self.group.end(Instant::now() + KILL_DEADLINE);
        if !ended.at("end", self.group.path())? {
            let mut pids = Vec::new();
            for group in [&self.machine, &self.shares] {
                pids.extend(group.processes().at("read", group.path())?);
            }
            return Err(MachineError::Unkillable { name: self.record.name.clone(), pids });
        }
        // The groups and the directory above are shared: the last one removes them.
        for parent in self.group.path().ancestors().skip(1).take(2) {
            if Cgroup::at(parent.to_owned()).remove().is_err() {
                break;
            }
        }
        let Sockets { control, console, store, reports } = &self.sockets;
        for (removed, path) in [
            (fs::remove_file(control), control),
            (fs::remove_file(console), console),
            (fs::remove_file(store), store),
            (fs::remove_file(reports), reports),
            // Only QEMU saw what was in them.
            (fs::remove_dir(&self.own), &self.own),
            (fs::remove_dir(&self.own_reports), &self.own_reports),
        ] {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).at("remove", path);
                }
                Ok(()) | Err(_) => {}
            }
        }
        // So is their directory: who has a machine keeps it.
        let _others = self.sockets.control.parent().map(fs::remove_dir);
        saved::sweep(&self.directory)
    }
}
