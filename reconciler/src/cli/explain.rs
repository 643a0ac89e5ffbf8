//! `strata va explain`: why a VA is on its layer set, from the commit to the mount.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use strata_core::generation::LayerSetEntry;
use strata_core::scripts::outcome::printable;
use strata_core::status::{Age, ReportView, SyncState, VaStatus, va_status};
use strata_core::{GenerationId, VaName};
use strata_machine::Machines;
use strata_store::{Store, VaTarget};

use super::status::reconciler_text;
use super::view::{FormatArgs, View, WatchArgs};
use super::{Failure, Outcome, StoreArgs, known, quantity};
use crate::fleet::{self, Observer, report_view};
use crate::state::ReconcileState;

/// The version of the JSON form.
const VERSION: u32 = 1;
/// Lines that are shown of what a failed script printed.
const OUTPUT_LINES: usize = 10;

/// Explain why a VA is on its layer set, as a chain from the commit to the mount
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va explain web-03
  strata va explain 52:54:00:12:34:56 --output yaml

Wide, it also has the layers' digests.

Exit status: 0 the VA is in sync and no script failed, 1 otherwise, 2 an error.")]
pub struct ExplainArgs {
    /// Its name, whichever host it runs on, or its MAC address.
    #[arg(value_name = "NAME")]
    va: String,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Specified in `docs/formats.md`, "Explanation".
#[derive(Serialize)]
struct Explanation {
    version: u32,
    status: VaStatus,
    reconciler: Option<ReconcileState>,
    /// Text of the VA's link.
    va_link: String,
    /// Where the ring's link stands, and since when, in milliseconds.
    ring_link: Option<String>,
    ring_age_ms: Option<u64>,
    generation: Option<SealedGeneration>,
    /// What the mounted VLFS answered when asked just now.
    asked: Answer,
    /// Why the VA's last composition was refused.
    report_error: Option<String>,
}

#[derive(Serialize)]
struct SealedGeneration {
    id: GenerationId,
    /// The commit that first produced it.
    commit: String,
    layers: Vec<LayerSetEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Serves(String),
    /// Why it could not be asked.
    NotAsked(String),
}

/// # Errors
/// There is no such VA, or the store cannot be read.
pub fn run(args: &ExplainArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    args.format.show(&args.watch, || {
        let explanation = explain(&store, &args.va)?;
        let status = &explanation.status;
        let good = status.state == SyncState::InSync && status.conditions.is_empty();
        Ok((explanation, if good { Outcome::Done } else { Outcome::Difference }))
    })
}

fn explain(store: &Store, va: &str) -> Result<Explanation, Failure> {
    let (_, mac) = known::va(store, va)?;
    let machines = Machines::open(store).map_err(Failure::new)?;
    let machine = fleet::machines(store).map_err(Failure::new)?.remove(&mac);
    let name = machine.as_ref().map(|machine| &machine.name);
    let declared = fleet::declared(store);
    let name = name.or_else(|| declared.get(&mac)).cloned();
    let target = store.va_target(mac)?.ok_or_else(|| {
        let failure = Failure::new(format!("{va} has no link in the store"));
        match &name {
            Some(name) => failure.hint(format!(
                "strata reconcile makes the links of declared VAs; where provisioning was interrupted: strata va provision --template TEMPLATE {name}"
            )),
            None => failure.hint("strata status lists all VAs"),
        }
    })?;
    let mut observed = Observer::new(store).observe(mac, target.clone(), machine.as_ref())?;
    observed.name = observed.name.or(name);
    let generation = match observed.desired {
        None => None,
        Some(id) => Some(SealedGeneration {
            id,
            commit: store.generation_origin(&id)?,
            layers: store.generation(&id)?.layers().to_vec(),
        }),
    };
    let report_error = match report_view(store, mac, SystemTime::now()) {
        ReportView::Read { report, .. } => report.error,
        ReportView::Missing | ReportView::Unreadable(_) => None,
    };
    Ok(Explanation {
        version: VERSION,
        status: va_status(&observed),
        reconciler: ReconcileState::read(store)?,
        va_link: target.to_path().display().to_string(),
        ring_link: match &target {
            VaTarget::Ring { composition, ring } => Some(format!("rings/{composition}/{ring}")),
            VaTarget::Pinned { .. } => None,
        },
        ring_age_ms: observed.ring_age_ms,
        generation,
        asked: match machine.map(|machine| ask(&machines, &machine.name)) {
            Some(Ok(generation)) => Answer::Serves(generation),
            Some(Err(why)) => Answer::NotAsked(why),
            None => Answer::NotAsked("it has no machine in this store".to_owned()),
        },
        report_error,
    })
}

/// Asks the mounted file system itself.
fn ask(machines: &Machines<'_>, name: &VaName) -> Result<String, String> {
    let record = machines.record(name).map_err(|error| error.to_string())?;
    let observed = machines.observe(&record).map_err(|error| error.to_string())?;
    super::va::active(&observed)
}

impl View for Explanation {
    fn page(&self, wide: bool) -> String {
        text(self, wide)
    }
}

fn text(explanation: &Explanation, wide: bool) -> String {
    let Explanation { status, va_link, generation, .. } = explanation;
    let name = status.name.as_ref().map_or_else(String::new, |name| format!("{name} "));
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _infallible = writeln!(text, "{label:<11} {value}");
    };
    let why = status.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    line("VA", format!("{name}({}) is {}{why}", status.mac, status.state));
    if let Some(generation) = generation {
        line("commit", format!("{} first produced the generation", generation.commit));
        let layers = quantity(generation.layers.len(), "layer");
        line("LDF", format!("{}.ldf, {layers}", status.composition));
        for layer in &generation.layers {
            let digest = if wide { format!("  {}", layer.digest) } else { String::new() };
            line("", format!("{:<13} {layer}{digest}", layer.kind.to_string()));
        }
        line("generation", generation.id.to_string());
    }
    if let Some(ring) = &explanation.ring_link {
        let target = match (generation, explanation.ring_age_ms) {
            (Some(generation), Some(age)) => {
                format!("→ generations/{}, moved {} ago", generation.id.short(), Age(age))
            }
            _ => "does not exist: no commit brought the template".to_owned(),
        };
        line("ring link", format!("{ring} {target}"));
    }
    line("VA link", format!("va/{} → {va_link}", status.mac));
    line(
        "VLFS",
        match &explanation.asked {
            Answer::Serves(generation) => format!("serves {generation}, asked just now"),
            Answer::NotAsked(why) => format!("not asked: {why}"),
        },
    );
    let age = status.report_age_ms.map(|age| format!("{} ago", Age(age)));
    line(
        "report",
        match (age, status.active) {
            (Some(age), Some(active)) => format!("served {active}, {age}"),
            (Some(age), None) => format!("served nothing, {age}"),
            (None, _) => "none".to_owned(),
        },
    );
    if let Some(error) = &explanation.report_error {
        line("refused", error.clone());
    }
    for failure in status.conditions.iter().flat_map(|condition| &condition.failures) {
        line("script", failure.to_string());
        let lines: Vec<_> = failure.output.lines().collect();
        for output in &lines[lines.len().saturating_sub(OUTPUT_LINES)..] {
            line("", format!("| {}", printable(output)));
        }
    }
    text.push_str(&reconciler_text(explanation.reconciler.as_ref()));
    text
}
