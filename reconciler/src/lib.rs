//! The management host's side of Strata: the command line and the reconciler.
//!
//! The library never reads `$HOME` and prints only in [`cli`]; what it decides
//! it takes from `strata-core`, and what it writes goes through `strata-store`.

pub mod apply;
pub mod apt;
pub mod audit;
mod child;
pub mod cli;
pub mod commit_tree;
pub mod control;
pub mod directory;
pub mod drift;
pub mod fleet;
mod git;
mod gpgv;
mod http_server;
pub mod inventory;
pub mod library;
mod link_watch;
mod looking;
pub mod mirror;
pub mod network_boot;
pub mod pass;
pub mod private_view;
pub mod probe;
pub mod production;
pub mod report_watch;
pub mod repositories;
mod revert;
pub mod revision;
pub mod rollout;
pub mod run;
pub mod secret;
pub mod serve;
mod service;
pub mod settings;
pub mod source;
pub mod state;
pub mod telling;
pub mod template;
pub mod traces;
pub mod transfer;
pub mod triggers;
pub mod trust;
pub mod verify;
pub mod watch;
pub mod webhook;
