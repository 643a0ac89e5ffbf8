//! The indexes that a host keeps: one file a layer set, mapped by all VAs that serve it.
//!
//! A cache and nothing more: whatever is missing, of another version, or damaged is
//! made again from the manifests. A file gets its name when it is whole and on the
//! disk, and is never written again; a new one of the same name takes its place, and
//! who maps the old one keeps it.
//!
//! What the mapping rests on: the directory is root's alone (checked; else it
//! is not used) and on no FUSE mount, and the length of a file is compared with its header before it is
//! read. A read of a mapped page that the disk fails to give ends the process
//! (`SIGBUS`), as it would for a page of the program itself: the cache belongs on
//! the disk that the program is on.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock};

use super::Index;
use super::build::Merged;
use super::format::{FormatError, HEADER_BYTES};
use crate::sys::map::Map;

/// Where a host keeps its indexes, unless it is told otherwise.
pub const DEFAULT: &str = "/var/cache/strata/index";
/// Indexes that are kept though nobody maps them, the last used ones.
const KEPT: usize = 16;
/// Bytes that they may have together.
const KEPT_BYTES: u64 = 1 << 30;
/// What a writer that was killed left behind is removed after this time.
const ABANDONED: Duration = Duration::from_secs(3600);
const SUFFIX: &str = ".index";
const UNFINISHED: &str = ".new-";

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is not a directory of this user's alone (mode 0700)")]
    Exposed(PathBuf),
    #[error("{0} is on a FUSE mount, whose pages a daemon would have to serve")]
    Fuse(PathBuf),
    #[error("the index that was just written to {path} cannot be used: {source}")]
    Unusable { path: PathBuf, source: FormatError },
}

/// The directory of indexes.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// That it cannot be used was said.
    told: AtomicBool,
}

impl Cache {
    /// Nothing is made before the first index is kept.
    pub fn new(directory: PathBuf) -> Cache {
        Cache { directory, told: AtomicBool::new(false) }
    }

    fn path(&self, key: &[u8; 32]) -> PathBuf {
        let name = strata_core::Digest::from_bytes(*key);
        self.directory.join(format!("{name}{SUFFIX}"))
    }

    /// The index with this key, if there is one that can be used.
    pub fn find(&self, key: &[u8; 32]) -> Option<Index> {
        let path = self.path(key);
        if !is_private(&self.directory) || is_on_fuse(&self.directory) {
            return None;
        }
        match open(&path, key) {
            Ok(index) => Some(index),
            Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an index is made anew");
                None
            }
        }
    }

    /// Keeps a merged set under its key, and maps it. `None`: the directory cannot
    /// be used, which is said once.
    pub fn keep(&self, key: &[u8; 32], generation: [u8; 32], merged: &Merged<'_>) -> Option<Index> {
        match self.write(key, generation, merged) {
            Ok(index) => {
                self.prune();
                Some(index)
            }
            Err(error) => {
                if !self.told.swap(true, Ordering::AcqRel) {
                    tracing::warn!(
                        directory = %self.directory.display(), %error,
                        "the index cannot be kept: each mount makes its own, in its memory"
                    );
                }
                None
            }
        }
    }

    fn write(
        &self,
        key: &[u8; 32],
        generation: [u8; 32],
        merged: &Merged<'_>,
    ) -> Result<Index, CacheError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| CacheError::Io { path, source }
        };
        let directory = &self.directory;
        if is_on_fuse(directory) {
            return Err(CacheError::Fuse(directory.clone()));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
        if !is_private(directory) {
            return Err(CacheError::Exposed(directory.clone()));
        }
        let new = directory.join(unfinished());
        let written = write_file(&new, key, generation, merged);
        let path = self.path(key);
        if let Err(source) = written.and_then(|()| fs::rename(&new, &path)) {
            if let Err(error) = fs::remove_file(&new) {
                tracing::debug!(path = %new.display(), %error, "nothing to remove");
            }
            return Err(CacheError::Io { path: new, source });
        }
        open(&path, key)
    }

    /// Removes what was not used for longest, beyond what may be kept. What anybody
    /// maps stays.
    fn prune(&self) {
        match self.surplus() {
            Ok(surplus) => surplus.iter().for_each(|path| {
                if let Err(error) = remove_unused(path) {
                    tracing::debug!(path = %path.display(), %error, "an old index stays");
                }
            }),
            Err(error) => tracing::warn!(%error, "the old indexes cannot be listed"),
        }
    }

    fn surplus(&self) -> io::Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        let mut surplus = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            // Gone by now: another daemon prunes too.
            let Ok(metadata) = fs::symlink_metadata(&entry) else { continue };
            let (name, used) = (name.to_string_lossy(), metadata.modified()?);
            if name.ends_with(SUFFIX) {
                kept.push((used, metadata.len(), entry));
            } else if name.starts_with(UNFINISHED)
                && SystemTime::now().duration_since(used).is_ok_and(|age| age > ABANDONED)
            {
                surplus.push(entry);
            }
        }
        kept.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (position, (_, length, path)) in kept.into_iter().enumerate() {
            bytes += length;
            if position > 0 && (position >= KEPT || bytes > KEPT_BYTES) {
                surplus.push(path);
            }
        }
        Ok(surplus)
    }
}

/// A name that no other writer has.
fn unfinished() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{UNFINISHED}{}-{}-{count}", std::process::id(), now.as_nanos())
}

/// Whether only this user can change what is in a directory.
fn is_private(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|found| {
        let own = found.uid() == rustix::process::geteuid().as_raw();
        found.is_dir() && own && found.mode() & 0o077 == 0
    })
}

/// Whether a directory, or the nearest one above it that exists, is on a FUSE mount: the
/// daemon's own, where it is the root. Its pages must not wait for the one who reads them.
fn is_on_fuse(directory: &Path) -> bool {
    const FUSE: rustix::fs::FsWord = 0x6573_5546;
    let found = directory.ancestors().find_map(|above| rustix::fs::statfs(above).ok());
    found.is_some_and(|found| found.f_type == FUSE)
}

fn write_file(
    path: &Path,
    key: &[u8; 32],
    generation: [u8; 32],
    merged: &Merged<'_>,
) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    let header = merged.header(*key, generation);
    file.write_all(&[0; HEADER_BYTES])?;
    let head = merged.write(&header, &mut file)?;
    file.write_all_at(&head, 0)?;
    file.sync_data()
}

/// Maps an index, and holds it against pruning.
fn open(path: &Path, key: &[u8; 32]) -> Result<Index, CacheError> {
    let error = |source: io::Error| CacheError::Io { path: path.to_owned(), source };
    let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(error)?;
    flock(&file, FlockOperation::LockShared).map_err(|errno| error(errno.into()))?;
    let metadata = file.metadata().map_err(error)?;
    let unusable = |source| CacheError::Unusable { path: path.to_owned(), source };
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(unusable(FormatError::Magic));
    }
    let length = usize::try_from(metadata.len()).map_err(|_| unusable(FormatError::Magic))?;
    if length < HEADER_BYTES {
        return Err(unusable(FormatError::Magic));
    }
    let map = Map::of(file.as_fd(), length).map_err(|errno| error(errno.into()))?;
    note_use(&file);
    let index = Index::mapped(map, path.to_owned(), file.into()).map_err(unusable)?;
    if index.key() == *key { Ok(index) } else { Err(unusable(FormatError::Key)) }
}

/// The time of last use decides what is pruned first.
fn note_use(file: &File) {
    let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    if let Err(error) = rustix::fs::futimens(file, &times) {
        tracing::debug!(%error, "the use of an index is not noted");
    }
}

/// Removes a file that nobody maps.
fn remove_unused(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use strata_core::Digest;
    use strata_core::manifest::Manifest;
    use strata_core::metadata::LayerKind;

    use super::super::build::{BuildError, Input, check, merge};
    use super::super::format::{BLOCK_BYTES, Header, Section};
    use super::super::pack::Packed;
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn golden() -> Packed {
        let text = include_bytes!("../../core/golden/manifest");
        Packed::from_manifest(&Manifest::parse(text).expect("golden"))
    }

    fn keep(cache: &Cache, key: [u8; 32], packed: &Packed) -> Option<Index> {
        let unit = Some((Digest::of(b"unit"), LayerKind::Software));
        let layers = [Input { view: packed.view(), unit }];
        cache.keep(&key, [1; 32], &merge(&layers).expect("merged"))
    }

    /// Everything that an index answers.
    fn read(index: &Index) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        for number in 0..index.node_count().min(1000) {
            let node = index.node(number);
            seen.push(index.path_of(number));
            for child in node.first_child..node.first_child.saturating_add(node.children.min(64)) {
                let name = index.name(&index.node(child)).to_vec();
                seen.push(format!("{:?}", index.child(&node, &name)).into_bytes());
            }
            for contribution in index.contributions(&node).into_iter().take(64) {
                seen.push(format!("{:?}", index.entry(contribution)).into_bytes());
                seen.push(format!("{:?}", index.links(contribution)).into_bytes());
            }
        }
        seen
    }

    #[test]
    fn an_index_is_kept_and_shared() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("below/index"));
        assert!(cache.find(&KEY).is_none());
        let made = keep(&cache, KEY, &golden()).expect("kept");
        let found = cache.find(&KEY).expect("found");
        assert_eq!(made.path(), found.path());
        assert!(found.size().1, "a file's");
        assert_eq!(read(&made), read(&found));
        let again = merge_again(&found).expect("merged");
        assert_eq!(read(&again), read(&found), "a layer's part is as good as its manifest");
    }

    fn merge_again(index: &Index) -> Result<Index, BuildError> {
        let view = index.layer(0).expect("a layer");
        Index::build(&[Input { view, unit: index.unit(0) }])
    }

    /// The file of the golden manifest's layer does not change while the version stands.
    #[test]
    fn the_layout_is_stable() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        keep(&cache, KEY, &golden()).expect("kept");
        let made = fs::read(cache.path(&KEY)).expect("read");
        let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/index");
        assert!(made == fs::read(pinned).expect("golden"), "another layout takes a new version");
    }

    #[test]
    fn what_is_cut_short_or_another_set_is_made_anew() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        drop(keep(&cache, KEY, &golden()));
        let whole = fs::read(cache.path(&KEY)).expect("read");
        for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1] {
            fs::write(cache.path(&KEY), &whole[..length]).expect("written");
            assert!(cache.find(&KEY).is_none(), "{length} bytes");
        }
        fs::write(cache.path(&[8; 32]), &whole).expect("written");
        assert!(cache.find(&[8; 32]).is_none(), "the key of another set");
        assert!(keep(&cache, KEY, &golden()).is_some());
        assert!(cache.find(&KEY).is_some());
    }

    #[test]
    fn a_damaged_index_is_found_out_and_never_panics() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        let sound = read(&keep(&cache, KEY, &golden()).expect("kept"));
        let whole = fs::read(cache.path(&KEY)).expect("read");
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(cache.path(&KEY), &bytes).expect("written");
            if let Some(index) = cache.find(&KEY) {
                let seen = read(&index);
                assert!(index.is_damaged() || seen == sound, "byte {at}");
                assert!(!index.is_damaged() || !cache.path(&KEY).exists(), "nobody finds it again");
            }
        }
    }

    /// With checks that hold: what reads must not believe a number in it either.
    #[test]
    fn a_forged_index_never_panics() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        drop(keep(&cache, KEY, &golden()));
        let whole = fs::read(cache.path(&KEY)).expect("read");
        for at in HEADER_BYTES..whole.len() {
            for value in [0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let header = Header::parse(&whole).expect("sound");
                let checks = header.section(Section::Checks);
                let sealed = bytes[HEADER_BYTES..checks.start]
                    .chunks(BLOCK_BYTES)
                    .flat_map(check)
                    .collect::<Vec<_>>();
                bytes[checks].copy_from_slice(&sealed);
                let head = header.print(&sealed);
                bytes[..HEADER_BYTES].copy_from_slice(&head);
                fs::write(cache.path(&KEY), &bytes).expect("written");
                if let Some(index) = cache.find(&KEY) {
                    read(&index);
                    if index.layer(0).is_some_and(|view| view.count() > 0)
                        && let Ok(again) = merge_again(&index)
                    {
                        read(&again);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_mapped_stays_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        let packed = golden();
        let mapped = keep(&cache, [0; 32], &packed).expect("kept");
        for number in 1..40 {
            drop(keep(&cache, [number; 32], &packed));
        }
        let count = fs::read_dir(directory.path().join("index")).expect("listed").count();
        assert_eq!(count, KEPT + 1);
        assert!(cache.find(&[0; 32]).is_some() && !mapped.is_damaged());
        assert!(cache.find(&[39; 32]).is_some() && cache.find(&[1; 32]).is_none());
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("made");
        let cache = Cache::new(directory.path().join("index"));
        drop(keep(&cache, KEY, &golden()));
        let open = fs::Permissions::from_mode(0o770);
        fs::set_permissions(directory.path().join("index"), open).expect("set");
        assert!(cache.find(&KEY).is_none() && keep(&cache, KEY, &golden()).is_none());
        let file = Cache::new(directory.path().join("index").join("file"));
        fs::write(directory.path().join("index/file"), "").expect("written");
        assert!(keep(&file, KEY, &golden()).is_none(), "no directory at all");
    }
}
