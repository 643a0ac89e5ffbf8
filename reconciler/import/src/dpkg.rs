//! dpkg's database for packages that are there as layers: "as though already
//! unpacked" (§5.3), so that the distribution's own tools run their maintainer
//! scripts.
//!
//! - [`package`]: a package, read from its layer unit.
//! - [`database`]: what dpkg keeps in `/var/lib/dpkg`, written and read.
//! - [`plan`]: which scripts run, with which arguments, in which order. Pure.
//!
//! Nothing here runs anything. dpkg's own descriptions are followed: `deb-preinst(5)`
//! and its siblings, `deb-triggers(5)`, and "Package maintainer scripts and installation
//! procedure" of Debian Policy.

pub mod database;
pub mod package;
pub mod plan;

pub use database::{Former, read_former};
pub use package::{Package, PackageError};
pub use plan::{Plan, Script, plan};
