//! Copies of much data are given up when nobody waits for them any more, and leave nothing.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::fixture::{DEADLINE, Mount, wait_for};

/// So much that a copy takes longer than it takes to end a process.
const LENGTH: u64 = 384 << 20;

fn large_layer(mount: &Mount) -> std::path::PathBuf {
    let layer = mount.layer("one", &[("small", "small")]);
    let mut file = File::create(layer.join("large")).expect("made");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..LENGTH >> 20 {
        file.write_all(&block).expect("written");
    }
    layer
}

fn copied(mount: &Mount) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let work = fs::read_dir(mount.private().join("work")).into_iter().flatten().flatten();
    work.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).max().unwrap_or(0)
}

/// A process that waits in `open` for a copy of the file.
fn writer(mount: &Mount) -> Child {
    let append = format!("exec 3>>'{}'", mount.path("large").display());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &append]).stderr(Stdio::null()).spawn().expect("a shell")
}

fn nothing_is_left(mount: &Mount) {
    assert_eq!(fs::metadata(mount.path("large")).expect("there").len(), LENGTH);
    assert!(!mount.private().join("upper/large").exists());
    assert_eq!(copied(mount), 0, "nothing half-made keeps space");
}

#[test]
fn a_copy_ends_with_the_process_that_waits_for_it() {
    let mount = Mount::new();
    mount.mount(&[&large_layer(&mount)]);
    // A signal that the process lives on from is no reason: as on a disk.
    let stopped = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("trap : USR1; kill -USR1 $$ & exec 3>>'{}'", mount.path("large").display()))
        .status();
    assert!(stopped.expect("a shell").success());
    assert!(mount.private().join("upper/large").exists(), "it was copied whole");
    mount.revert("large");
    let start = std::time::Instant::now();
    loop {
        let mut child = writer(&mount);
        wait_for("the copy's begin", || {
            copied(&mount) > 0 || mount.private().join("upper/large").exists()
        });
        child.kill().expect("it runs, or has ended");
        child.wait().expect("it ends");
        if !mount.private().join("upper/large").exists() {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "each copy was done before the process could be ended");
        mount.revert("large");
    }
    wait_for("the copy's end", || copied(&mount) == 0);
    nothing_is_left(&mount);
    fs::write(mount.path("small"), "still writable").expect("written");
    File::options().append(true).open(mount.path("large")).expect("copied now");
    assert!(mount.private().join("upper/large").exists());
}

#[test]
fn a_copy_ends_with_its_mount() {
    let mount = Mount::new();
    let layer = large_layer(&mount);
    mount.mount(&[&layer]);
    let daemon = format!("/proc/{}/fd/0", mount.daemon());
    let mut child = writer(&mount);
    wait_for("the copy's begin", || {
        copied(&mount) > 0 || mount.private().join("upper/large").exists()
    });
    let done = Command::new("umount").arg("-lf").arg(mount.path("")).status();
    assert!(done.expect("umount runs").success());
    child.wait().expect("it ends");
    wait_for("the daemon's end", || !Path::new(&daemon).exists());
    mount.mount(&[&layer]);
    if !mount.private().join("upper/large").exists() {
        nothing_is_left(&mount);
    }
}
