//! A private layer on a disk that is full: the right errno, and nothing lost.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixture::{Mount, names, read};

/// A small disk at a path, for as long as the test runs.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn new(path: PathBuf, options: &str) -> SmallDisk {
        fs::create_dir(&path).expect("made");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .status()
            .expect("mount runs");
        assert!(done.success());
        SmallDisk(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _output = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("refused").raw_os_error()
}

fn append(path: impl AsRef<Path>) -> std::io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"more")
}

const ENOSPC: Option<i32> = Some(28);

#[test]
fn a_copy_that_does_not_fit_leaves_nothing_behind() {
    let mount = Mount::new();
    let big = "x".repeat(3 << 20);
    let layer = mount.layer("one", &[("big", &big), ("d/big", &big), ("d/small", "s"), ("f", "f")]);
    let _disk = SmallDisk::new(mount.private(), "size=2M");
    mount.mount(&[&layer]);
    for _ in 0..3 {
        assert_eq!(errno(append(mount.path("big"))), ENOSPC);
    }
    assert_eq!(names(mount.private().join("work")), [""; 0]);
    assert_eq!(read(mount.path("big")).len(), big.len());
    // What needs no data fits; what needs it then does not, and gives back the space.
    fs::rename(mount.path("d"), mount.path("e")).expect("names alone");
    fs::rename(mount.path("e"), mount.path("d")).expect("names alone");
    for _ in 0..3 {
        assert_eq!(errno(append(mount.path("d/big"))), ENOSPC);
        assert_eq!(read(mount.path("d/big")), big);
    }
    assert_eq!(names(mount.path("d")), ["big", "small"]);
    // What was refused holds no space: there is room for what fits.
    fs::write(mount.path("new"), "y".repeat(1 << 20)).expect("fits");
    append(mount.path("f")).expect("fits");
    fs::remove_file(mount.path("d/small")).expect("removed");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path("f")), "fmore");
    assert_eq!(names(mount.path("")), ["big", "d", "f", "new"]);
    mount.unmount();
}

#[test]
fn a_copy_of_hard_links_that_does_not_fit_changes_no_name() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("n00", "linked"), ("free", "")]);
    for name in 1..40 {
        fs::hard_link(layer.join("n00"), layer.join(format!("n{name:02}"))).expect("linked");
    }
    // Each name takes one of the disk's inodes, as tmpfs counts them.
    let _disk = SmallDisk::new(mount.private(), "nr_inodes=24");
    mount.mount(&[&layer]);
    let before = fs::metadata(mount.path("n00")).expect("described").ino();
    for _ in 0..2 {
        assert_eq!(errno(append(mount.path("n07"))), ENOSPC);
    }
    for name in 0..40 {
        let path = mount.path(&format!("n{name:02}"));
        let meta = fs::metadata(&path).expect("described");
        assert_eq!((meta.ino(), meta.nlink()), (before, 40), "{}", path.display());
        assert_eq!(read(&path), "linked");
    }
    assert_eq!(names(mount.private().join("upper")), [""; 0]);
    assert_eq!(names(mount.private().join("work")), [""; 0]);
    assert_eq!(names(mount.private().join("journal")), [""; 0]);
    mount.unmount();
}

/// A rename over a layer's file writes a white-out last, which may not fit.
#[test]
fn regression_a_rename_that_is_refused_has_not_happened() {
    for whiteouts in [false, true] {
        let mount = Mount::new();
        let layer = mount.layer("one", &[("d/f", "old"), ("d/gone", "")]);
        let disk = SmallDisk::new(mount.private(), "nr_inodes=64");
        mount.mount(&[&layer]);
        fs::write(mount.path("d/f.tmp"), "new").expect("written");
        if whiteouts {
            // The white-outs' directory is there already.
            fs::remove_file(mount.path("d/gone")).expect("removed");
        }
        let mut fill = (0..64).map(|n| fs::write(disk.0.join(format!("fill{n}")), ""));
        assert_eq!(fill.find_map(Result::err).expect("full").raw_os_error(), ENOSPC);
        let renamed = fs::rename(mount.path("d/f.tmp"), mount.path("d/f"));
        assert_eq!(renamed.is_ok(), whiteouts, "{renamed:?}");
        for _ in 0..2 {
            if renamed.is_ok() {
                assert_eq!(read(mount.path("d/f")), "new");
                assert!(!mount.path("d/f.tmp").exists());
            } else {
                assert_eq!(read(mount.path("d/f")), "old");
                assert_eq!(read(mount.path("d/f.tmp")), "new");
            }
            for entry in names(&disk.0).iter().filter(|entry| entry.starts_with("fill")) {
                fs::remove_file(disk.0.join(entry)).expect("removed");
            }
            mount.unmount();
            mount.mount(&[&layer]);
        }
    }
}

/// The log is on the same disk.
#[test]
fn a_full_log_ends_nothing() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("gone", "gone"), ("f", "text")]);
    let disk = SmallDisk::new(mount.private(), "size=256k");
    mount.mount(&[&layer]);
    let fill = fs::write(disk.0.join("fill"), vec![0; 1 << 20]);
    assert_eq!(errno(fill), ENOSPC);
    fs::remove_file(layer.join("gone")).expect("behind the mount");
    let log = || fs::metadata(disk.0.join("vlfs.log")).expect("there").len();
    // Each is logged, until the log's last page is full and beyond.
    let mut before = 0;
    while before != log() {
        before = log();
        for _ in 0..50 {
            assert_eq!(errno(fs::read(mount.path("gone"))), Some(5));
        }
    }
    assert_eq!(read(mount.path("f")), "text");
    assert_eq!(errno(fs::write(mount.path("new"), "does not fit")), ENOSPC);
    fs::remove_file(disk.0.join("fill")).expect("removed");
    fs::write(mount.path("new"), "fits").expect("written");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path("new")), "fits");
}

#[test]
fn a_mount_that_does_not_fit_says_so() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text")]);
    let place = mount.directory.path().join("disk");
    let disk = SmallDisk::new(place, "size=64k");
    assert_eq!(errno(fs::write(disk.0.join("fill"), vec![0; 1 << 20])), ENOSPC);
    let [layer, private, point] =
        [layer, disk.0.join("private"), mount.path("")].map(|path| path.display().to_string());
    let done = mount.run(&["mount", "--layer", &layer, "--private", &private, &point]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains("No space left") && said.contains("hint: "), "{said}");
}
