//! The walk over a private directory: every private object, then every white-out.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use strata_core::limits;
use strata_core::manifest::file_name;

use super::compare::{self, Compared};
use super::{
    Bound, Change, DiffError, Difference, Differences, HELD_PATHS, LISTED, NAMED, NotWalked,
    Options, content,
};
use crate::backing;
use crate::data::{self, DATA};
use crate::private::borrowed;
use crate::private::origin::Origin;
use crate::private::{self, ORIGIN_XATTR, UPPER, UnitKey, WHITEOUTS};
use crate::whiteout::WhiteoutTree;

pub struct Walk<'a> {
    private: &'a Path,
    upper: OwnedFd,
    options: &'a Options<'a>,
    hidden: BTreeMap<UnitKey, WhiteoutTree>,
    found: BTreeMap<Vec<u8>, Difference>,
    omitted: usize,
    not_walked: Beyond,
    /// Hidden paths at which a private object stands.
    replaced: WhiteoutTree,
}

/// What is beyond the bounds.
#[derive(Debug, Default)]
struct Beyond {
    named: Vec<NotWalked>,
    count: usize,
}

impl Beyond {
    /// Notes that what is below a path of a part of the private directory was left out.
    fn note(&mut self, part: &[u8], path: &[u8], why: Bound) {
        self.count += 1;
        if self.named.len() < NAMED {
            let path = super::shown(&String::from_utf8_lossy(&join(part, path)));
            self.named.push(NotWalked { path, why });
        }
    }
}

impl Walk<'_> {
    pub fn run(private: &Path, options: &Options<'_>) -> Result<Differences, DiffError> {
        let error = |errno| DiffError::Read { path: private.to_owned(), errno };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(private, flags, Mode::empty()).map_err(error)?;
        if !private::is_private_directory(&root).map_err(error)? {
            return Err(DiffError::NotPrivate(private.to_owned()));
        }
        let mut not_walked = Beyond::default();
        let hidden = load_whiteouts(private, &root, &mut not_walked)?;
        let upper = backing::open_directory(&root, UPPER).map_err(error)?;
        let mut walk = Walk {
            private,
            upper,
            options,
            hidden,
            found: BTreeMap::new(),
            omitted: 0,
            not_walked,
            replaced: WhiteoutTree::default(),
        };
        walk.objects()?;
        walk.deleted();
        if options.data {
            walk.data(&root)?;
        }
        Ok(Differences {
            listed: walk.found.into_values().collect(),
            omitted: walk.omitted,
            not_walked: walk.not_walked.named,
            not_walked_count: walk.not_walked.count,
        })
    }

    fn error(&self, path: &[u8], errno: Errno) -> DiffError {
        read_error(self.private, UPPER, path, errno)
    }

    /// One directory after the other, none held open: a tree may be deeper than
    /// descriptors last.
    fn objects(&mut self) -> Result<(), DiffError> {
        let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let directory = match backing::open_directory(&self.upper, &path) {
                // Of a mount in use: it went since its name was read.
                Err(Errno::NOENT) if !path.is_empty() => continue,
                other => other.map_err(|errno| self.error(&path, errno))?,
            };
            let reader = open_reader(&directory).map_err(|errno| self.error(&path, errno))?;
            let mut gone = self.hidden_names(&path);
            let mut is_too_deep = false;
            for entry in reader {
                let entry = entry.map_err(|errno| self.error(&path, errno))?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                gone.remove(name);
                let below = join(&path, name);
                if below.len() > limits::PATH_BYTES {
                    if !std::mem::replace(&mut is_too_deep, true) {
                        self.not_walked.note(UPPER, &path, Bound::Depth);
                    }
                    continue;
                }
                let is_directory = match self.object(&directory, &below) {
                    Err(Errno::NOENT) => continue,
                    other => other.map_err(|errno| self.error(&below, errno))?,
                };
                if is_directory && pending.len() >= HELD_PATHS {
                    self.not_walked.note(UPPER, &below, Bound::Number);
                } else if is_directory {
                    pending.push(below);
                }
            }
            for (name, unit) in gone {
                self.add_deleted(join(&path, &name), unit);
            }
        }
        Ok(())
    }

    /// What layers have in a private directory, or above it, that took the place of theirs:
    /// one white-out hides it all.
    fn hidden_names(&self, directory: &[u8]) -> BTreeMap<Vec<u8>, String> {
        let Some(originals) = self.options.originals else { return BTreeMap::new() };
        if !self.hidden.values().any(|tree| is_hidden_above(tree, directory)) {
            return BTreeMap::new();
        }
        let trees: BTreeMap<_, _> =
            self.hidden.iter().map(|(unit, tree)| (unit.to_string(), tree)).collect();
        originals.hidden_names(directory, |unit, path| {
            trees.get(unit).is_some_and(|tree| is_hidden_above(tree, path))
        })
    }

    /// Every object in a data directory, as added: no layer counts there.
    fn data(&mut self, root: &OwnedFd) -> Result<(), DiffError> {
        let error = |at: &[u8], errno| read_error(self.private, DATA, at, errno);
        let paths = data::present(root).map_err(|errno| error(b"", errno))?.into_iter();
        // Where it is below `data`, and in the mount.
        let mut pending: Vec<(Vec<u8>, Vec<u8>)> = paths
            .map(|path| (path.directory_name().into_bytes(), path.relative().into()))
            .collect();
        let top = match backing::open_directory(root, DATA) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|errno| error(b"", errno))?,
        };
        while let Some((at, path)) = pending.pop() {
            let read = |errno| read_error(self.private, DATA, &at, errno);
            let directory = match backing::open_directory(&top, &at) {
                // Of a VA that runs: it went since its name was read.
                Err(Errno::NOENT) => continue,
                other => other.map_err(read)?,
            };
            let mut found = Vec::new();
            let mut is_too_deep = false;
            for entry in open_reader(&directory).map_err(read)? {
                let entry = entry.map_err(read)?;
                let name = entry.file_name().to_bytes();
                if found.len() + pending.len() >= HELD_PATHS {
                    self.not_walked.note(DATA, &at, Bound::Number);
                    break;
                }
                if name != b"." && name != b".." {
                    found.push(name.to_vec());
                }
            }
            for name in found {
                let kind = match backing::stat_at(&directory, &name) {
                    Err(Errno::NOENT) => continue,
                    other => FileType::from_raw_mode(other.map_err(read)?.st_mode),
                };
                let above = &at;
                let (at, path) = (join(above, &name), join(&path, &name));
                if path.len() > limits::PATH_BYTES {
                    if !std::mem::replace(&mut is_too_deep, true) {
                        self.not_walked.note(DATA, above, Bound::Depth);
                    }
                    continue;
                }
                let compared = Compared { change: Change::Added, origin: None, obscures: None };
                let mut added = difference(&path, &compared);
                if self.options.content && kind == FileType::RegularFile {
                    added.content = content::show(&path, None, Some(&directory));
                }
                self.add(path.clone(), added);
                if kind == FileType::Directory {
                    pending.push((at, path));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: Vec<u8>, difference: Difference) {
        self.found.insert(path, difference);
        if self.found.len() > LISTED {
            self.found.pop_last();
            self.omitted += 1;
        }
    }

    /// Notes what one private object is. Returns whether it is a directory.
    fn object(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<bool, Errno> {
        let name = file_name(path);
        let stat = backing::stat_at(directory, name)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let own = backing::path_of(directory, name);
        let claimed = match backing::xattr(&own, ORIGIN_XATTR) {
            Ok(record) => Origin::parse(&record),
            Err(Errno::NODATA | Errno::NOTSUP) => None,
            Err(error) => return Err(error),
        };
        let hidden_in = self.hidden.iter().find(|(_, tree)| is_hidden(tree, path));
        let hidden_in = hidden_in.map(|(unit, _)| unit.to_string());
        if hidden_in.is_some() {
            self.replaced.hide(path);
        }
        let object = compare::Object { directory, path, stat: &stat, claimed, hidden_in };
        let Some(compared) = compare::compare(&object, self.options.originals)? else {
            return Ok(is_directory);
        };
        let mut difference = difference(path, &compared);
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if self.options.content && regular && borrowed::mark(&own, &stat)?.is_none() {
            difference.content = match (self.options.originals, compared.original()) {
                (None, Some(_)) => Some(content::NO_LAYERS.to_owned()),
                (originals, original) => {
                    content::show(path, originals.zip(original), Some(directory))
                }
            };
        }
        self.add(path.to_vec(), difference);
        Ok(is_directory)
    }

    fn deleted(&mut self) {
        let hidden = std::mem::take(&mut self.hidden);
        for (unit, tree) in &hidden {
            for path in tree.paths() {
                if is_hidden(&self.replaced, &path) || self.found.contains_key(&path) {
                    continue;
                }
                self.add_deleted(path, unit.to_string());
            }
        }
    }

    fn add_deleted(&mut self, path: Vec<u8>, unit: String) {
        let origin = Some((unit.clone(), path.clone()));
        let compared = Compared { change: Change::Deleted, origin, obscures: None };
        let mut difference = difference(&path, &compared);
        if self.options.content {
            let original = self.options.originals.zip(Some((unit.as_str(), &path[..])));
            difference.content = content::show(&path, original, None);
        }
        self.add(path, difference);
    }
}

fn read_error(private: &Path, part: &[u8], path: &[u8], errno: Errno) -> DiffError {
    let below: PathBuf = [part, path].iter().map(|part| private::os(part)).collect();
    let path = super::shown(&private.join(below).to_string_lossy()).into();
    DiffError::Read { path, errno }
}

fn open_reader(directory: &OwnedFd) -> Result<rustix::fs::Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    rustix::fs::Dir::new(backing::open_beneath(directory, b"", flags, Mode::empty())?)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// The white-outs of all units; like `private::markers::load_all`, with bounds.
fn load_whiteouts(
    private: &Path,
    root: &OwnedFd,
    not_walked: &mut Beyond,
) -> Result<BTreeMap<UnitKey, WhiteoutTree>, DiffError> {
    let mut units: BTreeMap<UnitKey, WhiteoutTree> = BTreeMap::new();
    let error = |path: &[u8], errno| read_error(private, WHITEOUTS, path, errno);
    let top = match backing::open_directory(root, WHITEOUTS) {
        Err(Errno::NOENT) => return Ok(units),
        other => other.map_err(|errno| error(b"", errno))?,
    };
    let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
    let mut held = 0;
    while let Some(path) = pending.pop() {
        let directory =
            backing::open_directory(&top, &path).map_err(|errno| error(&path, errno))?;
        let mut is_too_deep = false;
        for entry in open_reader(&directory).map_err(|errno| error(&path, errno))? {
            let entry = entry.map_err(|errno| error(&path, errno))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let below = join(&path, name);
            held += 1;
            if held > HELD_PATHS {
                not_walked.note(WHITEOUTS, &path, Bound::Number);
                return Ok(units);
            }
            // Two components more than a path of the mount has.
            if below.len() > limits::PATH_BYTES + 2 * limits::COMPONENT_BYTES {
                if !std::mem::replace(&mut is_too_deep, true) {
                    not_walked.note(WHITEOUTS, &path, Bound::Depth);
                }
                continue;
            }
            let stat = backing::stat_at(&directory, name).map_err(|errno| error(&below, errno))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push(below);
            } else if let Some((unit, path)) = split_unit(&below) {
                units.entry(unit).or_default().hide(path);
            } else {
                return Err(error(&below, Errno::NOTDIR));
            }
        }
    }
    Ok(units)
}

/// `<repo>/<unit>/<path>`; `None` where the path is missing or a name is no text.
fn split_unit(path: &[u8]) -> Option<(UnitKey, &[u8])> {
    let mut parts = path.splitn(3, |b| *b == b'/');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let unit = UnitKey::new(text()?, text()?);
    Some((unit, parts.next()?))
}

/// Whether a path, or a directory above it, is hidden.
fn is_hidden_above(tree: &WhiteoutTree, path: &[u8]) -> bool {
    let mut at = tree;
    for name in path.split(|b| *b == b'/') {
        match at.child(name) {
            Some(child) => at = child,
            None => return false,
        }
        if at.is_hidden() {
            return true;
        }
    }
    false
}

fn is_hidden(tree: &WhiteoutTree, path: &[u8]) -> bool {
    let mut at = tree;
    for name in path.split(|b| *b == b'/') {
        match at.child(name) {
            Some(child) => at = child,
            None => return false,
        }
    }
    at.is_hidden()
}

fn difference(path: &[u8], compared: &Compared) -> Difference {
    let text = String::from_utf8_lossy(path).into_owned();
    let path_hex =
        (text.as_bytes() != path).then(|| path.iter().map(|byte| format!("{byte:02x}")).collect());
    let moved_from = compared.origin.as_ref().and_then(|(_, from)| {
        let moved = !from.is_empty() && from != path;
        moved.then(|| String::from_utf8_lossy(from).into_owned())
    });
    Difference {
        change: compared.change,
        path: text,
        path_hex,
        unit: compared.origin.as_ref().map(|(unit, _)| unit.clone()),
        moved_from,
        obscures: compared.obscures.clone(),
        content: None,
    }
}
