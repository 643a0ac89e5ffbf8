//! A fresh private layer, the old one kept beside it (§4.5).
//!
//! ```text
//! PRIVATE/former/<name>/     a private directory of its own: format, owner, upper/, whiteouts/ …
//! PRIVATE/resetting          "strata-reset 1\n<name>\n" while a reset is under way
//! ```
//!
//! Everything of the private directory moves below `former/` but what belongs to
//! the VA and not to a layer: `format`, `owner`, `lock`, the log, and the data
//! directories, which survive resets. All inside the directory itself, which may
//! be the root of the VA's disk. It is old until `resetting` is there, by one
//! rename, and new from then on: whoever opens the directory next finishes what
//! was interrupted ([`finish`]). Nothing of the old layer is changed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::backing;
use crate::private::disk::Disk;
use crate::private::{FORMAT, Private, PrivateError, lock_patiently, os, write_small};

/// Former private layers.
pub const FORMER: &[u8] = b"former";
const INTENT: &[u8] = b"resetting";
const INTENT_NEW: &[u8] = b"resetting.new";
const INTENT_HEADER: &str = "strata-reset 1\n";
/// What stays: the rest moves with the old layer.
const STAYS: [&[u8]; 9] =
    [b"format", b"owner", b"lock", b"vlfs.log", b"lost+found", b"data", FORMER, INTENT, INTENT_NEW];

#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("{0} is no private directory of Strata")]
    NotPrivate(PathBuf),
    #[error(transparent)]
    Private(#[from] PrivateError),
    #[error("{path}: {what}: {errno}")]
    Io { path: PathBuf, what: &'static str, errno: Errno },
    #[error("{path} keeps no former private layer {name:?}")]
    NoFormer { path: PathBuf, name: String },
    #[error("the former private layer {0} is mounted")]
    Attached(PathBuf),
}

/// One former private layer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Former {
    pub name: String,
    pub path: PathBuf,
}

/// Gives a private directory that is not mounted a fresh layer. Returns where the old one is.
///
/// # Errors
/// It is mounted, none at all, or its disk fails: it is old or new even then.
pub fn reset(private: &Path) -> Result<Former, ResetError> {
    reset_with(private, &Disk::default())
}

/// [`reset`] on a disk that may be told to fail.
pub fn reset_with(private: &Path, disk: &Disk) -> Result<Former, ResetError> {
    let (root, _lock) = Private::lock_unmounted(private, ResetError::NotPrivate)?;
    let io = |what| move |errno| ResetError::Io { path: private.to_owned(), what, errno };
    finish(disk, &root).map_err(io("an interrupted reset cannot be finished"))?;
    let name = free_name(&root).map_err(io("no name for the old layer"))?;
    make_directory(disk, &root, FORMER).map_err(io("cannot make `former`"))?;
    let intent = format!("{INTENT_HEADER}{name}\n");
    write_small(disk, &root, INTENT_NEW, intent.as_bytes()).map_err(io("cannot write"))?;
    disk.rename((&root, INTENT_NEW), (&root, INTENT), RenameFlags::empty())
        .and_then(|()| sync(disk, &root))
        .map_err(io("cannot write"))?;
    finish(disk, &root).map_err(io("the reset is finished at the next mount"))?;
    let path = private.join(os_text(FORMER)).join(&name);
    Ok(Former { name, path })
}

/// Finishes a reset that was begun. The directory's lock is held.
///
/// # Errors
/// The disk fails, or the note of the reset is damaged (`EILSEQ`).
pub fn finish(disk: &Disk, root: &OwnedFd) -> Result<(), Errno> {
    let intent = match crate::private::read_small(root, INTENT) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let name = std::str::from_utf8(&intent)
        .ok()
        .and_then(|text| text.strip_prefix(INTENT_HEADER)?.strip_suffix('\n'))
        .filter(|name| is_name(name))
        .ok_or(Errno::ILSEQ)?;
    let former = make_directory(disk, root, FORMER)?;
    let target = make_directory(disk, &former, name.as_bytes())?;
    for entry in backing::list(root)? {
        if STAYS.contains(&&*entry.name) {
            continue;
        }
        disk.rename((root, &entry.name), (&target, &entry.name), RenameFlags::NOREPLACE)?;
    }
    let owner = crate::private::read_small(root, b"owner")?;
    write_small(disk, &target, b"owner", &owner)?;
    write_small(disk, &target, b"format", FORMAT.as_bytes())?;
    for directory in [&target, &former, root] {
        sync(disk, directory)?;
    }
    disk.unlink(root, INTENT)?;
    sync(disk, root)
}

/// The former private layers, oldest first.
///
/// # Errors
/// It is no private directory, or cannot be read.
pub fn list(private: &Path) -> Result<Vec<Former>, ResetError> {
    let error = |errno| ResetError::Io { path: private.to_owned(), what: "cannot be read", errno };
    let root = backing::open_root(private).map_err(error)?;
    if !crate::private::is_private_directory(&root).map_err(error)? {
        return Err(ResetError::NotPrivate(private.to_owned()));
    }
    let former = match backing::open_directory(&root, FORMER) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(error)?,
    };
    let mut names: Vec<String> = backing::list(&former)
        .map_err(error)?
        .into_iter()
        .filter(|entry| entry.kind == FileType::Directory)
        .filter_map(|entry| String::from_utf8(entry.name.to_vec()).ok())
        .filter(|name| is_name(name))
        .collect();
    names.sort_by(|a, b| age(a).cmp(&age(b)));
    let at = private.join(os_text(FORMER));
    Ok(names.into_iter().map(|name| Former { path: at.join(&name), name }).collect())
}

/// The former layer of this name, or the latest.
///
/// # Errors
/// There is none.
pub fn find(private: &Path, name: Option<&str>) -> Result<Former, ResetError> {
    let mut all = list(private)?;
    let at = match name {
        Some(name) => all.iter().position(|former| former.name == name),
        None => all.len().checked_sub(1),
    };
    let none = || ResetError::NoFormer {
        path: private.to_owned(),
        name: name.unwrap_or("latest").to_owned(),
    };
    Ok(all.swap_remove(at.ok_or_else(none)?))
}

/// Keeps a former layer from being removed while it is mounted: the directory's own lock,
/// as nothing in it is changed. To be held as long as the mount is there.
///
/// # Errors
/// It is not there, or is being removed.
pub fn hold(former: &Path) -> Result<OwnedFd, ResetError> {
    let error = |errno| ResetError::Io {
        path: former.to_owned(),
        what: "cannot be held for a mount",
        errno,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(former, flags, Mode::empty()).map_err(error)?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockShared).map_err(error)?;
    Ok(directory)
}

/// Removes a former layer for good.
///
/// # Errors
/// There is none of this name, it is mounted, or the disk fails: then it stays or is gone
/// from the list.
pub fn forget(private: &Path, name: &str) -> Result<(), ResetError> {
    let former = find(private, Some(name))?;
    let error =
        |errno| ResetError::Io { path: former.path.clone(), what: "cannot be removed", errno };
    let root = backing::open_root(private).map_err(error)?;
    let directory = backing::open_directory(&root, FORMER).map_err(error)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let own = backing::open_beneath(&directory, name.as_bytes(), flags, Mode::empty());
    let own = own.map_err(error)?;
    if !lock_patiently(&own).map_err(error)? {
        return Err(ResetError::Attached(former.path));
    }
    // Names that start with a dot are on their way out, whatever interrupts it.
    let aside = format!(".{name}");
    let disk = Disk::default();
    let (from, to) = ((&directory, name.as_bytes()), (&directory, aside.as_bytes()));
    disk.rename(from, to, RenameFlags::empty()).map_err(error)?;
    for entry in backing::list(&directory).map_err(error)? {
        if entry.name.starts_with(b".") {
            disk.remove_tree(&directory, &entry.name).map_err(error)?;
        }
    }
    sync(&disk, &directory).map_err(error)
}

/// A name that is newer than all others, whatever the clock says: `3-20261123T034500Z`.
fn free_name(root: &OwnedFd) -> Result<String, Errno> {
    let names = match backing::open_directory(root, FORMER) {
        Err(Errno::NOENT) => Vec::new(),
        former => backing::list(former?)?,
    };
    let count = |name: &backing::Name| Some(age(std::str::from_utf8(&name.name).ok()?).0);
    let latest = names.iter().filter_map(count).max().unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{}", latest.saturating_add(1), stamp(now.as_secs())))
}

/// What the names of former layers are ordered by: their number. Those of earlier
/// programs have none; they are older, and go by their time and what follows it.
fn age(name: &str) -> (u64, &str, u64) {
    let (first, rest) = name.split_once('-').unwrap_or((name, ""));
    match first.parse() {
        Ok(number) => (number, rest, 0),
        Err(_) => (0, first, rest.parse().unwrap_or(0)),
    }
}

/// Seconds since 1970 as a date and time of day, UTC (the proleptic Gregorian
/// calendar, by eras of 400 years).
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn make_directory(disk: &Disk, parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    match disk.make_directory(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => backing::open_directory(parent, name),
        Err(error) => Err(error),
    }
}

fn sync(disk: &Disk, directory: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    disk.sync(&backing::open_beneath(directory, b"", flags, Mode::empty())?)
}

fn os_text(name: &'static [u8]) -> &'static Path {
    Path::new(os(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_dates() {
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(951_782_400), "20000229T000000Z");
        assert_eq!(stamp(1_795_405_501), "20261123T034501Z");
    }

    #[test]
    fn former_layers_are_ordered_by_number_and_not_by_name_or_clock() {
        let ordered = [
            "20261123T034501Z",
            "20261123T034501Z-2",
            "20261123T034501Z-10",
            "20261124T000000Z",
            "1-20261201T000000Z",
            "2-20251201T000000Z",
            "10-20261201T000000Z",
        ];
        assert!(ordered.is_sorted_by(|a, b| age(a) < age(b)));
        let private = tempfile::tempdir().expect("a directory");
        let root = backing::open_root(private.path()).expect("opened");
        assert!(free_name(&root).expect("a name").starts_with("1-"));
        for name in ordered {
            std::fs::create_dir_all(private.path().join("former").join(name)).expect("made");
        }
        assert!(free_name(&root).expect("a name").starts_with("11-"));
    }
}
