//! What the end-to-end tests in `tests/tests/` and the benches in `tests/src/bin/` stand on.
//!
//! ```no_run
//! # use strata_tests::{wait_until, Workspace};
//! # use std::time::Duration;
//! let mut workspace = Workspace::new("swap");
//! workspace.init_store();
//! workspace.build_layer("main", "base", "1", &[("etc/motd", "one\n")], &[]);
//! workspace.spawn("vlfs", workspace.vlfs().args(["mount", "--foreground"]));
//! wait_until("the mount answers", Duration::from_secs(10), || workspace.path("root/etc/motd").exists());
//! workspace.finish();
//! ```
//!
//! A [`Workspace`] owns a temporary directory, its store, the processes it spawned
//! and every mount below it. Dropped, it ends and unmounts all of that, after it
//! has shown logs, mounts and the store's tree if the test failed;
//! [`Workspace::finish`] fails the test when it left anything behind by itself.
//!
//! The programs under test are those of this build, and a test fails when they
//! are not there: `cargo build --workspace --all-targets` builds them.

pub mod archive;
pub mod boot;
pub mod commands;
pub mod disk;
pub mod git;
pub mod goals;
pub mod leaks;
pub mod network;
pub mod packages;
mod process;
pub mod random;
pub mod reconciler;
pub mod resolution;
pub mod rpm;
pub mod source_tree;
pub mod versions;
mod wait;
pub mod workloads;
mod workspace;

pub use process::{Finished, finish, program};
pub use wait::wait_until;
pub use workspace::Workspace;
