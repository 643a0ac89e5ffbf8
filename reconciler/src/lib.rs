//! The management host's side of Strata: the command line and the reconciler.
//!
//! The library never reads `$HOME` and prints only in [`cli`]; what it decides
//! it takes from `strata-core`, and what it writes goes through `strata-store`.

pub mod cli;
pub mod directory;
pub mod repositories;
