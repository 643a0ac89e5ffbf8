//! Every change of the private layer, cut short at each of its steps: after the
//! next mount the old state is there or the new one, as a user sees it.
//! (Times of directories aside: they follow the names below.)
//! And every change with each of its steps refused once: what fails has not
//! happened, what does not has, to the mount and to the next one alike.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use strata_vlfs::private::disk::Disk;
use strata_vlfs::private::{Owner, Private, UnitKey};
use strata_vlfs::set;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::rename::Mode;
use strata_vlfs::vfs::{Caller, Errno, SetAttr, SetInfo, Vfs};

const ROOT_NODE: u64 = 1;
const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
const USER: Caller = Caller { uid: 1000, gid: 1001, umask: 0o022 };

/// What a user sees of one object: attributes that do not depend on the clock,
/// the content or target, extended attributes.
type Seen = (String, Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>);
type Snapshot = BTreeMap<String, Seen>;

/// Layers that all steps share, topmost first.
struct World {
    directory: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().expect("made");
        let layers = ["top", "low"].map(|name| directory.path().join(name)).to_vec();
        let (top, low) = (&layers[0], &layers[1]);
        for made in [top.join("d/sub"), low.join("d/sub/deep"), low.join("e")] {
            std::fs::create_dir_all(made).expect("made");
        }
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).expect("written");
        write(low.join("f"), "text of f");
        write(low.join("d/g"), "low g");
        write(top.join("d/g"), "top g");
        write(low.join("d/sub/deep/h"), "h");
        write(top.join("d/sub/i"), "i");
        write(low.join("linked"), "linked");
        for name in ["e/linked", "d/linked"] {
            std::fs::hard_link(low.join("linked"), low.join(name)).expect("linked");
        }
        symlink("f", low.join("link")).expect("made");
        let sparse = std::fs::File::create(low.join("sparse")).expect("made");
        std::os::unix::fs::FileExt::write_at(&sparse, b"tail", 1 << 20).expect("written");
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(low.join("f"), "user.kept", b"value", none).expect("set");
        let mode = std::fs::Permissions::from_mode(0o4755);
        std::fs::set_permissions(low.join("f"), mode).expect("set");
        World { directory, layers }
    }

    fn mount_set(&self, private: &Path, layers: &[PathBuf], disk: Disk) -> Result<Vfs, Errno> {
        let private = Private::open_with(private, &Owner::AdHoc, disk).expect("opened");
        let opened = set::open_directories(layers, None).expect("opened");
        let vfs = Vfs::new(private, opened, SetInfo::default())?;
        vfs.settle_absent(|unit| self.root(unit)).map_err(|error| error.errno)?;
        Ok(vfs)
    }

    /// The files of a layer that is not in the set, as a store still has them.
    fn root(&self, unit: &UnitKey) -> Option<std::os::fd::OwnedFd> {
        let path = self.layers.iter().find(|path| {
            let stat = rustix::fs::stat(*path).expect("described");
            UnitKey::plain(path, stat.st_dev, stat.st_ino) == *unit
        })?;
        Some(strata_vlfs::backing::open_root(path).expect("opened"))
    }

    fn mount(&self, private: &Path) -> Vfs {
        self.mount_set(private, &self.layers, Disk::default()).expect("composed")
    }
}

fn walk(vfs: &Vfs, path: &str) -> Result<u64, Errno> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .try_fold(ROOT_NODE, |node, name| vfs.lookup(node, name.as_bytes()).map(|found| found.id))
}

fn end<'p>(vfs: &Vfs, path: &'p str) -> Result<(u64, &'p [u8]), Errno> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((walk(vfs, above)?, name.as_bytes()))
}

fn content(vfs: &Vfs, node: u64, size: u64) -> Vec<u8> {
    let opened = vfs.open(node, OpenMode::default()).expect("opened");
    let mut bytes = vec![0; usize::try_from(size).expect("small") + 1];
    let length = vfs.read(opened.handle, 0, &mut bytes).expect("read");
    vfs.release(opened.handle);
    bytes.truncate(length);
    bytes
}

fn snapshot(vfs: &Vfs) -> Snapshot {
    let mut seen = Snapshot::new();
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let node = walk(vfs, &path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let attr = vfs.getattr(node).expect("described").0;
        let mut bytes = Vec::new();
        let mut time = String::new();
        match attr.kind {
            FileType::Directory => {
                let handle = vfs.opendir(node).expect("opened").handle;
                for listed in vfs.listing(handle, 0).expect("listed").iter().skip(2) {
                    let name = std::str::from_utf8(&listed.name).expect("a plain name");
                    pending.push(format!("{path}/{name}"));
                }
                vfs.releasedir(handle);
            }
            FileType::RegularFile => {
                bytes = content(vfs, node, attr.size);
                time = format!("{:?}", attr.mtime);
            }
            FileType::Symlink => bytes = vfs.readlink(node).expect("a link"),
            _ => {}
        }
        // Numbers of private objects are the disk's; times of new ones the clock's.
        let own = attr.ino >= 1 << 62;
        let (ino, time) = if own { (0, String::new()) } else { (attr.ino, time) };
        let text = format!(
            "{ino:x} {:?} {:o} {} {}:{} {} {time}",
            attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid, attr.size
        );
        let names = vfs.listxattr(node).expect("listed");
        let xattrs = names.into_iter().map(|name| {
            let value = vfs.getxattr(node, &name).expect("got");
            (name, value)
        });
        seen.insert(path.clone(), (text, bytes, xattrs.collect()));
    }
    seen
}

fn is_empty(directory: PathBuf) -> bool {
    std::fs::read_dir(directory).expect("listed").next().is_none()
}

/// Runs `operation` after `prepare` once for every step it has, and stops the
/// world there; `times` says whether times of files are to be the same too.
fn at_every_step(
    times: bool,
    prepare: impl Fn(&Vfs) -> Result<(), Errno>,
    operation: impl Fn(&Vfs) -> Result<(), Errno>,
) {
    let world = World::new();
    at_every_step_in(&world, &world.layers, times, &prepare, &operation);
    refused_at_every_step(&world, times, false, &prepare, &operation);
}

/// As [`at_every_step`], for a truncation to nothing: one that fails may have happened,
/// as the original's data is never copied for it.
fn truncated_at_every_step(
    prepare: impl Fn(&Vfs) -> Result<(), Errno>,
    operation: impl Fn(&Vfs) -> Result<(), Errno>,
) {
    let world = World::new();
    at_every_step_in(&world, &world.layers, false, &prepare, &operation);
    refused_at_every_step(&world, false, true, &prepare, &operation);
}

/// Drops the times of files where they are not to be the same.
fn shorten(seen: &mut Snapshot, times: bool) {
    for (text, _, _) in seen.values_mut().filter(|_| !times) {
        *text = text.split(" Timestamp").next().unwrap_or("").to_owned();
    }
}

/// Where two snapshots differ, for a failure.
fn difference(found: &Snapshot, other: &Snapshot) -> Option<String> {
    let keys = found.keys().chain(other.keys());
    let mut changed = keys.filter(|key| found.get(*key) != other.get(*key));
    let shown = |key: &String| format!("{key}: {:?}, {:?}", found.get(key), other.get(key));
    changed.next().map(shown)
}

/// Runs `operation` after `prepare` once for every step it has, on a disk that refuses
/// that step alone. `may_have_happened`: what fails may have been done all the same.
fn refused_at_every_step(
    world: &World,
    times: bool,
    may_have_happened: bool,
    prepare: impl Fn(&Vfs) -> Result<(), Errno>,
    operation: impl Fn(&Vfs) -> Result<(), Errno>,
) {
    let private = world.directory.path().join("refused");
    let on = |disk: Disk| {
        if private.exists() {
            std::fs::remove_dir_all(&private).expect("removed");
        }
        prepare(&world.mount(&private)).expect("prepared");
        world.mount_set(&private, &world.layers, disk).expect("composed")
    };
    let seen = |vfs: &Vfs| {
        let mut seen = snapshot(vfs);
        shorten(&mut seen, times);
        seen
    };
    let vfs = on(Disk::refusing_at(u64::MAX));
    let (old, opening) = (seen(&vfs), vfs.private().disk().steps());
    drop(vfs);
    let vfs = on(Disk::refusing_at(u64::MAX));
    operation(&vfs).expect("undisturbed");
    let (new, steps) = (seen(&vfs), vfs.private().disk().steps() - opening);
    drop(vfs);
    for step in 0..steps {
        let vfs = on(Disk::refusing_at(opening + step));
        let done = operation(&vfs);
        let found = seen(&vfs);
        let happened = done.is_ok() || (may_have_happened && found == new);
        let expected = if happened { &new } else { &old };
        let refused = format!("step {step} of {steps} refused: {done:?}");
        assert_eq!(difference(&found, expected), None, "{refused}, the mount");
        drop(vfs);
        let found = seen(&world.mount(&private));
        assert_eq!(difference(&found, expected), None, "{refused}, the next mount");
    }
}

/// As [`at_every_step`]; what follows the crash is a mount of `after`.
fn at_every_step_in(
    world: &World,
    after: &[PathBuf],
    times: bool,
    prepare: impl Fn(&Vfs) -> Result<(), Errno>,
    operation: impl Fn(&Vfs) -> Result<(), Errno>,
) {
    let shown = |private: &Path| {
        let vfs = world.mount_set(private, after, Disk::default()).expect("after the crash");
        let mut seen = snapshot(&vfs);
        shorten(&mut seen, times);
        assert!(is_empty(private.join("journal")), "what was begun is finished");
        seen
    };
    let prepared = |name: &str| {
        let private = world.directory.path().join(name);
        if private.exists() {
            std::fs::remove_dir_all(&private).expect("removed");
        }
        prepare(&world.mount(&private)).expect("prepared");
        private
    };
    let private = prepared("private");
    let old = shown(&private);
    let private = prepared("private");
    let (opening, steps) = {
        let disk = Disk::failing_at(u64::MAX);
        let vfs = world.mount_set(&private, &world.layers, disk).expect("composed");
        let opening = vfs.private().disk().steps();
        operation(&vfs).expect("undisturbed");
        (opening, vfs.private().disk().steps() - opening)
    };
    let new = shown(&private);
    assert!(steps > 0, "an operation without steps proves nothing");
    for step in 0..steps {
        let private = prepared("private");
        let disk = Disk::failing_at(opening + step);
        let vfs = world.mount_set(&private, &world.layers, disk).expect("composed");
        // Its last steps may be of no consequence, and their failure only logged.
        let _cut_short = operation(&vfs);
        drop(vfs);
        let found = shown(&private);
        if found != old && found != new {
            panic!(
                "step {step} of {steps}: neither old {:?} nor new {:?}",
                difference(&found, &old),
                difference(&found, &new)
            );
        }
    }
}

fn write(vfs: &Vfs, path: &str, text: &[u8]) -> Result<(), Errno> {
    let mode = OpenMode { write: true, ..OpenMode::default() };
    let opened = vfs.open(walk(vfs, path)?, mode)?;
    let written = vfs.write(opened.handle, 0, text, false);
    vfs.release(opened.handle);
    written.map(drop)
}

fn create(vfs: &Vfs, path: &str, caller: &Caller) -> Result<(), Errno> {
    let (node, name) = end(vfs, path)?;
    let (_, opened) = vfs.create(node, name, 0o640, caller)?;
    vfs.release(opened.handle);
    Ok(())
}

fn mkdir(vfs: &Vfs, path: &str, caller: &Caller) -> Result<(), Errno> {
    let (node, name) = end(vfs, path)?;
    vfs.mkdir(node, name, 0o755, caller).map(drop)
}

fn unlink(vfs: &Vfs, path: &str) -> Result<(), Errno> {
    let (node, name) = end(vfs, path)?;
    vfs.unlink(node, name)
}

fn rmdir(vfs: &Vfs, path: &str) -> Result<(), Errno> {
    let (node, name) = end(vfs, path)?;
    vfs.rmdir(node, name)
}

fn rename(vfs: &Vfs, from: &str, to: &str, mode: Mode) -> Result<(), Errno> {
    vfs.rename(end(vfs, from)?, end(vfs, to)?, mode)
}

fn chmod(vfs: &Vfs, path: &str, mode: u32) -> Result<(), Errno> {
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    vfs.setattr(walk(vfs, path)?, &set).map(drop)
}

fn truncate(vfs: &Vfs, path: &str, size: u64) -> Result<(), Errno> {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    vfs.setattr(walk(vfs, path)?, &set).map(drop)
}

fn nothing(_: &Vfs) -> Result<(), Errno> {
    Ok(())
}

#[test]
fn copy_up_of_a_file() {
    at_every_step(true, nothing, |vfs| chmod(vfs, "f", 0o600));
    at_every_step(false, nothing, |vfs| write(vfs, "d/g", b"new g"));
    at_every_step(false, nothing, |vfs| write(vfs, "sparse", b"head"));
}

#[test]
fn copy_up_of_hard_links() {
    at_every_step(true, nothing, |vfs| chmod(vfs, "e/linked", 0o600));
    at_every_step(false, nothing, |vfs| write(vfs, "d/linked", b"lINKED"));
}

#[test]
fn copy_up_of_directories_and_links() {
    at_every_step(true, nothing, |vfs| chmod(vfs, "d/sub/deep", 0o700));
    at_every_step(true, nothing, |vfs| {
        let set = SetAttr { uid: Some(7), ..SetAttr::default() };
        vfs.setattr(walk(vfs, "link")?, &set).map(drop)
    });
}

#[test]
fn truncation() {
    truncated_at_every_step(nothing, |vfs| truncate(vfs, "f", 0));
    at_every_step(false, nothing, |vfs| truncate(vfs, "f", 4));
    truncated_at_every_step(|vfs| chmod(vfs, "f", 0o600), |vfs| truncate(vfs, "f", 0));
    at_every_step(false, |vfs| chmod(vfs, "f", 0o600), |vfs| truncate(vfs, "f", 4));
}

#[test]
fn first_write_to_a_copy_of_attributes() {
    at_every_step(false, |vfs| chmod(vfs, "sparse", 0o600), |vfs| write(vfs, "sparse", b"head"));
    at_every_step(
        false,
        |vfs| chmod(vfs, "d/linked", 0o600),
        |vfs| write(vfs, "e/linked", b"lINKED"),
    );
}

#[test]
fn extended_attributes() {
    let value = |vfs: &Vfs| vfs.setxattr(walk(vfs, "f")?, b"user.new", b"1", 0, false, &ROOT);
    at_every_step(true, nothing, value);
    at_every_step(true, nothing, |vfs| vfs.removexattr(walk(vfs, "f")?, b"user.kept"));
}

#[test]
fn making_objects() {
    for caller in [ROOT, USER] {
        at_every_step(true, nothing, |vfs| create(vfs, "d/new", &caller));
        at_every_step(true, nothing, |vfs| mkdir(vfs, "e/new", &caller));
        at_every_step(true, nothing, |vfs| {
            let (node, name) = end(vfs, "d/sub/new")?;
            vfs.symlink(node, name, b"target", &caller).map(drop)
        });
        at_every_step(true, nothing, |vfs| {
            let (node, name) = end(vfs, "fifo")?;
            vfs.mknod(node, name, 0o010_644, (0, 0), &caller).map(drop)
        });
    }
    at_every_step(true, |vfs| unlink(vfs, "d/g"), |vfs| create(vfs, "d/g", &USER));
}

#[test]
fn another_name() {
    let link = |vfs: &Vfs, path: &str, to: &str| {
        let (node, name) = end(vfs, to)?;
        vfs.link(walk(vfs, path)?, node, name).map(drop)
    };
    at_every_step(true, nothing, |vfs| link(vfs, "f", "e/another"));
    at_every_step(true, |vfs| create(vfs, "new", &ROOT), |vfs| link(vfs, "new", "e/another"));
}

#[test]
fn removal() {
    at_every_step(true, nothing, |vfs| unlink(vfs, "d/g"));
    at_every_step(true, nothing, |vfs| unlink(vfs, "linked"));
    at_every_step(false, |vfs| write(vfs, "d/g", b"mine"), |vfs| unlink(vfs, "d/g"));
    at_every_step(true, |vfs| chmod(vfs, "d/g", 0o600), |vfs| unlink(vfs, "d/g"));
    at_every_step(true, |vfs| create(vfs, "new", &ROOT), |vfs| unlink(vfs, "new"));
    let emptied = |vfs: &Vfs| {
        for path in ["d/g", "d/linked", "d/sub/i", "d/sub/deep/h"] {
            unlink(vfs, path)?;
        }
        rmdir(vfs, "d/sub/deep")?;
        rmdir(vfs, "d/sub")
    };
    at_every_step(true, emptied, |vfs| rmdir(vfs, "d"));
    let marked = |vfs: &Vfs| emptied(vfs).and_then(|()| chmod(vfs, "d", 0o700));
    at_every_step(true, marked, |vfs| rmdir(vfs, "d"));
}

#[test]
fn renaming_files() {
    let replace = |from: &'static str, to: &'static str| {
        move |vfs: &Vfs| rename(vfs, from, to, Mode::Replace)
    };
    at_every_step(true, nothing, replace("f", "e/moved"));
    at_every_step(true, nothing, replace("f", "d/g"));
    at_every_step(true, nothing, replace("linked", "e/moved"));
    at_every_step(true, |vfs| create(vfs, "new", &ROOT), replace("new", "d/g"));
    at_every_step(true, nothing, |vfs| rename(vfs, "f", "d/g", Mode::Exchange));
    at_every_step(true, nothing, |vfs| rename(vfs, "f", "d", Mode::Exchange));
}

#[test]
fn renaming_directories() {
    at_every_step(true, nothing, |vfs| rename(vfs, "d", "e/moved", Mode::Replace));
    at_every_step(
        true,
        |vfs| unlink(vfs, "e/linked"),
        |vfs| rename(vfs, "d/sub", "e", Mode::Replace),
    );
    at_every_step(true, nothing, |vfs| rename(vfs, "d", "e", Mode::Exchange));
}

#[test]
fn reverting() {
    let revert = |path: &'static str| move |vfs: &Vfs| vfs.revert(path.as_bytes(), &ROOT).map(drop);
    at_every_step(true, |vfs| unlink(vfs, "d/g"), revert("d/g"));
    at_every_step(false, |vfs| write(vfs, "d/g", b"mine"), revert("d/g"));
    at_every_step(true, |vfs| chmod(vfs, "d/g", 0o600), revert("d/g"));
    let replaced = |vfs: &Vfs| unlink(vfs, "d/g").and_then(|()| create(vfs, "d/g", &ROOT));
    at_every_step(true, replaced, revert("d/g"));
}

#[test]
fn swapping() {
    let world = World::new();
    let low_alone = &world.layers[1..];
    let prepare = |vfs: &Vfs| {
        unlink(vfs, "d/sub/i")?;
        unlink(vfs, "d/linked")?;
        chmod(vfs, "d/g", 0o600)
    };
    let swap = |vfs: &Vfs| {
        let layers = set::open_directories(low_alone, Some(&vfs.active().set())).expect("opened");
        vfs.swap(layers, SetInfo::default()).map(drop).map_err(|error| error.errno)
    };
    at_every_step_in(&world, low_alone, true, prepare, swap);
    // Or the set is the former one again.
    at_every_step_in(&world, &world.layers, true, prepare, swap);
}

/// What makes the tests above worth anything: nothing else changes a private directory.
#[test]
fn only_one_module_changes_the_private_directory() {
    let changing = [
        "renameat",
        "linkat",
        "unlinkat",
        "mkdirat",
        "mknodat",
        "chownat",
        "chmodat",
        "fchmod",
        "fchown",
        "utimensat",
        "futimens",
        "ftruncate",
        "fallocate",
        "setxattr",
        "removexattr",
        "ioctl_ficlone",
        "copy_file_range",
        "pwrite",
        "OFlags::CREATE",
        "OFlags::TMPFILE",
    ];
    let found = |text: &str| {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code: String = code.collect::<Vec<_>>().join("\n");
        changing
            .into_iter()
            .filter(|call| {
                let name = call
                    .strip_prefix("OFlags::")
                    .map_or(format!("::{call}"), |_| (*call).to_owned());
                code.contains(&name)
                    || code.contains(&format!("::l{call}"))
                    || code.contains(&format!("::f{call}"))
            })
            .collect::<Vec<_>>()
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("backing.rs")];
    for directory in ["private", "vfs"] {
        for entry in std::fs::read_dir(source.join(directory)).expect("listed") {
            files.push(entry.expect("an entry").path());
        }
    }
    assert!(files.len() > 10);
    let writer = source.join("private/disk.rs");
    for file in files.iter().filter(|file| **file != writer) {
        let calls = found(&std::fs::read_to_string(file).expect("read"));
        // The lock is made before there is a disk to fail.
        let expected: &[&str] =
            if file.ends_with("private/mod.rs") { &["OFlags::CREATE"] } else { &[] };
        assert_eq!(calls, expected, "{}", file.display());
    }
    let writing = found(&std::fs::read_to_string(writer).expect("read"));
    assert!(writing.len() > 15, "the check finds what it looks for: {writing:?}");
}
