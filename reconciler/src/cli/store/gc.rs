//! `strata store gc`.

use std::num::NonZeroUsize;

use indicatif::HumanBytes;
use serde::Serialize;
use strata_core::collect::{Collection, Garbage, Policy, TakenUnit};
use strata_store::{StoreError, Swept};

use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::fleet::FleetError;
use crate::repositories::collect;

/// Remove generations and layer units that nobody needs
///
/// A generation stays while a ring, a rollout, a VA's link or a VA's report names it, and while it
/// was in use not long ago; a unit stays while such a generation has it, while private
/// files of a VA still have their data from it, and while it is young. Of the other units, those
/// go that were withdrawn, come from git or were mirrored from a repository with a `url`, and with
/// --versions old ones. Without --apply nothing is removed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata store gc                       # what would be removed\n  strata store gc --apply\n  strata store gc --versions 3 --apply  # of each layer, only the three newest versions\n\nA report that cannot be read keeps every generation. A revert to a commit whose units are gone\nmirrors them again, or is refused until they are imported again. What lies here for days without a\nnetwork, as after `strata repo mirror --all`, stays with --keep-mirrored."
)]
pub struct GcArgs {
    /// Remove it
    #[arg(long)]
    apply: bool,
    /// What is younger or was in use since then stays
    #[arg(long, value_name = "HOURS", default_value_t = 168)]
    grace_hours: u32,
    /// So many of the latest generations of each template stay whatever their age
    #[arg(long, value_name = "N", default_value_t = 5)]
    generations: usize,
    /// Of each layer, remove what is older than the N newest versions and unused
    #[arg(long, value_name = "N")]
    versions: Option<NonZeroUsize>,
    /// Units that were mirrored stay
    #[arg(long)]
    keep_mirrored: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    applied: bool,
    content_bytes: u64,
    /// Names in the pool of shared files that no unit has any more.
    pool_objects: u64,
    pool_bytes: u64,
    #[serde(flatten)]
    collection: &'a Collection,
}

pub fn run(args: &GcArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let policy = Policy {
        grace_ms: u64::from(args.grace_hours) * 3_600_000,
        generations: args.generations,
        versions: args.versions.map(NonZeroUsize::get),
        keep_mirrored: args.keep_mirrored,
    };
    let collection = match args.apply {
        true => collect::apply(&store, &policy).map_err(failure)?,
        false => collect::plan(&store, &policy)?,
    };
    let pool = store.sweep_pool(args.apply)?;
    let content_bytes = collection.units.iter().map(|unit| unit.content_bytes).sum();
    if args.output.output == OutputFormat::Json {
        let (pool_objects, pool_bytes) = (pool.objects, pool.bytes);
        let (applied, collection) = (args.apply, &collection);
        print_json(&Report { applied, content_bytes, pool_objects, pool_bytes, collection })?;
        return Ok(Outcome::Done);
    }
    print_text(&text(args, &collection, content_bytes, pool))?;
    Ok(Outcome::Done)
}

fn failure(error: FleetError) -> Failure {
    match error {
        FleetError::Store(StoreError::Locked(_)) => Failure::new(
            "the store is in use: the reconciler, a build, a mirroring or a publication is at work",
        )
        .hint("nothing was removed; try again when that is done"),
        other => other.into(),
    }
}

fn text(args: &GcArgs, collection: &Collection, content_bytes: u64, pool: Swept) -> String {
    let mut text = String::new();
    for reason in &collection.unsure {
        text.push_str(&format!("unsure: {reason}\n"));
    }
    for id in &collection.generations {
        text.push_str(&format!("generation {id}\n"));
    }
    for TakenUnit { key, why, .. } in &collection.units {
        let why = match why {
            Garbage::FromGit => "sealed again from git when needed",
            Garbage::Mirrored => "mirrored again when needed",
            Garbage::Unlisted => "its source lists it no more",
            Garbage::Withdrawn => "withdrawn",
            Garbage::Superseded => "newer versions are there",
        };
        text.push_str(&format!("unit {key}: {why}\n"));
    }
    let what = format!(
        "{} and {} ({})",
        quantity(collection.generations.len(), "generation"),
        quantity(collection.units.len(), "layer unit"),
        HumanBytes(content_bytes)
    );
    let kept = format!(
        "{} and {} stay",
        quantity(collection.kept_generations.len(), "generation"),
        quantity(collection.kept_units, "layer unit")
    );
    let what = match pool.objects {
        0 => what,
        objects => {
            let shared = quantity(objects, "shared file");
            format!("{what}, {shared} ({}) that no unit has", HumanBytes(pool.bytes))
        }
    };
    let nothing =
        pool.objects == 0 && collection.generations.is_empty() && collection.units.is_empty();
    text + &match (nothing, args.apply) {
        (true, _) => format!("nothing to remove; {kept}\n"),
        (false, true) => format!("removed {what}; {kept}\n"),
        (false, false) => format!("{what} would be removed; {kept}\nhint: --apply removes them\n"),
    }
}
