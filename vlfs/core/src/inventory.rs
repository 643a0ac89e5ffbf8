//! The inventory of a store: what a plan must know of production, in a file
//! that holds no credential, no address and no name of a VA
//! (`docs/formats.md`, "Inventory").
//!
//! A pipeline that checks a pull request reads it in the place of the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, GenerationId};
use crate::limits;
use crate::names::{CompositionName, RepositoryName, RingName};
use crate::status::RunState;

/// The version of the format.
pub const VERSION: u32 = 1;

/// What a store holds and how many VAs hang on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    pub version: u32,
    /// Milliseconds since 1970.
    pub exported_at_ms: u64,
    /// The commit that the store's reconciler applied last.
    pub commit: Option<String>,
    /// By composition, ring and run state.
    pub vas: Vec<VaGroup>,
    /// The databases as text.
    pub repositories: BTreeMap<RepositoryName, String>,
    /// Of units whose files are in the store, by the unit's digest.
    #[serde(default)]
    pub units: BTreeMap<Digest, UnitContent>,
}

/// VAs that are alike in what a plan asks of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaGroup {
    pub composition: CompositionName,
    /// The ring they follow; `None` where they are pinned.
    pub ring: Option<RingName>,
    pub pinned: Option<GenerationId>,
    /// `None` where the exporting host does not know their machines.
    pub run_state: Option<RunState>,
    pub count: u64,
}

/// What a unit brings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitContent {
    /// The manifest's text; absent where the export left manifests out.
    pub manifest: Option<String>,
    /// Names of the scripts that VAs run around a swap.
    #[serde(default)]
    pub scripts: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    #[error("the inventory has {0} bytes, the limit is {max}", max = limits::INVENTORY_BYTES)]
    TooLarge(usize),
    #[error("line {line}, column {column}: {message}")]
    Syntax { line: usize, column: usize, message: String },
    #[error("the inventory is of version {0}, this program reads version {VERSION}")]
    Version(u32),
}

impl Inventory {
    /// Reads an inventory.
    ///
    /// # Errors
    /// The first fault, with its place.
    pub fn parse(text: &[u8]) -> Result<Self, InventoryError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        if text.len() > limits::INVENTORY_BYTES {
            return Err(InventoryError::TooLarge(text.len()));
        }
        let syntax = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            let whole = error.to_string();
            let place = format!(" at line {line} column {column}");
            let message = whole.strip_suffix(&place).unwrap_or(&whole).to_owned();
            InventoryError::Syntax { line, column, message }
        };
        let head: Head = serde_json::from_slice(text).map_err(syntax)?;
        if head.version != VERSION {
            return Err(InventoryError::Version(head.version));
        }
        serde_json::from_slice(text).map_err(syntax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = include_str!("../golden/inventory");

    #[test]
    fn golden() {
        let inventory = Inventory::parse(GOLDEN.as_bytes()).expect("golden");
        assert_eq!(inventory.vas.iter().map(|group| group.count).sum::<u64>(), 503);
        let printed = serde_json::to_string_pretty(&inventory).expect("JSON") + "\n";
        assert_eq!(printed, GOLDEN);
    }

    #[test]
    fn faults_have_their_place() {
        let of = |text: &str| Inventory::parse(text.as_bytes()).expect_err(text).to_string();
        assert_eq!(
            of(&GOLDEN.replacen("\"version\": 1", "\"version\": 9", 1)),
            "the inventory is of version 9, this program reads version 1"
        );
        let unknown = of(&GOLDEN.replacen("\"commit\"", "\"comit\"", 1));
        assert!(unknown.starts_with("line 4, column 9: unknown field `comit`"), "{unknown}");
        assert!(of("").starts_with("line 1, column 0: EOF"));
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0..GOLDEN.len(), byte: u8) {
            let mut text = GOLDEN.as_bytes().to_vec();
            text[at] = byte;
            let _parsed = Inventory::parse(&text);
        }
    }
}
