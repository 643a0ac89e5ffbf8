//! Opened read-only layers: their root directories and their places for white-outs.
//!
//! Shared by `Arc`: whoever holds a file of a layer open holds the layer, which
//! is the paper's "unlinked" layer (§5.5) once no layer set names it any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::backing;
use crate::descent::Descent;
use crate::index::Index;
use crate::index::pack::{Packed, Packer, View};
use crate::private::origin::Origin;
use crate::private::{self, UnitKey, borrowed, markers};
use crate::tree::{Attributes, Content, Kind, Xattrs, pack_xattrs};
use crate::whiteout::WhiteoutTree;

/// Bytes of a path inside a layer (`PATH_MAX` less the NUL).
const PATH_BYTES: usize = strata_core::limits::PATH_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("the layer directory {path} cannot be opened: {errno}")]
    Open { path: PathBuf, errno: Errno },
    #[error("{path} in the layer {layer} cannot be read: {errno}")]
    Scan { layer: PathBuf, path: PathBuf, errno: Errno },
    #[error("{path} in the layer {layer} is longer than {PATH_BYTES} bytes")]
    PathTooLong { layer: PathBuf, path: PathBuf },
    #[error("{files} files of {layer} have their data in {unit}, which is not below it in the set")]
    Borrows { layer: String, files: usize, unit: String },
    #[error("the white-outs of the former private directory {path} cannot be read: {errno}")]
    Whiteouts { path: PathBuf, errno: Errno },
}

/// A layer of the active set, or one that only open files still hold.
#[derive(Debug)]
pub struct Layer {
    /// How people call it: `repo/layer version`, or the directory's path.
    pub name: String,
    /// Where its white-outs are kept in a private directory.
    pub unit: UnitKey,
    /// Digest of its manifest, for units of a store.
    pub digest: Option<strata_core::Digest>,
    /// What it hides in all layers below: the white-outs of a former private layer.
    pub hides_below: Option<WhiteoutTree>,
    root: OwnedFd,
    /// Files of a former private layer whose data is another layer's, by path.
    borrows: BTreeMap<Vec<u8>, Origin>,
    /// Those layers, once the set is known.
    lenders: OnceLock<HashMap<UnitKey, Arc<Layer>>>,
}

/// Finds, for the former private layers of a set (topmost first), the layers
/// that have the data of their copies of attributes.
///
/// # Errors
/// A unit is not below in the set: its files would give `EIO`.
pub fn find_lenders(layers: &[Arc<Layer>]) -> Result<(), LayerError> {
    let mut missing = None;
    for (position, layer) in layers.iter().enumerate() {
        let wanted: BTreeSet<_> = layer.borrows.values().filter_map(Origin::unit_key).collect();
        if wanted.is_empty() || layer.lenders.get().is_some() {
            continue;
        }
        let below = layers[position + 1..].iter().filter(|below| wanted.contains(&below.unit));
        let found: HashMap<_, _> = below.map(|below| (below.unit.clone(), below.clone())).collect();
        if let Some(unit) = wanted.iter().find(|unit| !found.contains_key(*unit)) {
            let unit = unit.to_string();
            let files = layer.borrows.values().filter(|origin| origin.unit == unit).count();
            missing = Some(LayerError::Borrows { layer: layer.name.clone(), files, unit });
        }
        let _was_empty = layer.lenders.set(found);
    }
    missing.map_or(Ok(()), Err)
}

/// Layers that are a set, with the index that was merged from them.
#[derive(Debug, Clone)]
pub struct LayerSet {
    /// Topmost first.
    pub layers: Vec<Arc<Layer>>,
    pub index: Arc<Index>,
}

impl LayerSet {
    /// The first layer that `wanted` accepts, with its part of the index; none
    /// where the index is damaged.
    pub fn find(&self, wanted: impl Fn(&Arc<Layer>) -> bool) -> Option<(Arc<Layer>, View<'_>)> {
        let position = self.layers.iter().position(wanted)?;
        let view = self.index.layer(u32::try_from(position).ok()?)?;
        Some((self.layers[position].clone(), view))
    }
}

impl Layer {
    /// A layer unit of a store: `root` is its `filesystem` directory.
    pub fn unit(name: String, unit: UnitKey, digest: strata_core::Digest, root: OwnedFd) -> Layer {
        let (borrows, lenders) = (BTreeMap::new(), OnceLock::new());
        Layer { name, unit, digest: Some(digest), hides_below: None, root, borrows, lenders }
    }

    /// A plain directory, or a former private directory, with its tree as it is now;
    /// later changes of it by others are not seen.
    ///
    /// # Errors
    /// The directory or anything in it cannot be read.
    pub fn scan(path: &Path) -> Result<(Layer, Packed), LayerError> {
        let open_error = |errno| LayerError::Open { path: path.to_owned(), errno };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(path, flags, Mode::empty()).map_err(open_error)?;
        let stat = rustix::fs::fstat(&top).map_err(open_error)?;
        let unit = UnitKey::plain(path, stat.st_dev, stat.st_ino);
        let former = private::is_private_directory(&top).map_err(open_error)?;
        let (root, hides_below) = if former {
            let error = |errno| LayerError::Whiteouts { path: path.to_owned(), errno };
            let mut all = WhiteoutTree::default();
            for tree in markers::load_all(&top).map_err(error)?.values() {
                all.merge(tree);
            }
            let upper = backing::open_directory(&top, private::UPPER).map_err(open_error)?;
            (upper, Some(all))
        } else {
            (top, None)
        };
        let (packed, borrows) = Scan::run(path, &root, former)?;
        let name = path.display().to_string();
        let lenders = OnceLock::new();
        Ok((Layer { name, unit, digest: None, hides_below, root, borrows, lenders }, packed))
    }

    /// Opens the regular file at a path (relative to the layer's root) for reading.
    ///
    /// # Errors
    /// `EIO`: it is gone from the layer, or its data is in a layer that is not there.
    pub fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if let Some(origin) = self.borrows.get(path) {
            let unit = origin.unit_key().ok_or(Errno::IO)?;
            let lender = self.lenders.get().and_then(|lenders| lenders.get(&unit));
            let file = lender.ok_or(Errno::IO)?.open(&origin.path)?;
            let same = rustix::fs::fstat(&file)?.st_size.cast_unsigned() == origin.size;
            return if same { Ok(file) } else { Err(Errno::IO) };
        }
        let flags = OFlags::RDONLY | OFlags::NOATIME;
        match backing::open_beneath(&self.root, path, flags, Mode::empty()) {
            // The layer's tree names it: somebody changed the layer.
            Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)) => {
                let path = String::from_utf8_lossy(path);
                tracing::error!(layer = self.name, %path, %errno, "a file is gone from its layer");
                Err(Errno::IO)
            }
            other => other,
        }
    }

    /// A layer of a former set that a predecessor's open files hold: it has a name, and
    /// nothing is looked up in it. `root` is any descriptor.
    pub fn unlinked(
        name: String,
        unit: UnitKey,
        digest: Option<strata_core::Digest>,
        root: OwnedFd,
    ) -> Layer {
        let (borrows, lenders) = (BTreeMap::new(), OnceLock::new());
        Layer { name, unit, digest, hides_below: None, root, borrows, lenders }
    }
}

/// One walk over a directory.
struct Scan<'a> {
    layer: &'a Path,
    packer: Packer,
    /// First entry of each file with several links, by device and inode.
    linked: HashMap<(u64, u64), u32>,
    /// It is a private layer's, whose files may have their data elsewhere.
    former: bool,
    borrows: BTreeMap<Vec<u8>, Origin>,
}

impl Scan<'_> {
    fn run(
        layer: &Path,
        root: &OwnedFd,
        former: bool,
    ) -> Result<(Packed, BTreeMap<Vec<u8>, Origin>), LayerError> {
        let (packer, linked, borrows) = (Packer::default(), HashMap::new(), BTreeMap::new());
        let mut scan = Scan { layer, packer, linked, former, borrows };
        let mut path = Vec::new();
        let stat = rustix::fs::fstat(root).map_err(|errno| scan.error(&path, errno))?;
        let xattrs = backing::xattrs(crate::proc::path_in(root, b".").as_slice())
            .map_err(|errno| scan.error(&path, errno))?;
        let packed = pack_xattrs(&xattrs);
        let attributes = Attributes { xattrs: Xattrs(&packed), ..attributes(&stat) };
        scan.packer.push(b"", &Kind::Directory, &attributes, &Content::None);
        let top = backing::open_directory(root, b"").map_err(|errno| scan.error(&path, errno))?;
        scan.tree(top, &mut path)?;
        Ok((scan.packer.finish(), scan.borrows))
    }

    fn error(&self, path: &[u8], errno: Errno) -> LayerError {
        let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
        LayerError::Scan { layer: self.layer.to_owned(), path, errno }
    }

    fn tree(&mut self, top: OwnedFd, path: &mut Vec<u8>) -> Result<(), LayerError> {
        let mut walk = Descent::new(top).map_err(|errno| self.error(path, errno))?;
        loop {
            let Some(name) = walk.next_name() else {
                let left = walk.leave().map_err(|errno| self.error(path, errno))?;
                let Some(left) = left else { return Ok(()) };
                path.truncate(path.len().saturating_sub(left.len() + 1));
                continue;
            };
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name.name);
            if path.len() > PATH_BYTES {
                let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
                return Err(LayerError::PathTooLong { layer: self.layer.to_owned(), path });
            }
            let is_directory = self
                .object(walk.here(), &name.name, path)
                .map_err(|errno| self.error(path, errno))?;
            if is_directory {
                walk.enter(&name.name).map_err(|errno| self.error(path, errno))?;
            } else {
                path.truncate(length);
            }
        }
    }

    /// Adds one object. Returns whether it is a directory.
    fn object(&mut self, directory: impl AsFd, name: &[u8], path: &[u8]) -> Result<bool, Errno> {
        let stat = backing::stat_at(&directory, name)?;
        if self.former {
            let own = backing::path_of(&directory, name);
            if borrowed::mark(&own, &stat)?.is_some() {
                let origin = Origin::parse(&backing::xattr(&own, private::ORIGIN_XATTR)?);
                self.borrows.insert(path.to_vec(), origin.ok_or(Errno::IO)?);
            }
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&key) {
            self.packer.push_link(path, *first);
            return Ok(false);
        }
        let target;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::Regular { digest: None },
            FileType::Symlink => {
                target = backing::read_link(&directory, name)?;
                Kind::Symlink { target: &target }
            }
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return Err(Errno::IO),
        };
        let is_directory = kind == Kind::Directory;
        let xattrs = pack_xattrs(&backing::xattrs(&backing::path_of(&directory, name))?);
        let attributes = Attributes { xattrs: Xattrs(&xattrs), ..attributes(&stat) };
        let content =
            if is_directory { Content::None } else { Content::Backing(stat.st_dev, stat.st_ino) };
        let index = self.packer.push(path, &kind, &attributes, &content);
        if !is_directory && stat.st_nlink > 1 {
            self.linked.insert(key, index);
        }
        Ok(is_directory)
    }
}

fn attributes(stat: &rustix::fs::Stat) -> Attributes<'static> {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: backing::timestamp(stat.st_mtime, stat.st_mtime_nsec),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        xattrs: Xattrs::default(),
    }
}
