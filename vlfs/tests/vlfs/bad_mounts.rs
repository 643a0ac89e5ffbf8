//! Mounts that cannot be: each is refused with what failed and a hint, nothing is
//! mounted, and no private directory is taken. And names at the limits.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::fixture::{Mount, PROGRAM, names, read};
use crate::store::{Va, mac};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Tries a mount that must be refused; returns what was said.
fn refused(what: &str, mount: &Mount, arguments: &[String]) -> String {
    let before = mount.private().exists();
    let done = Command::new(PROGRAM).arg("mount").args(arguments).output().expect("it runs");
    check_refusal(what, mount, &done);
    assert_eq!(mount.private().exists(), before, "{what}: a private directory was made");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn check_refusal(what: &str, mount: &Mount, done: &Output) {
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2), "{what}: {error}");
    assert!(error.starts_with("error: ") && error.contains("\nhint: "), "{what}: {error}");
    let table = read("/proc/self/mounts");
    let mounted = format!(" {} fuse.strata ", text(&mount.path("")).trim_end_matches('/'));
    assert!(!table.contains(&mounted), "{what}: it is mounted");
}

/// Names inside may have any bytes; what status, swaps and upgrades speak of may not.
#[test]
fn places_whose_path_is_no_text_are_refused() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    let (point, private) = (mount.path(""), mount.private());
    let odd = mount.directory.path().join(OsStr::from_bytes(b"odd\xff"));
    fs::create_dir(&odd).expect("made");
    for (layer, private, point) in
        [(&odd, &private, &point), (&layer, &odd, &point), (&layer, &private, &odd)]
    {
        let mut command = Command::new(PROGRAM);
        command.arg("mount").arg("--layer").arg(layer).arg("--private").arg(private).arg(point);
        let done = command.output().expect("it runs");
        check_refusal("a path that is no text", &mount, &done);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains("is no UTF-8") && error.contains("odd"), "{error}");
        assert_eq!(names(&odd), [""; 0]);
    }
    mount.mount(&[&layer]);
    let mut swap = Command::new(PROGRAM);
    let done = swap.arg("swap").arg(&point).arg("--layer").arg(&odd).output().expect("it runs");
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(2) && error.contains("is no UTF-8"), "{error}");
}

#[test]
fn nothing_is_left_in_a_directory_of_somebody_else() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    let foreign = mount.layer("foreign", &[("precious", "precious")]);
    let arguments =
        ["--layer", &text(&layer), "--private", &text(&foreign), &text(&mount.path(""))];
    let error = refused("a directory of somebody else", &mount, &arguments.map(str::to_owned));
    assert!(error.contains("holds other files"), "{error}");
    let arguments = ["--layer", &text(&layer), "--former", &text(&foreign), &text(&mount.path(""))];
    let error = refused("no former private layer", &mount, &arguments.map(str::to_owned));
    assert!(error.contains("is no private directory"), "{error}");
    assert_eq!(names(&foreign), ["precious"]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/a", "a")]);
    let (file, missing) = (layer.join("d/a"), layer.join("missing"));
    let (point, private) = (mount.path(""), mount.private());
    let inside = private.join("upper");
    let cases: [(&str, &Path, &Path, &Path, &str); 9] = [
        ("a missing layer", &missing, &private, &point, "missing"),
        ("a layer that is a file", &file, &private, &point, "d/a"),
        ("a missing mount point", &layer, &private, &missing, "missing"),
        ("a file as the mount point", &layer, &private, &file, "not a directory"),
        (
            "a private directory in the mount point",
            &layer,
            &point.join("p"),
            &point,
            "in the mount point",
        ),
        ("the mount point as the private directory", &layer, &point, &point, "in the mount point"),
        ("a layer that is the private directory", &layer, &layer, &point, "in the layer"),
        ("a private directory in a layer", &layer, &layer.join("p"), &point, "in the layer"),
        ("a file as the private directory", &layer, &file, &point, "d/a"),
    ];
    for (what, layer, private, point, said) in cases {
        let arguments = ["--layer", &text(layer), "--private", &text(private), &text(point)];
        let error = refused(what, &mount, &arguments.map(str::to_owned));
        assert!(error.contains(said), "{what}: {error}");
    }
    assert_eq!(names(&layer), ["d"], "a layer was written to");
    assert_eq!(names(&point), [""; 0]);
    fs::create_dir_all(&inside).expect("made");
    let arguments = ["--layer", &text(&inside), "--private", &text(&private), &text(&point)];
    let error = refused("a layer in the private directory", &mount, &arguments.map(str::to_owned));
    assert!(error.contains("is in the private directory"), "{error}");
}

/// What a mount refuses a swap refuses, and nothing is swapped.
#[test]
fn a_swap_to_places_that_hold_each_other_is_refused() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/a", "a")]);
    mount.mount(&[&layer]);
    let cases = [
        (mount.private().join("upper"), "is in the private directory"),
        (mount.directory.path().to_owned(), "is in the layer"),
        (mount.path("d"), "is in the mount itself"),
        (mount.path(""), "is in the mount itself"),
        (layer.join("missing"), "missing"),
    ];
    for (layer, expected) in cases {
        let done = mount.run(&["swap", &text(&mount.path("")), "--layer", &text(&layer)]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{}: {said}", layer.display());
        assert!(said.contains(expected) && said.contains("hint: "), "{said}");
        assert_eq!(names(mount.path("")), ["d"], "the layers are those of before");
    }
}

#[test]
fn a_store_that_is_missing_or_damaged_is_refused() {
    let va = Va::new();
    let mount = &va.mount;
    let arguments = |store: &Path| -> Vec<String> {
        let (mac, private) = (mac().to_string(), text(&mount.private()));
        let point = text(&mount.path(""));
        ["--va", &mac, "--store", &text(store), "--private", &private, &point]
            .map(str::to_owned)
            .to_vec()
    };
    let said = refused("a missing store", mount, &arguments(&va.store.root().join("missing")));
    assert!(said.contains("missing"), "{said}");
    let taken = |what: &str| {
        // An empty place for it may have been made by now, but it is nobody's.
        let private = mount.private();
        assert!(!private.join("owner").exists(), "{what}: the private directory was claimed");
        if private.exists() {
            fs::remove_dir_all(&private).expect("removed");
        }
    };
    let try_mount = |what: &str, said: &str| {
        let done = Command::new(PROGRAM).arg("mount").args(arguments(va.store.root())).output();
        let done = done.expect("it runs");
        check_refusal(what, mount, &done);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains(said), "{what}: {error}");
        taken(what);
    };
    try_mount("a VA without a generation", "no generation");
    let unit = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![unit.clone()]);
    let path = va.store.unit_path(&unit.repository, &unit.layer, &unit.version);
    let manifest = read(path.join("manifest"));
    for damage in ["", "garbage", &manifest.replace("644", "600"), &manifest[..manifest.len() / 2]]
    {
        fs::write(path.join("manifest"), damage).expect("damaged");
        try_mount("a damaged manifest", "library");
    }
    fs::write(path.join("manifest"), &manifest).expect("mended");
    fs::rename(&path, path.with_extension("gone")).expect("moved");
    try_mount("a missing layer", "library");
    fs::rename(path.with_extension("gone"), &path).expect("moved back");
    va.mount();
    assert_eq!(read(va.path("lib")), "one");
}

#[test]
fn only_root_mounts() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    // The program may lie where only root reads.
    let program = mount.directory.path().join("program");
    fs::copy(PROGRAM, &program).expect("copied");
    for path in [mount.directory.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let done = Command::new(&program)
        .args(["mount", "--layer", &text(&layer), "--private", &text(&mount.private())])
        .arg(mount.path(""))
        .uid(65534)
        .gid(65534)
        .output()
        .expect("it runs");
    check_refusal("a user", &mount, &done);
    assert!(String::from_utf8_lossy(&done.stderr).contains("root"));
}

/// A file system at a path, for as long as the test runs.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf, kind: &str, options: &str) -> Disk {
        fs::create_dir(&path).expect("made");
        let mount =
            Command::new("mount").args(["-t", kind, "-o", options, "none"]).arg(&path).status();
        assert!(mount.expect("mount runs").success());
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _output = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn disks_that_hold_no_private_directory_are_refused() {
    for (what, kind, options, said) in [
        ("a read-only disk", "tmpfs", "ro", "Read-only"),
        ("a full disk", "tmpfs", "nr_inodes=1", "No space"),
        ("a disk without extended attributes", "ramfs", "rw", "extended attributes"),
    ] {
        let mount = Mount::new();
        let layer = mount.layer("one", &[("a", "a")]);
        let disk = Disk::new(mount.private(), kind, options);
        let done = Command::new(PROGRAM)
            .args(["mount", "--layer", &text(&layer), "--private", &text(&disk.0)])
            .arg(mount.path(""))
            .output()
            .expect("it runs");
        check_refusal(what, &mount, &done);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(error.contains(said), "{what}: {error}");
    }
}

/// What a refused mount left is no hindrance once there is room.
#[test]
fn a_disk_that_was_full_is_taken_once_there_is_room() {
    for pages in 1..8 {
        let mount = Mount::new();
        let layer = mount.layer("one", &[("a", "a")]);
        let disk = Disk::new(mount.private(), "tmpfs", &format!("size={}k", 4 * pages));
        let try_mount = || {
            let mut command = Command::new(PROGRAM);
            command.args(["mount", "--layer", &text(&layer), "--private", &text(&disk.0)]);
            command.arg(mount.path("")).output().expect("it runs")
        };
        let first = try_mount();
        if first.status.success() {
            mount.unmount();
        }
        let room = Command::new("mount").args(["-o", "remount,size=4m"]).arg(&disk.0).status();
        assert!(room.expect("mount runs").success());
        let done = try_mount();
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "after {pages} pages: {error}");
        mount.unmount();
    }
}

/// As with `mount(8)`: what a mount covers is there again afterwards.
#[test]
fn a_mount_point_that_is_not_empty_is_covered() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    fs::write(mount.path("covered"), "still here").expect("written");
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["a"]);
    mount.unmount();
    assert_eq!(read(mount.path("covered")), "still here");
}

/// A log that whoever rules the private directory made a link of is not written to.
#[test]
fn a_log_that_is_a_link_is_refused() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    mount.unmount();
    let outside = mount.directory.path().join("outside");
    fs::write(&outside, "mine").expect("written");
    let log = mount.private().join("vlfs.log");
    fs::remove_file(&log).expect("removed");
    symlink(&outside, &log).expect("linked");
    let arguments = ["--layer", &text(&layer), "--private", &text(&mount.private())];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.push(text(&mount.path("")));
    refused("a log that is a link", &mount, &arguments);
    assert_eq!(read(&outside), "mine");
}

fn errno<T: std::fmt::Debug>(result: Result<T, Errno>) -> Errno {
    result.expect_err("refused")
}

#[test]
fn names_of_256_bytes_and_none_are_refused_everywhere() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/", "")]);
    mount.mount(&[&layer]);
    let (at, mode) = (|name: &str| mount.path(name), Mode::from_raw_mode(0o755));
    let long = mount.path(&"n".repeat(256));
    let flags = OFlags::CREATE | OFlags::WRONLY;
    assert_eq!(errno(rustix::fs::open(&long, flags, mode)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::stat(&long)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::mkdir(&long, mode)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::rename(at("a"), &long)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::link(at("a"), &long)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::symlink("a", &long)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::unlink(&long)), Errno::NAMETOOLONG);
    assert_eq!(errno(rustix::fs::rmdir(&long)), Errno::NAMETOOLONG);
    for name in [&[b'x'; 255][..], b"\xff\xfe", b"new\nline", b" "] {
        let path = mount.path("d").join(OsStr::from_bytes(name));
        fs::create_dir(&path).expect("made");
        fs::write(path.join(OsStr::from_bytes(name)), name).expect("written");
        let found = fs::read(path.join(OsStr::from_bytes(name))).expect("read");
        assert_eq!(found, name);
        fs::rename(&path, mount.path("moved")).expect("renamed");
        fs::remove_dir_all(mount.path("moved")).expect("removed");
    }
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["a", "d"]);
    assert!(names(mount.path("d")).is_empty());
}

/// 15 directories of 255 bytes, and a file: 4,095 bytes below the root.
#[test]
fn a_path_of_4095_bytes_works_in_a_layer_and_out_of_it() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    let name = "p".repeat(255);
    let last = "f".repeat(4095 - 15 * 256);
    let deepest = |root: &Path, make: bool| -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(root, flags, Mode::empty()).expect("opened");
        for _ in 0..15 {
            if make {
                rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).expect("made");
            }
            at = rustix::fs::openat(&at, &name, flags, Mode::empty()).expect("opened");
        }
        at
    };
    let flags = OFlags::CREATE | OFlags::RDWR;
    let file = |directory: &OwnedFd, flags| {
        rustix::fs::openat(directory, &last, flags, Mode::from_raw_mode(0o644))
    };
    let made = file(&deepest(&layer, true), flags).expect("made");
    rustix::io::write(&made, b"deep").expect("written");
    mount.mount(&[&layer]);
    let check = |content: &[u8]| {
        let mut buffer = [0; 16];
        let found = file(&deepest(&mount.path(""), false), OFlags::RDONLY).expect("opened");
        let length = rustix::io::read(&found, &mut buffer).expect("read");
        assert_eq!(&buffer[..length], content);
    };
    check(b"deep");
    let written = file(&deepest(&mount.path(""), false), OFlags::RDWR).expect("copied");
    rustix::io::write(&written, b"DEEPER").expect("written");
    drop(written);
    check(b"DEEPER");
    mount.unmount();
    mount.mount(&[&layer]);
    check(b"DEEPER");
    rustix::fs::unlinkat(deepest(&mount.path(""), false), &last, AtFlags::empty()).expect("gone");
    mount.unmount();
    mount.mount(&[&layer]);
    let gone = file(&deepest(&mount.path(""), false), OFlags::RDONLY);
    assert_eq!(errno(gone), Errno::NOENT);
    let target = "t".repeat(4095);
    rustix::fs::symlinkat(&target, CWD, mount.path("link")).expect("linked");
    assert_eq!(fs::read_link(mount.path("link")).expect("read").as_os_str().len(), 4095);
    assert_eq!(
        errno(rustix::fs::symlink(format!("{target}t"), mount.path("l"))),
        Errno::NAMETOOLONG
    );
}
