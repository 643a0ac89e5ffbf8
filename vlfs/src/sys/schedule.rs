//! How long a thread asks to run at a stretch (`sched_setattr(2)`).
//!
//! Since Linux 6.12 a thread that wakes takes the processor from one that asked for longer
//! stretches; before, nothing changes. What a thread gets in all stays its share.

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

/// The longest stretch that the kernel takes.
pub const LONGEST: Duration = Duration::from_millis(100);

/// Sets the stretch of the calling thread, which stays an ordinary one with its share.
///
/// # Errors
/// What `sched_setattr(2)` answers.
pub fn run_in_stretches(stretch: Duration) -> Result<(), Errno> {
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
    fn a_thread_may_ask_for_other_stretches_and_keeps_its_nice_value() {
        let before = rustix::process::getpriority_process(None).expect("known");
        run_in_stretches(Duration::from_micros(100)).expect("no privilege is needed");
        run_in_stretches(LONGEST).expect("no privilege is needed");
        assert_eq!(rustix::process::getpriority_process(None).expect("known"), before);
    }
}
