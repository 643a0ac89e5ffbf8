//! The system calls that no safe interface offers.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
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

/// Brings an interface of the caller's network up; the kernel gives `lo` its addresses
/// (netdevice(7)).
///
/// # Errors
/// The caller may not, or there is no such interface.
pub fn bring_up(interface: &str) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or(libc::c_short::MAX);
    interface_call(libc::SIOCSIFFLAGS, &mut request)
}

/// Gives an interface its IPv4 address.
///
/// # Errors
/// As netdevice(7).
pub fn set_address(interface: &str, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
    for (call, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, netmask)] {
        let mut request = interface_request(interface)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        interface_call(call, &mut request)?;
    }
    Ok(())
}

/// The IPv4 address of an interface, if it has one.
///
/// # Errors
/// As netdevice(7).
pub fn address_of(interface: &str) -> io::Result<Option<Ipv4Addr>> {
    let mut request = interface_request(interface)?;
    match interface_call(libc::SIOCGIFADDR, &mut request) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => {
            // SAFETY: the call has filled in an address, of the one family that it knows.
            let data = unsafe { request.ifr_ifru.ifru_addr.sa_data };
            let [_, _, a, b, c, d, ..] = data.map(|byte| byte.cast_unsigned());
            Ok(Some(Ipv4Addr::new(a, b, c, d)))
        }
    }
}

/// Sends what is for no network of the caller's own to a gateway. That it does so already is
/// no error.
///
/// # Errors
/// As netdevice(7); the gateway is on no network of the caller's own.
pub fn set_gateway(gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: an all-zero `rtentry` is a valid one: numbers and null pointers.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    let socket = control_socket()?;
    // SAFETY: the descriptor is a socket, and the structure, which the call only reads, is of
    // the type that the request has and lives through the call.
    let result = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCADDRT, &raw const route)
    };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        (_, error) => Err(error),
    }
}

fn control_socket() -> io::Result<std::os::fd::OwnedFd> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let family = rustix::net::AddressFamily::INET;
    Ok(rustix::net::socket_with(family, rustix::net::SocketType::DGRAM, flags, None)?)
}

/// A request for an interface, with nothing but its name.
fn interface_request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero `ifreq` is a valid one: numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A byte is left for the end.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn interface_call(call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: the descriptor is a socket, and the structure is of the type that all of these
    // requests have and lives through the call.
    let result = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), call, std::ptr::from_mut(request))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct sockaddr_in` as the `struct sockaddr` that requests have: a port, then the address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    let family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    libc::sockaddr { sa_family: family, sa_data: data }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_gets_an_address_and_a_gateway() {
        // A thread's own network, which ends with it.
        std::thread::spawn(|| {
            // SAFETY: the flags do not contain FILES: no descriptor changes.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
            assert_eq!(address_of("lo").expect("asked"), None);
            bring_up("lo").expect("up");
            assert_eq!(address_of("lo").expect("asked"), Some(Ipv4Addr::LOCALHOST));
            let address = Ipv4Addr::new(10, 77, 0, 9);
            set_address("lo", address, Ipv4Addr::new(255, 255, 255, 0)).expect("set");
            assert_eq!(address_of("lo").expect("asked"), Some(address));
            let beyond = set_gateway(Ipv4Addr::new(10, 78, 0, 1)).expect_err("not reached");
            assert_eq!(beyond.raw_os_error(), Some(libc::ENETUNREACH));
            let absent = bring_up("eth9").expect_err("absent");
            assert_eq!(absent.raw_os_error(), Some(libc::ENODEV));
            assert!(bring_up("a-name-that-is-too-long").is_err());
        })
        .join()
        .expect("no panic");
    }
}
