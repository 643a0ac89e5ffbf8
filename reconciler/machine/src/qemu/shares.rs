//! What of the host a machine sees, and how: the store, and the place of its report.
//!
//! Over **9p** QEMU itself shows them; what a machine has open of it cannot leave QEMU, so
//! such a machine is suspended in memory only. Over **virtiofs** a daemon a share does,
//! in the VA's control group and a sandbox of its own (mount, PID and network namespace,
//! few capabilities, a filter of system calls), and hands on what is open.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Context, MachineError};
use crate::mounts;

/// The first version that hands on what is open by the kernel's handles, and squashes owners.
const WANTED: (u32, u32) = (1, 13);
/// Whose a machine's report is on the host, whoever wrote it in the machine ("nobody").
const NOBODY: u32 = 65534;
/// The type of a mount of Strata.
const VLFS: &str = "fuse.strata";
/// No answer of the daemon to what it is called is longer, in bytes.
const VERSION_BYTES: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    #[serde(rename = "9p")]
    NinePea,
    #[serde(rename = "virtiofs")]
    Virtiofs,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// virtiofs where its daemon is installed, else 9p.
    #[default]
    Auto,
    Virtiofs,
    NinePea,
}

/// Chooses by what the daemon is, if there is one.
///
/// # Errors
/// virtiofs is wanted, and there is none that can do what is needed.
pub fn choose(choice: TransportChoice, daemon: Option<&Path>) -> Result<Transport, MachineError> {
    if choice == TransportChoice::NinePea {
        return Ok(Transport::NinePea);
    }
    match usable(daemon) {
        Ok(()) => Ok(Transport::Virtiofs),
        Err(reason) if choice == TransportChoice::Auto => {
            tracing::info!(%reason, "the machine sees the store over 9p");
            Ok(Transport::NinePea)
        }
        Err(reason) => Err(MachineError::NoVirtiofs(reason)),
    }
}

fn usable(daemon: Option<&Path>) -> Result<(), String> {
    let path = daemon.ok_or("it is not installed")?;
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", path.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said: String =
        said.lines().next().unwrap_or_default().chars().take(VERSION_BYTES).collect();
    match version(&said) {
        Some(version) if version >= WANTED => Ok(()),
        _ => Err(format!("{} is {said:?}", path.display())),
    }
}

/// `virtiofsd 1.14.0`. The former one, in C, calls itself `virtiofsd version 7.2.0`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("virtiofsd ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A share: a directory of the host, and who shows it.
pub struct Share<'a> {
    /// `strata-init`, which joins the control group and hides what is to be hidden.
    pub init: &'a Path,
    pub daemon: &'a Path,
    pub group: &'a Path,
    pub directory: &'a Path,
    /// Where QEMU reaches it.
    pub socket: &'a Path,
    pub log: &'a File,
}

impl Share<'_> {
    /// Shows the directory read-only, but for what is below it in `hidden`.
    ///
    /// # Errors
    /// The daemon cannot be run.
    pub fn show(&self, hidden: &[PathBuf]) -> Result<(), MachineError> {
        self.start(hidden, &["--readonly".to_owned(), "--modcaps=+dac_read_search".to_owned()])
    }

    /// Shows the directory to be written: everything in it is nobody's on the host, and
    /// devices and files with capabilities cannot be made.
    ///
    /// # Errors
    /// The daemon cannot be run.
    pub fn lend(&self) -> Result<(), MachineError> {
        std::os::unix::fs::chown(self.directory, Some(NOBODY), Some(NOBODY))
            .at("give away", self.directory)?;
        let all = u32::MAX;
        self.start(
            &[],
            &[
                "--modcaps=+dac_read_search:-mknod:-setfcap".to_owned(),
                format!("--translate-uid=squash-guest:0:{NOBODY}:{all}"),
                format!("--translate-gid=squash-guest:0:{NOBODY}:{all}"),
            ],
        )
    }

    fn start(&self, hidden: &[PathBuf], options: &[String]) -> Result<(), MachineError> {
        match fs::remove_file(self.socket) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.at("remove", self.socket)?,
        }
        // It listens before the daemon runs: QEMU, which waits for its answer, cannot come too early.
        let listener = UnixListener::bind(self.socket).at("listen on", self.socket)?;
        let mut command = concealing(self.init, self.group, &[], hidden)?;
        command.arg("--").arg(self.daemon).arg("--shared-dir").arg(self.directory);
        command.args(["--fd=0", "--sandbox=namespace", "--cache=auto", "--log-level=error"]);
        command.args(["--migration-mode=file-handles", "--migration-on-error=guest-error"]);
        command.args(options).stdin(Stdio::from(OwnedFd::from(listener))).process_group(0);
        let log = || self.log.try_clone().at("open", self.directory);
        command.stdout(log()?).stderr(log()?);
        // It ends when QEMU does, or with the control group.
        command.spawn().map(drop).at("run", self.init)
    }
}

/// `strata-init`, about to run a program (after `--`) in the control group `group` with a view
/// of the host of its own: what is `kept` (from, to) is seen elsewhere too, what is `hidden` is
/// not seen, and the file systems of VAs can end while the program runs.
///
/// # Errors
/// The mounts of this host cannot be read.
pub fn concealing(
    init: &Path,
    group: &Path,
    kept: &[(&Path, &Path)],
    hidden: &[PathBuf],
) -> Result<Command, MachineError> {
    let mounts = mounts::all().at("read", "/proc/self/mountinfo".as_ref())?;
    let mut command = Command::new(init);
    command.arg("conceal").arg(group);
    for (from, to) in kept {
        command.arg("keep").arg(from).arg(to);
    }
    for mount in mounts.iter().filter(|mount| mount.kind == VLFS && mount.point != Path::new("/")) {
        command.arg("release").arg(&mount.point);
    }
    for directory in hidden {
        command.arg("hide").arg(directory);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("virtiofsd 1.14.0"), Some((1, 14)));
        assert!(version("virtiofsd 1.13.2") >= Some(WANTED));
        assert!(version("virtiofsd 1.10.1") < Some(WANTED));
        assert_eq!(version("virtiofsd version 7.2.9 (Debian 1:7.2+dfsg-7)"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn the_transport_is_what_is_wanted_or_what_there_is() {
        // A program that is another one.
        let daemon = Path::new("/bin/echo");
        let chosen = |choice| choose(choice, Some(daemon)).map_err(|error| error.to_string());
        assert_eq!(chosen(TransportChoice::Auto), Ok(Transport::NinePea));
        assert_eq!(chosen(TransportChoice::NinePea), Ok(Transport::NinePea));
        let other = chosen(TransportChoice::Virtiofs).expect_err("another program");
        assert!(other.contains("/bin/echo is \"echo"), "{other}");
        assert_eq!(choose(TransportChoice::Auto, None).expect("chosen"), Transport::NinePea);
        let none = choose(TransportChoice::Virtiofs, None).expect_err("none").to_string();
        assert!(none.contains("it is not installed"), "{none}");
    }
}
