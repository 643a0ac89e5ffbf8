//! A Debian package, read back from the layer unit that it became.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};
use strata_core::deb822;
use strata_core::limits;
use strata_core::manifest::{Kind, Manifest};
use strata_core::version::LayerVersion;
use strata_store::{StoreError, read_limited};

use crate::rooted::{Rooted, RootedError};
use crate::usr_merge::{ALIASES, merged};

/// Bytes of one control member.
const MEMBER_BYTES: usize = 16 << 20;
/// Bytes of one configuration file.
const CONFFILE_BYTES: u64 = 64 << 20;
/// Bytes of one file of a package that brings no digests.
const FILE_BYTES: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Rooted(#[from] RootedError),
    #[error("the control file of {unit}: {reason}")]
    Control { unit: PathBuf, reason: String },
    #[error("list {path}: {source}")]
    List { path: PathBuf, source: std::io::Error },
}

/// A package as dpkg knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: LayerVersion,
    pub architecture: String,
    pub essential: bool,
    /// What must be configured before it: for each dependency the names of its
    /// alternatives.
    pub needs: Vec<Vec<String>>,
    /// Virtual packages that it stands for.
    pub provides: Vec<String>,
    /// `Multi-Arch: same`: dpkg writes its name with the architecture.
    multi_arch_same: bool,
    /// The control file, without empty lines.
    control: String,
    /// The other control members by name: scripts, `md5sums`, `triggers` …
    members: BTreeMap<String, Vec<u8>>,
    /// Every path, relative, as the package names it; the root is left out.
    paths: Vec<Vec<u8>>,
    /// Configuration files with the MD5 of what the package ships.
    conffiles: Vec<(String, String)>,
}

impl Package {
    /// The package that the unit in the directory `unit` was converted from; `None`
    /// where it was made otherwise.
    ///
    /// # Errors
    /// The unit cannot be read, or its control file is no valid one.
    pub fn of_unit(unit: &Path, manifest: &Manifest) -> Result<Option<Self>, PackageError> {
        let directory = unit.join("scripts/deb");
        let listed = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            listed => listed,
        };
        let list = |source| PackageError::List { path: directory.clone(), source };
        let mut members = BTreeMap::new();
        for entry in listed.map_err(list)? {
            let name = entry.map_err(list)?.file_name();
            let content = read_limited(&directory.join(&name), MEMBER_BYTES)?;
            members.insert(name.to_string_lossy().into_owned(), content);
        }
        let fault = |reason: String| PackageError::Control { unit: unit.to_owned(), reason };
        let control = members.remove("control").ok_or_else(|| fault("there is none".into()))?;
        let stanzas = deb822::parse(&control).map_err(|error| fault(error.to_string()))?;
        let stanza = stanzas.first().ok_or_else(|| fault("it is empty".into()))?;
        let value = |name: &str| stanza.get(name).map(|field| field.value.to_owned());
        let required = |name: &str| value(name).ok_or_else(|| fault(format!("it has no {name}")));
        let version = LayerVersion::new(required("Version")?).map_err(|e| fault(e.to_string()))?;
        let yes = |name: &str, wanted: &str| value(name).is_some_and(|value| value == wanted);
        let text = String::from_utf8_lossy(&control);
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let mut package = Package {
            name: required("Package")?,
            version,
            architecture: required("Architecture")?,
            essential: yes("Essential", "yes"),
            needs: ["Pre-Depends", "Depends"]
                .iter()
                .flat_map(|field| names(&value(field).unwrap_or_default()))
                .collect(),
            provides: names(&value("Provides").unwrap_or_default()).concat(),
            multi_arch_same: yes("Multi-Arch", "same"),
            control: lines.map(|line| format!("{line}\n")).collect(),
            paths: Vec::new(),
            conffiles: Vec::new(),
            members,
        };
        package.paths = package.original_paths(manifest);
        let files = Rooted::open(&unit.join("filesystem"))?;
        package.conffiles = package.conffiles_of(&files)?;
        // dpkg makes it when it unpacks a package that has none.
        if package.member("md5sums").is_none() {
            let sums = package.sums(manifest, &files)?;
            package.members.insert("md5sums".to_owned(), sums);
        }
        Ok(Some(package))
    }

    /// `libc6:amd64` or `apache2`: how dpkg names its files and triggers.
    pub fn database_name(&self) -> String {
        match self.multi_arch_same {
            true => format!("{}:{}", self.name, self.architecture),
            false => self.name.clone(),
        }
    }

    pub fn member(&self, name: &str) -> Option<&[u8]> {
        self.members.get(name).map(Vec::as_slice)
    }

    pub fn members(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.members.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    /// The stanza of dpkg's `status`: `state` as in `install ok unpacked`, `configured`
    /// the version whose configuration was last completed.
    pub fn status(&self, state: &str, configured: Option<&LayerVersion>) -> String {
        let mut text = self.control.clone();
        text.push_str(&format!("Status: {state}\n"));
        if let Some(version) = configured {
            text.push_str(&format!("Config-Version: {version}\n"));
        }
        if !self.conffiles.is_empty() {
            text.push_str("Conffiles:\n");
            for (path, digest) in &self.conffiles {
                text.push_str(&format!(" {path} {digest}\n"));
            }
        }
        text
    }

    /// The file list, as in `info/apache2.list`.
    pub fn list(&self) -> Vec<u8> {
        let mut text = b"/.\n".to_vec();
        for path in &self.paths {
            text.push(b'/');
            text.extend_from_slice(path);
            text.push(b'\n');
        }
        text
    }

    fn conffiles_of(&self, files: &Rooted) -> Result<Vec<(String, String)>, PackageError> {
        let declared = String::from_utf8_lossy(self.member("conffiles").unwrap_or_default());
        let mut conffiles = Vec::new();
        for line in declared.lines().map(str::trim) {
            // `remove-on-upgrade /etc/old` names one that is no longer shipped.
            let Some(path) = line.strip_prefix('/') else { continue };
            if let Some(content) = files.read(Path::new(path), CONFFILE_BYTES)? {
                conffiles.push((line.to_owned(), md5(&content)));
            }
        }
        Ok(conffiles)
    }

    /// The digests of all files but the configuration files.
    fn sums(&self, manifest: &Manifest, files: &Rooted) -> Result<Vec<u8>, PackageError> {
        let mut sums = Vec::new();
        for entry in manifest.entries() {
            let path = Path::new(OsStr::from_bytes(&entry.path));
            let file = matches!(entry.kind, Kind::Regular { .. } | Kind::HardLink { .. });
            let conffile = |(name, _): &(String, String)| {
                name.trim_start_matches('/').as_bytes() == entry.path
            };
            if !file || self.conffiles.iter().any(conffile) {
                continue;
            }
            if let Some(content) = files.read(path, FILE_BYTES)? {
                sums.extend_from_slice(md5(&content).as_bytes());
                sums.extend_from_slice(b"  ");
                sums.extend_from_slice(&entry.path);
                sums.push(b'\n');
            }
        }
        Ok(sums)
    }

    /// The paths as they stood in the package: conversion moved those of an unmerged
    /// system below `/usr`, and `md5sums` still tells which these were. A directory or
    /// link has the alias where all files beside or below it have.
    fn original_paths(&self, manifest: &Manifest) -> Vec<Vec<u8>> {
        let sums = self.member("md5sums").unwrap_or_default();
        let named: BTreeSet<&[u8]> =
            sums.split(|byte| *byte == b'\n').filter_map(|line| line.get(34..)).collect();
        let mut alias_directories = BTreeSet::new();
        let mut plain_directories = BTreeSet::new();
        for path in &named {
            let directories = if merged(path) == **path {
                &mut plain_directories
            } else {
                &mut alias_directories
            };
            for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                directories.insert(merged(&path[..at]));
            }
        }
        let mut paths = BTreeSet::new();
        for entry in manifest.entries().iter().filter(|entry| !entry.path.is_empty()) {
            let path = &entry.path;
            let Some(original) = unmerged(path) else {
                paths.insert(path.clone());
                continue;
            };
            let parent = strata_core::manifest::parent_path(path).unwrap_or_default();
            let sole = |directory: &[u8]| {
                alias_directories.contains(directory) && !plain_directories.contains(directory)
            };
            if named.contains(original) || (!named.contains(path.as_slice()) && sole(parent)) {
                for (at, _) in original.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                    paths.insert(original[..at].to_vec());
                }
                paths.insert(original.to_vec());
            } else if !sole(path) {
                paths.insert(path.clone());
            }
        }
        paths.into_iter().filter(|path| path.len() <= limits::PATH_BYTES).collect()
    }
}

/// The MD5 of a content, as dpkg writes it.
fn md5(content: &[u8]) -> String {
    Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names in a relation field: of each relation those of its alternatives. Versions do
/// not matter here: the composition was checked.
fn names(field: &str) -> Vec<Vec<String>> {
    let end = |c: char| c.is_whitespace() || c == ':' || c == '(';
    let name = |text: &str| text.trim().split(end).next().unwrap_or_default().to_owned();
    let relations = field.split(',').filter(|relation| !relation.trim().is_empty());
    relations.map(|relation| relation.split('|').map(name).collect()).collect()
}

/// `lib/x` of `usr/lib/x`; `None` for what has no alias.
fn unmerged(path: &[u8]) -> Option<&[u8]> {
    let below = path.strip_prefix(b"usr/")?;
    let top = below.split(|byte| *byte == b'/').next()?;
    ALIASES.iter().any(|alias| OsStr::new(alias).as_bytes() == top).then_some(below)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use strata_core::manifest::{Entry, Timestamp};

    /// A unit on disk with a control file of these fields and empty members.
    pub fn package(name: &str, version: &str, fields: &str, members: &[&str]) -> Package {
        let unit = tempfile::tempdir().expect("a directory");
        let directory = unit.path().join("scripts/deb");
        std::fs::create_dir_all(&directory).expect("made");
        std::fs::create_dir(unit.path().join("filesystem")).expect("made");
        let control = format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n{fields}");
        std::fs::write(directory.join("control"), control).expect("written");
        for member in members {
            std::fs::write(directory.join(member), "").expect("written");
        }
        let manifest = manifest(&[]);
        Package::of_unit(unit.path(), &manifest).expect("readable").expect("a package")
    }

    fn manifest(paths: &[&str]) -> Manifest {
        let entry = |path: &&str| Entry {
            path: path.trim_end_matches('/').into(),
            kind: match path.is_empty() || path.ends_with('/') {
                true => Kind::Directory,
                false => Kind::Symlink { target: b"x".to_vec() },
            },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            link_count: 1,
            xattrs: BTreeMap::new(),
        };
        let paths = std::iter::once(&"").chain(paths);
        Manifest::new(paths.map(entry).collect()).expect("a valid manifest")
    }

    #[test]
    fn the_status_has_the_fields_of_the_control_file_and_what_dpkg_adds() {
        let mut libc = package(
            "libc6",
            "2.36",
            "Multi-Arch: same\nDepends: libgcc-s1, a (>= 1) | b:any\nProvides: x (= 1), y\nDescription: C\n library\n",
            &["postinst"],
        );
        assert_eq!(libc.database_name(), "libc6:amd64");
        assert_eq!(libc.needs, [vec!["libgcc-s1"], vec!["a", "b"]]);
        assert_eq!(libc.provides, ["x", "y"]);
        libc.conffiles = vec![("/etc/a".to_owned(), "d41d8".to_owned())];
        let configured = LayerVersion::new("2.35").expect("valid");
        let status = libc.status("install ok unpacked", Some(&configured));
        assert!(status.starts_with("Package: libc6\n"), "{status}");
        let end = "Status: install ok unpacked\nConfig-Version: 2.35\nConffiles:\n /etc/a d41d8\n";
        assert!(status.ends_with(end), "{status}");
    }

    #[test]
    fn paths_are_listed_as_the_package_names_them() {
        let mut libc = package("libc6", "2.36", "", &[]);
        let sum = "d41d8cd98f00b204e9800998ecf8427e";
        let sums = format!(
            "{sum}  lib/x86_64-linux-gnu/libc.so.6\n{sum}  usr/lib/x86_64-linux-gnu/gconv/A.so\n{sum}  usr/share/doc/libc6/copyright\n"
        );
        libc.members.insert("md5sums".to_owned(), sums.into_bytes());
        let manifest = manifest(&[
            "usr/",
            "usr/lib/",
            "usr/lib/x86_64-linux-gnu/",
            "usr/lib/x86_64-linux-gnu/gconv/",
            "usr/lib/x86_64-linux-gnu/gconv/A.so",
            "usr/lib/x86_64-linux-gnu/libc.so.6",
            "usr/share/",
            "usr/share/doc/",
            "usr/share/doc/libc6/",
            "usr/share/doc/libc6/copyright",
        ]);
        libc.paths = libc.original_paths(&manifest);
        let list = libc.list();
        let lines: Vec<&str> = std::str::from_utf8(&list).expect("ASCII").lines().collect();
        assert_eq!(lines[0], "/.");
        for path in [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib",
            "/usr/lib/x86_64-linux-gnu/gconv/A.so",
            "/usr/share/doc/libc6/copyright",
        ] {
            assert!(lines.contains(&path), "{path} in {lines:?}");
        }
        assert!(!lines.contains(&"/usr/lib/x86_64-linux-gnu/libc.so.6"), "{lines:?}");
    }

    #[test]
    fn the_digests_of_configuration_files_are_those_of_the_layer() {
        let unit = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(unit.path().join("scripts/deb")).expect("made");
        std::fs::create_dir_all(unit.path().join("filesystem/etc")).expect("made");
        std::fs::write(unit.path().join("filesystem/etc/a"), "").expect("written");
        let control = "Package: a\nVersion: 1\nArchitecture: all\n";
        std::fs::write(unit.path().join("scripts/deb/control"), control).expect("written");
        let conffiles = "/etc/a\nremove-on-upgrade /etc/b\n/etc/gone\n";
        std::fs::write(unit.path().join("scripts/deb/conffiles"), conffiles).expect("written");
        let package = Package::of_unit(unit.path(), &manifest(&["etc/", "etc/a"]));
        let package = package.expect("readable").expect("a package");
        let wanted = [("/etc/a".to_owned(), "d41d8cd98f00b204e9800998ecf8427e".to_owned())];
        assert_eq!(package.conffiles, wanted);
    }

    #[test]
    fn a_layer_that_was_built_is_no_package() {
        let unit = tempfile::tempdir().expect("a directory");
        assert_eq!(Package::of_unit(unit.path(), &manifest(&[])).expect("no error"), None);
    }
}
