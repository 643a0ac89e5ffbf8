//! Renaming a VA. Its address, link, private layer and history stay what they are.

use std::fs;

use strata_core::VaName;

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::provision::ProvisionError;
use crate::record::VaRecord;
use crate::registry::hold_private;

impl Machines<'_> {
    /// Gives a stopped VA another name. A rename that was interrupted is finished by
    /// the next command that changes which VAs there are, this one among them.
    ///
    /// # Errors
    /// It is not stopped, or the new name is taken; the VA then has its old name.
    pub fn rename(&self, old: &VaName, new: &VaName) -> Result<VaRecord, ProvisionError> {
        let _registry = self.registry_lock()?;
        let swept = self.sweep()?;
        let (record, _lock) = match self.locked(old) {
            Err(MachineError::NoVa(_)) if swept.renamed.contains(new) => {
                return Ok(self.record(new)?);
            }
            locked => locked?,
        };
        self.require_stopped(&record)?;
        let directory = self.directory(old);
        let _private = hold_private(&record.private_in(&directory))?;
        self.refuse_declared(new, Some(record.mac))?;
        if self.directory(new).exists() {
            return Err(ProvisionError::Exists(new.clone()));
        }
        let between = self.renamed(new);
        fs::rename(&directory, &between).at("rename", &directory)?;
        self.store().disk().sync_directory(&self.store().machines())?;
        self.finish_rename(&between, new)?;
        Ok(self.record(new)?)
    }
}
