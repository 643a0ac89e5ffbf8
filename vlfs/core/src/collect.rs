//! Garbage collection: which generations and layer units nobody needs (§5.4).
//!
//! A generation stays while anything may lead to it: a ring, a rollout, a VA's link, a
//! report, or that it was in use not long ago. A unit stays while a generation that stays is
//! made of it, while a VA's private files borrow its data, and while it is young. Of the
//! others only those are taken that can be had again or that nothing may choose:
//! configuration layers that come from git, units mirrored from elsewhere, withdrawn units
//! and, where asked for, old versions. What is not known for sure keeps: an unreadable report or generation keeps everything it could mean.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::digest::GenerationId;
use crate::generation::LayerSetEntry;
use crate::names::{CompositionName, LayerName, MacAddr, RepositoryName, RingName};
use crate::version::LayerVersion;

/// A layer unit as repositories name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnitKey {
    pub repository: RepositoryName,
    pub layer: LayerName,
    pub version: LayerVersion,
}

impl From<&LayerSetEntry> for UnitKey {
    fn from(entry: &LayerSetEntry) -> Self {
        let LayerSetEntry { repository, layer, version, .. } = entry.clone();
        UnitKey { repository, layer, version }
    }
}

impl std::fmt::Display for UnitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.repository, self.layer, self.version)
    }
}

/// What keeps a generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Root {
    Ring {
        composition: CompositionName,
        ring: RingName,
    },
    /// A rollout of the composition leads to it, or would go back to it.
    Rollout {
        composition: CompositionName,
    },
    /// The VA's own link names it: the VA is pinned.
    Pin {
        mac: MacAddr,
    },
    /// The VA says that it serves it, or that it is about to.
    Report {
        mac: MacAddr,
    },
    /// It was in use, or sealed, not long ago.
    Recent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedGeneration {
    /// `None` where it cannot be read.
    pub composed: Option<(CompositionName, Vec<UnitKey>)>,
    /// Since it was sealed or last left by a ring.
    pub age_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedUnit {
    pub key: UnitKey,
    /// Since it was published.
    pub age_ms: u64,
    pub withdrawn: bool,
    pub content_bytes: u64,
    /// Why it can be had again, where that is so.
    pub recoverable: Option<Garbage>,
}

/// All that decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub generations: BTreeMap<GenerationId, ObservedGeneration>,
    pub roots: BTreeMap<GenerationId, BTreeSet<Root>>,
    /// Why every generation stays, where something that could name any cannot be read.
    pub unsure: Vec<String>,
    pub units: Vec<ObservedUnit>,
    /// Units whose data private files of VAs still are.
    pub borrowed: BTreeSet<UnitKey>,
}

/// How careful to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Younger units and generations stay.
    pub grace_ms: u64,
    /// Of each composition, so many of the latest generations stay whatever their age.
    pub generations: usize,
    /// Of each layer, keep so many of the newest versions; `None`: all.
    pub versions: Option<usize>,
    /// Units that were mirrored stay as any others do.
    pub keep_mirrored: bool,
}

/// Why something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Garbage {
    /// A configuration layer that the reconciler seals again from git.
    FromGit,
    /// It is mirrored again when it is wanted.
    Mirrored,
    /// The repository that it was mirrored from lists it no more: nothing may choose it.
    Unlisted,
    Withdrawn,
    /// Enough newer versions are there.
    Superseded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakenUnit {
    #[serde(flatten)]
    pub key: UnitKey,
    pub why: Garbage,
    pub content_bytes: u64,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Collection {
    pub generations: Vec<GenerationId>,
    pub units: Vec<TakenUnit>,
    pub kept_generations: BTreeMap<GenerationId, BTreeSet<Root>>,
    pub kept_units: usize,
    /// Why more stays than otherwise would.
    pub unsure: Vec<String>,
}

/// Decides what is garbage.
pub fn collect(observed: &Observed, policy: &Policy) -> Collection {
    let mut collection = Collection { unsure: observed.unsure.clone(), ..Collection::default() };
    let recent = recent(observed, policy);
    let mut needed: BTreeSet<&UnitKey> = observed.borrowed.iter().collect();
    let mut every_unit = false;
    for (id, generation) in &observed.generations {
        let mut roots = observed.roots.get(id).cloned().unwrap_or_default();
        if recent.contains(id) {
            roots.insert(Root::Recent);
        }
        let unknown = generation.composed.is_none() || !observed.unsure.is_empty();
        if roots.is_empty() && !unknown {
            collection.generations.push(*id);
            continue;
        }
        match &generation.composed {
            Some((_, layers)) => needed.extend(layers),
            None => {
                every_unit = true;
                let why = format!("the generation {id} cannot be read, so every unit stays");
                collection.unsure.push(why);
            }
        }
        collection.kept_generations.insert(*id, roots);
    }
    let superseded = superseded(observed, policy);
    for unit in &observed.units {
        let kept = |why: &Garbage| *why == Garbage::Mirrored && policy.keep_mirrored;
        let recoverable = unit.recoverable.filter(|why| !kept(why));
        let why = unit.withdrawn.then_some(Garbage::Withdrawn).or(recoverable);
        let why = why.or(superseded.contains(&unit.key).then_some(Garbage::Superseded));
        let young = unit.age_ms < policy.grace_ms;
        match why {
            Some(why) if !(young || every_unit || needed.contains(&unit.key)) => {
                let (key, content_bytes) = (unit.key.clone(), unit.content_bytes);
                collection.units.push(TakenUnit { key, why, content_bytes });
            }
            Some(_) | None => collection.kept_units += 1,
        }
    }
    collection
}

/// Generations that are young, and the latest of each composition.
fn recent(observed: &Observed, policy: &Policy) -> BTreeSet<GenerationId> {
    let mut recent = BTreeSet::new();
    let mut compositions: BTreeMap<&CompositionName, Vec<(u64, GenerationId)>> = BTreeMap::new();
    for (id, generation) in &observed.generations {
        if generation.age_ms < policy.grace_ms {
            recent.insert(*id);
        }
        if let Some((composition, _)) = &generation.composed {
            compositions.entry(composition).or_default().push((generation.age_ms, *id));
        }
    }
    for mut generations in compositions.into_values() {
        generations.sort_unstable();
        recent.extend(generations.into_iter().take(policy.generations).map(|(_, id)| id));
    }
    recent
}

/// Units with enough newer ones of the same layer and repository that are not withdrawn.
fn superseded(observed: &Observed, policy: &Policy) -> BTreeSet<UnitKey> {
    let Some(keep) = policy.versions else { return BTreeSet::new() };
    let mut layers: BTreeMap<_, Vec<&UnitKey>> = BTreeMap::new();
    for unit in observed.units.iter().filter(|unit| !unit.withdrawn) {
        layers.entry((&unit.key.repository, &unit.key.layer)).or_default().push(&unit.key);
    }
    let mut superseded = BTreeSet::new();
    for mut versions in layers.into_values() {
        versions.sort_by(|a, b| b.version.cmp(&a.version));
        superseded.extend(versions.into_iter().skip(keep.max(1)).cloned());
    }
    superseded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    const DAY: u64 = 24 * 3600 * 1000;
    const POLICY: Policy =
        Policy { grace_ms: DAY, generations: 1, versions: None, keep_mirrored: false };

    fn id(text: &str) -> GenerationId {
        Digest::of(text.as_bytes())
    }

    fn key(layer: &str, version: &str) -> UnitKey {
        UnitKey {
            repository: "main".parse().expect("valid"),
            layer: layer.parse().expect("valid"),
            version: version.parse().expect("valid"),
        }
    }

    fn unit(layer: &str, version: &str, withdrawn: bool) -> ObservedUnit {
        let key = key(layer, version);
        ObservedUnit { key, age_ms: 9 * DAY, withdrawn, content_bytes: 1, recoverable: None }
    }

    fn generation(layers: &[UnitKey], age_ms: u64) -> ObservedGeneration {
        let composed = Some(("web".parse().expect("valid"), layers.to_vec()));
        ObservedGeneration { composed, age_ms }
    }

    fn mac() -> MacAddr {
        "52:54:00:00:00:01".parse().expect("valid")
    }

    /// Three generations of one composition: the first two are old, and each has a
    /// withdrawn unit of its own.
    fn observed() -> Observed {
        let mut observed = Observed::default();
        for (number, age) in [("1", 30), ("2", 20), ("3", 10)] {
            let layers = [key("a", number)];
            observed.generations.insert(id(number), generation(&layers, age * DAY));
            observed.units.push(unit("a", number, number != "3"));
        }
        observed
    }

    fn taken(collection: &Collection) -> Vec<String> {
        collection.units.iter().map(|unit| unit.key.version.to_string()).collect()
    }

    #[test]
    fn what_nothing_leads_to_is_garbage() {
        let collection = collect(&observed(), &POLICY);
        let gone: BTreeSet<_> = collection.generations.iter().copied().collect();
        assert_eq!(gone, [id("1"), id("2")].into());
        assert_eq!(taken(&collection), ["1", "2"]);
        assert_eq!(collection.kept_generations[&id("3")], [Root::Recent].into());
    }

    #[test]
    fn each_root_keeps_a_generation_and_its_layers() {
        let ring = Root::Ring {
            composition: "web".parse().expect("valid"),
            ring: "everyone".parse().expect("valid"),
        };
        let rollout = Root::Rollout { composition: "web".parse().expect("valid") };
        for root in [ring, rollout, Root::Pin { mac: mac() }, Root::Report { mac: mac() }] {
            let mut observed = observed();
            observed.roots.insert(id("1"), [root.clone()].into());
            let collection = collect(&observed, &POLICY);
            assert_eq!(collection.generations, [id("2")], "{root:?}");
            assert_eq!(taken(&collection), ["2"], "{root:?}");
        }
    }

    #[test]
    fn the_young_and_the_borrowed_stay() {
        let mut observed = observed();
        observed.borrowed.insert(key("a", "1"));
        observed.generations.get_mut(&id("2")).expect("there").age_ms = 1;
        let collection = collect(&observed, &POLICY);
        let gone: BTreeSet<_> = collection.generations.iter().copied().collect();
        assert_eq!(gone, [id("1"), id("3")].into(), "the latest is the one that was used last");
        assert_eq!(taken(&collection), [""; 0]);
        observed.borrowed.clear();
        observed.units[0].age_ms = 1;
        assert_eq!(taken(&collect(&observed, &POLICY)), [""; 0]);
    }

    #[test]
    fn doubt_keeps() {
        let mut unreadable_report = observed();
        unreadable_report.unsure.push("the report of a VA".to_owned());
        let collection = collect(&unreadable_report, &POLICY);
        assert_eq!((collection.generations.len(), collection.units.len()), (0, 0));
        let mut unreadable_generation = observed();
        unreadable_generation.generations.get_mut(&id("1")).expect("there").composed = None;
        let collection = collect(&unreadable_generation, &POLICY);
        assert_eq!((collection.generations.len(), collection.units.len()), (1, 0));
        assert_eq!(collection.unsure.len(), 1);
    }

    #[test]
    fn only_what_is_withdrawn_recoverable_or_superseded_is_taken() {
        let units = vec![unit("a", "1", false), unit("a", "2", false), unit("a", "3", true)];
        let mut observed = Observed { units, ..Observed::default() };
        assert_eq!(taken(&collect(&observed, &POLICY)), ["3"]);
        let one = Policy { versions: Some(1), ..POLICY };
        assert_eq!(taken(&collect(&observed, &one)), ["1", "3"], "2 is the newest to choose");
        observed.units[1].recoverable = Some(Garbage::FromGit);
        assert_eq!(taken(&collect(&observed, &POLICY)), ["2", "3"]);
    }

    #[test]
    fn mirrored_units_go_unless_they_are_needed_or_to_be_kept() {
        let mut units = vec![unit("a", "1", false), unit("a", "2", false), unit("a", "3", true)];
        for unit in &mut units {
            unit.recoverable = Some(Garbage::Mirrored);
        }
        units.push(unit("a", "4", false));
        units[3].recoverable = Some(Garbage::Unlisted);
        let mut observed = Observed { units, ..Observed::default() };
        observed.generations.insert(id("1"), generation(&[key("a", "1")], 9 * DAY));
        observed.roots.insert(id("1"), [Root::Report { mac: mac() }].into());
        let collection = collect(&observed, &POLICY);
        let why: Vec<_> = collection.units.iter().map(|unit| unit.why).collect();
        assert_eq!(why, [Garbage::Mirrored, Garbage::Withdrawn, Garbage::Unlisted]);
        let keep = Policy { keep_mirrored: true, ..POLICY };
        assert_eq!(taken(&collect(&observed, &keep)), ["3", "4"], "nothing may choose these");
    }
}
