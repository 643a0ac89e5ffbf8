//! What must change in a store so that it says what a commit says.
//!
//! The plan is a function of what a commit desires and of what was observed in
//! the store, never of a remembered inventory: an interrupted pass is finished
//! by planning again, and the same commit twice gives an empty plan.
//!
//! A plan deletes nothing. What a commit no longer mentions keeps running and is
//! named in the plan's notes. Nor does it move rings: see [`crate::rollout`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::digest::GenerationId;
use crate::generation::LayerSetEntry;
use crate::links::VaTarget;
use crate::names::{CompositionName, LayerName, MacAddr, RingName, VaName};
use crate::rollout::policy::base_ring;
use crate::version::LayerVersion;

/// A VA that a commit declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVa {
    pub name: VaName,
    pub composition: CompositionName,
    pub ring: RingName,
}

/// What a commit wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Configuration layers that come from the commit itself.
    pub layers: Vec<LayerSetEntry>,
    pub compositions: BTreeMap<CompositionName, GenerationId>,
    /// In the order of the rollout.
    pub rings: Vec<RingName>,
    pub appliances: BTreeMap<MacAddr, DeclaredVa>,
}

/// What stands in a store. `layers` and `va_links` need to hold no more than what
/// the desired state names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Units of the repository `templates`.
    pub layers: BTreeSet<(LayerName, LayerVersion)>,
    pub generations: BTreeSet<GenerationId>,
    pub rings: BTreeMap<(CompositionName, RingName), GenerationId>,
    pub va_links: BTreeMap<MacAddr, VaTarget>,
    /// Addresses where something stands that Strata did not put there.
    pub foreign_va_links: BTreeSet<MacAddr>,
}

/// One step. Each is atomic, and harmless when taken twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    SealLayer {
        layer: LayerSetEntry,
    },
    SealGeneration {
        composition: CompositionName,
        generation: GenerationId,
    },
    MoveRing {
        composition: CompositionName,
        ring: RingName,
        from: Option<GenerationId>,
        to: GenerationId,
    },
    LinkVa {
        name: VaName,
        mac: MacAddr,
        from: Option<VaTarget>,
        to: VaTarget,
    },
}

/// What an operator should know and no action follows from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "note", rename_all = "kebab-case")]
pub enum Note {
    /// The commit no longer has the composition; its rings stay.
    CompositionGone { composition: CompositionName },
    /// The commit no longer has the ring; its link stays.
    RingGone { composition: CompositionName, ring: RingName },
    /// A declared VA is pinned by hand; its link stays.
    Pinned { name: VaName, generation: GenerationId },
    /// Declared VAs go to another template or ring, and not yet; the ring named is the first
    /// of those that they wait for.
    MovesWait { composition: CompositionName, ring: RingName, vas: u64, why: String },
    /// What stands in the place of a declared VA's link was put there by hand.
    ForeignLink { name: VaName, mac: MacAddr },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::CompositionGone { composition } => {
                write!(f, "{composition} is no longer in the commit; its rings stay as they are")
            }
            Note::RingGone { composition, ring } => {
                write!(f, "the commit has no ring {ring}; {composition} stays as it is there")
            }
            Note::Pinned { name, generation } => {
                write!(f, "{name} is pinned to {}; its link stays", generation.short())
            }
            Note::MovesWait { composition, ring, vas, why } => {
                let them = if *vas == 1 { "VA waits" } else { "VAs wait" };
                write!(f, "{vas} {them} to follow {composition}; {ring}: {why}")
            }
            Note::ForeignLink { name, mac } => write!(
                f,
                "{name} does not follow the commit: va/{mac} is no link that Strata made; remove it"
            ),
        }
    }
}

/// Actions in the order in which they must be taken: nothing is linked before it
/// is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub notes: Vec<Note>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// Compares what is desired with what is observed.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    plan_layers(desired, observed, &mut plan);
    plan_generations(desired, observed, &mut plan);
    note_rings(desired, observed, &mut plan);
    let Plan { actions, notes } = plan_appliances(desired, observed);
    plan.actions.extend(actions);
    plan.notes.extend(notes);
    plan.notes.sort();
    plan
}

fn plan_layers(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let mut seen = observed.layers.clone();
    for layer in &desired.layers {
        if seen.insert((layer.layer.clone(), layer.version.clone())) {
            plan.actions.push(Action::SealLayer { layer: layer.clone() });
        }
    }
}

fn plan_generations(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    for (composition, generation) in &desired.compositions {
        if !observed.generations.contains(generation) {
            let (composition, generation) = (composition.clone(), *generation);
            plan.actions.push(Action::SealGeneration { composition, generation });
        }
    }
}

/// Rings are moved by [`crate::rollout`], one after the other; here is said which of
/// them nobody moves any more.
fn note_rings(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let mut gone = BTreeSet::new();
    for (composition, ring) in observed.rings.keys() {
        if !desired.compositions.contains_key(composition) {
            gone.insert(Note::CompositionGone { composition: composition.clone() });
        } else if !desired.rings.contains(&base_ring(ring).0) {
            let (composition, ring) = (composition.clone(), ring.clone());
            gone.insert(Note::RingGone { composition, ring });
        }
    }
    plan.notes.extend(gone);
}

/// The part of it that is about the links of VAs.
pub fn plan_appliances(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    for (mac, declared) in &desired.appliances {
        let DeclaredVa { name, composition, ring } = declared;
        let to = VaTarget::Ring { composition: composition.clone(), ring: ring.clone() };
        let name = name.clone();
        if observed.foreign_va_links.contains(mac) {
            plan.notes.push(Note::ForeignLink { name, mac: *mac });
            continue;
        }
        match observed.va_links.get(mac) {
            Some(VaTarget::Pinned { generation, .. }) => {
                plan.notes.push(Note::Pinned { name, generation: *generation });
            }
            Some(from) if *from == to => {}
            // It is moved in a batch of its ring.
            Some(VaTarget::Ring { composition: other, ring: staged })
                if other == composition && base_ring(staged).0 == *ring => {}
            from => {
                let from = from.cloned();
                plan.actions.push(Action::LinkVa { name, mac: *mac, from, to });
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::metadata::LayerKind;

    fn id(text: &str) -> GenerationId {
        Digest::of(text.as_bytes())
    }

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a valid name")
    }

    fn layer(version: &str) -> LayerSetEntry {
        LayerSetEntry {
            kind: LayerKind::Configuration,
            repository: name("templates"),
            layer: name("web"),
            version: name(version),
            digest: id(version),
        }
    }

    fn desired() -> Desired {
        Desired {
            layers: vec![layer("0+1")],
            compositions: [(name("web"), id("web 1")), (name("sql"), id("sql 1"))].into(),
            rings: vec![name("canary"), name("all")],
            appliances: [(
                name("52:54:00:00:00:01"),
                DeclaredVa { name: name("web-1"), composition: name("web"), ring: name("all") },
            )]
            .into(),
        }
    }

    /// What taking the actions does to a store.
    fn apply(observed: &mut Observed, actions: &[Action]) {
        for action in actions.iter().cloned() {
            match action {
                Action::SealLayer { layer } => {
                    assert!(observed.layers.insert((layer.layer, layer.version)));
                }
                Action::SealGeneration { generation, .. } => {
                    assert!(observed.generations.insert(generation));
                }
                Action::MoveRing { composition, ring, from, to } => {
                    assert!(observed.generations.contains(&to), "sealed before linked");
                    assert_eq!(observed.rings.insert((composition, ring), to), from);
                }
                Action::LinkVa { mac, from, to, .. } => {
                    assert_eq!(observed.va_links.insert(mac, to), from);
                }
            }
        }
    }

    fn converged() -> Observed {
        let mut observed = Observed::default();
        let first = plan(&desired(), &observed);
        apply(&mut observed, &first.actions);
        for (composition, generation) in &desired().compositions {
            for ring in desired().rings {
                observed.rings.insert((composition.clone(), ring), *generation);
            }
        }
        observed
    }

    #[test]
    fn the_first_commit_seals_moves_and_links_in_this_order() {
        let mut observed = Observed::default();
        let first = plan(&desired(), &observed);
        let kinds: Vec<_> = first
            .actions
            .iter()
            .map(|action| match action {
                Action::SealLayer { .. } => 'l',
                Action::SealGeneration { .. } => 'g',
                Action::MoveRing { .. } => 'r',
                Action::LinkVa { .. } => 'v',
            })
            .collect();
        assert_eq!(kinds, ['l', 'g', 'g', 'v']);
        apply(&mut observed, &first.actions);
        assert_eq!(plan(&desired(), &observed), Plan::default());
    }

    #[test]
    fn an_interruption_after_any_step_ends_in_the_same_state() {
        let mut whole = Observed::default();
        let actions = plan(&desired(), &whole).actions;
        apply(&mut whole, &actions);
        for steps in 0..actions.len() {
            let mut observed = Observed::default();
            apply(&mut observed, &actions[..steps]);
            let rest = plan(&desired(), &observed).actions;
            assert_eq!(rest, actions[steps..]);
            apply(&mut observed, &rest);
            assert_eq!(observed, whole);
        }
    }

    #[test]
    fn a_change_touches_only_what_changed() {
        let mut observed = converged();
        let mut next = desired();
        next.compositions.insert(name("sql"), id("sql 2"));
        let plan = plan(&next, &observed);
        assert_eq!(plan.actions.len(), 1, "{plan:?}");
        // A revert needs no sealing: the former generation is still there.
        apply(&mut observed, &plan.actions);
        assert!(super::plan(&desired(), &observed).is_empty());
    }

    #[test]
    fn what_the_commit_lost_stays_and_is_named() {
        let observed = converged();
        let mut next = desired();
        next.compositions.remove(&name("sql"));
        next.rings.remove(0);
        next.appliances.clear();
        let plan = plan(&next, &observed);
        assert!(plan.is_empty());
        let notes: Vec<_> = plan.notes.iter().map(Note::to_string).collect();
        assert_eq!(
            notes,
            [
                "sql is no longer in the commit; its rings stay as they are",
                "the commit has no ring canary; web stays as it is there",
            ]
        );
    }

    #[test]
    fn a_declared_va_is_moved_but_never_unpinned() {
        let mut observed = converged();
        let mac = name("52:54:00:00:00:01");
        let elsewhere = VaTarget::Ring { composition: name("sql"), ring: name("all") };
        observed.va_links.insert(mac, elsewhere.clone());
        match plan(&desired(), &observed).actions.as_slice() {
            [Action::LinkVa { from, .. }] => assert_eq!(*from, Some(elsewhere)),
            other => panic!("{other:?}"),
        }
        let staged = VaTarget::Ring { composition: name("web"), ring: name("all+next") };
        observed.va_links.insert(mac, staged);
        assert!(plan(&desired(), &observed).is_empty(), "it is moved in a batch");
        let pin = VaTarget::Pinned { composition: name("web"), generation: id("web 0") };
        observed.va_links.insert(mac, pin);
        let plan = plan(&desired(), &observed);
        assert!(plan.is_empty());
        assert!(matches!(plan.notes.as_slice(), [Note::Pinned { .. }]));
        observed.va_links.clear();
        observed.foreign_va_links.insert(mac);
        let plan = super::plan(&desired(), &observed);
        assert!(plan.is_empty());
        assert!(matches!(plan.notes.as_slice(), [Note::ForeignLink { .. }]));
    }
}
