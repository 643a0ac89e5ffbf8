//! What is to be run: from what is integrated and what should be, as plain data.
//!
//! A unit is integrated in stages, each noted before its script runs, so that boot,
//! resume, a crash, a link that moved again and a swap back all take the same road:
//! compare, run what is missing. No script runs twice for one coming or going of its
//! unit, because no step leads to the stage that it starts from.
//!
//! ```text
//! Arriving ─pre-install→ Installing ─(swap) post-install→ Installed
//!                             │                               │ pre-remove
//!                             └──────(swap) post-remove→ gone ←─ Removing
//! ```
//!
//! A unit that is [`Stage::Removing`] and wanted again arrives anew.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Script;
use crate::generation::LayerSetEntry;
use crate::version::LayerVersion;

/// How far a unit is integrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nothing has run.
    Arriving,
    /// Its pre-install has run.
    Installing,
    /// Its post-install has run.
    Installed,
    /// Its pre-remove has run.
    Removing,
}

/// A unit of the layer set that should be, with the scripts it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub entry: LayerSetEntry,
    pub scripts: BTreeSet<Script>,
}

/// A unit that has scripts, and how far it is integrated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Integrated {
    pub unit: LayerSetEntry,
    pub scripts: BTreeSet<Script>,
    pub stage: Stage,
}

/// Why a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Install,
    Remove,
    /// Another version of the layer goes, or comes, with it.
    Upgrade,
}

impl Event {
    pub fn name(self) -> &'static str {
        match self {
            Event::Install => "install",
            Event::Remove => "remove",
            Event::Upgrade => "upgrade",
        }
    }
}

/// One step of a unit's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub unit: LayerSetEntry,
    pub script: Script,
    /// Whether the unit has that script; else the step is only noted.
    pub runs: bool,
    /// The version that goes where this one comes, or comes where it goes.
    pub other: Option<LayerVersion>,
}

impl Step {
    pub fn event(&self) -> Event {
        match (self.script, &self.other) {
            (_, Some(_)) => Event::Upgrade,
            (Script::PreInstall | Script::PostInstall, None) => Event::Install,
            (Script::PreRemove | Script::PostRemove, None) => Event::Remove,
        }
    }
}

/// All that is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The units as they stand before the first step: those that should be, in the order
    /// of their integration, then those that leave.
    pub units: Vec<Integrated>,
    /// With the layers of before.
    pub before: Vec<Step>,
    /// With the new layers.
    pub after: Vec<Step>,
}

impl Plan {
    /// Whether nothing is to be run or noted.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Whether a script must run before the swap.
    pub fn runs_before(&self) -> bool {
        self.before.iter().any(|step| step.runs)
    }

    /// Whether any script is to be run.
    pub fn runs(&self) -> bool {
        self.before.iter().chain(&self.after).any(|step| step.runs)
    }
}

/// Compares what is integrated (in the order of a former [`Plan::units`]) with
/// `target`, in the order of integration. `served` are the layers of before, for the
/// versions of those that have no scripts.
pub fn plan(integrated: &[Integrated], target: &[Unit], served: &[LayerSetEntry]) -> Plan {
    let wanted = |entry: &LayerSetEntry| target.iter().any(|unit| unit.entry == *entry);
    let mut units: Vec<Integrated> = Vec::new();
    for unit in target.iter().filter(|unit| !unit.scripts.is_empty()) {
        let known = integrated.iter().find(|known| known.unit == unit.entry);
        let stage = match known.map(|known| known.stage) {
            None | Some(Stage::Arriving | Stage::Removing) => Stage::Arriving,
            Some(stage) => stage,
        };
        units.push(Integrated { unit: unit.entry.clone(), scripts: unit.scripts.clone(), stage });
    }
    let leaving: Vec<_> = integrated
        .iter()
        .filter(|known| !wanted(&known.unit) && known.stage != Stage::Arriving)
        .cloned()
        .collect();
    let step = |unit: &Integrated, script: Script| {
        let other = match script {
            Script::PreInstall | Script::PostInstall => integrated
                .iter()
                .map(|known| &known.unit)
                .chain(served)
                .find(|known| same_layer(known, &unit.unit) && !wanted(known)),
            Script::PreRemove | Script::PostRemove => {
                let coming = target.iter().map(|coming| &coming.entry);
                coming.into_iter().find(|coming| same_layer(coming, &unit.unit))
            }
        };
        let (other, runs) = (other.map(|o| o.version.clone()), unit.scripts.contains(&script));
        Step { unit: unit.unit.clone(), script, runs, other }
    };
    let mut before: Vec<Step> = Vec::new();
    let installed = leaving.iter().rev().filter(|unit| unit.stage == Stage::Installed);
    before.extend(installed.map(|unit| step(unit, Script::PreRemove)));
    let arriving = units.iter().filter(|unit| unit.stage == Stage::Arriving);
    before.extend(arriving.map(|unit| step(unit, Script::PreInstall)));
    let mut after: Vec<Step> = Vec::new();
    after.extend(leaving.iter().rev().map(|unit| step(unit, Script::PostRemove)));
    let coming = units.iter().filter(|unit| unit.stage != Stage::Installed);
    after.extend(coming.map(|unit| step(unit, Script::PostInstall)));
    units.extend(leaving);
    Plan { units, before, after }
}

fn same_layer(a: &LayerSetEntry, b: &LayerSetEntry) -> bool {
    (a.kind, &a.layer) == (b.kind, &b.layer)
}

/// Notes a step, before its script runs.
pub fn note(units: &mut Vec<Integrated>, step: &Step) {
    if step.script == Script::PostRemove {
        units.retain(|known| known.unit != step.unit);
        return;
    }
    if let Some(known) = units.iter_mut().find(|known| known.unit == step.unit) {
        known.stage = match step.script {
            Script::PreInstall => Stage::Installing,
            Script::PostInstall => Stage::Installed,
            Script::PreRemove | Script::PostRemove => Stage::Removing,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::metadata::LayerKind;
    use proptest::prelude::*;

    fn entry(layer: &str, version: &str) -> LayerSetEntry {
        LayerSetEntry {
            kind: LayerKind::Software,
            repository: "main".parse().expect("valid"),
            layer: layer.parse().expect("valid"),
            version: version.parse().expect("valid"),
            digest: Digest::of(format!("{layer} {version}").as_bytes()),
        }
    }

    fn unit(layer: &str, version: &str, scripts: &[Script]) -> Unit {
        Unit { entry: entry(layer, version), scripts: scripts.iter().copied().collect() }
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        let step = |step: &Step| {
            let other = step.other.as_ref().map(|v| format!(" for {v}")).unwrap_or_default();
            let silent = if step.runs { "" } else { " (nothing)" };
            let (layer, version) = (&step.unit.layer, &step.unit.version);
            format!("{} {layer} {version}{other}{silent}", step.script)
        };
        steps.iter().map(step).collect()
    }

    /// Walks a whole plan, as the runner does.
    fn walk(plan: &Plan) -> Vec<Integrated> {
        let mut units = plan.units.clone();
        for step in plan.before.iter().chain(&plan.after) {
            note(&mut units, step);
        }
        units
    }

    #[test]
    fn boot_upgrade_and_removal() {
        let all = Script::ALL;
        let first = [unit("base", "1", &[]), unit("lib", "1", &all), unit("app", "1", &all)];
        let boot = plan(&[], &first, &[]);
        assert_eq!(shown(&boot.before), ["pre-install lib 1", "pre-install app 1"]);
        assert_eq!(shown(&boot.after), ["post-install lib 1", "post-install app 1"]);
        let units = walk(&boot);
        assert!(plan(&units, &first, &[]).is_empty(), "what is integrated stays");

        let second = [unit("base", "1", &[]), unit("lib", "2", &[Script::PostInstall])];
        let served: Vec<_> = first.iter().map(|unit| unit.entry.clone()).collect();
        let next = plan(&units, &second, &served);
        assert_eq!(
            shown(&next.before),
            ["pre-remove app 1", "pre-remove lib 1 for 2", "pre-install lib 2 for 1 (nothing)"]
        );
        assert_eq!(
            shown(&next.after),
            ["post-remove app 1", "post-remove lib 1 for 2", "post-install lib 2 for 1"]
        );
        assert!(next.runs_before());
        assert_eq!(walk(&next).len(), 1);
    }

    #[test]
    fn a_version_without_scripts_is_the_former_one_all_the_same() {
        let served = [entry("app", "1")];
        let arriving = plan(&[], &[unit("app", "2", &[Script::PostInstall])], &served);
        assert_eq!(shown(&arriving.after), ["post-install app 2 for 1"]);
        assert!(!arriving.runs_before());
    }

    /// The swap did not come: what was taken down before it is put up again.
    #[test]
    fn a_removal_that_is_called_off_is_an_installation() {
        let app = [unit("app", "1", &Script::ALL)];
        let mut units = walk(&plan(&[], &app, &[]));
        let removal = plan(&units, &[], &[]);
        units = removal.units.clone();
        note(&mut units, &removal.before[0]);
        let back = plan(&units, &app, &[]);
        assert_eq!(shown(&back.before), ["pre-install app 1"]);
        assert_eq!(shown(&back.after), ["post-install app 1"]);
    }

    #[test]
    fn one_that_was_never_installed_is_only_cleaned_up_after() {
        let app = [unit("app", "1", &Script::ALL)];
        let arrival = plan(&[], &app, &[]);
        assert!(plan(&arrival.units, &[], &[]).is_empty(), "nothing has run yet");
        let mut units = arrival.units.clone();
        note(&mut units, &arrival.before[0]);
        let back = plan(&units, &[], &[]);
        assert_eq!(shown(&back.before), [""; 0]);
        assert_eq!(shown(&back.after), ["post-remove app 1"]);
    }

    fn target(choice: &[(u8, u8)]) -> Vec<Unit> {
        let names = ["a", "b", "c", "d"];
        let chosen = names.iter().zip(choice).filter(|(_, (version, _))| *version > 0);
        chosen
            .map(|(name, (version, mask))| {
                let has = |at: usize| mask & (1 << at) != 0;
                let scripts: Vec<_> =
                    (0..4).filter(|at| has(*at)).map(|at| Script::ALL[at]).collect();
                unit(name, &version.to_string(), &scripts)
            })
            .collect()
    }

    proptest! {
        /// Whatever is aimed at and however often it is cut short: no script of a unit runs
        /// twice in a row, what comes is in order and what goes in reverse, and the end is the
        /// last target with nothing left to do.
        #[test]
        fn any_way_leads_to_the_target_and_repeats_nothing(
            targets in prop::collection::vec(
                (prop::collection::vec((0..3u8, 0..16u8), 4), 0..20usize), 1..6),
        ) {
            // A unit's scripts never change: the same mask for the same version.
            let mut masks = std::collections::BTreeMap::new();
            let mut units: Vec<Integrated> = Vec::new();
            let mut last: std::collections::BTreeMap<String, Script> = Default::default();
            let mut wanted = Vec::new();
            for (mut choice, steps) in targets {
                for (at, (version, mask)) in choice.iter_mut().enumerate() {
                    *mask = *masks.entry((at, *version)).or_insert(*mask);
                }
                wanted = target(&choice);
                let next = plan(&units, &wanted, &[]);
                units = next.units.clone();
                let position = |entry: &LayerSetEntry| {
                    next.units.iter().position(|known| known.unit == *entry).expect("planned")
                };
                for part in [&next.before, &next.after] {
                    for pair in part.windows(2).filter(|pair| pair[0].script == pair[1].script) {
                        let rises = position(&pair[0].unit) < position(&pair[1].unit);
                        let comes = matches!(pair[0].script, Script::PreInstall | Script::PostInstall);
                        prop_assert_eq!(rises, comes);
                    }
                }
                for step in next.before.iter().chain(&next.after).take(steps) {
                    let former = last.insert(step.unit.to_string(), step.script);
                    prop_assert_ne!(former, Some(step.script), "{} twice", step.unit);
                    note(&mut units, step);
                }
            }
            let rest = plan(&units, &wanted, &[]);
            units = walk(&rest);
            prop_assert!(plan(&units, &wanted, &[]).is_empty());
            let expected: Vec<_> = wanted.iter().filter(|unit| !unit.scripts.is_empty()).collect();
            prop_assert_eq!(units.len(), expected.len());
            for (found, expected) in units.iter().zip(expected) {
                prop_assert_eq!(&found.unit, &expected.entry);
                prop_assert_eq!(found.stage, Stage::Installed);
            }
        }
    }
}
