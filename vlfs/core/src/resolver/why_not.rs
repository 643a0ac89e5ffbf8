//! Why a unit is not in a composition: what stands against it, or what asking
//! for it would change.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Change, Task, Upgrade, prepare, rewrite};
use crate::composition::{FlatComposition, flatten_all};
use crate::consistency::Rules;
use crate::desired::{Definition, DesiredState};
use crate::diagnostic::Diagnostic;
use crate::names::CompositionName;
use crate::universe::{UnitId, Universe};
use crate::views::Views;

/// The answer for one composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum WhyNot {
    /// It is in.
    In,
    /// It could be in; what would change.
    Possible { changes: Vec<Change> },
    /// What stands against it.
    Impossible { fault: Diagnostic },
    /// The composition has faults that come first.
    Faulty { faults: Vec<Diagnostic> },
}

/// Asks each composition what stands against a unit.
pub fn why_not(
    desired: &DesiredState,
    universe: &Universe,
    unit: UnitId,
) -> BTreeMap<CompositionName, WhyNot> {
    let DesiredState { configuration, definitions, .. } = desired;
    let views = Views::new(configuration, definitions, universe);
    let mut flats = flatten_all(definitions, configuration, universe);
    for flat in flats.values_mut() {
        flat.whole = true;
    }
    let answer = |definition: &Definition| {
        let rules = Rules::new(configuration, views.of(&definition.name));
        answer(definition, definitions, &rules, &flats, unit)
    };
    flats.keys().map(|name| (name.clone(), answer(&definitions[name]))).collect()
}

fn answer(
    definition: &Definition,
    definitions: &BTreeMap<CompositionName, Definition>,
    rules: &Rules<'_>,
    flats: &BTreeMap<CompositionName, FlatComposition>,
    unit: UnitId,
) -> WhyNot {
    let universe = rules.universe;
    let there = flats.get(&definition.name).into_iter().flat_map(|flat| &flat.layers);
    if there.into_iter().any(|layer| layer.placed.unit == Some(unit)) {
        return WhyNot::In;
    }
    if let Some(bar) = universe.bar(unit) {
        let message = format!("{} is {bar}", universe.show(unit));
        let fault = Diagnostic::error(&definition.file, 0, "barred", message);
        return WhyNot::Impossible { fault };
    }
    let task: Task<'_> = match prepare(definition, definitions, rules, flats, &Upgrade::Nothing) {
        Ok(task) => task.asking_for(unit),
        Err(faults) => return WhyNot::Faulty { faults },
    };
    match task.run() {
        Err(fault) => WhyNot::Impossible { fault },
        Ok(units) => {
            let resolved = rewrite(definition, universe, &units, &task.included_names());
            WhyNot::Possible { changes: resolved.changes }
        }
    }
}
