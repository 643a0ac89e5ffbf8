//! An appliance without a first program of its own: the services of its tree.
//!
//! They run in a PID namespace below this program, as in a VA without a hypervisor:
//! what tells all of them to end cannot reach the VLFS daemon. When they have ended
//! the file systems are put down in order and the machine is switched off.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::boot::error::BootError;
use crate::boot::switch::{self, Processes};
use crate::boot::{console, mounts, places};
use crate::error::{Context, InitError};
use crate::pid1::Appliance;
use crate::system::{self, Signals};
use crate::{boot, root};

/// The form of this program that is the first process of the appliance.
pub const FORM: &str = "boot-services";
/// What the VLFS daemon may take to end once nothing uses it.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
/// How often to look at what the kernel does not announce.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the appliance to its end and switches the machine off.
///
/// # Errors
/// The first process of the appliance cannot be started.
pub fn supervise(mut daemon: Child) -> Result<(), BootError> {
    // Ctrl-Alt-Del is how a machine is asked to end from outside: a signal, not a reset.
    rustix::system::reboot(RebootCommand::CadOff).context("take", "Ctrl-Alt-Del")?;
    system::unshare_processes().context("make", "the appliance's process ids")?;
    let mut first = Command::new(places::INIT);
    first.arg0("strata-init").arg(FORM).stdin(Stdio::null());
    let mut child = first.spawn().context("start", "the appliance's first process")?;
    // Only now: children inherit blocked signals.
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];
    let signals = Signals::block(&signals).context("block", "signals")?;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for", "the appliance")? {
            break status;
        }
        match signals.wait(None) {
            Some(libc::SIGCHLD) | None => {}
            Some(_) => {
                console("the machine is asked to end");
                rustix::process::kill_process(Pid::from_child(&child), Signal::TERM)
                    .context("tell to end", "the appliance")?;
            }
        }
    };
    console(&format!("the appliance has ended ({status})"));
    put_down(&mut daemon);
    boot::switch_off()
}

/// Unmounts the VLFS and then the disk below it. What fails is told: the disk has a
/// journal, and everything was flushed before.
fn put_down(daemon: &mut Child) {
    rustix::fs::sync();
    if let Err(error) = rustix::mount::unmount(places::ROOT, UnmountFlags::DETACH) {
        console(&format!("the VLFS stays mounted: {error}"));
    }
    let deadline = Instant::now() + DAEMON_PATIENCE;
    let ended = loop {
        match daemon.try_wait() {
            Ok(Some(_)) => break true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => break false,
        }
    };
    if !ended {
        console("the VLFS daemon has not ended");
    }
    if let Err(error) = mounts::take_away(places::DISK) {
        console(&error.to_string());
    }
}

/// Is the first process of the appliance.
pub fn first_process() -> ExitCode {
    match begin() {
        Ok(appliance) => appliance.run(),
        Err(error) => {
            console(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<Appliance, BootError> {
    rustix::process::setsid().context("start", "a session")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    switch::enter(Path::new(places::ROOT), Processes::Own)?;
    further_file_systems()?;
    if let Err(error) = system::bring_up("lo") {
        console(&format!("the loopback interface stays down: {error}"));
    }
    Ok(Appliance::start(&[])?)
}

/// What a service manager would mount.
fn further_file_systems() -> Result<(), InitError> {
    let private = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("devpts", "/dev/pts", private, c"ptmxmode=0666,mode=620,gid=5"),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777"),
    ] {
        root::directory(Path::new(target), 0o755)?;
        rustix::mount::mount(kind, target, kind, flags, options).context("mount", target)?;
    }
    root::directory(Path::new("/run/lock"), 0o1777)
}
