//! `strata init`.

use std::path::PathBuf;

use strata_store::{Store, StoreError};

use super::{Failure, Outcome, print_bytes};

/// Make a store, the directory that layers live in and VAs read
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata init /srv/strata && export STRATA_STORE=/srv/strata\n\nA store that is there already is left as it is."
)]
pub struct InitArgs {
    /// The directory: new, empty, or a store already
    #[arg(value_name = "STORE", env = "STRATA_STORE")]
    store: PathBuf,
}

pub fn run(args: &InitArgs) -> Result<Outcome, Failure> {
    let existed = Store::open(&args.store).is_ok();
    let store = Store::init(&args.store).map_err(|error| match error {
        StoreError::NotEmpty(_) => Failure::new(error).hint("name a new or an empty directory"),
        StoreError::Io { .. } => {
            Failure::new(error).hint("name a directory that can be made or written")
        }
        _ => Failure::new(error),
    })?;
    let root = store.root().display();
    let text = match existed {
        true => format!("{root} is a store already\n"),
        false => format!("made the store {root}\n"),
    };
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}
