//! Destroying a VA: the link first, so that a crash leaves none that is served but
//! has no record.

use std::fs;
use std::path::PathBuf;

use strata_core::VaName;
use strata_core::status::RunState;

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::provision::ProvisionError;
use crate::record::VaRecord;
use crate::registry::{hold_private, is_private_layer, remove_tree};

impl Machines<'_> {
    /// Destroys a stopped VA: its link, its record, its report and its private
    /// layer. Returns a private directory that was left because it is none that
    /// Strata made.
    ///
    /// # Errors
    /// It is not stopped, or something of it cannot be removed.
    pub fn destroy(&self, name: &VaName) -> Result<Option<PathBuf>, ProvisionError> {
        let registry = self.registry_lock()?;
        self.sweep()?;
        let (record, _lock) = self.locked(name)?;
        self.require_stopped(&record)?;
        let directory = self.directory(name);
        let private = record.private_in(&directory);
        hold_private(&private)?;
        self.store().release_va(record.mac)?;
        self.store().remove_report(record.mac)?;
        let mut kept = None;
        if !private.starts_with(&directory) {
            if is_private_layer(&private)? {
                remove_tree(&private)?;
            } else if private.exists() {
                kept = Some(private);
            }
        }
        let doomed = self.destroyed(name);
        fs::rename(&directory, &doomed).at("rename", &directory)?;
        self.store().disk().sync_directory(&self.store().machines())?;
        drop(registry);
        remove_tree(&doomed)?;
        Ok(kept)
    }

    /// Refuses a VA that is not stopped, and removes what a run that died has left.
    pub(crate) fn require_stopped(&self, record: &VaRecord) -> Result<(), MachineError> {
        match self.run_state(record)? {
            RunState::Running => Err(MachineError::Running(record.name.clone())),
            RunState::Suspended => Err(MachineError::Suspended(record.name.clone())),
            RunState::Stopped => self.clear(record),
        }
    }
}
