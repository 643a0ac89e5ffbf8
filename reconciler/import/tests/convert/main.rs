//! Packages and directories into a real store, compared with what dpkg-deb and
//! GNU tar make of them. Needs root (owners, devices), `dpkg-deb` and `tar`.

mod boot;
mod faithful;
mod fuzzed;
mod hostile;
mod properties;
mod repository;
mod rpm;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata_core::manifest::Manifest;
use strata_core::names::RepositoryName;
use strata_import::import::{ImportError, ImportOptions, Imported, Package, import_packages};
use strata_import::rpm::owners::Owners;
use strata_import::{TreeLimits, tree};
use strata_store::Store;
use tempfile::TempDir;

/// A store and a directory to make packages in.
pub struct Bench {
    pub directory: TempDir,
    pub store: Store,
    pub repository: RepositoryName,
}

impl Bench {
    pub fn set_up() -> Self {
        assert!(rustix::process::getuid().is_root(), "these tests set owners: run them as root");
        let directory = TempDir::new().expect("a temporary directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        Bench { directory, store, repository: RepositoryName::new("debian").expect("a name") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn import(&self, packages: &[PathBuf]) -> Vec<Result<Imported, ImportError>> {
        let mut results = BTreeMap::new();
        let options = ImportOptions::default();
        let packages = packages.iter().cloned().map(Package::from);
        import_packages(&self.store, &self.repository, packages, &options, &mut |index, result| {
            results.insert(index, result);
        })
        .expect("the repository can be written");
        results.into_values().collect()
    }

    pub fn import_with_owners(
        &self,
        package: &Path,
        owners: Owners,
    ) -> Result<Imported, ImportError> {
        let options = ImportOptions { owners, ..ImportOptions::default() };
        let mut result = None;
        let packages = std::iter::once(Package::from(package.to_owned()));
        import_packages(&self.store, &self.repository, packages, &options, &mut |_, imported| {
            result = Some(imported);
        })
        .expect("the repository can be written");
        result.expect("one result")
    }

    pub fn import_one(&self, package: &Path) -> Result<Imported, ImportError> {
        self.import(&[package.to_owned()]).remove(0)
    }

    /// The directory of a unit, and its manifest as the store has it.
    pub fn unit(&self, imported: &Imported) -> (PathBuf, Manifest) {
        let Imported { layer, version, .. } = imported;
        let path = self.store.unit_path(&self.repository, layer, version);
        (path, self.store.manifest(&self.repository, layer, version).expect("a manifest"))
    }

    /// No unit in the making is left behind.
    pub fn assert_clean(&self) {
        let repository = self.store.root().join("repos").join(&self.repository);
        let left: Vec<_> = fs::read_dir(repository)
            .expect("the repository")
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name.to_string_lossy().starts_with(".staging"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Runs a tool that the tests need; its standard output.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output =
        Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap_or_else(|error| {
            panic!("{program} is needed (apt-get install cpio dpkg rpm tar): {error}")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is UTF-8")
}

pub fn scan(path: &Path) -> Manifest {
    tree::scan(path, TreeLimits::default()).expect("the tree can be read")
}

/// Compares two manifests line by line, for a message that can be read.
pub fn assert_same(found: &Manifest, expected: &Manifest) {
    let (found, expected) = (found.print(), expected.print());
    let difference = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert_eq!(difference, None);
    assert_eq!(found, expected);
}

pub const CONTROL: &str = "Package: sample\nVersion: 2:1.0~rc1-1\nArchitecture: amd64\nMaintainer: A <a@example.org>\nDepends: libc6 (>= 2.36), perl:any\nDescription: a sample\n More of it.\n";

/// One tar header, GNU format, with its checksum.
pub fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    {
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..link.len()].copy_from_slice(link);
    }
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    header
}

/// A tar entry by hand: any name, any type.
pub fn entry(name: &[u8], kind: u8, content: &[u8], link: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len() as u64, link).as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn tarball(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A package by hand, of members by name.
pub fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let header =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        if content.len() % 2 == 1 {
            bytes.push(b'\n');
        }
    }
    bytes
}

/// A package by hand around the plain archive `data`.
pub fn package(data: &[u8]) -> Vec<u8> {
    let control = tarball(&[entry(b"./control", b'0', CONTROL.as_bytes(), b"")]);
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", data)])
}

pub fn write(path: &Path, content: &[u8]) {
    fs::File::create(path).and_then(|mut file| file.write_all(content)).expect("written");
}
