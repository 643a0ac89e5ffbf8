//! What is known of production: the live store, or an inventory of it that a
//! pipeline without access was given.

use strata_core::check::{CheckResult, check_desired};
use strata_core::configuration::Configuration;
use strata_core::desired::DesiredState;
use strata_core::inventory::{Inventory, VaGroup};
use strata_core::manifest::ManifestError;
use strata_core::preview::{KnownUnits, UnitSource};
use strata_core::source::SourceTree;
use strata_core::universe::Universe;
use strata_core::{Diagnostic, Digest, Located};
use strata_store::Store;

use crate::inventory::{self, ExportError, StoreUnits};
use crate::repositories::{inventory_universe, load_universe};

#[derive(Debug)]
pub enum Production {
    Store(Store),
    Inventory { inventory: Box<Inventory>, units: KnownUnits },
}

#[derive(Debug, thiserror::Error)]
#[error("the manifest of the unit {unit} in the inventory: {fault}")]
pub struct BadManifest {
    unit: Digest,
    fault: Located<ManifestError>,
}

impl Production {
    /// # Errors
    /// A manifest in the inventory is none.
    pub fn of_inventory(inventory: Inventory) -> Result<Self, BadManifest> {
        let units =
            KnownUnits::of(&inventory).map_err(|(unit, fault)| BadManifest { unit, fault })?;
        Ok(Production::Inventory { inventory: Box::new(inventory), units })
    }

    pub fn universe(&self, configuration: &Configuration) -> (Universe, Vec<Diagnostic>) {
        match self {
            Production::Store(store) => load_universe(store, configuration),
            Production::Inventory { inventory, .. } => inventory_universe(inventory, configuration),
        }
    }

    pub fn units(&self) -> Box<dyn UnitSource + '_> {
        match self {
            Production::Store(store) => Box::new(StoreUnits::new(store)),
            Production::Inventory { units, .. } => Box::new(units.clone()),
        }
    }

    /// # Errors
    /// The store's links or machines cannot be read.
    pub fn va_groups(&self) -> Result<Vec<VaGroup>, ExportError> {
        match self {
            Production::Store(store) => inventory::va_groups(store),
            Production::Inventory { inventory, .. } => Ok(inventory.vas.clone()),
        }
    }

    /// When the inventory was exported, in milliseconds since 1970.
    pub fn exported_at_ms(&self) -> Option<u64> {
        match self {
            Production::Store(_) => None,
            Production::Inventory { inventory, .. } => Some(inventory.exported_at_ms),
        }
    }

    /// Checks a commit against it.
    pub fn check(
        &self,
        tree: &SourceTree,
        units: &dyn UnitSource,
        mut faults: Vec<Diagnostic>,
    ) -> (CheckResult, Universe) {
        let (desired, diagnostics) = DesiredState::read(tree);
        faults.extend(diagnostics);
        let (universe, more) = self.universe(&desired.configuration);
        faults.extend(more);
        (self.check_desired(desired, &universe, units, faults), universe)
    }

    /// Checks what a commit says, with the faults found so far. An inventory need not
    /// hold every manifest: that paths could not be compared is then a warning.
    pub fn check_desired(
        &self,
        desired: DesiredState,
        universe: &Universe,
        units: &dyn UnitSource,
        faults: Vec<Diagnostic>,
    ) -> CheckResult {
        let mut result = check_desired(desired, faults, universe, units);
        if let Production::Inventory { .. } = self {
            for found in &mut result.diagnostics {
                if found.code == "no-manifest" {
                    *found = found
                        .clone()
                        .warning()
                        .hint("its paths are not compared here; the reconciler will");
                }
            }
        }
        result
    }
}
