//! Building a template's configuration layer (§4.2, §5.3): the packages' own scripts
//! run once, in a build VA, so that appliances start with none left to run.
//!
//! - [`inputs`]: what a build starts from, as a text whose digest names the result.
//! - [`sandbox`]: the build VA: composed in a store aside, without network.
//! - [`scripts`]: the maintainer scripts of Debian packages, in dpkg's order.
//! - [`scriptlets`]: those of RPM packages, in rpm's.
//! - [`seal`]: what they changed, as a layer unit.
//! - [`handmade`]: what an operator changed in a VA instead, as a layer unit.
//!
//! A build is a function of its inputs: the same layers give the same unit on every
//! machine, and a unit that is there already is not built again.

pub mod handmade;
pub mod inputs;
pub mod sandbox;
pub mod scriptlets;
pub mod scripts;
pub mod seal;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use strata_core::metadata::{LayerKind, Metadata};
use strata_core::{CompositionName, Digest, LayerName, LayerVersion, RepositoryName};
use strata_import::Imported;
use strata_machine::{MachineError, Programs};
use strata_store::{Store, StoreError};

pub use inputs::Inputs;
use inputs::Packages;
use sandbox::Sandbox;
use scripts::Ran;

use crate::private_view::PrivateViewError;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the build VA: {0}")]
    Provision(#[from] strata_machine::ProvisionError),
    #[error(transparent)]
    Package(#[from] strata_import::dpkg::PackageError),
    #[error(transparent)]
    Database(#[from] strata_import::dpkg::database::DatabaseError),
    #[error(transparent)]
    Rooted(#[from] strata_import::rooted::RootedError),
    #[error(transparent)]
    RpmPackage(#[from] strata_import::rpm::package::PackageError),
    #[error("no layer of {0} was made from a package, so there is no script to run")]
    NoPackages(CompositionName),
    #[error("{what} of {package} is a script for rpm's own Lua, and no layer has /usr/bin/rpm")]
    Lua { what: &'static str, package: String },
    #[error("{what} failed with {status}:\n{output}")]
    Failed { what: String, status: String, output: String },
    #[error("the build was not done within {0:?}; it was running {1}")]
    Deadline(Duration, String),
    #[error("dpkg does not find its packages in order:\n{0}")]
    Audit(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    View(#[from] PrivateViewError),
    #[error("the build's changes: {0}")]
    Publish(#[from] strata_import::BuildError),
    #[error(transparent)]
    Names(#[from] strata_core::names::NameError),
    #[error(transparent)]
    Version(#[from] strata_core::version::VersionError),
    #[error(transparent)]
    Generation(#[from] strata_core::generation::GenerationError),
}

/// Where a unit goes and what a build may use.
#[derive(Debug, Clone)]
pub struct Options {
    pub repository: RepositoryName,
    pub layer: LayerName,
    /// A directory for the build VA, on a disk with extended attributes.
    pub scratch: PathBuf,
    pub deadline: Duration,
    pub memory_bytes: u64,
}

/// What came of a build.
#[derive(Debug)]
pub struct Built {
    pub unit: Imported,
    /// Maintainer scripts run by us, and packages that were set up.
    pub scripts: usize,
    pub configured: usize,
    /// What went wrong without ending the build: of RPM packages, as rpm has it.
    pub warnings: Vec<String>,
    pub took: Duration,
}

/// Builds the configuration layer of a template, or finds it. `observe` hears what is
/// being done.
///
/// # Errors
/// A script failed or took too long, or something cannot be read or written; nothing is
/// published then.
pub fn build(
    store: &Store,
    programs: &Programs,
    inputs: &Inputs,
    options: &Options,
    observe: &dyn Fn(&str),
) -> Result<Built, BuildError> {
    let began = Instant::now();
    // No ring or VA of this store leads to the build VA's layers: nothing is collected meanwhile.
    let _lease = store.lease()?;
    let version = inputs.version()?;
    if let Some(unit) = find(store, options, &version)? {
        let (scripts, configured, warnings) = (0, 0, Vec::new());
        return Ok(Built { unit, scripts, configured, warnings, took: began.elapsed() });
    }
    let deadline = began + options.deadline;
    observe("reading the packages");
    let Packages { debian, rpm } = inputs.packages(store)?;
    if debian.is_empty() && rpm.is_empty() {
        return Err(BuildError::NoPackages(inputs.composition.clone()));
    }
    let former = match rpm.is_empty() {
        true => Default::default(),
        false => inputs.former_rpm(store)?,
    };
    let epoch = inputs.epoch(store)?;
    let sandbox = Sandbox::start(store, programs, inputs, options, epoch, deadline)?;
    let ran = match debian.is_empty() {
        false => scripts::run(&sandbox, &debian, observe)?,
        true => scriptlets::run(&sandbox, &rpm, &former, observe)?,
    };
    observe("sealing what the scripts changed");
    let changes = sandbox.stop()?;
    let metadata = Metadata {
        description: Some(format!(
            "what the packages of {} write when they are set up",
            inputs.composition
        )),
        ..Metadata::new(options.layer.clone(), version, LayerKind::Configuration)
    };
    let unit = seal::seal(store, &options.repository, metadata, inputs, &changes, epoch)?;
    let Ran { scripts, configured, warnings } = ran;
    Ok(Built { unit, scripts, configured, warnings, took: began.elapsed() })
}

/// The unit of a former build of the same inputs.
fn find(
    store: &Store,
    options: &Options,
    version: &LayerVersion,
) -> Result<Option<Imported>, BuildError> {
    let database = match store.database(&options.repository) {
        Err(StoreError::NoRepository(_)) => return Ok(None),
        database => database?,
    };
    let Some(unit) = database.get(&options.layer, version) else { return Ok(None) };
    let manifest = store.manifest(&options.repository, &options.layer, version)?;
    let digest: Digest = unit.digest;
    Ok(Some(Imported {
        layer: options.layer.clone(),
        version: version.clone(),
        digest,
        new: false,
        entries: manifest.entries().len(),
        content_bytes: manifest.content_bytes(),
        withdrawn: unit.withdrawn.clone(),
    }))
}
