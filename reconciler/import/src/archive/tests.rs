//! A unit of every kind of file there and back, and everything that may be done to its
//! archive on the way. Needs root: layers keep owners and devices.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use proptest::prelude::*;
use strata_core::RepositoryName;
use tempfile::TempDir;

use super::*;
use crate::tree;

struct Bench {
    directory: TempDir,
    store: Store,
    unit: LayerSetEntry,
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

fn main() -> RepositoryName {
    name("main")
}

/// A tree with every kind of file, long and odd names, a hole and extended attributes.
fn fill(root: &Path) {
    let long = format!("usr/{}/{}", "d".repeat(120), "f".repeat(200));
    for directory in ["etc", "dev", long.rsplit_once('/').expect("a path").0] {
        fs::create_dir_all(root.join(directory)).expect("made");
    }
    for path in ["etc/plain", &long, "etc/\u{e9} \n\\", "etc/empty"] {
        let content = if path == "etc/empty" { "" } else { path };
        fs::write(root.join(path), content).expect("written");
    }
    fs::hard_link(root.join("etc/plain"), root.join("etc/second")).expect("linked");
    let sparse = File::create(root.join("sparse")).expect("created");
    sparse.set_len(8 << 20).expect("extended");
    sparse.write_all_at(b"data", 4 << 20).expect("written");
    std::os::unix::fs::symlink("/nowhere", root.join("etc/link")).expect("linked");
    std::os::unix::fs::chown(root.join("etc/plain"), Some(7), Some(8)).expect("root runs this");
    let mode = fs::Permissions::from_mode(0o4750);
    fs::set_permissions(root.join("etc/plain"), mode).expect("set");
    let mknod = |name: &str, kind, device| {
        let path = root.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::from_raw_mode(0o620), device)
            .expect("root runs this");
    };
    use rustix::fs::FileType;
    mknod("dev/null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    mknod("dev/loop", FileType::BlockDevice, rustix::fs::makedev(7, 0));
    mknod("dev/pipe", FileType::Fifo, 0);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("etc/plain"), "trusted.strata-test", b"\0value", flags)
        .expect("set");
}

impl Bench {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("made");
        fill(&root);
        let scripts = directory.path().join("scripts");
        fs::create_dir(&scripts).expect("made");
        fs::write(scripts.join("post-install"), "#!/bin/sh\n").expect("written");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let metadata = Metadata::parse(b"Layer: all\nVersion: 1\n").expect("metadata");
        let built =
            crate::build(&store, &main(), metadata, &root, Some(&scripts), TreeLimits::default());
        let digest = built.expect("built").digest;
        let kind = strata_core::metadata::LayerKind::Software;
        let (layer, version) = (name("all"), name("1"));
        let unit = LayerSetEntry { kind, repository: main(), layer, version, digest };
        Bench { directory, store, unit }
    }

    fn pack(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        pack(&self.store, &self.unit, &mut archive).expect("packed");
        archive
    }

    fn content_bytes(&self) -> u64 {
        let manifest = self.store.manifest(&main(), &self.unit.layer, &self.unit.version);
        manifest.expect("a manifest").content_bytes()
    }

    fn filesystem(&self) -> PathBuf {
        self.store.unit_path(&main(), &self.unit.layer, &self.unit.version).join("filesystem")
    }
}

/// Unpacks an archive of the unit into a fresh place of the store, and says what that was.
fn unpack_in(bench: &Bench, archive: &[u8]) -> Result<Unpacked, ArchiveError> {
    let staged = bench.store.stage_unit(&main()).expect("staged");
    let unpacked = unpack(archive, bench.unit.digest, bench.content_bytes(), &staged);
    if let Ok(unpacked) = &unpacked {
        let found = tree::scan(&staged.filesystem(), TreeLimits::default()).expect("scanned");
        assert_eq!(found, unpacked.manifest, "what is on disk is what the manifest says");
    }
    unpacked
}

#[test]
fn every_kind_of_file_arrives_as_it_was() {
    let bench = Bench::new();
    let archive = bench.pack();
    assert_eq!(archive, bench.pack(), "equal units have equal archives");
    let other = Store::init(&bench.directory.path().join("other")).expect("a store");
    let staged = other.stage_unit(&main()).expect("staged");
    let unpacked = unpack(archive.as_slice(), bench.unit.digest, bench.content_bytes(), &staged)
        .expect("unpacked");
    let sent = tree::scan(&bench.filesystem(), TreeLimits::default()).expect("scanned");
    let came = tree::scan(&staged.filesystem(), TreeLimits::default()).expect("scanned");
    assert_eq!(sent, came);
    let sparse = fs::metadata(staged.filesystem().join("sparse")).expect("there");
    assert!(sparse.blocks() * 512 < sparse.size() / 4, "the hole is one still: {sparse:?}");
    let mut writer = other.write_repository(&main()).expect("a writer");
    let published = writer.publish(staged, unpacked.metadata, &unpacked.manifest);
    assert_eq!(published.expect("published").digest, bench.unit.digest);
    writer.commit().expect("written");
    other.open_unit(&bench.unit).expect("whole");
    let script = other.unit_path(&main(), &bench.unit.layer, &bench.unit.version);
    let script = fs::metadata(script.join("scripts/post-install")).expect("there");
    assert_eq!(script.mode() & 0o777, 0o755);
}

#[test]
fn a_damaged_file_is_never_sent() {
    let bench = Bench::new();
    fs::write(bench.filesystem().join("etc/second"), "longer or shorter").expect("written");
    let packed = pack(&bench.store, &bench.unit, io::sink());
    assert!(matches!(packed, Err(ArchiveError::Content { .. })), "{packed:?}");
}

#[test]
fn another_unit_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let staged = bench.store.stage_unit(&main()).expect("staged");
    let bytes = bench.content_bytes();
    let refused = unpack(bench.pack().as_slice(), Digest::of(b"another"), bytes, &staged);
    assert!(matches!(refused, Err(ArchiveError::OtherUnit { .. })), "{refused:?}");
    // Its files are not as large as whoever asked for it was told.
    let refused = unpack(bench.pack().as_slice(), bench.unit.digest, bytes - 1, &staged);
    assert!(matches!(refused, Err(ArchiveError::OtherSize { .. })), "{refused:?}");
    let written = tree::scan(&staged.filesystem(), TreeLimits::default()).expect("scanned");
    assert_eq!(written.entries().len(), 1, "only the root");
}

/// The archive with its members changed by `edit`, which sees names and contents.
fn edited(archive: &[u8], edit: impl Fn(&mut Vec<(Vec<u8>, Vec<u8>)>)) -> Vec<u8> {
    let mut reader = TarReader::new(zstd::Decoder::new(archive).expect("zstd"));
    let mut members = Vec::new();
    while let Some(entry) = reader.next_entry().expect("an entry") {
        let mut content = Vec::new();
        reader.content().read_to_end(&mut content).expect("read");
        members.push((entry.name, content));
    }
    edit(&mut members);
    let mut builder = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).expect("zstd"));
    for (name, content) in members {
        let mut header = header(content.len() as u64, 0o644);
        let field = &mut header.as_old_mut().name;
        if name.len() < field.len() {
            // Names as they are, even those that the crate would refuse to write.
            field[..name.len()].copy_from_slice(&name);
            header.set_cksum();
            builder.append(&header, content.as_slice()).expect("appended");
        } else {
            builder.append_data(&mut header, os(&name), content.as_slice()).expect("appended");
        }
    }
    builder.into_inner().expect("finished").finish().expect("finished")
}

#[test]
fn what_was_changed_in_an_archive_is_refused() {
    let bench = Bench::new();
    let archive = bench.pack();
    type Edit = fn(&mut Vec<(Vec<u8>, Vec<u8>)>);
    let find = |members: &[(Vec<u8>, Vec<u8>)], wanted: &[u8]| {
        members.iter().position(|(name, _)| name == wanted).expect("a member")
    };
    unpack_in(&bench, &edited(&archive, |_| ())).expect("unchanged, it is good");
    let cases: [(&str, Edit); 9] = [
        ("a content of the same size", |all| all[4].1 = vec![b'x'; all[4].1.len()]),
        ("a longer content", |all| all[4].1.push(b'x')),
        ("a name", |all| all[4].0 = b"filesystem/../../../../tmp/evil".to_vec()),
        ("an absolute name", |all| all[4].0 = b"/tmp/evil".to_vec()),
        ("two in another order", |all| all.swap(3, 4)),
        ("one left out", |all| drop(all.remove(5))),
        ("one more", |all| all.push((b"filesystem/zzz".to_vec(), b"evil".to_vec()))),
        ("a script's name", |all| all[1].0 = b"scripts/../../evil".to_vec()),
        ("a script", |all| all[1].1.extend(b"rm -rf /\n")),
    ];
    for (what, edit) in cases {
        let refused = unpack_in(&bench, &edited(&archive, edit));
        assert!(refused.is_err(), "{what}");
    }
    let lie = edited(&archive, |all| {
        let at = find(all, b"manifest");
        let text = String::from_utf8(all[at].1.clone()).expect("text");
        all[at].1 = text.replace("/nowhere", "/etc/pwd").into_bytes();
    });
    let refused = unpack_in(&bench, &lie);
    assert!(matches!(refused, Err(ArchiveError::OtherUnit { .. })), "{refused:?}");
}

#[test]
fn a_cut_archive_is_refused_wherever_it_is_cut() {
    let bench = Bench::new();
    let archive = bench.pack();
    for at in (0..archive.len()).step_by(archive.len() / 60) {
        let cut = unpack_in(&bench, &archive[..at]);
        assert!(cut.is_err(), "cut at {at} of {}", archive.len());
    }
    let mut longer = archive.clone();
    longer.extend(b"more");
    unpack_in(&bench, &longer).expect("what follows the frame is nothing");
}

#[test]
fn an_archive_that_grows_without_end_is_refused() {
    let bench = Bench::new();
    let mut builder = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).expect("zstd"));
    let mut huge = header(limits::METADATA_BYTES as u64 + 1, 0o644);
    let zeros = io::repeat(0).take(limits::METADATA_BYTES as u64 + 1);
    builder.append_data(&mut huge, "metadata", zeros).expect("appended");
    let bomb = builder.into_inner().expect("finished").finish().expect("finished");
    let refused = unpack_in(&bench, &bomb);
    assert!(matches!(refused, Err(ArchiveError::TooLarge { .. })), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A bit that is flipped anywhere is found, or decides nothing.
    #[test]
    fn flipped_bits_are_found(flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4)) {
        thread_local! {
            static BENCH: (Bench, Vec<u8>) = { let bench = Bench::new(); let archive = bench.pack(); (bench, archive) };
        }
        BENCH.with(|(bench, archive)| {
            let mut damaged = archive.clone();
            for (at, bit) in flips {
                let at = at.index(damaged.len());
                damaged[at] ^= 1 << bit;
            }
            // `unpack_in` compares the tree with the manifest where it is taken.
            if let Ok(unpacked) = unpack_in(bench, &damaged) {
                assert_eq!(unpacked.metadata.layer, bench.unit.layer);
            }
        });
    }
}
