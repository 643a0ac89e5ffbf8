//! `strata layer users`.

use strata_core::collect::UnitKey;
use strata_core::version::LayerVersion;

use super::LayerReference;
use super::show::find;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::repositories::users::{Users, UsingVa, users};

/// VAs and generations that are named; the others are counted.
const NAMED: usize = 20;

/// List who uses a layer unit: generations, rings, VAs and what VAs report
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata layer users main/openssl 3.0.15-1")]
pub struct UsersArgs {
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

pub fn run(args: &UsersArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let LayerReference { repository, layer } = args.layer.clone();
    let key = UnitKey { repository, layer, version: args.version.clone() };
    let users = users(&store, &key)?;
    if users.is_empty() {
        // A misspelt unit must not look like one that can go.
        find(&store, &args.layer, Some(&args.version))?;
    }
    match args.output.output {
        OutputFormat::Json => print_json(&users)?,
        OutputFormat::Text => print_text(&text(&users))?,
    }
    Ok(Outcome::Done)
}

/// Users as people read them.
pub fn text(users: &Users) -> String {
    if users.is_empty() {
        return "nothing uses it\n".to_owned();
    }
    let mut text = String::new();
    let va = |va: &UsingVa| match &va.name {
        Some(name) => name.to_string(),
        None => va.mac.to_string(),
    };
    let generation =
        |(id, composition): (&strata_core::Digest, _)| format!("{composition} {}", id.short());
    let mut line = |unit: &str, names: Vec<String>| {
        if !names.is_empty() {
            let more = names.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = names[..names.len().min(NAMED)].join(", ");
            text.push_str(&format!("  {}: {named}{more}\n", quantity(names.len(), unit)));
        }
    };
    line("generation", users.generations.iter().map(generation).collect());
    line("ring", users.rings.iter().cloned().collect());
    line("VA linked to it", users.desired.iter().map(va).collect());
    line("VA that reports it", users.active.iter().map(va).collect());
    line("thing unreadable that may use it", users.unreadable.clone());
    format!("still used by\n{text}")
}
