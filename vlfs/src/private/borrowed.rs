//! Private files whose data is still a layer's: copies of attributes alone.
//!
//! Such a file is as long as the original, has none of its data, and carries
//! `trusted.strata.data`. Whose data it is its record of origin says. Until the
//! mark goes, nobody writes to it, and who reads it is given the layer's file.
//! `borrowed/<repo>/<unit>/<name>` is one more name of the file: so the loans of a
//! unit that is let go are known without a walk, wherever the files were moved.
//!
//! The order of steps makes a crash harmless. The registry's name comes before
//! the file is seen and goes after its last name or the mark. Data is copied in
//! place, which nobody sees while the mark is there; that is removed when the data is on the
//! disk. What the copying changes beside the data (times, capabilities) is put down
//! before, and put back. It is put down in the registry's name, `t<kept> <name>`: an
//! owner can fill the room that the file has for attributes.
//! A marked file of size 0 was truncated: its data is its own.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::copy_up::copy_data;
use super::kept::{Kept, UNDER_WAY, kept_in, settled, under_way};
use super::origin::Origin;
use super::{BORROWED, DATA_XATTR, KEPT_XATTR, ORIGIN_XATTR, Private, UnitKey, markers};
use crate::descent::Descent;
use crate::{backing, proc};

/// One file with the data of a layer.
#[derive(Debug)]
pub struct Loan {
    pub unit: UnitKey,
    /// Name in the registry.
    name: Mutex<Vec<u8>>,
    /// 512-byte blocks of the data.
    blocks: u64,
    /// Held while the data is copied.
    pub completing: Mutex<()>,
    /// Times to show while the data is copied.
    kept: Mutex<Option<Timestamps>>,
}

/// The loans, by inode number of the private disk.
#[derive(Debug, Default)]
pub struct Registry {
    count: AtomicUsize,
    has_stuck: AtomicBool,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    loans: HashMap<u64, Arc<Loan>>,
    /// Files that owe nothing and whose name in the registry could not be removed.
    stuck: BTreeSet<u64>,
    /// Units that are about to go: no more loans of them.
    leaving: BTreeSet<UnitKey>,
}

impl Registry {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().expect("no panic while held")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().expect("no panic while held")
    }

    /// The loan of a private file.
    pub fn find(&self, inode: u64) -> Option<Arc<Loan>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.read().loans.get(&inode).cloned()
    }

    /// Whether a name in the registry outlives the loan of a file.
    fn is_stuck(&self, inode: u64) -> bool {
        self.has_stuck.load(Ordering::Acquire) && self.read().stuck.contains(&inode)
    }

    /// Number of files whose data is a layer's.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// `false`: the unit is about to go.
    fn insert(&self, inode: u64, loan: Loan) -> bool {
        let mut inner = self.write();
        if inner.leaving.contains(&loan.unit) {
            return false;
        }
        inner.loans.insert(inode, Arc::new(loan));
        self.count.store(inner.loans.len(), Ordering::Release);
        true
    }

    fn remove(&self, inode: u64) -> Option<Arc<Loan>> {
        let mut inner = self.write();
        let removed = inner.loans.remove(&inode);
        self.count.store(inner.loans.len(), Ordering::Release);
        removed
    }

    /// Lets no more be borrowed from these units, until [`Registry::stay`]. Returns
    /// what is borrowed from them, by inode.
    pub fn leave(&self, units: BTreeSet<UnitKey>) -> Vec<(u64, Arc<Loan>)> {
        self.write().leaving.clone_from(&units);
        self.of(|unit| units.contains(unit))
    }

    pub fn stay(&self) {
        self.write().leaving.clear();
    }

    /// What is borrowed from the units that `wanted` accepts, by inode.
    pub fn of(&self, wanted: impl Fn(&UnitKey) -> bool) -> Vec<(u64, Arc<Loan>)> {
        let inner = self.read();
        let of_unit = inner.loans.iter().filter(|(_, loan)| wanted(&loan.unit));
        of_unit.map(|(inode, loan)| (*inode, loan.clone())).collect()
    }
}

impl Private {
    /// The description of a private file as users see it: without the registry's
    /// name, with the layer's blocks, and with its own times while data is copied.
    pub fn described(&self, mut stat: Stat) -> Stat {
        let Some(loan) = self.loans.find(stat.st_ino) else {
            if self.loans.is_stuck(stat.st_ino) {
                stat.st_nlink = stat.st_nlink.saturating_sub(1);
            }
            return stat;
        };
        stat.st_nlink = stat.st_nlink.saturating_sub(1);
        stat.st_blocks = stat.st_blocks.max(loan.blocks.cast_signed());
        if let Some(kept) = &*loan.kept.lock().expect("no panic while held") {
            stat.st_atime = kept.last_access.tv_sec;
            stat.st_atime_nsec = kept.last_access.tv_nsec.cast_unsigned();
            stat.st_mtime = kept.last_modification.tv_sec;
            stat.st_mtime_nsec = kept.last_modification.tv_nsec.cast_unsigned();
        }
        stat
    }

    /// Marks the finished copy `work/<name>` as one of attributes, and registers it.
    ///
    /// # Errors
    /// `EAGAIN`: the unit is about to go, or the mark does not fit: copy the data.
    pub(super) fn lend(&self, name: &[u8], unit: &UnitKey, blocks: u64) -> Result<(), Errno> {
        let path = backing::path_of(&self.work, name);
        let mark = format!("1 {blocks}");
        match self.disk.set_xattr(&path, DATA_XATTR, mark.as_bytes(), XattrFlags::empty()) {
            Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => return Err(Errno::AGAIN),
            other => other?,
        }
        let inode = backing::stat_at(&self.work, name)?.st_ino;
        let registered = self.register((&self.work, name), unit, inode)?;
        let loan = Loan {
            unit: unit.clone(),
            name: Mutex::new(registered.clone()),
            blocks,
            completing: Mutex::new(()),
            kept: Mutex::new(None),
        };
        if !self.loans.insert(inode, loan) {
            self.disk.unlink(self.loans_of(unit)?, &registered)?;
            return Err(Errno::AGAIN);
        }
        Ok(())
    }

    fn loans_of(&self, unit: &UnitKey) -> Result<OwnedFd, Errno> {
        let parts = [BORROWED, unit.repository.as_bytes(), unit.unit.as_bytes()];
        match backing::open_directory(&self.root, &parts.join(&b'/')) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut directory = backing::open_directory(&self.root, b"")?;
        for part in parts {
            directory = markers::make_directory(self, &directory, part)?;
        }
        Ok(directory)
    }

    /// Gives a file its name in the registry.
    fn register(
        &self,
        (from, name): (&OwnedFd, &[u8]),
        unit: &UnitKey,
        inode: u64,
    ) -> Result<Vec<u8>, Errno> {
        let directory = self.loans_of(unit)?;
        // A private directory that was copied from elsewhere may have used the number.
        for attempt in 0..100 {
            let number = format!("{inode:x}-{attempt}").into_bytes();
            match self.disk.link((from, name), (&directory, &number[..])) {
                Err(Errno::EXIST) => {}
                other => return other.map(|()| number),
            }
        }
        Err(Errno::EXIST)
    }

    /// The last name of a file is gone, or its data is its own: it owes nothing.
    pub fn end_loan(&self, inode: u64) -> Result<(), Errno> {
        let Some(loan) = self.loans.remove(inode) else { return Ok(()) };
        let directory = self.loans_of(&loan.unit)?;
        let name = loan.name.lock().expect("no panic while held").clone();
        match self.disk.unlink(&directory, &name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                self.loans.write().stuck.insert(inode);
                self.loans.has_stuck.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Opens a lent file by its name in the registry.
    pub fn open_lent(&self, loan: &Loan) -> Result<OwnedFd, Errno> {
        // Its name changes when the copying begins.
        let name = loan.name.lock().expect("no panic while held");
        let flags = OFlags::RDWR | OFlags::NOATIME;
        backing::open_beneath(self.loans_of(&loan.unit)?, &name, flags, Mode::empty())
    }

    /// A marked file is about to be empty: its data is its own from then on.
    pub fn empty_lent(&self, file: &OwnedFd) -> Result<(), Errno> {
        let (kept, size) = (Kept::of(file)?, rustix::fs::fstat(file)?.st_size.cast_unsigned());
        self.disk.truncate(file, 0)?;
        let settled = self.settle(file);
        if settled.is_err()
            && let Err(error) =
                self.disk.truncate(file, size).and_then(|()| kept.put_back(self, file))
        {
            tracing::error!(%error, "a file whose truncation failed cannot be made what it was");
        }
        settled
    }

    fn settle(&self, file: &OwnedFd) -> Result<(), Errno> {
        let inode = rustix::fs::fstat(file)?.st_ino;
        remove_mark(self, file, DATA_XATTR)?;
        // That was it: the data is its own.
        if let Err(error) = self.end_loan(inode) {
            tracing::warn!(%error, "the name of a borrowed file stays until the next mount");
        }
        Ok(())
    }

    /// Copies the data of `source` into a marked file, and takes the mark away
    /// once it is on the disk. The caller holds [`Loan::completing`].
    ///
    /// # Errors
    /// The disk fails or is full: the file stays as it was.
    pub fn complete(
        &self,
        file: &OwnedFd,
        loan: Option<&Loan>,
        source: &OwnedFd,
    ) -> Result<(), Errno> {
        let kept = Kept::of(file)?;
        let set_kept = |times| {
            if let Some(loan) = loan {
                *loan.kept.lock().expect("no panic while held") = times;
            }
        };
        set_kept(Some(kept.times.clone()));
        let begun = loan.map_or(Ok(()), |loan| self.begin(loan, &kept));
        let copied = begun.and_then(|()| {
            copy_data(&self.disk, source, file)?;
            self.disk.sync_data(file)
        });
        // Times may have been set while the data was copied.
        let shown = loan.and_then(|loan| loan.kept.lock().expect("no panic while held").clone());
        let kept = Kept { times: shown.unwrap_or(kept.times), ..kept };
        let done = copied.and_then(|()| {
            kept.put_back(self, file)?;
            self.settle(file)
        });
        if done.is_err() {
            self.give_up(file, loan, &kept);
        }
        set_kept(None);
        done
    }

    /// Puts down what copying data changes beside it.
    fn begin(&self, loan: &Loan, kept: &Kept) -> Result<(), Errno> {
        let mut name = loan.name.lock().expect("no panic while held");
        let under_way = under_way(kept, settled(&name));
        if *name == under_way {
            return Ok(());
        }
        let directory = self.loans_of(&loan.unit)?;
        let to = (&directory, &under_way[..]);
        self.disk.rename((&directory, &name[..]), to, RenameFlags::empty())?;
        *name = under_way;
        Ok(())
    }

    /// After a failure: the space of half-copied data is given back.
    fn give_up(&self, file: &OwnedFd, loan: Option<&Loan>, kept: &Kept) {
        let marked = is_marked(file).unwrap_or(true);
        let given_back = if marked {
            let size = rustix::fs::fstat(file).map(|stat| stat.st_size.cast_unsigned());
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            size.and_then(|size| self.disk.allocate(file, flags, 0, size))
                .and_then(|()| kept.put_back(self, file))
        } else {
            Ok(())
        };
        if let Err(error) = given_back {
            let unit = loan.map(|loan| loan.unit.to_string());
            tracing::warn!(%error, unit, "half-copied data keeps space");
        }
    }

    /// Times of a file were set: what is put back after its data was copied follows.
    pub fn note_times(&self, inode: u64, set: &Timestamps) {
        let Some(loan) = self.loans.find(inode) else { return };
        let mut kept = loan.kept.lock().expect("no panic while held");
        let Some(times) = &mut *kept else { return };
        let pairs = [
            (&mut times.last_access, set.last_access),
            (&mut times.last_modification, set.last_modification),
        ];
        for (time, new) in pairs {
            match new.tv_nsec {
                rustix::fs::UTIME_OMIT => {}
                rustix::fs::UTIME_NOW => {
                    *time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                }
                _ => *time = new,
            }
        }
    }

    /// Reads the registry, and finishes or takes back what a crash interrupted.
    pub(super) fn load_loans(&self) -> Result<(), Errno> {
        let mut lost = Vec::new();
        let borrowed = match backing::open_directory(&self.root, BORROWED) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        for repository in backing::list(&borrowed)? {
            let above = backing::open_directory(&borrowed, &repository.name)?;
            for unit in backing::list(&above)? {
                let text = |name: &[u8]| String::from_utf8(name.to_vec()).map_err(|_| Errno::ILSEQ);
                let key = UnitKey { repository: text(&repository.name)?, unit: text(&unit.name)? };
                let directory = backing::open_directory(&above, &unit.name)?;
                let names = backing::list(&directory)?;
                if names.is_empty() {
                    self.disk.remove_directory(&above, &unit.name)?;
                }
                for entry in names {
                    if !self.load_loan(&key, &directory, &entry.name)? {
                        lost.push((key.clone(), entry.name));
                    }
                }
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        // Files that never came to be seen, or were just removed; or the private
        // directory was copied without its hard links.
        self.register_all(backing::open_directory(&self.upper, b"")?)?;
        for (unit, name) in lost {
            self.disk.unlink(self.loans_of(&unit)?, &name)?;
        }
        Ok(())
    }

    /// Loads one loan. `false`: the file has no other name.
    fn load_loan(&self, unit: &UnitKey, directory: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        let stat = backing::stat_at(directory, name)?;
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let path = backing::path_of(directory, name);
        let mark = match backing::xattr(&path, DATA_XATTR) {
            Err(Errno::NODATA) => None,
            other => Some(other?),
        };
        let blocks = mark.as_ref().and_then(|mark| parse_mark(mark)).unwrap_or(0);
        let mut name = name.to_vec();
        if name.first() == Some(&UNDER_WAY) || mark.is_none() || stat.st_size == 0 {
            let file = backing::open_beneath(directory, &name, OFlags::RDWR, Mode::empty())?;
            if mark.is_none() || stat.st_size == 0 {
                remove_mark(self, &file, DATA_XATTR)?;
                self.disk.unlink(directory, &name)?;
                remove_mark(self, &file, KEPT_XATTR)?;
                return Ok(true);
            }
            let kept = match kept_in(&name) {
                Some(kept) => Some(kept),
                None => Kept::read(&file)?,
            };
            if let Some(kept) = kept {
                kept.put_back(self, &file)?;
            }
            let settled = settled(&name).to_vec();
            let to = (directory, &settled[..]);
            self.disk.rename((directory, &name[..]), to, RenameFlags::empty())?;
            remove_mark(self, &file, KEPT_XATTR)?;
            name = settled;
        }
        let loan = Loan {
            unit: unit.clone(),
            name: Mutex::new(name),
            blocks,
            completing: Mutex::new(()),
            kept: Mutex::new(None),
        };
        self.loans.insert(stat.st_ino, loan);
        Ok(true)
    }

    /// Registers every marked file below a directory that is not registered.
    fn register_all(&self, top: OwnedFd) -> Result<(), Errno> {
        let mut walk = Descent::new(top)?;
        loop {
            if let Some(entry) = walk.next_name() {
                match entry.kind {
                    FileType::Directory => walk.enter(&entry.name)?,
                    FileType::RegularFile => self.register_marked(walk.here(), &entry)?,
                    _ => {}
                }
            } else if walk.leave()?.is_none() {
                return Ok(());
            }
        }
    }

    /// Registers a file if it is marked and not registered.
    fn register_marked(&self, directory: &OwnedFd, entry: &backing::Name) -> Result<(), Errno> {
        if self.loans.find(entry.inode).is_some() {
            return Ok(());
        }
        let path = backing::path_of(directory, &entry.name);
        let mark = match backing::xattr(&path, DATA_XATTR) {
            Err(Errno::NODATA) => return Ok(()),
            other => other?,
        };
        let origin = Origin::parse(&backing::xattr(&path, ORIGIN_XATTR)?).ok_or(Errno::IO)?;
        let unit = origin.unit_key().ok_or(Errno::IO)?;
        let name = self.register((directory, &entry.name), &unit, entry.inode)?;
        let loan = Loan {
            unit,
            name: Mutex::new(name),
            blocks: parse_mark(&mark).unwrap_or(0),
            completing: Mutex::new(()),
            kept: Mutex::new(None),
        };
        self.loans.insert(entry.inode, loan);
        Ok(())
    }
}

pub(super) fn open_xattr(file: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::getxattr(proc::path(&file), super::os(name), &mut buffer[..])?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The mark of a private file at `path` whose data is a layer's.
pub fn mark(path: &[u8], stat: &Stat) -> Result<Option<Vec<u8>>, Errno> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size == 0 {
        return Ok(None);
    }
    match backing::xattr(path, DATA_XATTR) {
        Ok(mark) => Ok(Some(mark)),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an open file's data is a layer's.
pub fn is_marked(file: impl AsFd) -> Result<bool, Errno> {
    match open_xattr(&file, DATA_XATTR) {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(rustix::fs::fstat(file)?.st_size > 0),
    }
}

/// The record of origin of an open private file.
pub fn origin_of(file: impl AsFd) -> Result<Origin, Errno> {
    Origin::parse(&open_xattr(file, ORIGIN_XATTR)?).ok_or(Errno::IO)
}

fn remove_mark(private: &Private, file: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match private.disk.remove_xattr_open(file, name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `1 <blocks of 512 bytes>`.
fn parse_mark(mark: &[u8]) -> Option<u64> {
    std::str::from_utf8(mark).ok()?.strip_prefix("1 ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_the_blocks() {
        assert_eq!(parse_mark(b"1 42"), Some(42));
    }
}
