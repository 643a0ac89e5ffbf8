//! What a test may leave behind on the machine: mounts and processes below its
//! directory, control groups of its store.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// What SIGKILL may take to end what is in control groups.
const GROUPS_END: Duration = Duration::from_secs(10);

/// Mount points at or below `root`, in the order they were mounted.
///
/// # Panics
/// `/proc` cannot be read.
pub fn mounts(root: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").expect("/proc is mounted");
    let lines = table.split(|b| *b == b'\n');
    let points = lines.filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    points.filter(|point| point.starts_with(root)).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

/// Processes that name `root` in their arguments, or stand in or below it: their
/// ids and command lines. This process is left out, and so are zombies.
///
/// # Panics
/// `/proc` cannot be read.
pub fn processes(root: &Path) -> Vec<(u32, String)> {
    let needle = root.as_os_str().as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends meanwhile has no command line any more, as a zombie has none.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let stands = ["cwd", "root"]
            .iter()
            .filter_map(|link| fs::read_link(entry.path().join(link)).ok())
            .any(|directory| directory.starts_with(root));
        let names = command.windows(needle.len()).any(|window| window == needle);
        if pid != std::process::id() && !command.is_empty() && (names || stands) {
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// Where the cgroup v2 hierarchy is mounted; `None` where it is not.
///
/// # Panics
/// `/proc` cannot be read.
pub fn cgroup_hierarchy() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields.get(2) == Some(&"cgroup2")).map(|f| PathBuf::from(f[1])).next()
}

/// Control groups of the VAs of the store at `store`, innermost first. They lie
/// below `strata/<device>-<inode of machines/>` of the cgroup v2 hierarchy.
///
/// # Panics
/// `/proc` cannot be read.
pub fn control_groups(store: &Path) -> Vec<PathBuf> {
    let stat = rustix::fs::stat(store.join("machines"));
    let (Some(hierarchy), Ok(stat)) = (cgroup_hierarchy(), stat) else {
        return Vec::new();
    };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let key = format!("{major}-{minor}-{}", stat.st_ino);
    let mut groups = Vec::new();
    let mut pending = vec![hierarchy.join("strata").join(key)];
    while let Some(group) = pending.pop() {
        for entry in fs::read_dir(&group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
        if group.is_dir() {
            groups.push(group);
        }
    }
    groups.reverse();
    groups
}

/// Whether a control group or one below it has a process.
pub fn populated(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Everything that is left of a workspace at `root` with its store below it.
pub fn everything(root: &Path) -> Vec<String> {
    let mounts = mounts(root).into_iter().map(|point| format!("mount {}", point.display()));
    let processes =
        processes(root).into_iter().map(|(pid, command)| format!("process {pid}: {command}"));
    let groups = control_groups(&root.join("store")).into_iter().filter(|group| populated(group));
    let groups = groups.map(|group| format!("processes in {}", group.display()));
    mounts.chain(processes).chain(groups).collect()
}

/// Ends every process and unmounts everything of a directory and of the VAs of the store
/// at `store`. A failure here can only be told: another panic would hide the first.
///
/// # Panics
/// `/proc` cannot be read.
pub fn clear(root: &Path, store: &Path) {
    for (pid, command) in processes(root) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::KILL)) {
            eprintln!("{command}: {error}");
        }
    }
    for point in mounts(root).into_iter().rev() {
        if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
            eprintln!("{}: {error}", point.display());
        }
    }
    let begin = Instant::now();
    while let Err(failures) = end_control_groups(store) {
        if begin.elapsed() > GROUPS_END {
            eprintln!("{failures}");
            break;
        }
        // Killed processes leave their group when they have ended.
        sleep(Duration::from_millis(5));
    }
}

/// Kills what is in the control groups and removes them, which is done where nothing failed:
/// the next store may be at the same inode, and would find them.
fn end_control_groups(store: &Path) -> Result<(), String> {
    let mut failures = Vec::new();
    for group in control_groups(store) {
        let killed = match populated(&group) {
            true => fs::write(group.join("cgroup.kill"), "1"),
            false => Ok(()),
        };
        if let Err(error) = killed.and_then(|()| fs::remove_dir(&group)) {
            failures.push(format!("{}: {error}", group.display()));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    use crate::wait_until;

    #[test]
    fn escapes_of_the_mount_table() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
    }

    #[test]
    fn a_process_left_behind_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(everything(directory.path()), [""; 0]);
        let mut child = Command::new("cat")
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat starts");
        // The kernel shows a new program's arguments a moment after it started.
        let named = [format!("process {}: cat ", child.id())];
        wait_until("the process is named", Duration::from_secs(10), || {
            everything(directory.path()) == named
        });
        child.kill().and_then(|()| child.wait()).expect("cat ends");
        assert_eq!(everything(directory.path()), [""; 0]);
    }

    #[test]
    fn control_groups_end_with_what_is_in_them() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (root, store) = (directory.path(), directory.path().join("store"));
        fs::create_dir_all(store.join("machines")).expect("made");
        let stat = rustix::fs::stat(store.join("machines")).expect("there");
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let group = cgroup_hierarchy()
            .expect("cgroup v2")
            .join(format!("strata/{major}-{minor}-{}/va-x/machine", stat.st_ino));
        fs::create_dir_all(&group).expect("made");
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("joined");
        assert!(everything(root).iter().any(|left| left.starts_with("processes in")));
        clear(root, &store);
        assert_eq!(control_groups(&store), [""; 0].map(PathBuf::from));
        assert!(!child.wait().expect("ended").success());
    }
}
