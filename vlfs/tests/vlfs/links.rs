//! Hard links of the layers beside private objects at some of their names.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::OFlags;
use strata_vlfs::backing;
use strata_vlfs::private::{Owner, Private};

use crate::fixture::{Mount, ino, names, read};

fn append(path: impl AsRef<Path>, text: &str) {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("appended");
}

fn links(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).expect("described").nlink()
}

/// A layer with one file at all these names.
fn linked(mount: &Mount, layer: &str, names: &[&str]) -> std::path::PathBuf {
    let layer = mount.layer(layer, &[(names[0], "linked")]);
    for name in &names[1..] {
        let at = layer.join(name);
        fs::create_dir_all(at.parent().expect("below the layer")).expect("made");
        fs::hard_link(layer.join(names[0]), at).expect("linked");
    }
    layer
}

#[test]
fn regression_a_copy_of_a_hard_link_spares_the_private_file_at_another_name() {
    let mount = Mount::new();
    let empty = mount.layer("empty", &[("other", "")]);
    let layer = linked(&mount, "linked", &["a", "b", "c"]);
    mount.mount(&[&empty]);
    fs::write(mount.path("a"), "precious").expect("written");
    mount.swap(&[&layer]);
    assert_eq!((links(mount.path("a")), links(mount.path("b"))), (1, 2));
    append(mount.path("b"), " and more");
    for _ in 0..2 {
        assert_eq!(read(mount.path("a")), "precious");
        assert_eq!(read(mount.path("b")), "linked and more");
        assert_eq!(read(mount.path("c")), "linked and more");
        assert_eq!(ino(mount.path("b")), ino(mount.path("c")));
        assert_eq!((links(mount.path("a")), links(mount.path("b"))), (1, 2));
        mount.unmount();
        mount.mount(&[&layer]);
    }
    // The original is there again, and the copy stays one of its own.
    mount.revert("a");
    assert_eq!((read(mount.path("a")), links(mount.path("a"))), ("linked".to_owned(), 1));
    append(mount.path("a"), "!");
    assert_eq!(
        (read(mount.path("a")), read(mount.path("b"))),
        ("linked!".into(), "linked and more".into())
    );
}

#[test]
fn regression_private_objects_at_or_above_a_link_refuse_no_change_of_another() {
    let mount = Mount::new();
    let empty = mount.layer("empty", &[("other", "")]);
    let layer = linked(&mount, "linked", &["a", "b", "d/e/f", "g/h"]);
    mount.mount(&[&empty]);
    fs::create_dir(mount.path("a")).expect("made");
    fs::write(mount.path("a/mine"), "mine").expect("written");
    fs::write(mount.path("d"), "a file").expect("written");
    symlink("other", mount.path("g")).expect("made");
    mount.swap(&[&layer]);
    assert_eq!(links(mount.path("b")), 1);
    append(mount.path("b"), " and more");
    fs::set_permissions(mount.path("b"), fs::Permissions::from_mode(0o600)).expect("changed");
    fs::rename(mount.path("b"), mount.path("moved")).expect("renamed");
    for _ in 0..2 {
        assert_eq!(names(mount.path("")), ["a", "d", "g", "moved"]);
        assert_eq!(read(mount.path("moved")), "linked and more");
        assert_eq!(
            (read(mount.path("a/mine")), read(mount.path("d"))),
            ("mine".into(), "a file".into())
        );
        assert_eq!(fs::read_link(mount.path("g")).expect("a link"), Path::new("other"));
        mount.unmount();
        mount.mount(&[&layer]);
    }
}

/// An entry of the journal that a crash left, and whose place was taken since.
#[test]
fn an_interrupted_copy_whose_place_is_taken_is_given_up() {
    let directory = tempfile::tempdir().expect("made");
    let private = directory.path().join("private");
    drop(Private::open(&private, &Owner::AdHoc).expect("made"));
    let at = |path: &str| private.join(path);
    fs::write(at("upper/a"), "precious").expect("written");
    fs::write(at("work/7"), "a copy").expect("written");
    let steps = "rename work/7 upper/a\nlink upper/a upper/b\n";
    fs::write(at("journal/1"), format!("strata-journal 1\n{steps}end\n")).expect("written");
    drop(Private::open(&private, &Owner::AdHoc).expect("opened"));
    assert_eq!(
        (names(at("upper")), read(at("upper/a"))),
        (vec!["a".to_owned()], "precious".into())
    );
    assert_eq!((names(at("work")), names(at("journal"))), (vec![], vec![]));
}

/// What tells that a name is obscured: nothing on its way is followed.
#[test]
fn a_path_through_a_file_or_a_link_is_there_and_one_through_nothing_is_not() {
    let directory = tempfile::tempdir().expect("made");
    fs::write(directory.path().join("file"), "").expect("written");
    symlink("file", directory.path().join("link")).expect("made");
    let root = backing::open_root(directory.path()).expect("opened");
    let open = |path: &str| {
        let mode = rustix::fs::Mode::empty();
        backing::open_beneath(&root, path.as_bytes(), OFlags::PATH, mode).map(drop)
    };
    assert_eq!((open("file"), open("link")), (Ok(()), Ok(())));
    assert_eq!(open("file/x"), Err(rustix::io::Errno::NOTDIR));
    assert_eq!(open("link/x"), Err(rustix::io::Errno::LOOP));
    assert_eq!(open("none/x"), Err(rustix::io::Errno::NOENT));
}
