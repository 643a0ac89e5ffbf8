//! Scripts of layers (§5.1, §5.2): what VAs run around a swap, in which order, and
//! what follows when one fails.
//!
//! [`policy`] is what a generation says, [`order`] which unit comes first, [`plan`]
//! what is to be run, [`outcome`] how it ended. All of it is decided here from plain
//! data; running and noting is for the file system of the VA.

pub mod order;
pub mod outcome;
pub mod plan;
pub mod policy;

use std::fmt;

use serde::{Deserialize, Serialize};

/// A script of a layer unit, by its file name below `scripts/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Script {
    PreRemove,
    PreInstall,
    PostRemove,
    PostInstall,
}

impl Script {
    pub const ALL: [Script; 4] =
        [Script::PreRemove, Script::PreInstall, Script::PostRemove, Script::PostInstall];

    /// Its file name.
    pub fn name(self) -> &'static str {
        match self {
            Script::PreRemove => "pre-remove",
            Script::PreInstall => "pre-install",
            Script::PostRemove => "post-remove",
            Script::PostInstall => "post-install",
        }
    }

    /// The script of that file name.
    pub fn of_name(name: &str) -> Option<Script> {
        Script::ALL.into_iter().find(|script| script.name() == name)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
