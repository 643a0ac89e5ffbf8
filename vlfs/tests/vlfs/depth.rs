//! Trees that are deeper than any stack: nothing that anybody makes ends the daemon.
//!
//! The daemon is a process of its own, whose end a test survives and sees.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::fixture::{Mount, names, read};

/// Levels; each thread has 2 MiB of stack.
const DEEP: usize = 20_000;

fn open(directory: &OwnedFd, name: &str) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).expect("opened")
}

/// Makes directories below each other, named `d`. Returns the lowest.
fn make(top: &Path, levels: usize) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = rustix::fs::openat(CWD, top, flags, Mode::empty()).expect("opened");
    for _ in 0..levels {
        rustix::fs::mkdirat(&directory, "d", Mode::from_raw_mode(0o755)).expect("made");
        directory = open(&directory, "d");
    }
    directory
}

fn write(directory: &OwnedFd, name: &str) {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644));
    rustix::io::write(file.expect("made"), b"deep").expect("written");
    let nothing = rustix::fs::AtFlags::empty();
    assert_eq!(rustix::fs::statat(directory, name, nothing).expect("described").st_size, 4);
}

/// Removes what is too deep for the test's own temporary directory to be removed.
struct Deep {
    mounted: PathBuf,
    private: PathBuf,
}

impl Drop for Deep {
    fn drop(&mut self) {
        let _gone_already = Command::new("umount").arg("-l").arg(&self.mounted).output();
        for part in ["work", "whiteouts", "upper"] {
            let _tried = Command::new("rm").arg("-rf").arg(self.private.join(part)).status();
        }
    }
}

#[test]
fn a_tree_deeper_than_a_stack_is_renamed_used_and_removed() {
    let mount = Mount::new();
    let _removed_first = Deep { mounted: mount.path(""), private: mount.private() };
    let layer = mount.layer("one", &[("layer/a", "a"), ("layer/sub/b", "b")]);
    mount.mount(&[&layer]);
    let daemon = mount.daemon();
    fs::create_dir(mount.path("top")).expect("made");
    let lowest = make(&mount.path("top"), DEEP);
    // The rename walks what it moves, and afterwards every place is looked for again.
    fs::rename(mount.path("top"), mount.path("moved")).expect("renamed");
    write(&lowest, "first");
    fs::rename(mount.path("layer"), mount.path("renamed")).expect("renamed");
    write(&lowest, "second");
    assert_eq!(read(mount.path("renamed/sub/b")), "b");
    mount.swap(&[&mount.layer("two", &[("c", "c")]), &layer]);
    write(&lowest, "third");
    let mount_point = mount.path("").display().to_string();
    let done = mount.run(&["revert", "-r", &mount_point]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(mount.path("")), ["c", "layer", "moved", "renamed"]);
    write(&lowest, "fourth");
    // By an attribute of a directory of its own, the path is put together, too.
    let in_it = std::path::PathBuf::from(format!("/proc/self/fd/{}", lowest.as_raw_fd()));
    let nothing = rustix::fs::XattrFlags::empty();
    let refused = rustix::fs::setxattr(&in_it, "trusted.strata.revert", b"first", nothing);
    assert_eq!(refused, Err(rustix::io::Errno::NODATA), "no layer has it");
    drop(lowest);
    let removed = Command::new("rm").arg("-rf").arg(mount.path("moved")).status().expect("rm runs");
    assert!(removed.success());
    assert_eq!(mount.daemon(), daemon, "the same process");
    mount.unmount();
}

/// What a crash or somebody else left behind may be as deep.
#[test]
fn a_private_directory_with_trees_deeper_than_a_stack_is_mounted() {
    let mount = Mount::new();
    let _removed_first = Deep { mounted: mount.path(""), private: mount.private() };
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    mount.unmount();
    for place in ["work", "whiteouts/main/unit_1", "upper/deep"] {
        let top = mount.private().join(place);
        fs::create_dir_all(&top).expect("made");
        let lowest = make(&top, DEEP);
        rustix::fs::mknodat(&lowest, "file", FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            .expect("made");
    }
    // A loan without a name in `upper/`: all of that is looked through.
    let lost = mount.private().join("borrowed/main/unit_1");
    fs::create_dir_all(&lost).expect("made");
    fs::write(lost.join("1-0"), "").expect("written");
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["a", "deep"]);
    assert_eq!(read(mount.path("a")), "a");
    assert_eq!(names(mount.private().join("work")), [""; 0]);
    assert!(!mount.private().join("whiteouts/main/unit_1").exists(), "the unit is in no set");
    mount.unmount();
}
