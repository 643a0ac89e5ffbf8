//! Copies of attributes alone: the data stays the layer's until somebody writes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::fixture::{Mount, names, read};

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).expect("described").mode() & 0o7777
}

/// Blocks that the file's private copy really has.
fn private_blocks(mount: &Mount, below: &str) -> u64 {
    fs::metadata(mount.private().join("upper").join(below)).expect("a private copy").blocks()
}

/// Number of files that borrow their data.
fn borrowed(mount: &Mount) -> usize {
    let mut files = 0;
    for repository in fs::read_dir(mount.private().join("borrowed")).expect("listed") {
        for unit in fs::read_dir(repository.expect("an entry").path()).expect("listed") {
            files += fs::read_dir(unit.expect("an entry").path()).expect("listed").count();
        }
    }
    files
}

#[test]
fn attributes_of_a_large_file_change_without_its_data() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    let big = fs::File::create(layer.join("big")).expect("made");
    let text = "x".repeat(1 << 20);
    for index in 0..64 {
        big.write_at(text.as_bytes(), index << 20).expect("written");
    }
    mount.mount(&[&layer]);
    let before = fs::metadata(mount.path("big")).expect("described");
    chmod(mount.path("big"), 0o640);
    std::os::unix::fs::chown(mount.path("big"), Some(5), Some(6)).expect("changed");
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mount.path("big"), "user.new", b"value", none).expect("set");
    fs::rename(mount.path("big"), mount.path("moved")).expect("renamed");
    fs::hard_link(mount.path("moved"), mount.path("link")).expect("linked");
    assert!(private_blocks(&mount, "moved") < 64, "no data was copied");
    let after = fs::metadata(mount.path("moved")).expect("described");
    assert_eq!((after.ino(), after.len()), (before.ino(), before.len()));
    assert_eq!(after.mtime_nsec(), before.mtime_nsec());
    assert_eq!(after.blocks(), before.blocks(), "what it takes is told as before");
    assert_eq!((after.nlink(), after.uid(), after.gid()), (2, 5, 6));
    assert_eq!(read(mount.path("link")).len(), 64 << 20);
    mount.unmount();
    mount.mount(&[&layer]);
    let after = fs::metadata(mount.path("moved")).expect("described");
    assert_eq!((after.nlink(), after.blocks()), (2, before.blocks()));
    assert_eq!(mount.diff(), ["D big", "A link (was big)", "A moved (was big)"]);
    let file = OpenOptions::new().write(true).open(mount.path("link")).expect("opened");
    file.write_at(b"head", 0).expect("written");
    assert_eq!(&read(mount.path("moved"))[..6], "headxx");
    assert!(private_blocks(&mount, "moved") >= 64 << 11, "the data is its own");
    assert_eq!(fs::metadata(mount.path("moved")).expect("described").nlink(), 2);
    assert_eq!(borrowed(&mount), 0);
}

#[test]
fn a_private_copy_keeps_its_data_when_the_unit_goes() {
    for extra in [vec![], vec!["--no-passthrough".to_owned()]] {
        let mut mount = Mount::new();
        mount.extra = extra;
        let one = mount.layer("one", &[("f", "one's f"), ("d/g", "one's g"), ("open", "one's")]);
        let two = mount.layer("two", &[("f", "two's f"), ("d/g", "two's g"), ("open", "two's")]);
        mount.mount(&[&one]);
        chmod(mount.path("f"), 0o600);
        chmod(mount.path("open"), 0o600);
        fs::rename(mount.path("d"), mount.path("e")).expect("renamed");
        let time = fs::metadata(mount.path("f")).expect("described").modified().expect("a time");
        let held = fs::File::open(mount.path("open")).expect("opened");
        assert_eq!(borrowed(&mount), 3);
        mount.swap(&[&two]);
        assert_eq!(borrowed(&mount), 0, "nothing is owed to a unit that is gone");
        assert_eq!((read(mount.path("f")), mode(mount.path("f"))), ("one's f".into(), 0o600));
        assert_eq!(read(mount.path("e/g")), "one's g");
        assert_eq!(read(mount.path("d/g")), "two's g");
        let after = fs::metadata(mount.path("f")).expect("described").modified().expect("a time");
        assert_eq!(after, time);
        fs::write(mount.path("open"), "mine").expect("written");
        assert_eq!(read(mount.path("open")), "mine");
        let mut bytes = [0; 5];
        let length = held.read_at(&mut bytes, 0).expect("read");
        assert!(matches!(&bytes[..length], b"one's" | b"mine"));
        drop(held);
        mount.unmount();
        mount.mount(&[&two]);
        assert_eq!(read(mount.path("f")), "one's f");
        assert_eq!(mount.diff(), ["A e (was d)", "A e/g (was d/g)", "a f", "M open"]);
    }
}

#[test]
fn truncation_copies_nothing() {
    let mount = Mount::new();
    let text = "x".repeat(4 << 20);
    let layer = mount.layer("one", &[("a", &text), ("b", &text), ("c", &text)]);
    mount.mount(&[&layer]);
    for name in ["a", "b", "c"] {
        chmod(mount.path(name), 0o600);
    }
    fs::write(mount.path("a"), "new").expect("truncated and written");
    let file = OpenOptions::new().write(true).open(mount.path("c")).expect("opened");
    file.set_len(3).expect("truncated");
    let mut truncate = std::process::Command::new("truncate");
    assert!(truncate.args(["-s", "0"]).arg(mount.path("b")).status().expect("run").success());
    assert_eq!(read(mount.path("a")), "new");
    assert_eq!(read(mount.path("b")), "");
    assert_eq!(read(mount.path("c")), "xxx");
    assert!(private_blocks(&mount, "a") <= 16 && private_blocks(&mount, "b") <= 16);
    assert_eq!(borrowed(&mount), 0);
}

#[test]
fn what_is_removed_or_reverted_owes_nothing() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("b", "b"), ("c", "c"), ("d", "d")]);
    mount.mount(&[&layer]);
    for name in ["a", "b", "c", "d"] {
        chmod(mount.path(name), 0o600);
    }
    assert_eq!(borrowed(&mount), 4);
    let held = fs::File::open(mount.path("a")).expect("opened");
    fs::remove_file(mount.path("a")).expect("removed");
    assert_eq!(held.metadata().expect("described").nlink(), 0);
    let mut bytes = [0; 1];
    held.read_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"a");
    fs::rename(mount.path("b"), mount.path("c")).expect("renamed over");
    mount.revert("d");
    assert_eq!(borrowed(&mount), 1);
    assert_eq!(read(mount.path("c")), "b");
    assert_eq!(mode(mount.path("d")), 0o644);
}

#[test]
fn capabilities_and_holes_stay_when_the_data_is_copied() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[]);
    let sparse = fs::File::create(layer.join("program")).expect("made");
    sparse.write_at(b"tail", 8 << 20).expect("written");
    // cap_net_raw, permitted and effective (`struct vfs_cap_data`, revision 2).
    let mut capability = vec![0_u8; 20];
    capability[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    let none = rustix::fs::XattrFlags::empty();
    let name = "security.capability";
    rustix::fs::setxattr(layer.join("program"), name, &capability, none).expect("set");
    let other = mount.layer("other", &[("x", "x")]);
    mount.mount(&[&layer]);
    chmod(mount.path("program"), 0o711);
    mount.swap(&[&other]);
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(mount.path("program"), name, &mut value[..]).expect("kept");
    assert_eq!(&value[..length], capability);
    assert!(private_blocks(&mount, "program") < 64, "holes stay holes");
    // Who writes takes them away, as on any file system.
    let mut file = OpenOptions::new().append(true).open(mount.path("program")).expect("opened");
    file.write_all(b"x").expect("written");
    assert!(rustix::fs::getxattr(mount.path("program"), name, &mut value[..]).is_err());
}

#[test]
fn a_former_private_directory_reads_what_it_borrowed_from_the_layers_below() {
    let first = Mount::new();
    let base = first.layer("base", &[("f", "f"), ("d/g", "g")]);
    first.mount(&[&base]);
    chmod(first.path("f"), 0o600);
    fs::hard_link(first.path("f"), first.path("link")).expect("linked");
    fs::rename(first.path("d"), first.path("e")).expect("renamed");
    first.unmount();
    let second = Mount::new();
    let text = |path: &Path| path.display().to_string();
    let [own, former, point] =
        [&second.private(), &first.private(), &second.path("")].map(|p| text(p));
    let done = second.run(&["mount", "--private", &own, "--layer", &former, &point]);
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("have their data in") && said.contains("base"), "{said}");
    second.mount(&[&first.private(), &base]);
    assert_eq!((read(second.path("link")), mode(second.path("f"))), ("f".into(), 0o600));
    assert_eq!(fs::metadata(second.path("f")).expect("described").nlink(), 2);
    assert_eq!(read(second.path("e/g")), "g");
    fs::write(second.path("f"), "new").expect("written");
    assert_eq!(read(second.path("link")), "new");
    let told = second.run(&["diff", "--content", &point]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("\n-f\n") && told.contains("\n+new\n"), "{told}");
}

#[test]
fn data_that_is_nowhere_is_an_error_and_nothing_else_fails() {
    let mount = Mount::new();
    let one = mount.layer("one", &[("f", "one"), ("g", "g")]);
    let two = mount.layer("two", &[("h", "two")]);
    mount.mount(&[&one]);
    chmod(mount.path("f"), 0o600);
    fs::write(mount.path("g"), "mine").expect("written");
    mount.unmount();
    mount.mount(&[&two]);
    let refused = fs::read(mount.path("f")).expect_err("refused");
    assert_eq!(refused.raw_os_error(), Some(5));
    let refused = OpenOptions::new().append(true).open(mount.path("f")).expect_err("refused");
    assert_eq!(refused.raw_os_error(), Some(5));
    assert_eq!((read(mount.path("g")), read(mount.path("h"))), ("mine".into(), "two".into()));
    assert_eq!(names(mount.path("")), ["f", "g", "h"]);
    assert!(mount.status().contains("one"), "{}", mount.status());
    mount.unmount();
    mount.mount(&[&one, &two]);
    assert_eq!(read(mount.path("f")), "one", "nothing is lost");
}

#[test]
fn renaming_a_tree_of_a_layer_copies_no_data() {
    let mount = Mount::new();
    let text = "x".repeat(64 << 10);
    let files: Vec<_> = (0..200).map(|n| format!("d/{}/{n}", n % 7)).collect();
    let files: Vec<_> = files.iter().map(|path| (path.as_str(), text.as_str())).collect();
    let layer = mount.layer("one", &files);
    mount.mount(&[&layer]);
    fs::rename(mount.path("d"), mount.path("e")).expect("renamed");
    let mut blocks = 0;
    for (path, _) in &files {
        let moved = path.replacen("d/", "e/", 1);
        blocks += private_blocks(&mount, &moved);
        assert_eq!(read(mount.path(&moved)).len(), text.len());
    }
    assert!(blocks <= 200 * 8, "{blocks} blocks for 200 files of 128");
}

/// Where a file has data, as `SEEK_DATA` and `SEEK_HOLE` tell.
fn extents(file: &fs::File) -> Vec<(u64, u64)> {
    use rustix::fs::SeekFrom;
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).expect("at its end at the latest");
        found.push((start, at));
    }
    found
}

#[test]
fn holes_are_where_the_disk_has_them_before_and_after_the_copy() {
    for extra in [&[][..], &["--no-passthrough".to_owned()]] {
        let mut mount = Mount::new();
        mount.extra = extra.to_vec();
        let layer = mount.layer("one", &[]);
        let sparse = fs::File::create(layer.join("sparse")).expect("made");
        sparse.write_at(&[b'x'; 1 << 16], 4 << 20).expect("written");
        sparse.set_len(16 << 20).expect("a hole at its end");
        sparse.sync_all().expect("on the disk");
        let mut expected = extents(&fs::File::open(layer.join("sparse")).expect("opened"));
        assert_eq!(expected, [(4 << 20, (4 << 20) + (1 << 16))]);
        mount.mount(&[&layer]);
        let reader = fs::File::open(mount.path("sparse")).expect("opened");
        assert_eq!(extents(&reader), expected, "{extra:?}");
        let writer = OpenOptions::new().write(true).open(mount.path("sparse")).expect("copied");
        writer.write_at(&[b'y'; 1 << 16], 8 << 20).expect("written");
        writer.sync_all().expect("on the disk");
        expected.push((8 << 20, (8 << 20) + (1 << 16)));
        assert_eq!(extents(&writer), expected, "{extra:?}");
        if !extra.is_empty() {
            assert_eq!(extents(&reader), expected, "who reads sees what was written after");
        }
        assert!(private_blocks(&mount, "sparse") < 1 << 11, "the holes take no space");
    }
}
