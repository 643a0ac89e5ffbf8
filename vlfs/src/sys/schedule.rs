//! How long a thread may run at a stretch (`sched_setattr(2)`).

use std::time::Duration;

use rustix::io::Errno;

/// `struct sched_attr`, first version (`include/uapi/linux/sched/types.h`).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for short stretches for the calling thread, which stays an ordinary one with its
/// share. Since Linux 6.12 a thread of short stretches that wakes does not
/// wait for the end of a longer one of another; before, nothing changes.
///
/// # Errors
/// What `sched_setattr(2)` answers.
pub fn run_shortly(stretch: Duration) -> Result<(), Errno> {
    let mut attributes = Attributes {
        size: u32::try_from(size_of::<Attributes>()).expect("48 bytes"),
        // SCHED_OTHER.
        policy: 0,
        // SCHED_FLAG_KEEP_PARAMS would keep the old stretch, too: the nice value is read instead.
        flags: 0,
        nice: rustix::process::getpriority_process(None)?,
        priority: 0,
        runtime: u64::try_from(stretch.as_nanos()).unwrap_or(u64::MAX),
        deadline: 0,
        period: 0,
    };
    // SAFETY: the third argument points to a `struct sched_attr` of the size that it
    // tells, which lives through the call; the kernel only reads it, and 0 names this thread.
    let answered = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0_u32) };
    if answered == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_ask_for_short_stretches_and_keeps_its_nice_value() {
        let before = rustix::process::getpriority_process(None).expect("known");
        run_shortly(Duration::from_micros(100)).expect("no privilege is needed");
        assert_eq!(rustix::process::getpriority_process(None).expect("known"), before);
    }
}
