//! The real file system, driven by paths; no FUSE in the loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use strata_vlfs::layer::LayerSet;
use strata_vlfs::private::{Owner, Private, PrivateError};
use strata_vlfs::set;
use strata_vlfs::vfs::file::OpenMode;
use strata_vlfs::vfs::{Caller, Errno, SetInfo, Vfs, rename};

use super::Operation;
use super::reference::{Object, Seen, Tree, parent, seen};

const ROOT: u64 = 1;
pub(super) const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

/// The real file system, driven by paths.
pub(super) struct Real {
    directory: tempfile::TempDir,
    units: Vec<PathBuf>,
    vfs: Option<Vfs>,
}

impl Real {
    pub(super) fn new(units: &[Tree]) -> Real {
        let directory = tempfile::tempdir().expect("made");
        let mut paths = Vec::new();
        for (number, tree) in units.iter().enumerate() {
            let unit = directory.path().join(format!("unit{number}"));
            std::fs::create_dir(&unit).expect("made");
            let mut files: BTreeMap<usize, PathBuf> = BTreeMap::new();
            for (path, object) in tree {
                let at = unit.join(path);
                match object {
                    Object::Directory => std::fs::create_dir(at).expect("made"),
                    Object::File(number, text) => match files.get(number) {
                        Some(first) => std::fs::hard_link(first, at).expect("linked"),
                        None => {
                            std::fs::write(&at, text).expect("written");
                            files.insert(*number, at);
                        }
                    },
                }
            }
            paths.push(unit);
        }
        Real { directory, units: paths, vfs: None }
    }

    pub(super) fn layers(&self, set: &[usize]) -> LayerSet {
        let directories: Vec<_> = set.iter().map(|unit| self.units[*unit].clone()).collect();
        set::open_directories(&directories, None).expect("opened")
    }

    pub(super) fn mount(&mut self, set: &[usize]) {
        self.vfs = None;
        let private: &Path = &self.directory.path().join("private");
        // A child that another test forks holds a copy of the lock until it starts.
        let start = std::time::Instant::now();
        let private = loop {
            match Private::open(private, &Owner::AdHoc) {
                Err(PrivateError::Locked(_)) if start.elapsed() < crate::fixture::DEADLINE => {
                    std::thread::yield_now();
                }
                other => break other.expect("opened"),
            }
        };
        let vfs = Vfs::new(private, self.layers(set), SetInfo::default()).expect("composed");
        self.vfs = Some(vfs);
    }

    pub(super) fn vfs(&self) -> &Vfs {
        self.vfs.as_ref().expect("mounted")
    }

    pub(super) fn walk(&self, path: &str) -> Result<u64, Errno> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |node, name| {
            self.vfs().lookup(node, name.as_bytes()).map(|found| found.id)
        })
    }

    fn end<'p>(&self, path: &'p str) -> Result<(u64, &'p [u8]), Errno> {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        Ok((self.walk(parent(path).unwrap_or(""))?, name.as_bytes()))
    }

    pub(super) fn apply(&self, operation: &Operation) -> Result<(), Errno> {
        let vfs = self.vfs();
        match operation {
            Operation::Create(path) => {
                let (node, name) = self.end(path)?;
                let (_, opened) = vfs.create(node, name, 0o644, &CALLER)?;
                vfs.release(opened.handle);
            }
            Operation::Mkdir(path) => {
                let (node, name) = self.end(path)?;
                vfs.mkdir(node, name, 0o755, &CALLER)?;
            }
            Operation::Write(path, byte) => {
                let node = self.walk(path)?;
                if vfs.getattr(node)?.0.kind == FileType::Directory {
                    return Err(Errno::ISDIR);
                }
                let mode = OpenMode { write: true, truncate: true, ..OpenMode::default() };
                let opened = vfs.open(node, mode)?;
                vfs.write(opened.handle, 0, format!("byte {byte}").as_bytes(), false)?;
                vfs.release(opened.handle);
            }
            Operation::Chmod(path) => {
                let set = strata_vlfs::vfs::SetAttr { mode: Some(0o700), ..Default::default() };
                vfs.setattr(self.walk(path)?, &set)?;
            }
            Operation::Unlink(path) => {
                let (node, name) = self.end(path)?;
                vfs.unlink(node, name)?;
            }
            Operation::Rmdir(path) => {
                let (node, name) = self.end(path)?;
                vfs.rmdir(node, name)?;
            }
            Operation::Rename(from, to) => {
                vfs.rename(self.end(from)?, self.end(to)?, rename::Mode::Replace)?;
            }
            Operation::Link(from, to) => {
                let (node, (above, name)) = (self.walk(from)?, self.end(to)?);
                // The kernel looks before it asks.
                match vfs.lookup(above, name) {
                    Ok(_) => return Err(Errno::EXIST),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
                vfs.link(node, above, name)?;
            }
            Operation::Swap(_) | Operation::Remount => {}
        }
        Ok(())
    }

    pub(super) fn tree(&self) -> BTreeMap<String, Seen> {
        let mut tree = BTreeMap::new();
        self.read_directory(ROOT, "", &mut tree);
        // What one node is, is one file; the number of links is as of the last lookup.
        let links: BTreeMap<String, usize> = tree
            .iter()
            .map(|(path, (_, node))| {
                let attr = self.vfs().getattr(*node).expect("described").0;
                (path.clone(), attr.nlink as usize)
            })
            .collect();
        seen(tree.into_iter().map(|(path, (object, _))| {
            let links = links[&path];
            (path, object, Some(links))
        }))
    }

    fn read_directory(&self, node: u64, path: &str, tree: &mut BTreeMap<String, (Object, u64)>) {
        let vfs = self.vfs();
        let opened = vfs.opendir(node).expect("opened");
        let listing = vfs.listing(opened.handle, 0).expect("listed");
        vfs.releasedir(opened.handle);
        for listed in listing.iter().skip(2) {
            let name = std::str::from_utf8(&listed.name).expect("ours");
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            let found = vfs.lookup(node, &listed.name).expect("what is listed is there");
            assert_eq!(found.attr.ino, listed.ino, "d_ino of {below}");
            if found.attr.kind == FileType::Directory {
                tree.insert(below.clone(), (Object::Directory, found.id));
                self.read_directory(found.id, &below, tree);
            } else {
                let opened = vfs.open(found.id, OpenMode::default()).expect("opened");
                let mut bytes = vec![0; 64];
                let length = vfs.read(opened.handle, 0, &mut bytes).expect("read");
                vfs.release(opened.handle);
                assert_eq!(found.attr.size, length as u64);
                let text = String::from_utf8(bytes[..length].to_vec()).expect("ours");
                let number = usize::try_from(found.id).expect("small");
                tree.insert(below, (Object::File(number, text), found.id));
            }
        }
    }
}
