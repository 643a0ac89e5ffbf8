//! Pure decisions of Strata: names, formats, resolution, composition, plans.
//!
//! Everything here is a function of plain data. The crate opens no file, reads
//! no clock, starts no thread and knows no network; callers bring bytes in and
//! carry decisions out. The walls are proved by `tests/tests/walls.rs`.
//!
//! On-disk formats are specified in `docs/formats.md`; each parser here names
//! its section, enforces the size limits of [`limits`], reports positions as
//! line and column, and never panics on any input (see `fuzz/`).

pub mod audit;
pub mod check;
pub mod collect;
pub mod composition;
pub mod configuration;
mod consistency;
pub mod data_paths;
pub mod database;
pub mod database_text;
pub mod deb822;
pub mod desired;
pub mod diagnostic;
pub mod digest;
pub mod diversion;
pub mod event;

pub mod filter;
pub mod generation;
pub mod health_checks;
pub mod history;
pub mod inventory;
pub mod ldf;
pub mod limits;
mod lines;
pub mod links;
pub mod manifest;

pub mod metadata;
pub mod modes;
pub mod names;
pub mod plan;
pub mod position;
mod pre_depends;
pub mod preview;
pub mod printable;

pub mod relation;
pub mod remote;
pub mod report;
pub mod resolver;
pub mod rollout;
pub mod scripts;
pub mod shared_paths;
pub mod signed;
pub mod source;
pub mod stated;
pub mod status;
pub mod template_tree;
mod toml_reader;
pub mod universe;
pub mod update;
pub mod version;
pub mod views;
pub mod whiteouts;
pub mod withdrawn;

pub use diagnostic::{Diagnostic, Severity};
pub use digest::{Digest, GenerationId};
pub use names::{CompositionName, LayerName, MacAddr, RepositoryName, RingName, VaName};
pub use position::Located;
pub use version::LayerVersion;
