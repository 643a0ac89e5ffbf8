//! Which VAs a machine can boot into.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use strata_core::{MacAddr, VaName};
use strata_machine::{Driver, MachineError, Machines, VaRecord};
use strata_store::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum VasError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A VA that a machine can boot into: its address has a link in the store, and it is none that
/// runs in namespaces of this host. A declared VA need not have a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootableVa {
    pub mac: MacAddr,
    pub name: Option<VaName>,
}

/// All VAs that machines can boot into, by address.
///
/// # Errors
/// The store cannot be read.
pub fn bootable(store: &Store) -> Result<Vec<BootableVa>, VasError> {
    let records = records(&Machines::open(store)?)?;
    let links = store.va_links()?.targets;
    let vas = links.into_keys().filter_map(|mac| bootable_as(mac, records.get(&mac)));
    Ok(vas.collect())
}

fn records(machines: &Machines<'_>) -> Result<BTreeMap<MacAddr, VaRecord>, VasError> {
    // A damaged record hides its VA and no other; `strata va list` tells of it.
    let records = machines.records()?.into_iter().flatten();
    Ok(records.map(|record| (record.mac, record)).collect())
}

fn bootable_as(mac: MacAddr, record: Option<&VaRecord>) -> Option<BootableVa> {
    match record.map(|record| record.driver) {
        None | Some(Driver::Qemu) => {
            Some(BootableVa { mac, name: record.map(|record| record.name.clone()) })
        }
        Some(Driver::Namespace) => None,
    }
}

/// Finds one VA after the other without reading all records for each.
#[derive(Debug, Default)]
pub(super) struct Finder {
    names: Mutex<BTreeMap<MacAddr, VaName>>,
}

impl Finder {
    /// The VA of an address; `None` where a machine cannot boot into one.
    pub(super) fn find(&self, store: &Store, mac: MacAddr) -> Result<Option<BootableVa>, VasError> {
        if store.va_target(mac)?.is_none() {
            return Ok(None);
        }
        let machines = Machines::open(store)?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(&mac)
            && let Ok(record) = machines.record(name)
            && record.mac == mac
        {
            return Ok(bootable_as(mac, Some(&record)));
        }
        let records = records(&machines)?;
        *names = records.iter().map(|(mac, record)| (*mac, record.name.clone())).collect();
        Ok(bootable_as(mac, records.get(&mac)))
    }
}
