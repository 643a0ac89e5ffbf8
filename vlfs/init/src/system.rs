//! The system calls that no safe interface offers.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::thread::UnshareFlags;

/// Leaves the caller's namespaces for new ones: mounts, process ids (for the
/// next child), host name and System V IPC.
///
/// # Errors
/// As unshare(2).
pub fn unshare_namespaces() -> io::Result<()> {
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: the flags do not contain FILES, so that every descriptor stays
    // visible to all threads; and this program has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Leaves the caller's mount namespace for a copy of it.
///
/// # Errors
/// As unshare(2).
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: as above; the working directory is this thread's alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(io::Error::from)
}

/// Gives the caller's children process ids of their own.
///
/// # Errors
/// As unshare(2).
pub fn unshare_processes() -> io::Result<()> {
    // SAFETY: as above; it concerns children that are not there yet.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.map_err(io::Error::from)
}

/// Leaves the caller's network for one with nothing but a loopback interface.
///
/// # Errors
/// As unshare(2).
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: as above; a network namespace holds no descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Brings the loopback interface of the caller's network up; the kernel gives it
/// its addresses (netdevice(7)).
///
/// # Errors
/// The caller may not.
pub fn bring_loopback_up() -> io::Result<()> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let family = rustix::net::AddressFamily::INET;
    let socket = rustix::net::socket_with(family, rustix::net::SocketType::DGRAM, flags, None)?;
    // SAFETY: an all-zero `ifreq` is a valid one: numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or(libc::c_short::MAX);
    // SAFETY: the descriptor is a socket, and the structure, which the call only
    // reads, is of the type that the request has and lives through the call.
    let result = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forbids opening devices on the mount at the working directory and on all that is
/// mounted in it.
///
/// # Errors
/// As mount_setattr(2); the kernel is older than 5.12.
pub fn forbid_devices_here() -> io::Result<()> {
    /// `struct mount_attr` of mount_setattr(2).
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_ATTR_NODEV: u64 = 4;
    let attributes =
        MountAttributes { set: MOUNT_ATTR_NODEV, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is a C string, and the structure, whose size is given, lives
    // through the call, which only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c".".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps every descriptor but the three standard ones from programs started
/// later: whatever the caller's caller had open is the host's.
///
/// # Errors
/// As close_range(2); the kernel is older than 5.11.
pub fn keep_descriptors_from_children() -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed; only flags change.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals that are kept from their default action and waited for.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks the signals. Children inherit that: start them before.
    ///
    /// # Errors
    /// A number is no signal.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the whole set before it is read.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: `set` is initialised and lives through the call.
            if unsafe { libc::sigaddset(&mut set, *signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Signals(set))
    }

    /// The next of the signals, or `None` when `timeout` has passed first.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<i32> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialised, no siginfo is asked for, and the time-out
        // is null or points to a timespec that lives through the call.
        let signal = unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), timeout) };
        (signal > 0).then_some(signal)
    }
}

/// Lets a program start with no signal blocked, whatever is blocked here.
pub fn unblock_signals_in(command: &mut std::process::Command) {
    let unblock = || {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, which sigprocmask only reads; both
        // are async-signal-safe.
        let result = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes two async-signal-safe calls and
    // allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, unblock) };
}

extern "C" fn pass_over(_signal: libc::c_int) {}

/// Outlives what the terminal sends to its foreground group: the command that is
/// waited for decides. A handler, not `SIG_IGN`, which the command would inherit.
pub fn outlive_terminal_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the handler does nothing, which is async-signal-safe.
        unsafe { libc::signal(signal, pass_over as *const () as libc::sighandler_t) };
    }
}
