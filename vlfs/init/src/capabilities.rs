//! What root of a VA may do.
//!
//! A namespace VA has no hypervisor between it and the host and shares the
//! host's network, so its root keeps what appliances need on their own files and
//! processes, and loses what acts on the host: mounting, devices, modules, the
//! clock, the network's configuration, opening files by handle.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Context, InitError};

fn kept() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::SETFCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::NET_RAW
        | CapabilitySet::IPC_LOCK
        | CapabilitySet::IPC_OWNER
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::SYS_PTRACE
        | CapabilitySet::SYS_NICE
        | CapabilitySet::SYS_RESOURCE
        | CapabilitySet::LEASE
        | CapabilitySet::AUDIT_WRITE
}

/// Gives up all but the kept capabilities, for the caller (root of the VA may
/// trace it) and for all that it starts.
///
/// # Errors
/// The caller is not root.
pub fn limit() -> Result<(), InitError> {
    let kept = kept();
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .context("read", "/proc/sys/kernel/cap_last_cap")?;
    let last: u32 = last.trim().parse().unwrap_or(63);
    for number in 0..=last.min(63) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(capability) {
            rustix::thread::remove_capability_from_bounding_set(capability)
                .context("give up the capability", &number.to_string())?;
        }
    }
    rustix::thread::clear_ambient_capability_set().context("give up", "ambient capabilities")?;
    // A host that is a container itself may have less to give.
    let own = rustix::thread::capabilities(None).context("read", "capabilities")?;
    let kept = kept & own.permitted;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).context("give up", "capabilities")
}
