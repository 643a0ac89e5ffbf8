//! The layers that a private directory is compared with.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use strata_core::GenerationId;
use strata_core::manifest::{Entry, Kind, Manifest};
use strata_core::names::unit_directory;
use strata_store::Store;

use super::DiffError;
use crate::backing;
use crate::private::UnitKey;
use crate::private::origin::{Origin, xattrs_digest};

/// One layer: where its files are, and its manifest where it has one.
#[derive(Debug)]
struct Original {
    unit: String,
    files: PathBuf,
    manifest: Option<Manifest>,
}

/// The layers of one generation or mount, topmost first.
#[derive(Debug, Default)]
pub struct Originals {
    layers: Vec<Original>,
    by_unit: BTreeMap<String, usize>,
}

impl Originals {
    /// The layers of a generation; each must be whole.
    ///
    /// # Errors
    /// The generation or a layer of it is missing or damaged.
    pub fn of_generation(store: &Store, id: &GenerationId) -> Result<Originals, DiffError> {
        let generation = store.generation(id).map_err(Box::new)?;
        let mut originals = Originals::default();
        for entry in generation.layers().iter().rev() {
            let opened = store.open_unit(entry).map_err(Box::new)?;
            let directory = unit_directory(&entry.layer, &entry.version);
            let unit = UnitKey::new(entry.repository.as_str(), &directory).to_string();
            let files = opened.path.join("filesystem");
            originals.add(Original { unit, files, manifest: Some(opened.manifest) });
        }
        Ok(originals)
    }

    /// Plain directories, topmost first.
    ///
    /// # Errors
    /// One is not there.
    pub fn of_directories(directories: &[PathBuf]) -> Result<Originals, DiffError> {
        let mut originals = Originals::default();
        for directory in directories {
            let stat = rustix::fs::stat(directory)
                .map_err(|errno| DiffError::Read { path: directory.clone(), errno })?;
            let unit = UnitKey::plain(directory, stat.st_dev, stat.st_ino).to_string();
            let former = directory.join("format").is_file() && directory.join("upper").is_dir();
            let files = if former { directory.join("upper") } else { directory.clone() };
            originals.add(Original { unit, files, manifest: None });
        }
        Ok(originals)
    }

    fn add(&mut self, original: Original) {
        self.by_unit.insert(original.unit.clone(), self.layers.len());
        self.layers.push(original);
    }

    fn layer(&self, unit: &str) -> Option<&Original> {
        Some(&self.layers[*self.by_unit.get(unit)?])
    }

    pub fn has_unit(&self, unit: &str) -> bool {
        self.by_unit.contains_key(unit)
    }

    /// Whether the unit is there with a manifest, so that its word counts.
    pub fn knows(&self, unit: &str) -> bool {
        self.layer(unit).is_some_and(|layer| layer.manifest.is_some())
    }

    /// What the manifest of a unit says of a path, as a record of a copy would.
    pub fn origin(&self, unit: &str, path: &[u8]) -> Option<Origin> {
        let manifest = self.layer(unit)?.manifest.as_ref()?;
        let entry = match manifest.get(path)? {
            Entry { kind: Kind::HardLink { target }, .. } => manifest.get(target)?,
            entry => entry,
        };
        let (size, digest) = match &entry.kind {
            Kind::Regular { size, digest } => (*size, Some(*digest)),
            Kind::Symlink { target } => {
                (target.len() as u64, Some(strata_core::Digest::of(target)))
            }
            _ => (0, None),
        };
        Some(Origin {
            unit: unit.to_owned(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size,
            mtime: entry.mtime,
            digest,
            xattrs: xattrs_digest(&entry.xattrs),
            path: path.to_vec(),
        })
    }

    /// The topmost unit with something other than a directory at a path.
    pub fn unit_at(&self, path: &[u8]) -> Option<String> {
        let found = self.layers.iter().find(|layer| match &layer.manifest {
            Some(manifest) => manifest.get(path).is_some_and(|e| e.kind != Kind::Directory),
            None => plain_file(&layer.files, path),
        });
        found.map(|layer| layer.unit.clone())
    }

    /// Opens the original of a copy, if it is a regular file.
    ///
    /// # Errors
    /// `ENOENT`: its layer is not at hand.
    pub fn open(&self, unit: &str, path: &[u8]) -> Result<OwnedFd, Errno> {
        let layer = self.layer(unit).ok_or(Errno::NOENT)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let root = backing::open_root(&layer.files)?;
        let file = backing::open_beneath(root, path, flags, Mode::empty())?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file),
            _ => Err(Errno::ISDIR),
        }
    }
}

fn plain_file(files: &Path, path: &[u8]) -> bool {
    let found = backing::open_root(files).and_then(|root| {
        let (above, name) = backing::open_parent(root, path)?;
        backing::stat_at(above, name)
    });
    found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
}
