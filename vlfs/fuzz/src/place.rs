//! A private directory for who tries to break it: what is in it, what may happen to it,
//! and everything that can be done with it afterwards. Shared by the fuzz targets and the
//! tests (`tests/vlfs/hostile.rs`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use strata_vlfs::private::{Owner, Private};
use strata_vlfs::set;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::{Caller, SetInfo, Vfs, rename};

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
pub const ROOT: u64 = 1;

/// A layer, a private directory, and a place outside that nothing may touch.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let directory = tempfile::tempdir().expect("made");
        for below in ["layer/d/e", "outside"] {
            fs::create_dir_all(directory.path().join(below)).expect("made");
        }
        for (path, text) in [("layer/a", "a"), ("layer/d/b", "b"), ("layer/d/e/c", "c")] {
            fs::write(directory.path().join(path), text).expect("written");
        }
        fs::hard_link(directory.path().join("layer/a"), directory.path().join("layer/l"))
            .expect("linked");
        fs::write(directory.path().join("outside/secret"), "untouched").expect("written");
        Place { directory }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// `None` where the private directory is refused.
    pub fn open(&self) -> Option<Vfs> {
        let layers = set::open_directories(&[self.path("layer")], None).expect("opened");
        let private = Private::open(&self.path("private"), &Owner::AdHoc).ok()?;
        Vfs::new(private, layers, SetInfo::default()).ok()
    }

    pub fn check_outside(&self) {
        let names: Vec<_> = fs::read_dir(self.path("outside")).expect("listed").collect();
        assert_eq!(names.len(), 1, "something came or went outside");
        let secret = fs::read_to_string(self.path("outside/secret")).expect("it is there");
        assert_eq!(secret, "untouched");
        let layer = fs::read_to_string(self.path("layer/d/e/c")).expect("it is there");
        assert_eq!(layer, "c", "a layer was changed");
    }
}

/// What happens to a private directory.
#[derive(Debug, Clone)]
pub enum Damage {
    Remove(usize),
    Link(usize, bool),
    Fifo(usize),
    Device(usize),
    Directory(usize),
    Content(usize, Vec<u8>),
    Attribute(usize, bool, Vec<u8>),
}

/// Places in a private directory that the file system reads.
pub const TARGETS: [&str; 22] = [
    "format",
    "owner",
    "lock",
    "upper",
    "upper/a",
    "upper/d",
    "upper/d/b",
    "upper/d/new",
    "upper/d/e",
    "upper/d/e/c",
    "upper/x",
    "upper/l",
    "work",
    "work/1",
    "work/2",
    "work/marker",
    "whiteouts",
    "whiteouts/@plain",
    "journal",
    "journal/1",
    "journal/2",
    "journal/x",
];

impl Damage {
    pub fn apply(&self, private: &Path, outside: &Path) {
        let (Damage::Remove(at)
        | Damage::Link(at, _)
        | Damage::Fifo(at)
        | Damage::Device(at)
        | Damage::Directory(at)
        | Damage::Content(at, _)
        | Damage::Attribute(at, _, _)) = self;
        let path = private.join(TARGETS[*at]);
        // A link made before must not lead the damage itself outside.
        if path
            .parent()
            .and_then(|above| above.canonicalize().ok())
            .is_none_or(|above| !above.starts_with(private))
        {
            return;
        }
        if let Damage::Attribute(_, ino, value) = self {
            let name = if *ino { "trusted.strata.ino" } else { "trusted.strata.origin" };
            let _where_it_can_be = rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
            return;
        }
        let is_directory = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if removed.is_err() && path.symlink_metadata().is_ok() {
            return;
        }
        let node = |kind| {
            rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o644), 0).map_err(Into::into)
        };
        let made: std::io::Result<()> = match self {
            Damage::Remove(_) | Damage::Attribute(..) => Ok(()),
            Damage::Link(_, file) => {
                let target = if *file { outside.join("secret") } else { outside.to_owned() };
                symlink(target, &path)
            }
            Damage::Fifo(_) => node(FileType::Fifo),
            Damage::Device(_) => node(FileType::CharacterDevice),
            Damage::Directory(_) => fs::create_dir(&path),
            Damage::Content(_, content) => fs::write(&path, content),
        };
        // Its directory may be gone by an earlier damage.
        drop(made);
    }
}

/// Reads and changes all that can be reached; errors are answers too.
pub fn use_everything(vfs: &Vfs, node: u64, depth: usize) {
    let Ok(opened) = vfs.opendir(node) else { return };
    let listing = vfs.listing(opened.handle, 0);
    vfs.releasedir(opened.handle);
    let _any_answer = vfs.mkdir(node, b"made", 0o755, &CALLER);
    let _any_answer = vfs.create(node, b"created", 0o644, &CALLER);
    for listed in listing.iter().flat_map(|listing| listing.iter().skip(2)) {
        let Ok(found) = vfs.lookup(node, &listed.name) else { continue };
        let _described = (vfs.getattr(found.id), vfs.listxattr(found.id), vfs.readlink(found.id));
        match found.attr.kind {
            FileType::Directory if depth < 8 => use_everything(vfs, found.id, depth + 1),
            FileType::RegularFile => {
                let mode = OpenMode { write: true, ..OpenMode::default() };
                if let Ok(opened) = vfs.open(found.id, mode) {
                    let _any_answer = vfs.read(opened.handle, 0, &mut [0; 64]);
                    let _any_answer = vfs.write(opened.handle, 0, b"overwritten", false);
                    vfs.release(opened.handle);
                }
            }
            _ => {}
        }
        let set = strata_vlfs::vfs::SetAttr { mode: Some(0o600), ..Default::default() };
        let _any_answer = vfs.setattr(found.id, &set);
        let _any_answer = vfs.setxattr(found.id, b"user.x", b"x", 0, false, &CALLER);
        let _any_answer = vfs.link(found.id, node, b"linked");
        let _any_answer =
            vfs.rename((node, &listed.name), (node, b"renamed"), rename::Mode::Replace);
        let _any_answer =
            vfs.rename((node, b"renamed"), (node, &listed.name), rename::Mode::Replace);
        let _any_answer = vfs.unlink(node, &listed.name);
        let _any_answer = vfs.rmdir(node, &listed.name);
    }
}

/// A private directory with something of every kind in it.
pub fn used(place: &Place) {
    let vfs = place.open().expect("a new one");
    let find = |parent, name: &[u8]| vfs.lookup(parent, name).expect("there").id;
    let set = strata_vlfs::vfs::SetAttr { mode: Some(0o600), ..Default::default() };
    vfs.setattr(find(ROOT, b"a"), &set).expect("copied");
    let directory = find(ROOT, b"d");
    let (_, opened) = vfs.create(directory, b"new", 0o644, &CALLER).expect("made");
    vfs.release(opened.handle);
    vfs.unlink(directory, b"b").expect("removed");
    vfs.rename((directory, b"e"), (ROOT, b"x"), rename::Mode::Replace).expect("renamed");
}
