//! `strata layer seal`.

use strata_core::version::LayerVersion;
use strata_store::{Sealed, StoreError};

use super::LayerReference;
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json};

/// Seal the files of a layer unit by fs-verity
///
/// The kernel lets nobody write a sealed file again, and checks each block that is read.
/// The store's disk must have fs-verity; `strata-vlfs verify` counts sealed files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata layer seal main/openssl 3.0.15-1")]
pub struct SealArgs {
    /// The layer, as in main/openssl
    #[arg(value_name = "REPOSITORY/LAYER")]
    layer: LayerReference,
    /// Its version
    version: LayerVersion,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    repository: &'a str,
    layer: &'a str,
    version: &'a str,
    sealed: usize,
    already: usize,
}

pub fn seal(args: &SealArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let LayerReference { repository, layer } = &args.layer;
    store.database(repository)?;
    let done = store.seal_unit(repository, layer, &args.version).map_err(|error| match error {
        StoreError::NoVerity { .. } => Failure::from(error),
        other => Failure::from(other)
            .hint(format!("`strata layer list --repo {repository} {layer}` prints its versions")),
    })?;
    let Sealed { sealed, already } = done;
    let version = &args.version;
    if args.output.output == OutputFormat::Json {
        let (repository, layer) = (repository.as_str(), layer.as_str());
        print_json(&Shown { repository, layer, version: version.as_str(), sealed, already })?;
    } else {
        let text = format!(
            "sealed {repository}/{layer} {version}: {sealed} files, {already} were sealed already\n"
        );
        print_bytes(text.as_bytes())?;
    }
    Ok(Outcome::Done)
}
