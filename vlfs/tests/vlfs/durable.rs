//! What `fsync` promises: the disk as it is right after it, as a power cut leaves it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixture::{Mount, read};

/// A disk of its own in a file, for as long as the test runs.
pub struct Image {
    image: PathBuf,
    pub at: PathBuf,
}

fn run(command: &mut Command) {
    let done = command.output().expect("it is installed: `apt install e2fsprogs mount`");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Image {
    /// ext4 that writes nothing before it must.
    pub fn new(at: PathBuf) -> Image {
        let image = at.with_extension("image");
        File::create(&image).and_then(|file| file.set_len(48 << 20)).expect("made");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-b", "4096"]).arg(&image));
        let image = Image { image, at };
        image.mount();
        image
    }

    fn mount(&self) {
        fs::create_dir_all(&self.at).expect("made");
        let options = "loop,commit=300";
        run(Command::new("mount").args(["-o", options]).arg(&self.image).arg(&self.at));
    }

    /// The disk as it is after a power cut now.
    fn cut(&self) -> Image {
        let image = self.image.with_extension("cut");
        fs::copy(&self.image, &image).expect("copied");
        let cut = Image { image, at: self.at.with_extension("after") };
        cut.mount();
        cut
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _output = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// A mount on an image, with a layer of files, all durable so far.
struct World {
    // Dropped first: it lies in the mount's directory.
    image: Image,
    mount: Mount,
}

impl World {
    fn new(extra: &[&str]) -> World {
        let mut mount = Mount::new();
        mount.extra = extra.iter().map(|option| (*option).to_owned()).collect();
        let text = "x".repeat(8192);
        let layer =
            mount.layer("one", &[("f", &text), ("g", &text), ("d/h", &text), ("d/i", &text)]);
        let image = Image::new(mount.private().with_file_name("disk"));
        let private = image.at.join("private");
        fs::create_dir(&private).expect("made");
        symlink_private(&mount, &private);
        mount.mount(&[&layer]);
        run(Command::new("sync").arg("-f").arg(&image.at));
        World { image, mount }
    }

    /// What `diff` tells after a power cut, and what `look` finds in the private directory.
    fn after<T>(&self, look: impl Fn(&Path) -> T) -> (Vec<String>, T) {
        let cut = self.image.cut();
        let private = cut.at.join("private");
        let done = self.mount.run(&["diff", &private.display().to_string()]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let plain = |line: &str| line.split(" [").next().unwrap_or(line).to_owned();
        (text.lines().map(plain).collect(), look(&private))
    }
}

fn symlink_private(mount: &Mount, private: &Path) {
    std::os::unix::fs::symlink(private, mount.private()).expect("made");
}

#[test]
fn a_removal_from_a_directory_of_the_layers_is_there_after_fsync() {
    let world = World::new(&[]);
    let mount = &world.mount;
    fs::remove_file(mount.path("d/h")).expect("removed");
    assert!(!mount.private().join("upper/d").exists(), "it stays the layers'");
    File::open(mount.path("d")).and_then(|d| d.sync_all()).expect("flushed");
    assert_eq!(world.after(|_| ()).0, ["D d/h"]);
}

#[test]
fn attributes_that_were_changed_through_a_reader_are_there_after_fsync() {
    for extra in [&[][..], &["--no-passthrough"]] {
        let world = World::new(extra);
        let file = File::open(world.mount.path("f")).expect("opened");
        file.set_permissions(fs::Permissions::from_mode(0o600)).expect("changed");
        file.sync_all().expect("flushed");
        let mode = |private: &Path| {
            let copy = fs::metadata(private.join("upper/f"));
            copy.map(|copy| copy.permissions().mode() & 0o777).ok()
        };
        assert_eq!(world.after(mode), (vec!["a f".to_owned()], Some(0o600)), "{extra:?}");
    }
}

/// The copy was on the disk, its name was not: a flush of data alone writes no names.
#[test]
fn what_is_written_in_place_to_a_copy_is_there_after_fdatasync() {
    for prepared in [false, true] {
        let world = World::new(&[]);
        let mount = &world.mount;
        if prepared {
            // Its data is borrowed until it is written to.
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(mount.path("f"), mode).expect("changed");
            run(Command::new("sync").arg("-f").arg(&world.image.at));
        }
        let file = OpenOptions::new().write(true).open(mount.path("f")).expect("opened");
        file.write_all_at(b"new", 0).expect("written");
        file.sync_data().expect("flushed");
        let (told, head) = world.after(|private| {
            fs::read(private.join("upper/f")).ok().map(|bytes| bytes[..4].to_vec())
        });
        assert_eq!((told, head), (vec!["M f".to_owned()], Some(b"newx".to_vec())), "{prepared}");
        assert_eq!(&read(mount.path("f"))[..4], "newx");
    }
}

/// An owner can fill the room that a file has for attributes: that must neither keep
/// its data from being copied nor any swap from being made.
#[test]
fn attributes_that_fill_their_room_refuse_no_write_and_no_swap() {
    let world = World::new(&[]);
    let mount = &world.mount;
    let other = mount.layer("other", &[("other", "")]);
    let none = rustix::fs::XattrFlags::empty();
    let mut full = Vec::new();
    for name in ["f", "g", "d/h"] {
        let fits = (3000..4096).rev().find(|length| {
            let value = vec![b'v'; *length];
            rustix::fs::setxattr(mount.path(name), "user.x", &value, none).is_ok()
        });
        full.push(fits.expect("something fits"));
    }
    let written = OpenOptions::new().write(true).open(mount.path("f"));
    written.and_then(|file| file.write_all_at(b"new", 0)).expect("written");
    mount.swap(&[&other]);
    for (name, length) in ["f", "g", "d/h"].into_iter().zip(full) {
        let text = read(mount.path(name));
        assert_eq!(text.len(), 8192);
        assert!(text.starts_with(if name == "f" { "newx" } else { "xxxx" }), "{name}");
        let mut value = vec![0; 8192];
        let found = rustix::fs::getxattr(mount.path(name), "user.x", &mut value[..]);
        assert_eq!(found, Ok(length), "{name}");
    }
    mount.unmount();
    mount.mount(&[&other]);
    assert_eq!(read(mount.path("g")).len(), 8192);
}
