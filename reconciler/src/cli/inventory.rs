//! `strata inventory export`: what a plan must know of production, in a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use strata_store::Store;
use strata_store::durable::Disk;

use super::{Failure, Outcome, StoreArgs, print_bytes, quantity};
use crate::inventory::{self, ExportError};
use crate::production::Production;

/// Take the inventory of a store, for pipelines that have no access to it
#[derive(Debug, Args)]
pub struct InventoryArgs {
    #[command(subcommand)]
    command: InventoryCommand,
}

#[derive(Debug, Subcommand)]
enum InventoryCommand {
    Export(ExportArgs),
}

/// Write the databases, the units' manifests and the numbers of VAs into a file
///
/// It holds no credential, no address and no name of a VA. `strata plan --inventory`
/// and `strata check --inventory` work from it as from the store.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata inventory export --file inventory.json.zst
  strata inventory export --no-manifests | jq .vas

Exit status: 0 written, 2 an error.")]
struct ExportArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Where to write it; compressed with zstd where the name ends in .zst
    /// [default: standard output].
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Leave the manifests out: the file is small, and a plan cannot tell paths.
    #[arg(long)]
    no_manifests: bool,
}

/// Where to learn of production, for commands that need no more than an inventory.
#[derive(Debug, Args)]
pub struct ProductionArgs {
    /// The store with the repositories and the VAs' links.
    #[arg(long, env = "STRATA_STORE", value_name = "STORE")]
    store: Option<PathBuf>,
    /// An exported inventory; it is used in the place of the store.
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
}

impl ProductionArgs {
    /// `None` where neither is named.
    ///
    /// # Errors
    /// What is named cannot be read.
    pub fn open(&self) -> Result<Option<Production>, Failure> {
        Ok(match (&self.inventory, &self.store) {
            (Some(file), _) => {
                let read = inventory::read(file)?;
                Some(Production::of_inventory(read).map_err(Failure::new)?)
            }
            (None, Some(store)) => Some(Production::Store(Store::open(store)?)),
            (None, None) => None,
        })
    }
}

impl ProductionArgs {
    /// # Errors
    /// As [`Self::open`], or neither is named.
    pub fn open_required(&self) -> Result<Production, Failure> {
        self.open()?.ok_or_else(|| {
            Failure::new("neither a store nor an inventory is named").hint(
                "name the store with --store or STRATA_STORE, or an exported inventory with --inventory",
            )
        })
    }
}

/// # Errors
/// The store cannot be read or the file not be written.
pub fn run(args: &InventoryArgs) -> Result<Outcome, Failure> {
    let InventoryCommand::Export(args) = &args.command;
    let store = args.store.open()?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} units")
            .expect("a constant that is a template"),
    );
    let exported = inventory::export(&store, !args.no_manifests, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let exported = exported?;
    let mut text = serde_json::to_vec_pretty(&exported)
        .map_err(|error| Failure::new(format!("write JSON: {error}")))?;
    text.push(b'\n');
    let Some(file) = &args.file else {
        print_bytes(&text)?;
        return Ok(Outcome::Done);
    };
    if file.extension().is_some_and(|extension| extension == "zst") {
        text = zstd::encode_all(text.as_slice(), 0)
            .map_err(|error| Failure::new(format!("compress the inventory: {error}")))?;
    }
    Disk::default().write_file(file, &text, 0o644)?;
    let vas: u64 = exported.vas.iter().map(|group| group.count).sum();
    eprintln!(
        "{}: {}, {}, {}",
        file.display(),
        quantity(exported.units.len(), "unit"),
        quantity(vas, "VA"),
        HumanBytes(text.len() as u64)
    );
    Ok(Outcome::Done)
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Store(error) => error.into(),
            ExportError::Machine(error) => Failure::new(error),
            ExportError::State(error) => error.into(),
        }
    }
}

impl From<inventory::ReadError> for Failure {
    fn from(error: inventory::ReadError) -> Self {
        Failure::new(error).hint("make it where the store is: strata inventory export --file FILE")
    }
}
