//! Making layers (§4.1, §5.3): from a directory, from Debian and from RPM packages. And
//! boot environments, from packages of kernels ([`boot`]).
//!
//! Everything is converted in one pass: files are written below a staging
//! directory of the store, hashed on the way, and described by the manifest
//! that comes out ([`writer`]). The store then publishes the unit whole.
//! Nothing here follows a symbolic link, and nothing is written outside the
//! staging directory whatever an archive says.
//!
//! On-disk results: `docs/formats.md`, "Layer unit" and "Conversion of .deb".

pub mod apt;
pub mod ar;
pub mod archive;
pub mod boot;
pub mod build;
pub mod compression;
pub mod control;
pub mod deb;
pub mod diverts;
pub mod dpkg;
pub mod import;
pub mod infer;
pub mod lint;
pub mod member;
pub mod placing;
pub mod rooted;
pub mod rpm;
pub mod sealing;
pub mod selection;
pub mod tarball;
pub mod tree;
pub mod usr_merge;
pub mod writer;

pub use build::{BuildError, build};
pub use import::{ImportError, ImportOptions, Imported, Package, Provenance, import_packages};
pub use writer::TreeLimits;
