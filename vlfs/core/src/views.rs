//! What of the repositories each composition may draw on: all that the repositories'
//! filters leave, less what `[[template]]` leaves out for it and for whatever it references.

use std::collections::{BTreeMap, BTreeSet};

use crate::configuration::Configuration;
use crate::desired::Definition;
use crate::filter::Filter;
use crate::names::CompositionName;
use crate::universe::Universe;

/// See the module.
#[derive(Debug)]
pub struct Views<'u> {
    whole: &'u Universe,
    narrowed: BTreeMap<CompositionName, Universe>,
}

impl<'u> Views<'u> {
    pub fn new(
        configuration: &Configuration,
        definitions: &BTreeMap<CompositionName, Definition>,
        whole: &'u Universe,
    ) -> Self {
        let filters: BTreeMap<&CompositionName, &Filter> = configuration
            .templates
            .iter()
            .map(|template| (&template.name, &template.filter))
            .collect();
        let mut narrowed = BTreeMap::new();
        if !filters.is_empty() {
            for name in definitions.keys() {
                let of_it: Vec<Filter> = reached(name, definitions)
                    .into_iter()
                    .filter_map(|name| filters.get(name).map(|filter| (*filter).clone()))
                    .collect();
                if !of_it.is_empty() {
                    narrowed.insert(name.clone(), whole.narrowed(of_it));
                }
            }
        }
        Views { whole, narrowed }
    }

    /// What a composition may draw on.
    pub fn of(&self, name: &CompositionName) -> &Universe {
        self.narrowed.get(name).unwrap_or(self.whole)
    }

    /// Whether a composition may draw on less than all.
    pub fn is_narrowed(&self, name: &CompositionName) -> bool {
        self.narrowed.contains_key(name)
    }
}

/// A composition and all that it references, the composition first.
fn reached<'d>(
    name: &'d CompositionName,
    definitions: &'d BTreeMap<CompositionName, Definition>,
) -> Vec<&'d CompositionName> {
    let mut found = vec![name];
    let mut seen = BTreeSet::from([name]);
    let mut at = 0;
    while let Some(definition) = found.get(at).and_then(|name| definitions.get(*name)) {
        for (_, reference) in definition.ldf.references() {
            if seen.insert(&reference.name) {
                found.push(&reference.name);
            }
        }
        at += 1;
    }
    // A reference that leads nowhere is a fault of its own.
    found.retain(|name| definitions.contains_key(*name));
    found
}
