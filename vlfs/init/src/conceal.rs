//! Running a hypervisor with parts of the host hidden from it.
//!
//! A hypervisor that shows a machine a directory of the host shows all of it, to whoever
//! rules the machine. What the machine has no business with is covered, in a mount
//! namespace of the hypervisor's own, and what it needs of that is seen elsewhere.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::error::{Context, InitError};
use crate::{namespaces, system};

/// One step, in the order that was given.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// Shows a directory at another one, too.
    Keep { from: &'a Path, to: &'a Path },
    /// Covers a directory with an empty one.
    Hide(&'a Path),
    /// Lets go of a file system, which would not end before the hypervisor does.
    Release(&'a Path),
}

fn steps<'a>(mut words: &'a [&'a str]) -> Result<Vec<Step<'a>>, InitError> {
    let mut steps = Vec::new();
    loop {
        (steps, words) = match words {
            [] => return Ok(steps),
            ["keep", from, to, rest @ ..] => {
                steps.push(Step::Keep { from: Path::new(from), to: Path::new(to) });
                (steps, rest)
            }
            ["hide", directory, rest @ ..] => {
                steps.push(Step::Hide(Path::new(directory)));
                (steps, rest)
            }
            ["release", mount, rest @ ..] => {
                steps.push(Step::Release(Path::new(mount)));
                (steps, rest)
            }
            [other, ..] => {
                let reason = format!("{other:?} is neither keep nor hide nor release");
                return Err(InitError::Usage(reason));
            }
        };
    }
}

/// Joins the cgroup, hides what is to be hidden and becomes the program; returns only
/// on failure.
///
/// # Errors
/// A directory cannot be shown or covered, or the program not be run.
pub fn run(cgroup: &Path, words: &[&str], command: &[OsString]) -> Result<(), InitError> {
    let usage = || InitError::Usage("there is no program to run".to_owned());
    let (program, arguments) = command.split_first().ok_or_else(usage)?;
    let steps = steps(words)?;
    namespaces::join_cgroup(cgroup)?;
    system::unshare_mounts().context("make", "a mount namespace")?;
    // What the host unmounts from now on goes from here, too, where it shares its mounts.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("make a follower the mount", "/")?;
    for step in steps {
        match step {
            Step::Keep { from, to } => {
                rustix::mount::mount_bind(from, to).context("show", &from.to_string_lossy())?;
            }
            Step::Hide(directory) => {
                let flags = MountFlags::RDONLY
                    | MountFlags::NOSUID
                    | MountFlags::NODEV
                    | MountFlags::NOEXEC;
                rustix::mount::mount("hidden", directory, "tmpfs", flags, c"size=4k,mode=755")
                    .context("hide", &directory.to_string_lossy())?;
            }
            Step::Release(mount) => {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                match rustix::mount::unmount(mount, flags) {
                    // The host has unmounted it meanwhile.
                    Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                    released => released.context("release", &mount.to_string_lossy())?,
                }
            }
        }
    }
    let source = Command::new(program).args(arguments).exec();
    Err(InitError::Command { program: program.to_string_lossy().into_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_as_they_are_given() {
        let words = ["keep", "/a", "/b", "hide", "/a", "release", "/c"];
        let (a, b, c) = (Path::new("/a"), Path::new("/b"), Path::new("/c"));
        let expected = [Step::Keep { from: a, to: b }, Step::Hide(a), Step::Release(c)];
        assert_eq!(steps(&words).expect("understood"), expected);
        assert!(steps(&["keep", "/a"]).is_err());
        assert!(steps(&["show", "/a"]).is_err());
        assert_eq!(steps(&[]).expect("understood"), []);
    }
}
