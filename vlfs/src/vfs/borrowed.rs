//! Private files whose data is still a layer's: who lends it, and when it is copied.
//!
//! See `private/borrowed.rs` for what is on disk. The data is copied before the
//! first writer, and before the unit goes: a private copy keeps what it had,
//! whatever the set. No lock that another file needs is held meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};

use super::node::{Node, Upper};
use super::{ActiveSet, Errno, Result, Vfs};
use crate::backing;
use crate::layer::Layer;
use crate::private::UnitKey;
use crate::private::borrowed::{Loan, is_marked, origin_of};
use crate::private::copy_up::Data;
use crate::private::origin::Origin;
use crate::tree::Kind;

/// Why a set was not made the active one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a changed file still has its data of a layer that is to go, {file}: it cannot be copied: {errno}"
)]
pub struct SwapError {
    /// The original: `repo/unit: /path`.
    pub file: String,
    pub errno: Errno,
}

/// Whose data a file has.
enum Lender {
    Found(OwnedFd, Arc<Layer>),
    /// No layer of the set has it.
    Missing,
}

impl Vfs {
    /// Whether a node's object is private but for its data.
    pub(super) fn borrows(&self, node: &Arc<Node>) -> Result<bool> {
        if node.kind != FileType::RegularFile {
            return Ok(false);
        }
        match &node.place.read().expect("no panic while held").upper {
            Upper::File { inode } => Ok(self.private.loans.find(*inode).is_some()),
            Upper::Orphan(fd) => is_marked(&**fd),
            Upper::None | Upper::Directory(_) => Ok(false),
        }
    }

    /// A private file lost its last name. What is left of a loan is found at the next mount.
    pub(super) fn owes_nothing(&self, inode: u64) {
        if let Err(error) = self.private.end_loan(inode) {
            tracing::warn!(%error, "the name of a borrowed file stays until the next mount");
        }
    }

    /// Opens the layer's file that a private file has its data of.
    ///
    /// # Errors
    /// `EIO`: no layer of the set has it.
    pub(super) fn open_lender(
        &self,
        active: &ActiveSet,
        origin: &Origin,
    ) -> Result<(OwnedFd, Arc<Layer>)> {
        match lender(active, origin)? {
            Lender::Found(file, layer) => Ok((file, layer)),
            Lender::Missing => {
                let path = String::from_utf8_lossy(&origin.path).into_owned();
                tracing::error!(
                    unit = origin.unit,
                    path,
                    "the layer of a private file's data is gone"
                );
                Err(Errno::IO)
            }
        }
    }

    /// Makes the data of a node's private file its own.
    pub(super) fn complete(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        let _copying = node.copying.lock().expect("no panic while held");
        let (file, loan) = {
            let _shared = self.shared();
            match &node.place.read().expect("no panic while held").upper {
                Upper::File { inode } => match self.private.loans.find(*inode) {
                    Some(loan) => (self.private.open_lent(&loan)?, Some(loan)),
                    None => return Ok(()),
                },
                Upper::Orphan(fd) => {
                    let path = crate::proc::path(&**fd);
                    let flags = OFlags::RDWR | OFlags::NOATIME | OFlags::CLOEXEC;
                    (rustix::fs::open(path, flags, Mode::empty())?, None)
                }
                Upper::None | Upper::Directory(_) => return Ok(()),
            }
        };
        // Who has it open for reading holds the layer's file, whatever the set.
        let held = node.files.lock().expect("no panic while held").backing.clone();
        let held = held.filter(|backing| backing.layer.is_some());
        self.complete_file(&file, loan.as_deref(), data, |origin| match &held {
            Some(backing) => Ok(Some(rustix::io::dup(&**backing)?)),
            None => self.open_lender(&self.active(), origin).map(|(file, _)| Some(file)),
        })?;
        self.switch_to_copy(node);
        Ok(())
    }

    /// `lender` gives none where the data is nowhere: the file stays as it is then.
    fn complete_file(
        &self,
        file: &OwnedFd,
        loan: Option<&Loan>,
        data: Data,
        lender: impl FnOnce(&Origin) -> Result<Option<OwnedFd>>,
    ) -> Result<bool> {
        let _completing = loan.map(|loan| loan.completing.lock().expect("no panic while held"));
        if !is_marked(file)? {
            return Ok(true);
        }
        if data == Data::None {
            return self.private.empty_lent(file).map(|()| true);
        }
        let Some(source) = lender(&origin_of(file)?)? else { return Ok(false) };
        self.private.complete(file, loan, &source).map(|()| true)
    }

    /// Copies what is borrowed from the units of the active set that `keep`
    /// refuses, and lets no more be borrowed from them.
    ///
    /// # Errors
    /// The private disk fails or is full.
    pub(super) fn settle_loans(
        &self,
        keep: impl Fn(&UnitKey) -> bool,
    ) -> std::result::Result<(), SwapError> {
        let active = self.active();
        let units = active.layers.iter().map(|layer| layer.unit.clone());
        let gone: BTreeSet<_> = units.filter(|unit| !keep(unit)).collect();
        let loans = self.private.loans.leave(gone);
        if loans.is_empty() {
            return Ok(());
        }
        tracing::info!(files = loans.len(), "copying data of layers that are about to go");
        let find = |origin: &Origin| match lender(&active, origin) {
            Ok(Lender::Found(file, _)) => Ok(Some(file)),
            // What cannot be read now is lost whether the layer stays or goes.
            Ok(Lender::Missing) | Err(Errno::IO) => Ok(None),
            Err(error) => Err(error),
        };
        self.settle_all(loans, find)
    }

    /// Goes on after a file that cannot be copied, but for want of space, and returns the
    /// first error.
    fn settle_all(
        &self,
        loans: Vec<(u64, Arc<Loan>)>,
        lender: impl Fn(&Origin) -> Result<Option<OwnedFd>>,
    ) -> std::result::Result<(), SwapError> {
        let known: HashMap<_, _> = self.table.private_files();
        let mut first = Ok(());
        for (inode, loan) in loans {
            let Err(errno) = self.settle_one(known.get(&inode), inode, &loan, &lender) else {
                continue;
            };
            let file = self.lent_name(&loan).unwrap_or_else(|| loan.unit.to_string());
            tracing::error!(file, %errno, "the data of a private file cannot be copied");
            first = first.and(Err(SwapError { file, errno }));
            if matches!(errno, Errno::NOSPC | Errno::DQUOT) {
                break;
            }
        }
        first
    }

    fn settle_one(
        &self,
        node: Option<&Arc<Node>>,
        inode: u64,
        loan: &Loan,
        lender: impl Fn(&Origin) -> Result<Option<OwnedFd>>,
    ) -> Result<()> {
        let _copying = node.map(|node| node.copying.lock().expect("no panic while held"));
        let file = match self.private.open_lent(loan) {
            // It was removed meanwhile, or somebody wrote to it.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let completed = self.complete_file(&file, Some(loan), Data::All, &lender)?;
        match node {
            _ if !completed => {
                let unit = loan.unit.to_string();
                tracing::error!(unit, inode, "the data of a private file is in no layer");
            }
            Some(node) => self.switch_to_copy(node),
            None => {}
        }
        Ok(())
    }

    /// What a private file has its data of, as `repo/unit: /path`.
    fn lent_name(&self, loan: &Loan) -> Option<String> {
        let origin = self.private.open_lent(loan).and_then(origin_of).ok()?;
        Some(format!("{}: /{}", origin.unit, String::from_utf8_lossy(&origin.path)))
    }

    /// Copies what private files borrowed from units that are not in the set:
    /// it was changed while nothing was mounted. `root` opens the files of such
    /// a unit, where they still are. What cannot be had stays as it is: reading it
    /// gives `EIO`.
    ///
    /// # Errors
    /// The private disk fails or is full.
    pub fn settle_absent(
        &self,
        root: impl Fn(&UnitKey) -> Option<OwnedFd>,
    ) -> std::result::Result<(), SwapError> {
        let active = self.active();
        let absent = |unit: &UnitKey| !active.layers.iter().any(|layer| layer.unit == *unit);
        let mut by_unit: HashMap<UnitKey, Vec<_>> = HashMap::new();
        for (inode, loan) in self.private.loans.of(absent) {
            by_unit.entry(loan.unit.clone()).or_default().push((inode, loan));
        }
        let mut first = Ok(());
        for (unit, loans) in by_unit {
            let root = root(&unit);
            let settled = self.settle_all(loans, |origin| {
                if let Some(root) = &root
                    && let Some(file) = open_unchecked(root, origin)
                {
                    return Ok(Some(file));
                }
                match lender(&active, origin)? {
                    Lender::Found(file, _) => Ok(Some(file)),
                    Lender::Missing => Ok(None),
                }
            });
            first = first.and(settled);
        }
        first
    }

    /// Private files whose data is in no layer of the set, as `repo/unit: /path`
    /// of the original; at most `limit`, and how many there are.
    pub fn unreadable(&self, limit: usize) -> (Vec<String>, usize) {
        let active = self.active();
        let absent = |unit: &UnitKey| !active.layers.iter().any(|layer| layer.unit == *unit);
        let loans = self.private.loans.of(absent);
        let mut names: Vec<_> =
            loans.iter().take(limit).filter_map(|(_, loan)| self.lent_name(loan)).collect();
        names.sort();
        (names, loans.len())
    }
}

/// The layer's file with the data of `origin`: the one that it was made from, or
/// what stands at its path now, if that has the same digest.
fn lender(active: &ActiveSet, origin: &Origin) -> Result<Lender> {
    if let Some(layer) = active.layers.iter().find(|l| Some(&l.unit) == origin.unit_key().as_ref())
    {
        let file = layer.open(&origin.path).map_err(|_| Errno::IO)?;
        let stat = rustix::fs::fstat(&file)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        return if regular && stat.st_size.cast_unsigned() == origin.size {
            Ok(Lender::Found(file, layer.clone()))
        } else {
            tracing::error!(unit = origin.unit, "a layer changed under a private file");
            Err(Errno::IO)
        };
    }
    let same = |at: &u32| match active.union.entry(*at).map(|entry| entry.kind) {
        Some(Kind::Regular { digest }) => digest.is_some() && digest == origin.digest,
        _ => false,
    };
    let Some(at) = active.union.find(&origin.path).filter(same) else { return Ok(Lender::Missing) };
    let top = active.union.top(at).ok_or(Errno::IO)?;
    let layer = &active.layers[top.layer as usize];
    Ok(Lender::Found(layer.open(&active.union.path(at))?, layer.clone()))
}

/// Opens a file of a unit that nobody checked: only what is the original without a doubt.
fn open_unchecked(root: &OwnedFd, origin: &Origin) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
    let file = backing::open_beneath(root, &origin.path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !regular || stat.st_size.cast_unsigned() != origin.size {
        return None;
    }
    let same = match origin.digest {
        Some(digest) => backing::digest(&file).ok()? == digest,
        None => backing::timestamp(stat.st_mtime, stat.st_mtime_nsec) == origin.mtime,
    };
    same.then_some(file)
}
