//! What a program sees of a mounted union.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::fixture::{Mount, ino, names, read};

/// `trusted.strata.revert` would be a plain attribute there.
#[test]
fn revert_outside_a_mount_is_refused_and_changes_nothing() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text")]);
    let done = mount.run(&["revert", &layer.join("f").display().to_string()]);
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stdout));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("is in no mount of strata-vlfs") && said.contains("hint: "), "{said}");
    let mut value = [0_u8; 16];
    assert!(rustix::fs::getxattr(&layer, "trusted.strata.revert", &mut value).is_err());
}

#[test]
fn a_refused_mount_takes_no_private_directory() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text")]);
    strata_store::Store::init(&mount.directory.path().join("store")).expect("made");
    let [store, private, point] = ["store", "private", "mnt"]
        .map(|name| mount.directory.path().join(name).display().to_string());
    let mac = "52:54:00:12:34:56";
    let refused =
        mount.run(&["mount", "--store", &store, "--va", mac, "--private", &private, &point]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no generation for the VA") && said.contains("hint: "), "{said}");
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path("f")), "text");
}

#[test]
fn identity_is_kept_by_copy_up_rename_and_remount() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text"), ("d/g", "g"), ("kept", "kept")]);
    mount.mount(&[&layer]);
    let (file, directory, kept) =
        (ino(mount.path("f")), ino(mount.path("d")), ino(mount.path("kept")));
    fs::OpenOptions::new()
        .append(true)
        .open(mount.path("f"))
        .expect("opened")
        .write_all(b"+")
        .expect("written");
    assert_eq!(ino(mount.path("f")), file, "after copy-up");
    fs::rename(mount.path("f"), mount.path("moved")).expect("renamed");
    fs::rename(mount.path("d"), mount.path("e")).expect("a directory of a layer renames");
    assert_eq!((ino(mount.path("moved")), ino(mount.path("e"))), (file, directory), "after rename");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(
        (ino(mount.path("moved")), ino(mount.path("e"))),
        (file, directory),
        "after remount"
    );
    assert_eq!(ino(mount.path("kept")), kept);
    for entry in fs::read_dir(mount.path("")).expect("listed") {
        let entry = entry.expect("an entry");
        let listed = std::os::unix::fs::DirEntryExt::ino(&entry);
        assert_eq!(listed, ino(entry.path()), "d_ino of {:?}", entry.file_name());
    }
}

#[test]
fn copy_up_while_the_original_is_open_through_the_kernel() {
    let mount = Mount::new();
    let original = "original".repeat(20_000);
    let layer = mount.layer("one", &[("f", &original)]);
    mount.mount(&[&layer]);
    let mut reader = fs::File::open(mount.path("f")).expect("opened");
    let before = ino(mount.path("f"));
    fs::write(mount.path("f"), "changed").expect("a write opens while readers read");
    assert_eq!(read(mount.path("f")), "changed");
    assert_eq!(ino(mount.path("f")), before);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, original, "a reader through the kernel keeps the old bytes");
    fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(0o600)).expect("changed");
    assert_eq!(reader.metadata().expect("described").mode() & 0o777, 0o600);
}

#[test]
fn hard_links_of_a_layer_stay_one_file() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "text"), ("d/", "")]);
    fs::hard_link(layer.join("a"), layer.join("d/b")).expect("linked");
    mount.mount(&[&layer]);
    assert_eq!(fs::metadata(mount.path("a")).expect("described").nlink(), 2);
    fs::write(mount.path("d/b"), "changed").expect("written");
    assert_eq!(read(mount.path("a")), "changed");
    assert_eq!(ino(mount.path("a")), ino(mount.path("d/b")));
    fs::remove_file(mount.path("a")).expect("removed");
    assert_eq!(fs::metadata(mount.path("d/b")).expect("described").nlink(), 1);
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["d"]);
    assert_eq!(read(mount.path("d/b")), "changed");
}

#[test]
fn odd_names_are_kept() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    let long = "n".repeat(255);
    let foreign = OsStr::from_bytes(b"not \xff utf\n8");
    fs::write(layer.join(&long), "long").expect("written");
    fs::write(layer.join(foreign), "foreign").expect("written");
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path(&long)), "long");
    assert_eq!(read(mount.path("").join(foreign)), "foreign");
    let too_long = fs::write(mount.path(&"n".repeat(256)), "").expect_err("too long");
    assert_eq!(too_long.raw_os_error(), Some(36));
    fs::remove_file(mount.path(&long)).expect("a white-out of 255 bytes");
    fs::rename(mount.path("").join(foreign), mount.path("plain")).expect("renamed");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["plain"]);
    mount.revert(&long);
    assert_eq!(read(mount.path(&long)), "long");
}

#[test]
fn trees_of_the_layers_rename() {
    let mount = Mount::new();
    let low = mount.layer("low", &[("d/a", "a"), ("d/e/b", "b"), ("x/", "")]);
    let top = mount.layer("top", &[("d/c", "c")]);
    mount.mount(&[&top, &low]);
    fs::remove_file(mount.path("d/a")).expect("removed");
    fs::rename(mount.path("d"), mount.path("x/moved")).expect("no EXDEV");
    assert_eq!(names(mount.path("x/moved")), ["c", "e"]);
    assert_eq!(read(mount.path("x/moved/e/b")), "b");
    assert!(!mount.path("d").exists());
    fs::create_dir(mount.path("d")).expect("made");
    assert!(names(mount.path("d")).is_empty(), "a new directory shows nothing of the layers");
    mount.unmount();
    mount.mount(&[&top, &low]);
    assert!(names(mount.path("d")).is_empty());
    assert_eq!(read(mount.path("x/moved/c")), "c");
}

#[test]
fn rename_exchanges_and_refuses_to_replace() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    let (a, d) = (mount.path("a"), mount.path("d"));
    let refused = renameat_with(CWD, &a, CWD, &d, RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    renameat_with(CWD, &a, CWD, &d, RenameFlags::EXCHANGE).expect("exchanged");
    assert_eq!(read(&d), "a");
    assert_eq!(read(a.join("b")), "b");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(read(&d), "a");
    assert_eq!(names(&a), ["b"]);
}

#[test]
fn a_former_private_directory_is_a_layer() {
    let first = Mount::new();
    let base = first.layer("base", &[("gone", "x"), ("d/gone", "x"), ("kept", "x"), ("e", "x")]);
    first.mount(&[&base]);
    fs::remove_file(first.path("gone")).expect("removed");
    fs::remove_dir_all(first.path("d")).expect("removed");
    fs::write(first.path("e"), "changed").expect("written");
    fs::write(first.path("added"), "added").expect("written");
    first.unmount();
    let second = Mount::new();
    let other = second.layer("other", &[("gone", "y"), ("d/gone", "y"), ("f", "y")]);
    second.mount(&[&first.private(), &other, &base]);
    assert_eq!(names(second.path("")), ["added", "e", "f", "kept"]);
    assert_eq!(read(second.path("e")), "changed");
}

#[test]
fn a_killed_daemon_loses_nothing() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("b", "b")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("a"), "changed").expect("written");
    fs::remove_file(mount.path("b")).expect("removed");
    let daemon = i32::try_from(mount.daemon()).expect("a process id");
    let daemon = rustix::process::Pid::from_raw(daemon).expect("not zero");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).expect("killed");
    crate::fixture::wait_for("errors instead of a hang", || fs::metadata(mount.path("a")).is_err());
    assert!(Command::new("umount").arg("-l").arg(mount.path("")).status().expect("run").success());
    mount.mount(&[&layer]);
    assert_eq!(names(mount.path("")), ["a"]);
    assert_eq!(read(mount.path("a")), "changed");
}

#[test]
fn one_mount_a_private_directory() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let other = tempfile::tempdir().expect("made");
    let text = |path: &std::path::Path| path.display().to_string();
    let done = mount.run(&[
        "mount",
        "--private",
        &text(&mount.private()),
        "--layer",
        &text(&layer),
        &text(other.path()),
    ]);
    assert_eq!(done.status.code(), Some(2));
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(error.contains("in use by another mount") && error.contains("hint:"), "{error}");
}

#[test]
fn programs_run_and_all_attributes_work() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("text", "text"), ("link-target", "t")]);
    fs::copy("/bin/true", layer.join("program")).expect("copied");
    fs::set_permissions(layer.join("program"), fs::Permissions::from_mode(0o755)).expect("set");
    mount.mount(&[&layer]);
    assert!(Command::new(mount.path("program")).status().expect("started").success());
    std::os::unix::fs::chown(mount.path("text"), Some(12), Some(34)).expect("changed");
    let meta = fs::metadata(mount.path("text")).expect("described");
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mount.path("text"), "user.mine", b"value", none).expect("set");
    let mut value = [0; 16];
    let length =
        rustix::fs::getxattr(mount.path("text"), "user.mine", &mut value[..]).expect("got");
    assert_eq!(&value[..length], b"value");
    let mut list = [0_u8; 256];
    let length = rustix::fs::listxattr(mount.path("text"), &mut list[..]).expect("listed");
    assert_eq!(&list[..length], b"user.mine\0", "nothing of Strata's own");
    let made = Command::new("mknod").arg(mount.path("zero")).args(["c", "0", "0"]).status();
    assert!(made.expect("run").success(), "device 0:0 is a device like any other");
    assert_eq!(mount.diff(), ["a text", "A zero"]);
}

#[test]
fn an_open_file_outlives_its_name() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("lower", "lower")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("upper"), "upper").expect("written");
    for name in ["lower", "upper"] {
        let mut file = OpenOptions::new()
            .read(true)
            .write(name == "upper")
            .open(mount.path(name))
            .expect("opened");
        fs::remove_file(mount.path(name)).expect("removed");
        assert_eq!(file.metadata().expect("described").nlink(), 0, "{name}");
        let mut text = String::new();
        file.rewind().expect("rewound");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, name);
    }
    fs::write(mount.path("lower"), "again").expect("made again");
    assert_eq!(read(mount.path("lower")), "again");
}

#[test]
fn diff_tells_what_changed_without_the_mount() {
    let mount = Mount::new();
    let layer = mount.layer(
        "one",
        &[("mode", "x"), ("data", "x"), ("gone", "x"), ("moved", "x"), ("over", "x")],
    );
    mount.mount(&[&layer]);
    fs::set_permissions(mount.path("mode"), fs::Permissions::from_mode(0o600)).expect("set");
    fs::write(mount.path("data"), "other").expect("written");
    fs::remove_file(mount.path("gone")).expect("removed");
    fs::rename(mount.path("moved"), mount.path("here")).expect("renamed");
    fs::write(mount.path("new"), "new").expect("written");
    fs::rename(mount.path("new"), mount.path("over")).expect("renamed over");
    mount.unmount();
    let expected = ["M data", "D gone", "A here (was moved)", "a mode", "D moved", "M over"];
    assert_eq!(mount.diff(), expected);
}

#[test]
fn real_programs_work() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let script = "set -e
        cp -a /usr/share/doc ./doc && diff -r --no-dereference /usr/share/doc doc
        git init -q repo && cd repo && cp -r /usr/include/linux . && git add . && git status >/dev/null
        tar cf - linux | (mkdir ../out && tar xf - -C ../out) && diff -r linux ../out/linux
        echo 'int main(){return 0;}' >t.c && cc t.c -o t && ./t
        cd .. && rm -rf doc repo out && test \"$(ls)\" = a";
    let done =
        Command::new("sh").arg("-c").arg(script).current_dir(mount.path("")).output().expect("run");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn link_counts_of_directories_follow_what_is_made_and_removed() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/a/", ""), ("d/b/", ""), ("d/c/x", ""), ("d/f", "f")]);
    mount.mount(&[&layer]);
    let links = || fs::metadata(mount.path("d")).expect("described").nlink();
    let mut expected = vec![links()];
    let steps: [&dyn Fn(); 8] = [
        &|| fs::create_dir(mount.path("d/new")).expect("made"),
        &|| fs::write(mount.path("d/file"), "").expect("written"),
        &|| fs::write(mount.path("d/a/file"), "").expect("written"),
        &|| fs::remove_dir(mount.path("d/b")).expect("removed"),
        &|| fs::create_dir(mount.path("d/b")).expect("made"),
        &|| fs::rename(mount.path("d/c"), mount.path("d/renamed")).expect("renamed"),
        &|| fs::remove_dir(mount.path("d/new")).expect("removed"),
        &|| fs::remove_file(mount.path("d/f")).expect("removed"),
    ];
    for step in steps {
        step();
        expected.push(links());
    }
    assert_eq!(expected, [5, 6, 6, 6, 5, 6, 6, 5, 5]);
}

#[test]
fn the_work_of_a_change_does_not_grow_with_the_directory() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/sub/", ""), ("d/f", "")]);
    mount.mount(&[&layer]);
    let daemon = mount.daemon();
    // Nanoseconds that the daemon's threads have run.
    let spent = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).expect("listed");
        tasks
            .map(|task| read(task.expect("a thread").path().join("schedstat")))
            .map(|text| text.split(' ').next().expect("a field").parse::<u64>().expect("a number"))
            .sum()
    };
    fs::create_dir(mount.path("d/own")).expect("made");
    let make = |range: std::ops::Range<u32>| {
        let start = spent();
        for i in range {
            fs::write(mount.path(&format!("d/n{i}")), "").expect("written");
        }
        spent() - start
    };
    let first = make(0..500);
    make(500..3000);
    let last = make(3000..3500);
    assert!(
        last < 4 * first,
        "500 files: {first} ns in an empty directory, {last} ns in a full one"
    );
}

#[test]
fn what_a_directory_hands_down_follows_its_attributes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mount = Mount::new();
    mount.mount(&[&mount.layer("a", &[("d/", "")])]);
    let directory = mount.path("d");
    let mode = |name: &str| {
        let path = directory.join(name);
        std::fs::write(&path, "x").expect("written");
        path.metadata().expect("described").mode() & 0o777
    };
    let before = mode("before");
    assert_eq!(before & 0o077, mode("again") & 0o077, "the umask decides");
    // u::rwx, g::-, o::-
    let entry = |tag: u16, bits: u16| [tag.to_le_bytes(), bits.to_le_bytes(), [0xff; 2], [0xff; 2]];
    let entries = [entry(1, 7), entry(4, 0), entry(0x20, 0)].concat().concat();
    let acl = [&2_u32.to_le_bytes()[..], &entries].concat();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&directory, "system.posix_acl_default", &acl, none).expect("set");
    assert_eq!(mode("private"), 0o600, "the default ACL decides");
    rustix::fs::removexattr(&directory, "system.posix_acl_default").expect("removed");
    assert_eq!(mode("public"), before);
    std::os::unix::fs::chown(&directory, None, Some(1234)).expect("changed");
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o2755)).expect("changed");
    mode("grouped");
    let gid = |name: &str| directory.join(name).metadata().expect("described").gid();
    assert_eq!((gid("public"), gid("grouped")), (0, 1234));
}

#[test]
fn a_capability_of_a_new_file_is_shown_and_goes_with_a_write() {
    let mount = Mount::new();
    mount.mount(&[&mount.layer("a", &[("d/", "")])]);
    let path = mount.path("d/new");
    std::fs::write(&path, "x").expect("written");
    let mut value = [0; 64];
    let name = "security.capability";
    let absent = rustix::fs::getxattr(&path, name, &mut value[..]);
    assert_eq!(absent.expect_err("there is none"), rustix::io::Errno::NODATA);
    let capability = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&path, name, &capability, rustix::fs::XattrFlags::empty()).expect("set");
    assert_eq!(rustix::fs::getxattr(&path, name, &mut value[..]).expect("shown"), 20);
    std::fs::write(&path, "y").expect("written");
    assert!(rustix::fs::getxattr(&path, name, &mut value[..]).is_err(), "a write takes it away");
}

#[test]
fn an_open_file_that_was_made_here_outlives_its_name() {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;
    let mount = Mount::new();
    mount.mount(&[&mount.layer("a", &[("d/", "")])]);
    let path = mount.path("d/new");
    let options = std::fs::OpenOptions::new().read(true).write(true).create(true).clone();
    let mut file = options.open(&path).expect("made");
    std::fs::remove_file(&path).expect("removed");
    file.write_all(b"still here").expect("written");
    file.rewind().expect("rewound");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    let described = file.metadata().expect("described");
    assert_eq!((text.as_str(), described.nlink(), described.size()), ("still here", 0, 10));
    assert_eq!(options.open(&path).expect("made anew").metadata().expect("described").size(), 0);
}

#[test]
fn a_file_made_without_a_name_is_linked() {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/below", "text")]);
    mount.mount(&[&layer]);
    for (directory, name) in [("", "linked"), ("d", "d/linked")] {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let fd = rustix::fs::open(mount.path(directory), flags, Mode::from_raw_mode(0o640));
        let mut file = fs::File::from(fd.expect("made without a name"));
        file.write_all(b"content").expect("written");
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, own, CWD, mount.path(name), AtFlags::SYMLINK_FOLLOW)
            .expect("linked");
        assert_eq!(read(mount.path(name)), "content");
        let (by_name, open) = (fs::metadata(mount.path(name)), file.metadata());
        let (by_name, open) = (by_name.expect("there"), open.expect("open"));
        assert_eq!((by_name.ino(), by_name.nlink()), (open.ino(), 1));
        assert_eq!(by_name.mode() & 0o777, 0o640);
    }
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(read(mount.path("d/linked")), "content");
}

/// `PATH_MAX` is 4,096 bytes with the closing NUL.
#[test]
fn a_path_may_be_as_long_as_the_kernel_takes() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    let room = 4095 - mount.path("").as_os_str().len();
    let mut path = String::new();
    while room - path.len() > 300 {
        path.push_str(&"n".repeat(200));
        path.push('/');
    }
    path.push_str(&"f".repeat(room - path.len() - 100 - 1));
    path.push('/');
    path.push_str(&"f".repeat(room - path.len()));
    // The layer lies deeper than the mount point: its directories are made step by step.
    let mut directory =
        rustix::fs::open(&layer, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
            .expect("opened");
    let names: Vec<_> = path.split('/').collect();
    let (file, directories) = names.split_last().expect("at least one");
    for name in directories {
        rustix::fs::mkdirat(&directory, *name, rustix::fs::Mode::from_raw_mode(0o755))
            .expect("made");
        directory = rustix::fs::openat(
            &directory,
            *name,
            rustix::fs::OFlags::PATH,
            rustix::fs::Mode::empty(),
        )
        .expect("opened");
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let fd = rustix::fs::openat(&directory, *file, flags, rustix::fs::Mode::from_raw_mode(0o644))
        .expect("made");
    fs::File::from(fd).write_all(b"deep").expect("written");
    mount.mount(&[&layer]);
    let whole = mount.path(&path);
    assert_eq!(whole.as_os_str().len(), 4095);
    assert_eq!(read(&whole), "deep");
    fs::set_permissions(&whole, fs::Permissions::from_mode(0o600)).expect("changed");
    OpenOptions::new()
        .append(true)
        .open(&whole)
        .expect("opened")
        .write_all(b"er")
        .expect("written");
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(read(&whole), "deeper");
    fs::remove_file(&whole).expect("removed");
    assert!(!whole.exists());
    mount.revert(&path);
    assert_eq!(read(&whole), "deep");
}
