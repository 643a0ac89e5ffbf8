//! Names of what is in the making, and the removal of what dead writers left of it
//! (`docs/formats.md`, "Names in the making").
//!
//! A store is shared by hosts, and a process id says something on one of them only. So
//! a name tells whose process ids it speaks of, and what another host makes is left
//! alone until it is so old that nobody can still be making it. VAs write into
//! `reports/`: whatever stands there, a sweep ends well.

use std::fmt::Display;
use std::fs::{self, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use strata_core::Digest;

use crate::error::{Context, StoreError};

/// Files and links that are to be renamed into place.
pub(crate) const NEW: &str = ".new-";
/// Directories that are to be renamed into place.
pub(crate) const STAGING: &str = ".staging-";
/// Whatever its maker does: after this time it is no longer doing it.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
const HOST_DIGITS: usize = 16;

/// Whose process ids this process sees: this boot of this kernel, and the process id
/// namespace. 16 hexadecimal digits.
pub fn host_mark() -> &'static str {
    static MARK: LazyLock<String> = LazyLock::new(|| {
        let boot = fs::read("/proc/sys/kernel/random/boot_id");
        let namespace = fs::read_link("/proc/self/ns/pid");
        let text = match (boot, namespace) {
            (Ok(boot), Ok(namespace)) => {
                format!("{}{}", String::from_utf8_lossy(&boot), namespace.display())
            }
            // Without /proc nobody can be asked who lives: nobody shares this mark.
            _ => format!("{:x}", RandomState::new().hash_one(std::process::id())),
        };
        Digest::of(text.as_bytes()).to_string()[..HOST_DIGITS].to_owned()
    });
    &MARK
}

/// The name of something in the making. `rest` tells apart what one process makes.
pub(crate) fn name(prefix: &str, rest: impl Display) -> String {
    format!("{prefix}{}-{}-{rest}", host_mark(), std::process::id())
}

/// A name beside `path` that no reader looks at and no other writer uses.
pub(crate) fn beside(path: &Path) -> PathBuf {
    // What a dead process with this one's id left is in nobody's way.
    static FIRST: LazyLock<u32> = LazyLock::new(|| RandomState::new().hash_one("first") as u32);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(name(NEW, format_args!("{:08x}-{number}", *FIRST)))
}

/// Whether nobody can still be making what has this name.
pub(crate) fn is_abandoned(name: &str, prefix: &str, metadata: &Metadata) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let mut parts = rest.split('-');
    if parts.next() == Some(host_mark())
        && let Some(pid) = parts.next().and_then(|pid| pid.parse::<u32>().ok())
    {
        return !Path::new("/proc").join(pid.to_string()).exists();
    }
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > ABANDONED)
}

/// Removes the files and links that crashed writers left in `directory`. What cannot be
/// removed is told in the log and stays. Returns how many.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn sweep(directory: &Path) -> Result<usize, StoreError> {
    remove_abandoned(directory, NEW, |path| fs::remove_file(path))
}

/// The same for whole directories.
///
/// # Errors
/// The directory cannot be listed.
pub(crate) fn sweep_directories(directory: &Path) -> Result<usize, StoreError> {
    remove_abandoned(directory, STAGING, |path| fs::remove_dir_all(path))
}

/// Nothing stands there, or something in which nobody makes anything.
fn is_no_directory(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn remove_abandoned(
    directory: &Path,
    prefix: &str,
    remove: impl Fn(&Path) -> io::Result<()>,
) -> Result<usize, StoreError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if is_no_directory(&error) => return Ok(0),
        entries => entries.at("list", directory)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.at("list", directory)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(prefix)) else { continue };
        // Its maker may be done with it at this very moment.
        let Ok(metadata) = entry.metadata() else { continue };
        if !is_abandoned(name, prefix, &metadata) {
            continue;
        }
        match remove(&entry.path()) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %entry.path().display(), %error, "what a crashed writer left stays");
            }
        }
    }
    Ok(removed)
}
