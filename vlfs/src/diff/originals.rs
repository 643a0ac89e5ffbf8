//! The layers that a private directory is compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use strata_core::GenerationId;
use strata_core::manifest::{Entry, Kind, Manifest, file_name, parent_path, path_order};
use strata_core::names::unit_directory;
use strata_store::Store;

use super::DiffError;
use crate::backing;
use crate::private::origin::{Origin, xattrs_digest};
use crate::private::{UnitKey, borrowed};

/// One layer: where its files are, and its manifest where it has one.
#[derive(Debug)]
struct Original {
    unit: String,
    files: PathBuf,
    manifest: Option<Manifest>,
}

impl Original {
    /// What it has in a directory that is not its root.
    fn names_in(&self, directory: &[u8]) -> Vec<Vec<u8>> {
        let Some(manifest) = &self.manifest else {
            let found = backing::open_root(&self.files)
                .and_then(|root| backing::list(backing::open_directory(root, directory)?));
            let names = found.unwrap_or_default().into_iter();
            return names.map(|name| name.name.to_vec()).collect();
        };
        let entries = manifest.entries();
        let first = entries.partition_point(|entry| path_order(&entry.path, directory).is_le());
        let is_below = |entry: &&Entry| {
            entry.path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let below = entries[first..].iter().take_while(is_below);
        let own = below.filter(|entry| parent_path(&entry.path) == Some(directory));
        own.map(|entry| file_name(&entry.path).to_vec()).collect()
    }
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

    /// The topmost unit with something other than a directory at a path, if it is not `unit`.
    pub fn hidden_by(&self, path: &[u8], unit: &str) -> Option<String> {
        self.unit_at(path).filter(|top| top != unit)
    }

    /// Whether two paths of a unit are one file; `None` where the unit is not at hand.
    pub fn is_link(&self, unit: &str, one: &[u8], other: &[u8]) -> Option<bool> {
        let layer = self.layer(unit)?;
        let Some(manifest) = &layer.manifest else {
            let stat = |path: &[u8]| {
                let (above, name) = backing::open_parent(backing::open_root(&layer.files)?, path)?;
                backing::stat_at(above, name)
            };
            let pair = stat(one).and_then(|one| Ok((one, stat(other)?)));
            return Some(pair.is_ok_and(|(one, other)| {
                (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
            }));
        };
        let file = |path: &[u8]| match manifest.get(path)? {
            Entry { kind: Kind::HardLink { target }, .. } => Some(target.clone()),
            entry => Some(entry.path.clone()),
        };
        Some(file(one).is_some() && file(one) == file(other))
    }

    /// Names that layers have in a directory, each with its topmost unit, where `is_hidden`
    /// says of every unit and path below the directory that has it that nothing shows it.
    pub fn hidden_names(
        &self,
        directory: &[u8],
        is_hidden: impl Fn(&str, &[u8]) -> bool,
    ) -> BTreeMap<Vec<u8>, String> {
        let (mut hidden, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for layer in &self.layers {
            for name in layer.names_in(directory) {
                let path = [directory, b"/", name.as_slice()].concat();
                match is_hidden(&layer.unit, &path) {
                    true => _ = hidden.entry(name).or_insert_with(|| layer.unit.clone()),
                    false => _ = seen.insert(name),
                }
            }
        }
        hidden.retain(|name, _| !seen.contains(name));
        hidden
    }

    /// Opens the original of a copy, if it is a regular file.
    ///
    /// # Errors
    /// `ENOENT`: its layer is not at hand.
    pub fn open(&self, unit: &str, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (mut at, mut path) = (*self.by_unit.get(unit).ok_or(Errno::NOENT)?, path.to_vec());
        loop {
            let layer = &self.layers[at];
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let root = backing::open_root(&layer.files)?;
            let file = backing::open_beneath(root, &path, flags, Mode::empty())?;
            match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
                FileType::RegularFile => {}
                _ => return Err(Errno::ISDIR),
            }
            if layer.manifest.is_some() || !borrowed::is_marked(&file)? {
                return Ok(file);
            }
            // Of a former private layer: its data is that of one below.
            let origin = borrowed::origin_of(&file)?;
            let below = self.by_unit.get(&origin.unit).filter(|below| **below > at);
            (at, path) = (*below.ok_or(Errno::NOENT)?, origin.path);
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
