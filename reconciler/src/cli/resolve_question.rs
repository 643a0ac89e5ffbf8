//! `strata resolve --why` and `--why-not`: questions that write nothing.

use std::fmt::Write as _;

use serde::Serialize;
use strata_core::LayerName;
use strata_core::desired::DesiredState;
use strata_core::names::CompositionName;
use strata_core::resolver::edit::Wanted;
use strata_core::resolver::{Chain, Origin, WhyNot, why as chains, why_not as answers};
use strata_core::universe::Universe;

use super::resolve::{edit_failure, show_change};
use super::{Failure, Outcome, OutputFormat, print_json, print_text};

/// # Errors
/// The answer cannot be printed.
pub fn why(
    desired: &DesiredState,
    universe: &Universe,
    layer: &LayerName,
    ldf: Option<&CompositionName>,
    format: OutputFormat,
) -> Result<Outcome, Failure> {
    let mut found = chains(desired, universe, layer);
    found.retain(|chain| ldf.is_none_or(|ldf| chain.composition == *ldf));
    if format == OutputFormat::Json {
        print_json(&found)?;
    } else if found.is_empty() {
        print_text(&format!("no LDF has the layer {layer}\n"))?;
    } else {
        print_text(&found.iter().map(show_chain).collect::<String>())?;
    }
    Ok(if found.is_empty() { Outcome::Difference } else { Outcome::Done })
}

fn show_chain(chain: &Chain) -> String {
    let mut text = format!("{}:\n", chain.composition);
    let from = match &chain.from {
        Origin::Line { file, line } => format!("explicit, {file}:{line}"),
        Origin::Base { line } => format!("a base layer, strata.toml:{line}"),
        Origin::Essential => "essential".to_owned(),
        Origin::Nothing { file, line } => {
            format!("implicit, {file}:{line}, and nothing needs it: `strata resolve` removes it")
        }
    };
    for step in &chain.steps {
        let _infallible = match &step.needed_by {
            None => writeln!(text, "  {} ({from})", step.unit),
            Some(how) => writeln!(text, "    {how}\n  {}", step.unit),
        };
    }
    text
}

#[derive(Serialize)]
struct Answer<'a> {
    unit: String,
    compositions: std::collections::BTreeMap<&'a CompositionName, &'a WhyNot>,
}

/// # Errors
/// No repository has such a unit, or the answer cannot be printed.
pub fn why_not(
    desired: &DesiredState,
    universe: &Universe,
    wanted: &Wanted,
    ldf: Option<&CompositionName>,
    format: OutputFormat,
) -> Result<Outcome, Failure> {
    let unit = wanted.find_any(universe).map_err(edit_failure)?;
    let mut found = answers(desired, universe, unit);
    found.retain(|name, _| ldf.is_none_or(|ldf| name == ldf));
    let shown = universe.show(unit);
    if format == OutputFormat::Json {
        print_json(&Answer { unit: shown, compositions: found.iter().collect() })?;
    } else {
        let text: String = found.iter().map(|(name, answer)| show(name, &shown, answer)).collect();
        print_text(&text)?;
    }
    let against = found
        .values()
        .any(|answer| matches!(answer, WhyNot::Impossible { .. } | WhyNot::Faulty { .. }));
    Ok(if against { Outcome::Difference } else { Outcome::Done })
}

fn show(name: &CompositionName, unit: &str, answer: &WhyNot) -> String {
    let mut text = format!("{name}: ");
    let _infallible = match answer {
        WhyNot::In => writeln!(text, "{unit} is in"),
        WhyNot::Impossible { fault } => {
            let hint = fault.hint.as_ref().map(|hint| format!("  hint: {hint}\n"));
            write!(text, "{}\n{}", fault.message, hint.unwrap_or_default())
        }
        WhyNot::Faulty { faults } => {
            let first = faults.first().map(ToString::to_string).unwrap_or_default();
            writeln!(text, "cannot be resolved as it stands\n{first}")
        }
        WhyNot::Possible { changes } => {
            let changes: String =
                changes.iter().map(|change| format!("  {}\n", show_change(change))).collect();
            write!(text, "nothing stands against {unit}; it would change\n{changes}")
        }
    };
    text
}
