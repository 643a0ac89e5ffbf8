//! VAs' reports: read with suspicion, written by rename.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use strata_core::report::Report;
use strata_core::{MacAddr, limits};

use crate::durable::Disk;
use crate::error::{Context, StoreError};
use crate::read::{optional, read_limited};
use crate::store::Store;

/// A report with the time at which the store's file system saw it written: a
/// VA's own clock may be wrong, and a frozen VA cannot renew either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedReport {
    pub report: Report,
    pub modified: SystemTime,
}

impl Store {
    /// The report of a VA with the time it was written at; `None` where it
    /// never wrote one.
    ///
    /// # Errors
    /// It is too large, no valid report, or of another VA.
    pub fn observed_report(&self, mac: MacAddr) -> Result<Option<ObservedReport>, StoreError> {
        let path = self.report_path(mac);
        // The time is taken first: a report renewed in between only looks older.
        let modified = std::fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
        let Some(modified) = optional(modified.at("stat", &path))? else { return Ok(None) };
        Ok(self.report(mac)?.map(|report| ObservedReport { report, modified }))
    }

    /// Where a VA's report is: in a directory that it alone can write, where it has one
    /// (a virtual machine), or among the others.
    fn report_path(&self, mac: MacAddr) -> PathBuf {
        let path = self.reports().join(mac.to_string());
        let own = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if own { path.join(mac.to_string()) } else { path }
    }

    /// The report of a VA; `None` where it never wrote one.
    ///
    /// # Errors
    /// It is too large, no valid report, or of another VA.
    pub fn report(&self, mac: MacAddr) -> Result<Option<Report>, StoreError> {
        let path = self.report_path(mac);
        let Some(text) = optional(read_limited(&path, limits::REPORT_BYTES))? else {
            return Ok(None);
        };
        match Report::parse(&text, mac) {
            Ok(report) => Ok(Some(report)),
            Err(source) => Err(StoreError::Report { path, source }),
        }
    }
}

impl Store {
    /// Removes the report of a VA, and the place that it alone could write. It is no error
    /// that there is none.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_report(&self, mac: MacAddr) -> Result<(), StoreError> {
        let path = self.reports().join(mac.to_string());
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            std::fs::remove_dir_all(&path).at("remove", &path)?;
            return self.disk.sync_directory(&self.reports());
        }
        self.disk.remove_file(&path)
    }
}

/// Writes a VA's report into the directory that is its only writable place.
///
/// # Errors
/// It cannot be written; the old report stands.
pub fn write_report(directory: &Path, report: &Report) -> Result<(), StoreError> {
    let path = directory.join(report.mac.to_string());
    Disk::default().write_file(&path, report.print().as_bytes(), 0o644)
}
