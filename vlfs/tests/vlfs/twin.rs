//! The same random operations on a mounted union and on a plain directory:
//! every answer and the whole tree must be alike, with swaps, remounts and killed
//! daemons among them. What the disk does is the definition of correct.
//!
//! `STRATA_CASES` is the number of sequences, where a longer search is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::fixture::{Mount, cases, wait_for};

/// Names are few, so that operations meet.
const NAMES: [&str; 3] = ["a", "b", "c"];
const HANDLES: usize = 3;
const LAYERS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    /// A second name of the layer's first file.
    HardLink,
    Symlink,
    Fifo,
}

#[derive(Debug, Clone)]
enum Operation {
    Create(String),
    Mkdir(String),
    Write(String, u64),
    Truncate(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    SetTime(String, i64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Link(String, String),
    Symlink(String, String),
    Mkfifo(String),
    SetXattr(String, u8),
    RemoveXattr(String),
    Open(usize, String, bool),
    WriteOpen(usize, u64),
    ReadOpen(usize),
    PunchOpen(usize),
    CopyOpen(usize, usize),
    Close(usize),
    /// An empty layer comes or goes: nothing that is seen changes.
    Swap,
    Remount,
    Kill,
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(&NAMES[..]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn layer() -> impl Strategy<Value = BTreeMap<String, Kind>> {
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        4 => Just(Kind::File),
        2 => Just(Kind::HardLink),
        1 => Just(Kind::Symlink),
        1 => Just(Kind::Fifo),
    ];
    proptest::collection::btree_map(path(), kind, 0..10)
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let slot = 0..HANDLES;
    let offset = prop_oneof![0..64_u64, 4000..5000_u64, Just(200_000_u64)];
    let names = prop_oneof![
        4 => path().prop_map(Create),
        4 => path().prop_map(Mkdir),
        4 => path().prop_map(Unlink),
        4 => path().prop_map(Rmdir),
        8 => (path(), path(), 0..3_u32).prop_map(|(from, to, mode)| Rename(from, to, mode)),
        3 => (path(), path()).prop_map(|(from, to)| Link(from, to)),
        1 => (path(), path()).prop_map(|(target, at)| Symlink(target, at)),
        1 => path().prop_map(Mkfifo),
    ];
    let attributes = prop_oneof![
        (path(), prop_oneof![Just(0o600), Just(0o755), Just(0o4711), Just(0o1777)])
            .prop_map(|(path, mode)| Chmod(path, mode)),
        (path(), 0..3_u32).prop_map(|(path, id)| Chown(path, id)),
        (path(), 0..9_i64).prop_map(|(path, time)| SetTime(path, time)),
        (path(), any::<u8>()).prop_map(|(path, value)| SetXattr(path, value)),
        path().prop_map(RemoveXattr),
    ];
    let data = prop_oneof![
        3 => (path(), offset.clone()).prop_map(|(path, at)| Write(path, at)),
        2 => (path(), offset.clone()).prop_map(|(path, size)| Truncate(path, size)),
        5 => (slot.clone(), path(), any::<bool>()).prop_map(|(s, path, w)| Open(s, path, w)),
        3 => (slot.clone(), offset).prop_map(|(slot, at)| WriteOpen(slot, at)),
        3 => slot.clone().prop_map(ReadOpen),
        1 => slot.clone().prop_map(PunchOpen),
        1 => (slot.clone(), slot.clone()).prop_map(|(from, to)| CopyOpen(from, to)),
        1 => slot.prop_map(Close),
    ];
    let life = prop_oneof![2 => Just(Swap), 1 => Just(Remount), 1 => Just(Kill)];
    prop_oneof![12 => names, 4 => attributes, 7 => data, 1 => life]
}

/// Makes a layer; what does not fit under what is there is left out.
fn make_layer(root: &Path, wanted: &BTreeMap<String, Kind>) {
    let mut first: Option<PathBuf> = None;
    for (number, (path, kind)) in wanted.iter().enumerate() {
        let at = root.join(path);
        if std::fs::create_dir_all(at.parent().expect("below the root")).is_err()
            || at.symlink_metadata().is_ok()
            || at.parent().is_some_and(Path::is_symlink)
        {
            continue;
        }
        match (kind, &first) {
            (Kind::Directory, _) => std::fs::create_dir(&at).expect("made"),
            (Kind::HardLink, Some(first)) => std::fs::hard_link(first, &at).expect("linked"),
            (Kind::File | Kind::HardLink, _) => {
                std::fs::write(&at, path.repeat(1 + number * 700)).expect("written");
                let value = number.to_string();
                rustix::fs::setxattr(&at, "user.of", value.as_bytes(), XattrFlags::empty())
                    .expect("set");
                first.get_or_insert_with(|| at.clone());
            }
            (Kind::Symlink, _) => std::os::unix::fs::symlink("b/a", &at).expect("linked"),
            (Kind::Fifo, _) => fifo(&at).expect("made"),
        }
    }
}

fn fifo(path: &Path) -> Result<(), Errno> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)
}

/// One of the two trees, with its open files.
struct Side {
    root: PathBuf,
    open: [Option<OwnedFd>; HANDLES],
}

/// What an operation answers, besides its error.
type Answer = Result<Vec<u8>, Errno>;

impl Side {
    fn new(root: PathBuf) -> Side {
        Side { root, open: Default::default() }
    }

    fn handle(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.open[slot].as_ref().ok_or(Errno::BADF)
    }

    fn apply(&mut self, operation: &Operation) -> Answer {
        let at = |path: &str| self.root.join(path);
        let file_mode = Mode::from_raw_mode(0o644);
        // A FIFO must not wait for its other end.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        match operation {
            Operation::Create(path) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                rustix::fs::open(at(path), flags, file_mode).map(drop)
            }
            Operation::Mkdir(path) => rustix::fs::mkdir(at(path), Mode::from_raw_mode(0o755)),
            Operation::Write(path, offset) => {
                rustix::fs::open(at(path), flags | OFlags::WRONLY, file_mode)
                    .and_then(|file| rustix::io::pwrite(file, b"written", *offset).map(drop))
            }
            Operation::Truncate(path, size) => {
                rustix::fs::open(at(path), flags | OFlags::WRONLY, file_mode)
                    .and_then(|file| rustix::fs::ftruncate(file, *size))
            }
            Operation::Chmod(path, mode) => rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode)),
            Operation::Chown(path, id) => {
                let (uid, gid) = (Uid::from_raw(*id), Gid::from_raw(*id));
                rustix::fs::chownat(CWD, at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            }
            Operation::SetTime(path, seconds) => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: 5 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Operation::Unlink(path) => rustix::fs::unlink(at(path)),
            Operation::Rmdir(path) => rustix::fs::rmdir(at(path)),
            Operation::Rename(from, to, mode) => {
                let mode = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE]
                    [*mode as usize];
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), mode)
            }
            Operation::Link(from, to) => rustix::fs::link(at(from), at(to)),
            Operation::Symlink(target, path) => rustix::fs::symlink(target.as_str(), at(path)),
            Operation::Mkfifo(path) => fifo(&at(path)),
            Operation::SetXattr(path, value) => {
                rustix::fs::lsetxattr(at(path), "user.set", &[*value], XattrFlags::empty())
            }
            Operation::RemoveXattr(path) => rustix::fs::lremovexattr(at(path), "user.of"),
            Operation::Open(slot, path, write) => {
                let access = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                let opened = rustix::fs::open(at(path), flags | access, file_mode);
                let (file, answer) = match opened {
                    Ok(file) => (Some(file), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                self.open[*slot] = file;
                answer
            }
            Operation::Close(slot) => {
                self.open[*slot] = None;
                Ok(())
            }
            Operation::WriteOpen(slot, offset) => self
                .handle(*slot)
                .and_then(|file| rustix::io::pwrite(file, b"through", *offset).map(drop)),
            Operation::ReadOpen(slot) => return self.read_open(*slot),
            Operation::PunchOpen(slot) => self.handle(*slot).and_then(|file| {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, mode, 3, 4000)
            }),
            Operation::CopyOpen(from, to) => self.handle(*from).and_then(|source| {
                let (mut from, mut to_offset) = (0, 100);
                let to = self.handle(*to)?;
                let (from, at) = (Some(&mut from), Some(&mut to_offset));
                rustix::fs::copy_file_range(source, from, to, at, 50).map(drop)
            }),
            Operation::Swap | Operation::Remount | Operation::Kill => Ok(()),
        }
        .map(|()| Vec::new())
    }

    /// Type, mode, links, size and content of an open file.
    fn read_open(&self, slot: usize) -> Answer {
        let file = self.handle(slot)?;
        let stat = rustix::fs::fstat(file)?;
        let mut answer = format!("{:o} {} ", stat.st_mode, stat.st_nlink).into_bytes();
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            let mut buffer = vec![0; 300_000];
            let length = rustix::io::pread(file, &mut buffer, 0)?;
            answer.extend(format!("{} {length} ", stat.st_size).bytes());
            answer.extend(&buffer[..length]);
        }
        Ok(answer)
    }

    fn tree(&self, start: SystemTime) -> BTreeMap<String, String> {
        let mut walk = Walk { start, tree: BTreeMap::new(), first: BTreeMap::new() };
        walk.object(&self.root, "");
        walk.directory(&self.root, "");
        walk.tree
    }
}

/// A description of every object, comparable between two trees.
struct Walk {
    start: SystemTime,
    tree: BTreeMap<String, String>,
    /// First path of each inode number.
    first: BTreeMap<u64, String>,
}

impl Walk {
    fn directory(&mut self, directory: &Path, below: &str) {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(directory).expect("listed") {
            let entry = entry.expect("an entry");
            let ino = entry.path().symlink_metadata().expect("what is listed is there").ino();
            assert_eq!(entry.ino(), ino, "d_ino of {}", entry.path().display());
            assert!(names.insert(entry.file_name()), "a name twice");
        }
        for name in names {
            let name = name.to_str().expect("ours").to_owned();
            let path = directory.join(&name);
            let below = if below.is_empty() { name } else { format!("{below}/{name}") };
            self.object(&path, &below);
            if path.symlink_metadata().expect("described").is_dir() {
                self.directory(&path, &below);
            }
        }
    }

    fn object(&mut self, path: &Path, below: &str) {
        let meta = path.symlink_metadata().expect("described");
        let same_as = self.first.entry(meta.ino()).or_insert_with(|| below.to_owned()).clone();
        let changed = meta.modified().expect("a time") >= self.start;
        let time = if changed {
            "new".to_owned()
        } else {
            format!("{}.{}", meta.mtime(), meta.mtime_nsec())
        };
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            std::fs::read_link(path).expect("read").display().to_string()
        } else if kind.is_file() {
            let bytes = std::fs::read(path).expect("read");
            assert_eq!(bytes.len() as u64, meta.len(), "{}", path.display());
            format!("{} {}", bytes.len(), strata_core::Digest::of(&bytes))
        } else {
            assert!(kind.is_dir() || kind.is_fifo());
            String::new()
        };
        let mut value = [0; 64];
        let xattrs = ["user.of", "user.set"].map(|name| {
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]);
            length.map(|length| String::from_utf8_lossy(&value[..length]).into_owned())
        });
        let description = format!(
            "{:o} {}:{} links {} as {same_as} time {time} {content} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
        );
        self.tree.insert(below.to_owned(), description);
    }
}

/// Inode numbers by path: they outlive the daemon.
fn numbers(directory: &Path, all: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(directory).expect("listed") {
        let path = entry.expect("an entry").path();
        let meta = path.symlink_metadata().expect("described");
        if meta.is_dir() {
            numbers(&path, all);
        }
        all.insert(path, meta.ino());
    }
}

struct Twins {
    mount: Mount,
    layers: Vec<PathBuf>,
    empty: PathBuf,
    with_empty: bool,
    union: Side,
    plain: Side,
}

impl Twins {
    fn new(layers: &[BTreeMap<String, Kind>], extra: &[&str]) -> Twins {
        let mut mount = Mount::new();
        mount.extra = extra.iter().map(|argument| (*argument).to_owned()).collect();
        let made = layers.iter().enumerate().map(|(number, wanted)| {
            let layer = mount.layer(&number.to_string(), &[]);
            make_layer(&layer, wanted);
            layer
        });
        let layers: Vec<PathBuf> = made.collect();
        let empty = mount.layer("empty", &[]);
        let plain = mount.directory.path().join("plain");
        let union = Side::new(mount.path(""));
        let twins =
            Twins { mount, layers, empty, with_empty: false, union, plain: Side::new(plain) };
        twins.mount();
        let copied = Command::new("cp")
            .arg("-a")
            .args([&twins.union.root, &twins.plain.root])
            .status()
            .expect("cp runs");
        assert!(copied.success());
        twins
    }

    fn set(&self) -> Vec<&Path> {
        let empty = self.with_empty.then_some(self.empty.as_path());
        empty.into_iter().chain(self.layers.iter().map(PathBuf::as_path)).collect()
    }

    fn mount(&self) {
        self.mount.mount(&self.set());
    }

    fn live(&mut self, operation: &Operation) {
        if let Operation::Swap = operation {
            self.with_empty = !self.with_empty;
            self.mount.swap(&self.set());
            return;
        }
        let mut before = BTreeMap::new();
        numbers(&self.union.root, &mut before);
        self.union.open = Default::default();
        self.plain.open = Default::default();
        if let Operation::Kill = operation {
            let daemon = self.mount.daemon();
            let pid = rustix::process::Pid::from_raw(daemon.cast_signed()).expect("a process");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
            wait_for("the daemon's end", || !Path::new(&format!("/proc/{daemon}/fd/0")).exists());
            let gone = Command::new("umount").arg("-l").arg(&self.union.root).status();
            assert!(gone.expect("umount runs").success());
        } else {
            self.mount.unmount();
        }
        self.mount();
        let mut after = BTreeMap::new();
        numbers(&self.union.root, &mut after);
        assert_eq!(after, before, "inode numbers stay");
    }
}

fn run(layers: &[BTreeMap<String, Kind>], operations: &[Operation], extra: &[&str]) {
    let start = SystemTime::now();
    let mut twins = Twins::new(layers, extra);
    // Copying set new times on nothing: `start` lies before the layers were made.
    let start = start.max(newest(&twins.plain.root));
    assert_eq!(twins.union.tree(start), twins.plain.tree(start), "at the mount");
    for (step, operation) in operations.iter().enumerate() {
        if matches!(operation, Operation::Swap | Operation::Remount | Operation::Kill) {
            twins.live(operation);
        }
        let got = twins.union.apply(operation);
        let expected = twins.plain.apply(operation);
        assert_eq!(got, expected, "step {step}, {operation:?}");
        let (got, expected) = (twins.union.tree(start), twins.plain.tree(start));
        assert_eq!(got, expected, "after step {step}, {operation:?}");
    }
}

/// A moment after the last change below a directory, by the clock that dates changes.
fn newest(directory: &Path) -> SystemTime {
    let marker = directory.parent().expect("a temporary directory").join("marker");
    let newest = || {
        std::fs::write(&marker, "").expect("written");
        marker.metadata().expect("described").modified().expect("a time")
    };
    let now = newest();
    // The clock of the disk moves by its ticks: the next one is later than all that is.
    wait_for("a tick of the clock", || newest() > now);
    newest()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(16), max_shrink_iters: 400, failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_union_and_a_plain_directory_answer_alike(
        layers in proptest::collection::vec(layer(), LAYERS..=LAYERS),
        operations in proptest::collection::vec(operation(), 1..60),
    ) {
        run(&layers, &operations, &["--no-passthrough"]);
    }

    #[test]
    fn so_they_do_where_data_goes_through_the_kernel(
        layers in proptest::collection::vec(layer(), LAYERS..=LAYERS),
        operations in proptest::collection::vec(operation(), 1..60),
    ) {
        run(&layers, &operations, &[]);
    }
}

/// A white-out is no change of the private directory's own: it must be dated by hand.
#[test]
fn regression_a_removal_dates_a_private_directory() {
    let layer = BTreeMap::from([
        ("a/b".to_owned(), Kind::File),
        ("a/c".to_owned(), Kind::Directory),
        ("b".to_owned(), Kind::File),
    ]);
    let path = |path: &str| path.to_owned();
    for removal in [Operation::Unlink(path("a/b")), Operation::Rmdir(path("a/c"))] {
        let private = Operation::SetTime(path("a"), 7);
        run(std::slice::from_ref(&layer), &[private.clone(), removal], &[]);
    }
    run(&[layer], &[Operation::Unlink(path("b"))], &[]);
}

/// What leads to a white-out's marker lost no name itself.
#[test]
fn regression_a_removal_dates_no_directory_above_its_own() {
    let layer = BTreeMap::from([("c/c/c".to_owned(), Kind::File)]);
    run(&[layer], &[Operation::Unlink("c/c/c".to_owned()), Operation::Remount], &[]);
}
