//! `strata update`: the pull request that nobody has to write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use strata_core::desired::DesiredState;
use strata_core::preview::{Preview, Side, UnitSource, preview};
use strata_core::resolver::Change;
use strata_core::universe::Universe;
use strata_core::update::{Step, updates};
use strata_core::{Diagnostic, LayerName, Severity};

use super::inventory::ProductionArgs;
use super::plan::render;
use super::resolve::show_change;
use super::{
    Failure, Outcome, OutputArgs, OutputFormat, known, print_json, print_text, quantity,
    refuse_faulty_configuration,
};
use crate::production::Production;
use crate::revision::WorkRepository;

/// Make a branch with the updates that the repositories offer, one commit each
///
/// Security fixes come first. Holds, pins and filters are respected. Each commit changes LDFs
/// only and carries the plan in its message; the work tree is not touched. Push the branch and open a
/// pull request.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata update . --dry-run
  strata update . --layer libssl3 --branch update/libssl3 && git push origin update/libssl3

Exit status: 0 done, or nothing to update, 1 some updates are not possible (the others
are made), 2 an error.")]
pub struct UpdateArgs {
    /// The git repository with strata.toml at its root.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    #[command(flatten)]
    production: ProductionArgs,
    /// Only this layer, and what must move along; may be given several times.
    #[arg(long, value_name = "LAYER")]
    layer: Vec<LayerName>,
    /// The revision to start from.
    #[arg(long, value_name = "REV", default_value = "HEAD")]
    base: String,
    /// The branch to make.
    #[arg(long, value_name = "NAME", default_value = "strata/update")]
    branch: String,
    /// Replace the branch if it is there.
    #[arg(long)]
    force: bool,
    /// Make nothing; say what there is.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Specified in `docs/formats.md`, "Updates".
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    base: String,
    /// `None` where none was made.
    branch: Option<&'a str>,
    updates: Vec<Update<'a>>,
    refused: Vec<Refused<'a>>,
    diagnostics: &'a [Diagnostic],
}

#[derive(Serialize)]
struct Update<'a> {
    layer: &'a LayerName,
    security: bool,
    /// `None` where none was made.
    commit: Option<String>,
    touched_vas: u64,
    /// By file.
    changes: &'a BTreeMap<String, Vec<Change>>,
}

#[derive(Serialize)]
struct Refused<'a> {
    layer: &'a LayerName,
    reason: &'a str,
}

/// # Errors
/// The repository, the store or the inventory cannot be read, or the branch not be made.
pub fn run(args: &UpdateArgs) -> Result<Outcome, Failure> {
    let production = args.production.open_required()?;
    let repository = WorkRepository::open(&args.directory)?;
    let base = repository.resolve(&args.base)?;
    if !args.dry_run {
        refuse_branch(&repository, args)?;
    }
    let (desired, mut faults) = DesiredState::read(&repository.read(base)?);
    refuse_faulty_configuration(&faults, &args.directory)?;
    let (universe, more) = production.universe(&desired.configuration);
    faults.extend(more);
    if let Some(layer) = args.layer.iter().find(|layer| universe.named(layer).next().is_none()) {
        return Err(no_layer(&universe, layer));
    }
    let units = production.units();
    let vas = production.va_groups()?;
    let look = Look { production: &production, universe: &universe, units: &*units };
    let mut previews = Vec::new();
    let layers: BTreeSet<_> = args.layer.iter().cloned().collect();
    let mut found = updates(&desired, &universe, &layers, |before, step| {
        let preview = look.preview(before, step, &vas);
        refusal(&preview)?;
        previews.push(preview);
        Ok(())
    });
    found.diagnostics.extend(faults);
    found.diagnostics.sort();
    found.diagnostics.dedup();
    let mut tip = base;
    let mut made = Vec::new();
    for (step, preview) in found.steps.iter().zip(&previews) {
        let commit = if args.dry_run {
            None
        } else {
            tip = repository.commit(tip, &step.files, &message(step, preview))?;
            Some(tip.to_string())
        };
        let touched_vas = preview.blast_radius.touched_vas;
        let Step { layer, security, changes, .. } = step;
        made.push(Update { layer, security: *security, commit, touched_vas, changes });
    }
    let branch = (tip != base).then_some(args.branch.as_str());
    if let Some(branch) = branch {
        repository.set_branch(branch, tip, args.force)?;
    }
    let report = Report {
        version: 1,
        base: base.to_string(),
        branch,
        updates: made,
        refused: found.refused.iter().map(|(layer, reason)| Refused { layer, reason }).collect(),
        diagnostics: &found.diagnostics,
    };
    match args.output.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Text => print_text(&text(&report))?,
    }
    let errors = found.diagnostics.iter().any(|found| found.severity == Severity::Error);
    Ok(if errors || !found.refused.is_empty() { Outcome::Difference } else { Outcome::Done })
}

fn no_layer(universe: &Universe, layer: &LayerName) -> Failure {
    let known: BTreeSet<_> = universe.ids().map(|id| &universe.unit(id).metadata.layer).collect();
    let near = known::nearest(layer.as_str(), known.iter().map(|layer| layer.as_str()));
    let hint = match near {
        Some(near) => format!("did you mean {near}? strata get layers lists them"),
        None => "strata get layers lists them".to_owned(),
    };
    Failure::new(format!("the repositories have no layer {layer}")).hint(hint)
}

/// Before any work is done: a branch that cannot be made, or must not be replaced.
fn refuse_branch(repository: &WorkRepository, args: &UpdateArgs) -> Result<(), Failure> {
    let branch = &args.branch;
    if !WorkRepository::is_branch_name(branch) {
        let hint =
            "choose one that git takes (git check-ref-format --branch NAME), as in update/libssl3";
        return Err(Failure::new(format!("{branch:?} is no name of a branch")).hint(hint));
    }
    if repository.is_checked_out(branch) {
        let hint = "check out another branch first, or name another one with --branch";
        return Err(Failure::new(format!("the branch {branch} is checked out")).hint(hint));
    }
    if repository.has_branch(branch) && !args.force {
        let hint = "replace it with --force, or name another one with --branch";
        return Err(Failure::new(format!("there is a branch {branch} already")).hint(hint));
    }
    Ok(())
}

struct Look<'a> {
    production: &'a Production,
    universe: &'a Universe,
    units: &'a dyn UnitSource,
}

impl Look<'_> {
    fn preview(
        &self,
        before: &DesiredState,
        step: &Step,
        vas: &[strata_core::inventory::VaGroup],
    ) -> Preview {
        let check = |desired: &DesiredState| {
            let desired = desired.clone();
            self.production.check_desired(desired, self.universe, self.units, Vec::new())
        };
        let (base, head) = (check(before), check(&step.desired));
        let side = |checked| Side { checked, universe: self.universe };
        let mut found = preview(side(&base), side(&head), self.units, vas);
        // What was wrong before is not this step's.
        found.diagnostics.retain(|fault| !base.diagnostics.contains(fault));
        found
    }
}

/// The first new error, if there is any.
fn refusal(preview: &Preview) -> Result<(), String> {
    let mut errors = preview.diagnostics.iter().filter(|d| d.severity == Severity::Error);
    match errors.next() {
        None => Ok(()),
        Some(first) => Err(first.to_string()),
    }
}

/// `Update libssl3 to 3.0.15-2 (security fix)`, what changes in which file, and the plan.
fn message(step: &Step, preview: &Preview) -> String {
    let of_layer = |change: &&Change| change.layer == step.layer;
    let versions: BTreeSet<_> = step
        .changes
        .values()
        .flatten()
        .filter(of_layer)
        .filter_map(|change| change.after.as_deref()?.rsplit_once(' ').map(|(_, version)| version))
        .collect();
    let mut text = format!("Update {}", step.layer);
    if let [version] = versions.into_iter().collect::<Vec<_>>().as_slice() {
        let _infallible = write!(text, " to {version}");
    }
    text.push_str(if step.security { " (security fix)\n" } else { "\n" });
    for (file, changes) in &step.changes {
        let _infallible = write!(text, "\n{file}\n{}", change_lines(changes));
    }
    let _infallible = write!(
        text,
        "\nPlan when this was made:\n{}\nblast radius: {}\n",
        render::body(preview),
        render::blast_radius(preview)
    );
    text
}

fn change_lines(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("  {}\n", show_change(change))).collect()
}

fn text(report: &Report<'_>) -> String {
    let mut text = String::new();
    for update in &report.updates {
        let commit = update.commit.as_deref().map_or("        ", |commit| &commit[..8]);
        let fix = if update.security { " (security fix)" } else { "" };
        let vas = quantity(update.touched_vas, "VA");
        let _infallible = writeln!(text, "{commit} {}{fix}, {vas}", update.layer);
        for (file, changes) in update.changes {
            let _infallible = write!(text, "  {file}\n{}", change_lines(changes));
        }
    }
    for Refused { layer, reason } in &report.refused {
        let _infallible = writeln!(text, "not updated: {layer}: {reason}");
    }
    for diagnostic in report.diagnostics {
        let _infallible = writeln!(text, "{diagnostic}");
    }
    let _infallible = match report.branch {
        Some(branch) => {
            writeln!(text, "{} on the branch {branch}", quantity(report.updates.len(), "commit"))
        }
        None => writeln!(text, "{}; nothing was made", quantity(report.updates.len(), "update")),
    };
    text
}
