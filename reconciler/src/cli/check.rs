//! `strata check`: every fault of a GitOps repository at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use strata_core::check::{CheckResult, check_source};
use strata_core::{CompositionName, Diagnostic, GenerationId, Severity};

use super::inventory::ProductionArgs;
use super::output::print_text;
use super::{Failure, Outcome, OutputArgs, OutputFormat, print_json, quantity};
use crate::directory::read_directory;

/// Check a GitOps repository: syntax, layers, dependencies, shared paths, references.
///
/// Without a store or an inventory only what needs none is checked.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strata check . --store /srv/strata\n  strata check . --output json | jq '.diagnostics[].message'\n\nExit status: 0 no error (warnings do not count), 1 errors, 2 the check could not be made."
)]
pub struct CheckArgs {
    /// The directory that holds strata.toml.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    production: ProductionArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    accepted: bool,
    /// Whether layers were looked up in a store.
    layers_checked: bool,
    diagnostics: &'a [Diagnostic],
    compositions: BTreeMap<&'a CompositionName, Composed>,
}

#[derive(Serialize)]
struct Composed {
    generation: GenerationId,
    layers: usize,
}

/// # Errors
/// The directory or the store cannot be read.
pub fn run(args: &CheckArgs) -> Result<Outcome, Failure> {
    let (tree, unreadable) = read_directory(&args.directory)?;
    let production = args.production.open()?;
    let mut result = match &production {
        None => {
            let (desired, diagnostics) = check_source(&tree);
            let (compositions, faulty) = (BTreeMap::new(), BTreeMap::new());
            CheckResult { desired, diagnostics, compositions, faulty }
        }
        Some(production) => production.check(&tree, &*production.units(), Vec::new()).0,
    };
    result.diagnostics.extend(unreadable);
    result.diagnostics.sort();
    match args.output.output {
        OutputFormat::Json => print_json(&Report {
            accepted: result.accepted(),
            layers_checked: production.is_some(),
            diagnostics: &result.diagnostics,
            compositions: result
                .compositions
                .iter()
                .map(|(name, generation)| {
                    let layers = generation.layers().len();
                    (name, Composed { generation: generation.id(), layers })
                })
                .collect(),
        })?,
        OutputFormat::Text => print_text(&text(&result))?,
    }
    if production.is_none() {
        eprintln!("note: no store was named, so layers were not looked up");
        eprintln!(
            "hint: name it with --store or STRATA_STORE, or an exported inventory with --inventory"
        );
    }
    Ok(if result.accepted() { Outcome::Done } else { Outcome::Difference })
}

fn text(result: &CheckResult) -> String {
    let mut text = String::new();
    for diagnostic in &result.diagnostics {
        let _infallible = writeln!(text, "{diagnostic}");
    }
    let count = |severity| result.diagnostics.iter().filter(|d| d.severity == severity).count();
    let _infallible = writeln!(
        text,
        "{}, {}: {}, {}",
        quantity(result.desired.definitions.len(), "composition"),
        quantity(result.desired.appliances.len(), "appliance"),
        quantity(count(Severity::Error), "error"),
        quantity(count(Severity::Warning), "warning")
    );
    text
}
