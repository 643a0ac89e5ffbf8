//! All layer units that compositions may draw on, indexed for resolution (§5.2).
//!
//! Withdrawn units are in it and visible as such: what still uses one must be
//! able to learn why that is refused.

use std::collections::HashMap;

use crate::database::{Database, Unit};
use crate::generation::LayerSetEntry;
use crate::metadata::LayerKind;
use crate::names::{LayerName, RepositoryName};
use crate::relation::Relation;
use crate::version::LayerVersion;

/// A unit's number in its universe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub(crate) u32);

/// The number of a layer's name and kind: of all units with one `NameId` a
/// layer set holds at most one (§5.2: two units of a layer are in conflict).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameId(pub(crate) u32);

#[derive(Debug, Clone)]
struct UniverseUnit {
    repository: u32,
    name: NameId,
    unit: Unit,
}

/// The units of all repositories.
#[derive(Debug, Clone, Default)]
pub struct Universe {
    repositories: Vec<(RepositoryName, u32)>,
    units: Vec<UniverseUnit>,
    names: HashMap<LayerName, [Option<NameId>; 2]>,
    /// By [`NameId`], best first.
    candidates: Vec<Vec<UnitId>>,
    /// By virtual name: the providers and the version they provide, best first.
    providers: HashMap<LayerName, Vec<(UnitId, Option<LayerVersion>)>>,
}

fn kind_index(kind: LayerKind) -> usize {
    match kind {
        LayerKind::Software => 0,
        LayerKind::Configuration => 1,
    }
}

impl Universe {
    /// Indexes the databases. `u32` is the repository's priority: of two units
    /// of one layer, the one of the higher priority is better, then the newer.
    pub fn new(databases: Vec<(RepositoryName, u32, Database)>) -> Self {
        let mut universe = Universe::default();
        for (repository, (name, priority, database)) in (0u32..).zip(databases) {
            universe.repositories.push((name, priority));
            for unit in database.into_units() {
                universe.insert(repository, unit);
            }
        }
        let (units, repositories) = (&universe.units, &universe.repositories);
        let rank = |id: &UnitId| {
            let unit = &units[id.0 as usize];
            let (name, priority) = &repositories[unit.repository as usize];
            (*priority, &unit.unit.metadata.version, std::cmp::Reverse(name))
        };
        for candidates in &mut universe.candidates {
            candidates.sort_by(|a, b| rank(b).cmp(&rank(a)));
        }
        let name = |id: &UnitId| &units[id.0 as usize].unit.metadata.layer;
        for providers in universe.providers.values_mut() {
            providers.sort_by(|(a, _), (b, _)| {
                let priority = |id| rank(id).0;
                priority(b)
                    .cmp(&priority(a))
                    .then_with(|| name(a).cmp(name(b)))
                    .then_with(|| rank(b).cmp(&rank(a)))
            });
        }
        universe
    }

    fn insert(&mut self, repository: u32, unit: Unit) {
        let id = UnitId(u32::try_from(self.units.len()).expect("limits::DATABASE_BYTES bounds it"));
        let metadata = &unit.metadata;
        let slot =
            &mut self.names.entry(metadata.layer.clone()).or_default()[kind_index(metadata.kind)];
        let name = *slot.get_or_insert_with(|| {
            self.candidates.push(Vec::new());
            NameId((self.candidates.len() - 1) as u32)
        });
        self.candidates[name.0 as usize].push(id);
        for provided in &metadata.provides {
            let version = provided.constraint.as_ref().map(|(_, version)| version.clone());
            self.providers.entry(provided.name.clone()).or_default().push((id, version));
        }
        self.units.push(UniverseUnit { repository, name, unit });
    }

    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    pub fn unit(&self, id: UnitId) -> &Unit {
        &self.units[id.0 as usize].unit
    }

    pub fn repository(&self, id: UnitId) -> &RepositoryName {
        &self.repositories[self.units[id.0 as usize].repository as usize].0
    }

    pub fn has_repository(&self, name: &RepositoryName) -> bool {
        self.repositories.iter().any(|(known, _)| known == name)
    }

    /// The unit `repository/layer version`.
    pub fn get(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> Option<UnitId> {
        self.in_repository(repository, layer).find(|id| self.unit(*id).metadata.version == *version)
    }

    /// All units of a layer's name, best first; withdrawn ones too.
    pub fn named(&self, layer: &LayerName) -> impl Iterator<Item = UnitId> {
        let kinds = self.names.get(layer).copied().unwrap_or_default();
        kinds.into_iter().flatten().flat_map(|name| self.candidates(name)).copied()
    }

    /// The units of a layer in one repository, newest first; withdrawn ones too.
    pub fn in_repository(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
    ) -> impl Iterator<Item = UnitId> {
        self.named(layer).filter(move |id| self.repository(*id) == repository)
    }

    /// The providers of a virtual name with the versions they provide.
    pub fn providers(&self, name: &LayerName) -> &[(UnitId, Option<LayerVersion>)] {
        self.providers.get(name).map_or(&[], Vec::as_slice)
    }

    /// Names of the layers of a repository whose best unit there is essential.
    pub fn essential(&self, repository: &RepositoryName) -> Vec<&LayerName> {
        let mut names = Vec::new();
        for candidates in &self.candidates {
            let best = candidates
                .iter()
                .find(|id| self.repository(**id) == repository && !self.withdrawn(**id));
            if let Some(best) = best.map(|id| self.unit(*id)).filter(|u| u.metadata.essential) {
                names.push(&best.metadata.layer);
            }
        }
        names.sort_unstable();
        names
    }

    pub fn withdrawn(&self, id: UnitId) -> bool {
        self.unit(id).withdrawn.is_some()
    }

    /// The unit as a generation names it.
    pub fn entry(&self, id: UnitId) -> LayerSetEntry {
        let unit = self.unit(id);
        LayerSetEntry {
            kind: unit.metadata.kind,
            repository: self.repository(id).clone(),
            layer: unit.metadata.layer.clone(),
            version: unit.metadata.version.clone(),
            digest: unit.digest,
        }
    }

    /// `repository/layer version`, as in an LDF.
    pub fn show(&self, id: UnitId) -> String {
        let metadata = &self.unit(id).metadata;
        format!("{}/{} {}", self.repository(id), metadata.layer, metadata.version)
    }

    /// All units that satisfy a relation that `from` declares: the layers of
    /// that name, best first, then its providers; withdrawn ones too.
    pub fn satisfiers(&self, relation: &Relation, from: UnitId) -> Vec<UnitId> {
        let mut found: Vec<_> =
            self.named(&relation.name).filter(|id| self.satisfies(*id, relation, from)).collect();
        for (id, _) in self.providers(&relation.name) {
            if !found.contains(id) && self.satisfies(*id, relation, from) {
                found.push(*id);
            }
        }
        found
    }

    /// Whether a unit satisfies (or, for a conflict, is meant by) a relation
    /// that `from` declares. An unversioned Provides satisfies no versioned
    /// relation; an architecture that is named must be the unit's own.
    pub fn satisfies(&self, id: UnitId, relation: &Relation, from: UnitId) -> bool {
        let metadata = &self.unit(id).metadata;
        let of = |id: UnitId| {
            self.unit(id).metadata.architecture.as_deref().filter(|name| *name != "all")
        };
        let architecture = match relation.architecture.as_deref() {
            None | Some("any" | "native") => true,
            Some(named) => of(id).or(of(from)).is_none_or(|found| found == named),
        };
        if !architecture {
            return false;
        }
        let provided = |provided: &Relation| {
            provided.name == relation.name
                && match (&provided.constraint, &relation.constraint) {
                    (_, None) => true,
                    (None, Some(_)) => false,
                    (Some((_, version)), Some(_)) => relation.admits(version),
                }
        };
        metadata.layer == relation.name && relation.admits(&metadata.version)
            || metadata.provides.iter().any(provided)
    }

    pub(crate) fn name_of(&self, id: UnitId) -> NameId {
        self.units[id.0 as usize].name
    }

    /// All units of a name and kind, best first; withdrawn ones too.
    pub(crate) fn candidates(&self, name: NameId) -> &[UnitId] {
        &self.candidates[name.0 as usize]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::metadata::Metadata;

    /// A universe from stanzas; the digest is that of the stanza.
    pub(crate) fn universe(repositories: &[(&str, u32, &str)]) -> Universe {
        let database = |text: &str| {
            let mut database = Database::default();
            for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
                let (lines, withdrawn): (Vec<_>, Vec<_>) =
                    stanza.trim().lines().partition(|line| !line.starts_with("Withdrawn: "));
                let text = lines.join("\n") + "\n";
                let unit = Unit {
                    metadata: Metadata::parse(text.as_bytes()).expect(stanza),
                    digest: Digest::of(text.as_bytes()),
                    content_bytes: 0,
                    withdrawn: withdrawn.first().map(|line| line["Withdrawn: ".len()..].to_owned()),
                };
                assert_eq!(database.insert(unit), None, "{stanza}");
            }
            database
        };
        let of = |(name, priority, text): &(&str, u32, &str)| {
            (name.parse().expect("a name"), *priority, database(text))
        };
        Universe::new(repositories.iter().map(of).collect())
    }

    fn name(text: &str) -> LayerName {
        text.parse().expect("a name")
    }

    #[test]
    fn priority_then_version() {
        let text = "Layer: a\nVersion: 1\n\nLayer: a\nVersion: 2\nWithdrawn: bad\n";
        let universe = universe(&[("main", 100, text), ("local", 900, "Layer: a\nVersion: 0.5\n")]);
        let order: Vec<_> = universe.named(&name("a")).map(|id| universe.show(id)).collect();
        assert_eq!(order, ["local/a 0.5", "main/a 2", "main/a 1"]);
        let withdrawn: Vec<_> =
            universe.named(&name("a")).filter(|id| universe.withdrawn(*id)).collect();
        assert_eq!(withdrawn.len(), 1);
    }

    #[test]
    fn provides_and_architectures() {
        let universe = universe(&[(
            "main",
            1,
            "Layer: p\nVersion: 1\nArchitecture: amd64\nProvides: v, w (= 3)\nDepends: v, v (>= 1), w (>= 2), w (>> 3), p:i386, p:amd64, p:any\n",
        )]);
        let p = universe.named(&name("p")).next().expect("p");
        let satisfied: Vec<_> = universe
            .unit(p)
            .metadata
            .depends
            .iter()
            .map(|d| universe.satisfies(p, &d.alternatives[0], p))
            .collect();
        assert_eq!(satisfied, [true, false, true, false, false, true, true]);
    }

    #[test]
    fn essential_is_what_its_best_unit_says() {
        let text = "Layer: a\nVersion: 1\nEssential: yes\n\nLayer: b\nVersion: 1\nEssential: yes\n\nLayer: b\nVersion: 2\n";
        let universe = universe(&[("main", 1, text)]);
        assert_eq!(universe.essential(&"main".parse().expect("a name")), [&name("a")]);
    }
}
