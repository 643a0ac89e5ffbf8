//! The store on disk: what the management side writes and VAs read.
//!
//! ```text
//! format                                  "strata-store 1"
//! repos/<repo>/database                   the units of a repository (§5.4), compressed
//! repos/<repo>/root-<n>.toml, snapshot.toml  what the holders of its keys signed
//! repos/<repo>/mirror                     its units come from elsewhere, when they are wanted
//! repos/<repo>/<unit>/metadata            Layer, Version, Depends … (Figure 5)
//! repos/<repo>/<unit>/manifest            every path with all its metadata
//! repos/<repo>/<unit>/filesystem/         the files
//! repos/<repo>/<unit>/scripts/            optional
//! pool/<xx>/<key>                         names of files that units share
//! generations/<id>/<composition>.ldf      the flattened LDF
//! generations/<id>/layers                 the layer set with digests
//! generations/<id>/commit                 the commit that first produced it
//! rings/<composition>/<ring>              → ../../generations/<id>
//! va/<mac>                                → ../rings/<composition>/<ring>/<composition>.ldf
//! reports/<mac>                           written by the VA's VLFS
//! machines/<name>/                        a VA's record and, by default, private layer
//! state/                                  the reconciler's own
//! ```
//!
//! Names that start with a dot are work in progress; readers pass them over.
//! Every write goes through [`durable`]: content, sync, rename, sync of the
//! directory, so that a crash at any instant leaves the old state or the new.
//! The crate is synchronous and reads no clock but to tell how old things are.

mod aside;
mod collect;
mod database_file;
pub mod durable;
mod error;
mod generations;
mod links;
mod pool;
mod read;
mod reports;
mod repository;
mod scripts;
mod seal;
mod store;
mod temporary;
mod verity;

pub use aside::GenerationStamp;
pub use database_file::check as check_database;
pub use error::StoreError;
pub use links::{RingLinks, VaLinks};
pub use pool::{Shared, Swept};
pub use read::read_limited;
pub use reports::{ObservedReport, write_report};
pub use repository::{
    DatabaseStamp, IndexOptions, OpenedUnit, Published, RepositoryWriter, SignedFile, StagedUnit,
    refuse_reserved, signed_database_name,
};
pub use seal::Sealed;
pub use store::{Store, StoreLock};
pub use strata_core::links::VaTarget;
pub use temporary::host_mark;
