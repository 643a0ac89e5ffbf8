//! `strata diff`: what should be served against what is.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use strata_core::preview::{LayerChange, LayerChangeKind, layer_changes};
use strata_core::rollout::RolloutState;
use strata_core::rollout::policy::base_ring;
use strata_core::status::SyncState;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName, VaName};
use strata_store::{Store, StoreError};

use super::known;
use super::view::{FormatArgs, Table, View, WatchArgs};
use super::{Failure, Outcome, StoreArgs, quantity};
use crate::fleet;
use crate::rollout::RolloutFile;

/// The version of the JSON form.
const VERSION: u32 = 1;
/// VAs that a difference names.
const NAMED: usize = 20;

/// Show where what is served differs from what should be, layer by layer
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata diff
  strata diff web-server --ring canary
  strata diff --va web-03 --output json

A ring differs where its link is not yet on its rollout's target; VAs differ where their file systems serve, or
served when they last reported, another generation than their link names. What a commit would change: strata plan.
Exit status: 0 no difference, 1 a difference, 2 an error.")]
pub struct DiffArgs {
    /// Only this template.
    template: Option<CompositionName>,
    /// Only this ring.
    #[arg(long, value_name = "NAME")]
    ring: Option<RingName>,
    /// Only this VA, by name or MAC address.
    #[arg(long, value_name = "VA")]
    va: Option<String>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Specified in `docs/schemas/diff-1.json`.
#[derive(Serialize)]
struct Report {
    version: u32,
    differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// A ring's link against its rollout's target.
    Ring,
    /// What VAs serve against what their link names.
    Vas,
}

#[derive(Serialize)]
struct Difference {
    kind: Kind,
    composition: CompositionName,
    /// `null` for VAs that are pinned.
    ring: Option<RingName>,
    desired: Option<GenerationId>,
    /// What is there; `null` where nothing is, or where nothing is known.
    active: Option<GenerationId>,
    /// `null` where one of the generations is not in the store.
    layers: Option<Vec<LayerChange>>,
    vas: u64,
    /// At most 20 of the VAs.
    first: Vec<Va>,
    /// Of the VAs, by state.
    states: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Va {
    name: Option<VaName>,
    mac: MacAddr,
}

impl View for Report {
    fn table(&self) -> Table {
        let mut table =
            Table::new(&["TEMPLATE", "RING", "WHAT", "ACTIVE", "DESIRED", "LAYERS"], &["VAS"]);
        let id = |id: Option<GenerationId>| id.map(|id| id.short()).unwrap_or_default();
        for difference in &self.differences {
            let Difference { kind, composition, ring, desired, active, layers, .. } = difference;
            let states = difference.states.iter().map(|(state, count)| format!("{count} {state}"));
            let what = match kind {
                Kind::Ring => "link".to_owned(),
                Kind::Vas => {
                    let states = states.collect::<Vec<_>>().join(", ");
                    format!("{}: {states}", quantity(difference.vas, "VA"))
                }
            };
            let names = difference
                .first
                .iter()
                .map(|va| va.name.as_ref().map_or_else(|| va.mac.to_string(), ToString::to_string));
            let changes = layers.as_ref().map(|layers| match layers.len() {
                0 => "same layers".to_owned(),
                count => quantity(count, "change"),
            });
            table.row([
                composition.to_string(),
                ring.as_ref().map_or_else(|| "(pinned)".to_owned(), ToString::to_string),
                what,
                id(*active),
                id(*desired),
                changes.unwrap_or_default(),
                names.collect::<Vec<_>>().join(" "),
            ]);
        }
        table
    }

    fn below(&self) -> String {
        let mut text = String::new();
        let mut shown = Vec::new();
        for Difference { composition, desired, active, layers, .. } in &self.differences {
            let changes = layers.as_deref().unwrap_or_default();
            if changes.is_empty() || shown.contains(&(active, desired)) {
                continue;
            }
            shown.push((active, desired));
            let id = |id: &Option<GenerationId>| id.map_or_else(|| "-".into(), |id| id.short());
            let _infallible = writeln!(text, "\n{composition}  {} → {}", id(active), id(desired));
            for change in changes {
                let _infallible = writeln!(text, "  {}", change_line(change));
            }
        }
        text
    }

    fn nothing(&self) -> &'static str {
        "no difference"
    }
}

fn change_line(change: &LayerChange) -> String {
    let sign = match change.change {
        LayerChangeKind::Added => '+',
        LayerChangeKind::Removed => '-',
        LayerChangeKind::Upgraded
        | LayerChangeKind::Downgraded
        | LayerChangeKind::Replaced
        | LayerChangeKind::Edited => '~',
    };
    match (&change.from, &change.to) {
        (Some(from), Some(to)) => format!("{sign} {from} → {to}"),
        (from, to) => format!("{sign} {}", from.as_ref().or(to.as_ref()).map_or("", |text| text)),
    }
}

/// # Errors
/// The store cannot be read.
pub fn run(args: &DiffArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    args.format.show(&args.watch, || {
        let report = look(args, &store)?;
        let same = report.differences.is_empty();
        Ok((report, if same { Outcome::Done } else { Outcome::Difference }))
    })
}

type Key = (Kind, CompositionName, Option<RingName>, Option<GenerationId>, Option<GenerationId>);

fn look(args: &DiffArgs, store: &Store) -> Result<Report, Failure> {
    known::template_if_named(store, args.template.as_ref())?;
    known::ring_if_named(store, args.ring.as_ref())?;
    let only = args.va.as_deref().map(|va| known::va(store, va)).transpose()?.map(|va| va.1);
    let wanted = |composition: &CompositionName, ring: Option<&RingName>| {
        args.template.as_ref().is_none_or(|template| template == composition)
            && args.ring.as_ref().is_none_or(|only| ring == Some(only))
    };
    let mut groups: BTreeMap<Key, Vec<(Va, SyncState)>> = BTreeMap::new();
    if only.is_none() {
        for (composition, state) in RolloutFile::read(store)?.compositions {
            let targets = ring_differences(store, &composition, &state)?;
            for (ring, active) in targets {
                if wanted(&composition, Some(&ring)) {
                    let target = Some(state.target);
                    let key = (Kind::Ring, composition.clone(), Some(ring), target, active);
                    groups.entry(key).or_default();
                }
            }
        }
    }
    for va in fleet::fleet(store)?.vas {
        let ring = va.ring.as_ref().map(|ring| base_ring(ring).0);
        let chosen = only.is_none_or(|mac| mac == va.mac) && wanted(&va.composition, ring.as_ref());
        if !chosen || va.active == va.desired {
            continue;
        }
        let key = (Kind::Vas, va.composition, ring, va.desired, va.active);
        groups.entry(key).or_default().push((Va { name: va.name, mac: va.mac }, va.state));
    }
    let mut differences = Vec::new();
    for ((kind, composition, ring, desired, active), vas) in groups {
        let mut states = BTreeMap::new();
        for (_, state) in &vas {
            *states.entry(state_name(*state)).or_default() += 1;
        }
        differences.push(Difference {
            kind,
            composition,
            ring,
            desired,
            active,
            layers: layers(store, active, desired)?,
            vas: vas.len() as u64,
            first: vas.into_iter().take(NAMED).map(|(va, _)| va).collect(),
            states,
        });
    }
    Ok(Report { version: VERSION, differences })
}

fn state_name(state: SyncState) -> &'static str {
    match state {
        SyncState::InSync => "in-sync",
        SyncState::Pending => "pending",
        SyncState::Drifted => "drifted",
        SyncState::Failed => "failed",
        SyncState::Unknown => "unknown",
    }
}

/// The rings whose links are not on the target.
fn ring_differences(
    store: &Store,
    composition: &CompositionName,
    state: &RolloutState,
) -> Result<Vec<(RingName, Option<GenerationId>)>, Failure> {
    let mut found = Vec::new();
    for ring in state.rings.keys() {
        let active = match store.ring(composition, ring) {
            Err(error) if error.is_foreign_link() => None,
            active => active?,
        };
        if active != Some(state.target) {
            found.push((ring.clone(), active));
        }
    }
    Ok(found)
}

/// The changes from one generation to another, where both are there.
fn layers(
    store: &Store,
    from: Option<GenerationId>,
    to: Option<GenerationId>,
) -> Result<Option<Vec<LayerChange>>, Failure> {
    let read = |id: Option<GenerationId>| match id.map(|id| store.generation(&id)) {
        Some(Ok(generation)) => Ok(Some(generation)),
        None | Some(Err(StoreError::NoGeneration(_))) => Ok(None),
        Some(Err(error)) => Err(Failure::from(error)),
    };
    let (from, to) = (read(from)?, read(to)?);
    Ok(from.zip(to).map(|(from, to)| layer_changes(from.layers(), to.layers())))
}
