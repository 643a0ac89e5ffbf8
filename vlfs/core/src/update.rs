//! Updates that the repositories offer: one step for each layer that has something
//! newer, so that each can be looked at, merged and reverted by itself. The content of
//! `strata update`.
//!
//! What a step may choose is for [`crate::resolver`]: holds, pins, filters and
//! withdrawn units are respected there.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::DesiredState;
use crate::diagnostic::Diagnostic;
use crate::names::LayerName;
use crate::resolver::{Change, Upgrade, resolve};
use crate::universe::Universe;

/// One update, on top of those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The layer that has something newer.
    pub layer: LayerName,
    /// Whether its new unit was published by an archive for security fixes.
    pub security: bool,
    /// By file: what changes, other layers that had to move along included.
    pub changes: BTreeMap<String, Vec<Change>>,
    /// The files that change, whole.
    pub files: BTreeMap<String, String>,
    /// The desired state after the step.
    pub desired: DesiredState,
}

/// All updates, and why others are not possible.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Updates {
    /// Security fixes first, then by layer.
    pub steps: Vec<Step>,
    /// Layers whose update the caller did not take, with its reason.
    pub refused: Vec<(LayerName, String)>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Looks for updates of these layers, or of all where `layers` is empty. `accept` sees
/// the desired state before and after each step; one that it refuses is left out,
/// and what follows does not rest on it.
pub fn updates(
    desired: &DesiredState,
    universe: &Universe,
    layers: &BTreeSet<LayerName>,
    mut accept: impl FnMut(&DesiredState, &Step) -> Result<(), String>,
) -> Updates {
    let mut updates = Updates::default();
    let upgrade = match layers.is_empty() {
        true => Upgrade::Everything,
        false => Upgrade::Layers(layers.clone()),
    };
    let whole = resolve(desired, universe, &upgrade);
    updates.diagnostics = whole.diagnostics;
    let offered = whole.resolved.values().flat_map(|resolved| &resolved.changes);
    let mut candidates: BTreeMap<LayerName, bool> = BTreeMap::new();
    let wanted = |change: &&Change| {
        change.before.is_some() && (layers.is_empty() || layers.contains(&change.layer))
    };
    for change in offered.filter(wanted) {
        let Some(after) = &change.after else { continue };
        let security = is_security_fix(universe, &change.layer, after);
        *candidates.entry(change.layer.clone()).or_default() |= security;
    }
    let mut order: Vec<_> = candidates.into_iter().collect();
    order.sort_by(|(a, fix_a), (b, fix_b)| fix_b.cmp(fix_a).then_with(|| a.cmp(b)));
    let mut current = desired.clone();
    for (layer, security) in order {
        let upgrade = Upgrade::Layers([layer.clone()].into());
        let found = resolve(&current, universe, &upgrade);
        let changed = found.resolved.into_iter().filter(|(_, r)| !r.changes.is_empty());
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() {
            continue;
        }
        let mut next = current.clone();
        let (mut changes, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (name, resolved) in changed {
            files.insert(resolved.file.clone(), resolved.ldf.print());
            changes.insert(resolved.file, resolved.changes);
            if let Some(definition) = next.definitions.get_mut(&name) {
                definition.ldf = resolved.ldf;
            }
        }
        let step = Step { layer, security, changes, files, desired: next };
        match accept(&current, &step) {
            Ok(()) => {
                current = step.desired.clone();
                updates.steps.push(step);
            }
            Err(reason) => updates.refused.push((step.layer, reason)),
        }
    }
    updates
}

/// Whether the unit `after` (`repository/layer version`) comes from an archive whose
/// name says that it publishes security fixes, as `Debian-Security/bookworm-security`.
fn is_security_fix(universe: &Universe, layer: &LayerName, after: &str) -> bool {
    let unit = universe.named(layer).find(|id| universe.show(*id) == after);
    let archive = unit.and_then(|id| universe.unit(id).metadata.archive.as_deref());
    archive.is_some_and(|archive| archive.to_ascii_lowercase().contains("security"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{SourceContent, SourceTree};
    use crate::universe::tests::universe;

    const MAIN: &str = "Layer: base
Version: 1

Layer: base
Version: 2

Layer: libssl
Version: 1

Layer: libssl
Version: 2
Archive: Example-Security/stable-security

Layer: web
Version: 1
Depends: libssl (>= 1)

Layer: web
Version: 2
Depends: libssl (>= 2)
";

    fn desired(ldf: &str) -> DesiredState {
        let mut tree = SourceTree::default();
        for (path, text) in [
            ("strata.toml", "[[repository]]\nname = \"main\"\n"),
            ("templates/web.ldf", ldf),
            ("templates/sql.ldf", "main/base 1\n"),
        ] {
            let content = SourceContent::Regular { bytes: text.into(), executable: false };
            tree.insert(path.as_bytes(), content).expect("a path");
        }
        let (desired, faults) = DesiredState::read(&tree);
        assert_eq!(faults, []);
        desired
    }

    fn steps(ldf: &str, layers: &[&str]) -> Vec<(String, bool, Vec<String>)> {
        let layers = layers.iter().map(|layer| layer.parse().expect("a name")).collect();
        let found =
            updates(&desired(ldf), &universe(&[("main", 500, MAIN)]), &layers, |_, _| Ok(()));
        let of =
            |step: Step| (step.layer.to_string(), step.security, step.files.into_keys().collect());
        found.steps.into_iter().map(of).collect()
    }

    const WEB: &str = "main/web 1\n\nmain/base 1\nmain/libssl 1\n";

    #[test]
    fn one_step_a_layer_and_security_first() {
        let both = vec!["templates/sql.ldf".to_owned(), "templates/web.ldf".to_owned()];
        let web = vec!["templates/web.ldf".to_owned()];
        // `base` is not needed by web, so resolving removes it there.
        let found = steps("main/web 1\nmain/base 1\n\nmain/libssl 1\n", &[]);
        assert_eq!(
            found,
            [
                ("libssl".to_owned(), true, web.clone()),
                ("base".to_owned(), false, both),
                ("web".to_owned(), false, web),
            ]
        );
    }

    #[test]
    fn holds_are_respected_and_layers_can_be_named() {
        let held = steps("main/web 1\n=main/base 1\n=main/libssl 1\n", &[]);
        let names: Vec<_> = held.iter().map(|(layer, ..)| layer.as_str()).collect();
        assert_eq!(names, ["base"], "web 2 needs what is held back; sql's base is free");
        let named = steps("main/web 1\nmain/base 1\n\nmain/libssl 1\n", &["web"]);
        assert_eq!(named.len(), 1, "libssl moves along: {named:?}");
    }

    #[test]
    fn what_follows_does_not_rest_on_a_refused_step() {
        let state = desired("main/web 1\nmain/base 1\n\nmain/libssl 1\n");
        let refuse = |_: &DesiredState, step: &Step| match step.layer.as_str() {
            "libssl" => Err("no".to_owned()),
            _ => Ok(()),
        };
        let universe = universe(&[("main", 500, MAIN)]);
        let found = updates(&state, &universe, &BTreeSet::new(), refuse);
        assert_eq!(found.refused.len(), 1);
        let names: Vec<_> = found.steps.iter().map(|step| step.layer.as_str()).collect();
        assert_eq!(names, ["base", "web"]);
        assert_eq!(
            found.steps[0]
                .desired
                .definitions
                .values()
                .nth(1)
                .map(|d| d.ldf.print().contains("libssl 1")),
            Some(true)
        );
    }

    #[test]
    fn what_is_up_to_date_has_no_step() {
        let found = steps("main/web 2\nmain/base 2\n\nmain/libssl 2\n", &["web"]);
        assert_eq!(found, []);
        let state = desired(WEB);
        let universe = universe(&[("main", 500, MAIN)]);
        let once = updates(&state, &universe, &BTreeSet::new(), |_, _| Ok(()));
        let last = &once.steps.last().expect("steps").desired;
        assert_eq!(updates(last, &universe, &BTreeSet::new(), |_, _| Ok(())).steps, []);
    }
}
