//! Revert of files, white-outs and whole trees, and the times of directories from which
//! names were removed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use crate::fixture::{Mount, names, read};

fn swaps(mount: &Mount) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&mount.status()).expect("JSON");
    status["swaps"].as_u64().expect("a number")
}

/// Everything below a directory but times: modes and contents by path.
fn tree(root: &Path) -> Vec<(String, u32, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().expect("described");
        let content = if meta.is_file() { read(&path) } else { String::new() };
        let below = path.strip_prefix(root).expect("below").display().to_string();
        found.push((below, meta.mode(), content));
        if meta.is_dir() {
            pending.extend(names(&path).iter().map(|name| path.join(name)));
        }
    }
    found.sort();
    found
}

fn spoil(mount: &Mount) {
    fs::write(mount.path("d/a"), "changed").expect("written");
    fs::remove_file(mount.path("d/b")).expect("removed");
    fs::remove_dir_all(mount.path("d/sub")).expect("removed");
    fs::remove_dir_all(mount.path("d/file-now")).expect("removed");
    fs::write(mount.path("d/file-now"), "a file").expect("written");
    fs::rename(mount.path("d/moved"), mount.path("d/elsewhere")).expect("renamed");
    fs::set_permissions(mount.path("d"), Permissions::from_mode(0o700)).expect("changed");
    rustix::fs::setxattr(mount.path("d"), "user.x", b"x", XattrFlags::empty()).expect("set");
}

#[test]
fn a_tree_is_reverted_with_all_below_it_and_what_is_its_own_stays() {
    let mount = Mount::new();
    let files = [("d/a", "a"), ("d/b", "b"), ("d/sub/deep/c", "c"), ("d/file-now/x", "x")];
    let base = mount.layer("base", &files);
    let top = mount.layer("top", &[("d/sub/top", "top"), ("d/moved/m", "m"), ("other", "other")]);
    mount.mount(&[&top, &base]);
    let original = tree(&mount.path("d"));
    for inside in [false, true] {
        spoil(&mount);
        fs::write(mount.path("other"), "stays changed").expect("written");
        let held = fs::File::open(mount.path("d/a")).expect("opened");
        let refused = mount.run(&["revert", &mount.path("d").display().to_string()]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains("--recursive"), "{said}");
        if inside {
            let attribute = "trusted.strata.revert-tree";
            rustix::fs::setxattr(mount.path(""), attribute, b"d", XattrFlags::empty())
                .expect("reverted");
        } else {
            let path = mount.path("d").display().to_string();
            let done = mount.run(&["revert", "--recursive", &path]);
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let expected = "2 private copies and 5 white-outs were dropped; 2 of its own stay\n";
            assert_eq!(said, format!("{path}: {expected}"));
        }
        assert_eq!(std::io::read_to_string(held).expect("read"), "changed", "it is held open");
        fs::remove_dir_all(mount.path("d/elsewhere")).expect("what was moved is its own");
        assert_eq!(tree(&mount.path("d")), original);
        assert!(rustix::fs::getxattr(mount.path("d"), "user.x", &mut [0_u8; 8]).is_err());
        assert_eq!(read(mount.path("other")), "stays changed");
        assert_eq!(mount.diff(), ["M other"]);
        mount.unmount();
        mount.mount(&[&top, &base]);
        assert_eq!(tree(&mount.path("d")), original, "after a remount");
    }
}

/// Where something that the revert does not take away hides the original, what is private
/// is the only one there is.
#[test]
fn a_file_whose_original_stays_hidden_is_not_dropped() {
    let mount = Mount::new();
    let below = mount.layer("below", &[("c/x", "below"), ("d/x", "below")]);
    let above = mount.layer("above", &[("c", "a file")]);
    let own_stays = |name: &str, expected: Option<i32>| {
        fs::write(mount.path(name), "mine").expect("written");
        let path = mount.path(name).display().to_string();
        let single = mount.run(&["revert", &path]);
        assert_eq!((single.status.code(), read(mount.path(name))), (Some(2), "mine".into()));
        let tree = mount.run(&["revert", "--recursive", &path]);
        assert_eq!((tree.status.code(), read(mount.path(name))), (expected, "mine".into()));
    };
    let all = mount.path("").display().to_string();
    mount.mount(&[&above, &below]);
    // In a directory that took the place of the layers'.
    fs::remove_dir_all(mount.path("d")).expect("removed");
    fs::create_dir(mount.path("d")).expect("made");
    own_stays("d/x", Some(0));
    // Below a file of a layer, which was replaced.
    fs::remove_file(mount.path("c")).expect("removed");
    fs::create_dir(mount.path("c")).expect("made");
    own_stays("c/x", Some(0));
    assert!(mount.run(&["revert", "--recursive", &all]).status.success());
    assert_eq!((read(mount.path("c/x")), read(mount.path("d/x"))), ("mine".into(), "below".into()));
    mount.unmount();
    // Hidden by a former private directory that is a layer.
    let former = Mount::new();
    former.mount(&[&below]);
    fs::remove_file(former.path("d/x")).expect("removed");
    former.unmount();
    let other = Mount::new();
    other.mount(&[&former.private(), &below]);
    fs::write(other.path("d/x"), "mine").expect("written");
    let (path, all) = (other.path("d/x"), other.path(""));
    for arguments in [vec!["revert"], vec!["revert", "--recursive"]] {
        for path in [&path, &all] {
            let path = path.display().to_string();
            other.run(&[&arguments[..], &[&path]].concat());
            assert_eq!(read(other.path("d/x")), "mine", "{arguments:?} {path}");
        }
    }
}

#[test]
fn reverting_a_white_out_costs_what_it_changes() {
    let mount = Mount::new();
    let base = mount.layer("base", &[("d/a", "base"), ("d/b", "b"), ("e/f", "f")]);
    let top = mount.layer("top", &[("d/a", "top")]);
    mount.mount(&[&top, &base]);
    for name in ["d/a", "d/b"] {
        let content = read(mount.path(name));
        let before = names(mount.path("d"));
        fs::remove_file(mount.path(name)).expect("removed");
        mount.revert(name);
        assert_eq!((read(mount.path(name)), names(mount.path("d"))), (content, before));
    }
    assert_eq!(swaps(&mount), 0, "a file comes back without another union");
    fs::remove_dir_all(mount.path("e")).expect("removed");
    mount.revert("e");
    assert_eq!((names(mount.path("e")), swaps(&mount)), (vec!["f".to_owned()], 1));
    // Hidden in one of two layers alone: only that one comes back.
    fs::remove_file(mount.path("d/a")).expect("removed");
    mount.swap(&[&base]);
    mount.swap(&[&top, &base]);
    assert_eq!(read(mount.path("d/a")), "top", "its pair is new");
    fs::remove_file(mount.path("d/a")).expect("removed");
    mount.revert("d/a");
    assert_eq!(read(mount.path("d/a")), "top");
}

#[test]
fn a_removal_dates_a_directory_of_the_layers_as_long_as_its_unit_is_there() {
    let mount = Mount::new();
    let base = mount.layer("base", &[("d/a", "a"), ("d/b", "b"), ("d/sub/c", "c")]);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let date = |path: &Path| {
        fs::File::open(path).expect("opened").set_modified(old).expect("root may");
    };
    date(&base.join("d/sub"));
    date(&base.join("d"));
    let other = mount.layer("other", &[("d/x", "x")]);
    date(&other.join("d"));
    mount.mount(&[&base]);
    let time = || fs::metadata(mount.path("d")).expect("there").modified().expect("a time");
    assert_eq!(time(), old);
    let before = SystemTime::now() - Duration::from_secs(1);
    fs::remove_file(mount.path("d/a")).expect("removed");
    let removed = time();
    assert!(removed > before, "{removed:?}");
    assert!(!mount.private().join("upper/d").exists(), "nothing was copied for it");
    mount.unmount();
    mount.mount(&[&base]);
    assert_eq!(time(), removed, "the disk keeps it");
    // A copy of the directory has the time that was shown.
    fs::set_permissions(mount.path("d"), Permissions::from_mode(0o711)).expect("changed");
    assert_eq!(time(), removed);
    fs::remove_dir_all(mount.path("d/sub")).expect("removed");
    assert!(time() >= removed);
    mount.unmount();
    fs::remove_dir_all(mount.private()).expect("unmounted");
    mount.mount(&[&base]);
    fs::remove_file(mount.path("d/a")).expect("removed");
    mount.swap(&[&other]);
    assert_eq!(time(), old, "white-outs go with their unit, and the time with them");
}

#[test]
fn a_mount_point_names_all_that_is_mounted_there() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    let mount_point = mount.path("").display().to_string();
    let original = tree(&mount.path(""));
    fs::write(mount.path("a"), "changed").expect("written");
    fs::remove_file(mount.path("d/b")).expect("removed");
    let refused = mount.run(&["revert", &mount_point]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("--recursive"), "{said}");
    let done = mount.run(&["revert", "--recursive", &mount_point]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(tree(&mount.path("")), original);
    mount.unmount();
}

/// A path that is not hidden itself keeps what is hidden below it.
#[test]
fn reverting_a_directory_alone_shows_nothing_below_it() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/b", "b"), ("d/c", "c")]);
    mount.mount(&[&layer]);
    fs::remove_file(mount.path("d/b")).expect("removed");
    let refused = mount.run(&["revert", &mount.path("d").display().to_string()]);
    assert_eq!(refused.status.code(), Some(2));
    mount.swap(&[&mount.layer("two", &[("e", "e")]), &layer]);
    assert_eq!(names(mount.path("d")), ["c"]);
    mount.unmount();
}
