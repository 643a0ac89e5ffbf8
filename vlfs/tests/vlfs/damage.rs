//! What is damaged below the mount costs the one object that is damaged.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;

use crate::fixture::{Mount, names, read};

fn errno(error: &std::io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

#[test]
fn a_damaged_number_of_one_file_spares_its_directory() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("d/a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("d/a"), "changed").expect("written");
    fs::write(mount.path("d/b"), "changed").expect("written");
    mount.unmount();
    for damage in [&b"no number"[..], b"\xff", b"", b"0000000000000001"] {
        let copy = mount.private().join("upper/d/a");
        setxattr(&copy, "trusted.strata.ino", damage, XattrFlags::empty()).expect("set");
        mount.mount(&[&layer]);
        assert_eq!(names(mount.path("d")), ["a", "b"]);
        for name in ["d/a", "d/b"] {
            assert_eq!(read(mount.path(name)), "changed");
        }
        let number = fs::metadata(mount.path("d/a")).expect("it has attributes").ino();
        assert_ne!(number, 1, "the number of the root is the root's alone");
        mount.unmount();
    }
}

#[test]
fn a_file_that_is_gone_from_its_layer_is_an_input_output_error() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("gone", "text"), ("other", "text"), ("d/e", "text")]);
    mount.mount(&[&layer]);
    fs::remove_file(layer.join("gone")).expect("removed behind the mount");
    fs::remove_dir_all(layer.join("d")).expect("removed behind the mount");
    fs::write(layer.join("d"), "a file now").expect("written behind the mount");
    for name in ["gone", "d/e"] {
        let read = fs::read(mount.path(name)).expect_err("its content is gone");
        assert_eq!(errno(&read), Some(Errno::IO), "{name}");
        let written = fs::OpenOptions::new().append(true).open(mount.path(name));
        assert_eq!(errno(&written.expect_err("nothing to copy")), Some(Errno::IO), "{name}");
    }
    assert_eq!(read(mount.path("other")), "text");
    // Nothing half-made stays, and the name can be removed and made anew.
    fs::remove_file(mount.path("gone")).expect("removed");
    fs::write(mount.path("gone"), "new").expect("written");
    assert_eq!(read(mount.path("gone")), "new");
}
