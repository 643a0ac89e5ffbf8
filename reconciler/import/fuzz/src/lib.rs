//! What must hold of packages and programs whatever is in them: they are taken or refused
//! with a reason, nothing outside the layer's directory is touched, and what was written
//! is what the manifest says. One function a fuzz target of `targets/`.

use std::fs::{self, File};
use std::path::Path;

use strata_core::manifest::Manifest;
use strata_import::infer::interpreter::Interpreter;
use strata_import::infer::{elf as programs, symbols};
use strata_import::rpm::cpio::CpioReader;
use strata_import::rpm::owners::Owners;
use strata_import::{TreeLimits, deb as debs, rpm as rpms, tree};

/// Small, so that a bomb is found by its size and not by the memory that it takes.
const LIMITS: TreeLimits = TreeLimits { bytes: 4 << 20, entries: 1_000 };
const CONTROL: &str = "Package: sample\nVersion: 1\nArchitecture: all\n";

/// What a program needs, and what runs a script.
pub fn elf(bytes: &[u8]) {
    if let Ok(Some(elf)) = programs::read(bytes) {
        let named = elf.undefined.iter().map(String::len).sum::<usize>();
        assert!(named <= 128 << 20, "names take no more than they may");
    }
    let _interpreter = Interpreter::of(bytes);
}

/// What a package says of its libraries: what is listed is found.
pub fn library_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for soname in symbols::sonames(&text).take(100) {
        let library = symbols::library(&text, soname).expect("it is listed");
        assert!(library.dependency().is_some());
    }
    for (name, version) in symbols::shlibs_names(&text).take(100) {
        let soname = format!("{name}.so.{version}");
        if symbols::split_soname(&soname) == Some((name, version)) {
            assert!(symbols::shlibs_dependency(&text, &soname).is_some(), "{soname}");
        }
    }
}

/// A whole Debian package.
pub fn deb(bytes: &[u8]) {
    in_room(|filesystem, scripts| {
        let directory = File::open(filesystem).expect("a directory").into();
        debs::convert(bytes, directory, scripts, LIMITS).ok().map(|layer| layer.manifest)
    });
}

/// The files of a Debian package: a tar archive.
pub fn deb_files(bytes: &[u8]) {
    let mut control = vec![0; 512];
    control[..9].copy_from_slice(b"./control");
    for (at, text) in [(100, "0000644"), (108, "0000000"), (116, "0000000"), (136, "00000000000")] {
        control[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    control[124..135].copy_from_slice(format!("{:011o}", CONTROL.len()).as_bytes());
    control[156] = b'0';
    control[257..265].copy_from_slice(b"ustar\x0000");
    control[148..156].fill(b' ');
    let sum: u32 = control.iter().map(|byte| u32::from(*byte)).sum();
    control[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    control.extend(CONTROL.bytes());
    control.resize(2560, 0);
    let mut package = b"!<arch>\n".to_vec();
    for (name, content) in
        [("debian-binary", &b"2.0\n"[..]), ("control.tar", &control), ("data.tar", bytes)]
    {
        let size = content.len();
        package.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 100644).bytes(),
        );
        package.extend(content);
        package.resize(package.len().next_multiple_of(2), b'\n');
    }
    deb(&package);
}

/// A whole RPM package.
pub fn rpm(bytes: &[u8]) {
    in_room(|filesystem, scripts| {
        let directory = File::open(filesystem).expect("a directory").into();
        let owners = Owners::default();
        rpms::convert(bytes, directory, scripts, LIMITS, &owners).ok().map(|layer| layer.manifest)
    });
}

/// The payload of an RPM package: a cpio archive.
pub fn rpm_payload(bytes: &[u8]) {
    let mut reader = CpioReader::new(bytes);
    while let Ok(Some(_)) = reader.next_member() {
        let mut content = reader.content();
        if std::io::copy(&mut content, &mut std::io::sink()).is_err() {
            break;
        }
    }
}

/// Converts into a directory beside which a file must stay as it is.
fn in_room(convert: impl FnOnce(&Path, &Path) -> Option<Manifest>) {
    let room = tempfile::tempdir().expect("a directory");
    let at = |name: &str| room.path().join(name);
    for name in ["layer", "scripts", "outside"] {
        fs::create_dir(at(name)).expect("a directory");
    }
    fs::write(at("outside/file"), "untouched").expect("written");
    if let Some(manifest) = convert(&at("layer"), &at("scripts")) {
        let found = tree::scan(&at("layer"), TreeLimits::default()).expect("it can be read");
        assert_eq!(found.print(), manifest.print());
    }
    let mut names: Vec<_> = fs::read_dir(room.path())
        .expect("listed")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["layer", "outside", "scripts"]);
    assert_eq!(fs::read_dir(at("outside")).expect("listed").count(), 1);
    assert_eq!(fs::read(at("outside/file")).expect("read"), b"untouched");
}
