//! What comes from outside never makes the file system panic, hang or leave its
//! place: any bytes as requests, and private directories that somebody else wrote.
//!
//! `STRATA_CASES` is the number of cases, where a longer search is wanted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use strata_vlfs::fuse::device::Device;
use strata_vlfs::fuse::session::Session;
use strata_vlfs::private::{Owner, Private};
use strata_vlfs::set;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::{Caller, SetInfo, Vfs, rename};

use crate::fixture::cases;

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
const ROOT: u64 = 1;

/// A layer, a private directory, and a place outside that nothing may touch.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
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

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// `None` where the private directory is refused.
    fn open(&self) -> Option<Vfs> {
        let layers = set::open_directories(&[self.path("layer")], None).expect("opened");
        let private = Private::open(&self.path("private"), &Owner::AdHoc).ok()?;
        Vfs::new(private, layers, SetInfo::default()).ok()
    }

    fn check_outside(&self) {
        let names: Vec<_> = fs::read_dir(self.path("outside")).expect("listed").collect();
        assert_eq!(names.len(), 1, "something came or went outside");
        let secret = fs::read_to_string(self.path("outside/secret")).expect("it is there");
        assert_eq!(secret, "untouched");
        let layer = fs::read_to_string(self.path("layer/d/e/c")).expect("it is there");
        assert_eq!(layer, "c", "a layer was changed");
    }
}

/// One field of a message.
#[derive(Debug, Clone)]
enum Field {
    Small(u32),
    Long(u64),
    Name(Vec<u8>),
    Bytes(Vec<u8>),
}

fn field() -> impl Strategy<Value = Field> {
    let names =
        [b"a".as_slice(), b"d", b"b", b"e", b"..", b".", b"", b"../outside/secret", b"user.x"];
    prop_oneof![
        4 => (0..10_u32).prop_map(Field::Small),
        1 => any::<u32>().prop_map(Field::Small),
        4 => (0..6_u64).prop_map(Field::Long),
        1 => any::<u64>().prop_map(Field::Long),
        4 => proptest::sample::select(names.map(<[u8]>::to_vec).to_vec()).prop_map(Field::Name),
        1 => proptest::collection::vec(1_u8.., 250..300).prop_map(Field::Name),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Field::Bytes),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let node = prop_oneof![3 => Just(ROOT), 4 => 2..8_u64, 1 => any::<u64>()];
    // No FALLOCATE, which a random length would let fill the disk of the test.
    let opcode = prop_oneof![20 => 1..54_u32, 1 => any::<u32>()].prop_filter("", |n| *n != 43);
    (opcode, node, proptest::collection::vec(field(), 0..14)).prop_map(|(opcode, node, fields)| {
        let mut body = Vec::new();
        for field in fields {
            match field {
                Field::Small(number) => body.extend(number.to_ne_bytes()),
                Field::Long(number) => body.extend(number.to_ne_bytes()),
                Field::Name(name) => body.extend([&name[..], b"\0"].concat()),
                Field::Bytes(bytes) => body.extend(bytes),
            }
        }
        let length = u32::try_from(40 + body.len()).expect("small");
        let mut message = Vec::new();
        message.extend(length.to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(7_u64.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        // The caller's user, group and process, and no extensions.
        message.extend([0; 16]);
        message.extend(body);
        message
    })
}

/// What happens to a private directory.
#[derive(Debug, Clone)]
enum Damage {
    Remove(usize),
    Link(usize, bool),
    Fifo(usize),
    Device(usize),
    Directory(usize),
    Content(usize, Vec<u8>),
    Attribute(usize, bool, Vec<u8>),
}

/// Places in a private directory that the file system reads.
const TARGETS: [&str; 22] = [
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

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0..TARGETS.len();
    let texts = [
        "strata-journal 1\nrename work/1 upper/x\nend\n",
        "strata-journal 1\nrename upper/a ../outside/taken\nend\n",
        "strata-journal 1\nlink upper/a upper/../../outside/taken\nrename upper/d owner\nend\n",
        "strata-journal 1\nrename / upper\nlink %2e%2e/outside/secret upper/x\nend\n",
        "strata-private 2\n",
        "0123456789abcdef",
        "1 main/x 644 0 0 1 0.000000000",
    ];
    let content = prop_oneof![
        proptest::sample::select(texts.map(|text| text.as_bytes().to_vec()).to_vec()),
        proptest::collection::vec(any::<u8>(), 0..60),
    ];
    prop_oneof![
        at.clone().prop_map(Damage::Remove),
        (at.clone(), any::<bool>()).prop_map(|(at, file)| Damage::Link(at, file)),
        at.clone().prop_map(Damage::Fifo),
        at.clone().prop_map(Damage::Device),
        at.clone().prop_map(Damage::Directory),
        (at.clone(), content.clone()).prop_map(|(at, content)| Damage::Content(at, content)),
        (at, any::<bool>(), content).prop_map(|(at, ino, value)| Damage::Attribute(at, ino, value)),
    ]
}

impl Damage {
    fn apply(&self, private: &Path, outside: &Path) {
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
fn use_everything(vfs: &Vfs, node: u64, depth: usize) {
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
fn used(place: &Place) {
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

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(150), max_shrink_iters: 400, failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_answered(
        messages in proptest::collection::vec(message(), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let place = Place::new();
        let vfs = Arc::new(place.open().expect("opened"));
        // Answers go nowhere: what the kernel makes of them is not its concern here.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).expect("opened");
        let session = Session::new(vfs, Device::adopt(null), false, 0);
        for message in &messages {
            let _too_old_at_worst = session.handle(message);
            let _cut_short = session.handle(&message[..cut.index(message.len())]);
        }
        place.check_outside();
    }

    #[test]
    fn a_damaged_private_directory_does_no_harm(
        damages in proptest::collection::vec(damage(), 1..6),
    ) {
        let place = Place::new();
        used(&place);
        for damage in &damages {
            damage.apply(&place.path("private"), &place.path("outside"));
        }
        // Twice: what the first mount left behind must open as well.
        for _ in 0..2 {
            if let Some(vfs) = place.open() {
                use_everything(&vfs, ROOT, 0);
            }
            place.check_outside();
        }
    }
}

/// What would be waited for without end is refused instead.
#[test]
fn regression_a_fifo_in_the_journal_is_damage() {
    let place = Place::new();
    used(&place);
    let at = TARGETS.iter().position(|target| *target == "journal/1").expect("listed");
    Damage::Fifo(at).apply(&place.path("private"), &place.path("outside"));
    assert!(place.open().is_none());
}
