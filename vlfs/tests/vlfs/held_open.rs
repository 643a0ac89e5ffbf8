//! Descriptors that are older than a copy, a removal or a replacement: they stay with
//! their file.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, XattrFlags, inotify};
use rustix::io::Errno;

use crate::fixture::{Mount, read, wait_for};

/// More than what goes through the daemon; and the size of it.
const LARGE: u64 = 200_000;

/// Something that is done to a file by its name.
type Change = fn(&Mount, &str);

/// A mount of one layer in which `names` are files of `size` bytes.
fn mounted(names: &[&str], size: u64) -> Mount {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    for name in names {
        fs::write(layer.join(name), "o".repeat(size as usize)).expect("written");
    }
    mount.mount(&[&layer]);
    mount
}

fn change(mount: &Mount, name: &str) {
    let mut file = File::options().write(true).open(mount.path(name)).expect("opened");
    file.write_all(b"NEW").expect("written");
}

fn itself(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[test]
fn a_small_file_is_as_on_a_disk_when_it_is_copied_while_it_is_open() {
    let mount = mounted(&["f"], 9);
    let mut reader = File::open(mount.path("f")).expect("opened");
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).expect("made");
    inotify::add_watch(&watch, mount.path("f"), inotify::WatchFlags::MODIFY).expect("watched");
    change(&mount, "f");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "NEWoooooo");
    let mut appender = File::options().append(true).open(mount.path("f")).expect("opened");
    appender.write_all(b"more").expect("written");
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "NEWoooooomore", "what is appended is seen");
    let mut events = [0; 256];
    let told = rustix::io::read(&watch, &mut events).expect("the watch tells");
    assert!(told > 0);
    let again = File::options().read(true).write(true).open(itself(&reader));
    again.expect("reopened by its descriptor").write_all(b"AGAIN").expect("written");
    reader.seek(SeekFrom::Start(0)).expect("moved");
    text.clear();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "AGAINoooomore");
}

/// Once those who had it open before are gone, its data goes through the kernel, as that of
/// all private files; what the kernel kept of it meanwhile is not shown again.
#[test]
fn a_small_file_is_right_through_every_change_of_its_way() {
    let mount = mounted(&["f"], 3);
    for round in 0..20 {
        let text = format!("{round:03}");
        let reader = File::open(mount.path("f")).expect("opened");
        let mut writer = File::options().write(true).open(mount.path("f")).expect("opened");
        writer.write_all(text.as_bytes()).expect("written");
        assert_eq!(read(mount.path("f")), text);
        assert_eq!(fs::read_to_string(itself(&reader)).expect("read"), text);
        drop((reader, writer));
        let next = format!("{:03}", round + 500);
        fs::write(mount.path("f"), &next).expect("written");
        assert_eq!(read(mount.path("f")), next);
        mount.revert("f");
        assert_eq!(read(mount.path("f")), "ooo");
    }
}

#[test]
fn locks_outlast_a_copy() {
    for size in [0, LARGE] {
        let changes: [(&str, Change); 5] = [
            ("times", |mount, name| {
                let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
                let now = Timestamps { last_access: now, last_modification: now };
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::utimensat(rustix::fs::CWD, mount.path(name), &now, flags).expect("set");
            }),
            ("mode", |mount, name| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(mount.path(name), mode).expect("changed");
            }),
            ("attribute", |mount, name| {
                let flags = XattrFlags::empty();
                rustix::fs::setxattr(mount.path(name), "user.a", b"1", flags).expect("set");
            }),
            ("link", |mount, name| {
                let other = mount.path(&format!("{name}-linked"));
                fs::hard_link(mount.path(name), other).expect("linked");
            }),
            ("write", change),
        ];
        // The data of a large file that is open through the kernel cannot change its place.
        let changes = &changes[..if size == 0 { 5 } else { 4 }];
        let names: Vec<_> = changes.iter().map(|(name, _)| *name).collect();
        let mount = mounted(&names, size);
        for (name, change) in changes {
            let holder = File::open(mount.path(name)).expect("opened");
            rustix::fs::flock(&holder, FlockOperation::LockExclusive).expect("locked");
            change(&mount, name);
            let other = File::open(mount.path(name)).expect("opened");
            let refused = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
            assert_eq!(refused, Err(Errno::WOULDBLOCK), "{name}, {size} bytes");
        }
    }
}

/// It is what logrotate does, and what a package's upgrade does.
#[test]
fn a_descriptor_never_leads_to_the_file_that_has_its_name_now() {
    for size in [9, LARGE] {
        let names: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mount = mounted(&names, size);
        for (n, name) in names.iter().enumerate() {
            let old = File::open(mount.path(name)).expect("opened");
            let before = old.metadata().expect("described").ino();
            change(&mount, name);
            if n % 2 == 0 {
                fs::remove_file(mount.path(name)).expect("removed");
            } else {
                fs::rename(mount.path(name), mount.path(&format!("{name}.1"))).expect("renamed");
            }
            fs::write(mount.path(name), "another file").expect("made");
            let links = if n % 2 == 0 { 0 } else { 1 };
            // The kernel is told a moment later.
            wait_for("the attributes of the file that is open", || {
                let now = old.metadata().expect("described");
                (now.len(), now.nlink(), now.ino()) == (size, links, before)
            });
            rustix::fs::fsetxattr(&old, "user.old", b"1", XattrFlags::empty()).expect("set");
            old.set_permissions(fs::Permissions::from_mode(0o640)).expect("changed");
            rustix::fs::fsync(&old).expect("flushed");
            let mut value = [0_u8; 8];
            let other = rustix::fs::getxattr(mount.path(name), "user.old", &mut value);
            assert_eq!(other, Err(Errno::NODATA), "{name}: the new file has it");
            let mode = fs::metadata(mount.path(name)).expect("described").mode() & 0o777;
            assert_eq!(mode, 0o644, "{name}: the new file's mode");
        }
    }
}

#[test]
fn a_removed_or_replaced_program_runs_by_its_descriptor() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("text", "text")]);
    std::os::unix::fs::symlink("target", layer.join("link")).expect("linked");
    for name in ["removed", "replaced"] {
        fs::copy("/bin/true", layer.join(name)).expect("copied");
    }
    mount.mount(&[&layer]);
    let removed = File::open(mount.path("removed")).expect("opened");
    let replaced = File::open(mount.path("replaced")).expect("opened");
    let path = rustix::fs::OFlags::PATH;
    let mode = rustix::fs::Mode::empty();
    let by_path = rustix::fs::open(mount.path("text"), path, mode).expect("opened");
    let link = path | rustix::fs::OFlags::NOFOLLOW;
    let link = rustix::fs::open(mount.path("link"), link, mode).expect("opened");
    for name in ["removed", "text", "link"] {
        fs::remove_file(mount.path(name)).expect("removed");
    }
    fs::copy("/bin/false", mount.path("new")).expect("copied");
    fs::rename(mount.path("new"), mount.path("replaced")).expect("replaced");
    for program in [&removed, &replaced] {
        let done = Command::new(itself(program)).status().expect("it runs");
        assert!(done.success(), "{done}");
        assert_eq!(rustix::fs::flistxattr(program, &mut [0_u8; 256][..]), Ok(0));
    }
    let again = fs::read_to_string(format!("/proc/self/fd/{}", by_path.as_raw_fd()));
    assert_eq!(again.expect("read"), "text");
    let target = rustix::fs::readlinkat(&link, "", Vec::new()).expect("read");
    assert_eq!(target.to_bytes(), b"target");
}

#[test]
fn a_running_program_cannot_be_opened_for_writing_after_a_change_of_its_mode() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    fs::copy("/bin/sleep", layer.join("sleep")).expect("copied");
    mount.mount(&[&layer]);
    let mut child = Command::new(mount.path("sleep")).arg("60").spawn().expect("runs");
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(mount.path("sleep"), mode).expect("changed");
    let opened = File::options().write(true).open(mount.path("sleep"));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(opened.expect_err("refused").raw_os_error(), Some(Errno::TXTBSY.raw_os_error()));
}

#[test]
fn a_running_program_is_not_truncated_by_an_open_for_reading() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    fs::copy("/bin/sleep", layer.join("sleep")).expect("copied");
    mount.mount(&[&layer]);
    let program = mount.path("sleep");
    let length = fs::metadata(&program).expect("there").len();
    let mut child = Command::new(&program).arg("60").spawn().expect("runs");
    let truncate = || {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
        rustix::fs::open(&program, flags, rustix::fs::Mode::empty())
    };
    let refused = truncate().err();
    let left = fs::metadata(&program).expect("there").len();
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!((refused, left), (Some(Errno::TXTBSY), length));
    truncate().expect("nobody runs it");
    assert_eq!(fs::metadata(&program).expect("there").len(), 0);
}
