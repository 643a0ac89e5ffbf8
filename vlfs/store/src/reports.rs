//! VAs' reports: read with suspicion, written by rename.

use std::path::Path;

use strata_core::report::Report;
use strata_core::{MacAddr, limits};

use crate::durable::Disk;
use crate::error::StoreError;
use crate::read::{optional, read_limited};
use crate::store::Store;

impl Store {
    /// The report of a VA; `None` where it never wrote one.
    ///
    /// # Errors
    /// It is too large, no valid report, or of another VA.
    pub fn report(&self, mac: MacAddr) -> Result<Option<Report>, StoreError> {
        let path = self.reports().join(mac.to_string());
        let Some(text) = optional(read_limited(&path, limits::REPORT_BYTES))? else {
            return Ok(None);
        };
        match Report::parse(&text, mac) {
            Ok(report) => Ok(Some(report)),
            Err(source) => Err(StoreError::Report { path, source }),
        }
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
