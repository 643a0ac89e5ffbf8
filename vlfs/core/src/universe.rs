//! All layer units that compositions may draw on, indexed for resolution (§5.2).
//!
//! Withdrawn units are in it and visible as such: what still uses one must be
//! able to learn why that is refused.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use crate::configuration::{CONFIGURATION_FILE, Configuration};
use crate::database::{Database, Unit};
use crate::database_text::{DatabaseText, UnitPlace};
use crate::filter::Filter;
use crate::generation::LayerSetEntry;
use crate::metadata::{LayerKind, System};
use crate::names::{LayerName, RepositoryName};
use crate::relation::{Relation, RelationText};
use crate::version::{self, LayerVersion};

/// A unit's number in its universe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub(crate) u32);

/// The number of a layer's name and kind: of all units with one `NameId` a
/// layer set holds at most one (§5.2: two units of a layer are in conflict).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameId(pub(crate) u32);

#[derive(Debug, Clone)]
struct Repository {
    name: RepositoryName,
    priority: u32,
    database: DatabaseText,
}

#[derive(Debug, Clone)]
struct UniverseUnit {
    repository: u32,
    name: NameId,
    place: UnitPlace,
    /// Made when it is first looked at.
    unit: OnceLock<Box<Unit>>,
    /// Found when it is first asked for.
    links: OnceLock<Box<Links>>,
}

/// The units that a unit's relations lead to.
#[derive(Debug, Clone)]
struct Links {
    needs: Box<[Box<[UnitId]>]>,
    excluded: Box<[UnitId]>,
}

/// Why nothing new may use a unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Barred {
    /// It was withdrawn from its repository, for this reason.
    Withdrawn(String),
    /// The configuration leaves it out; the text names the rule.
    Filtered(String),
}

impl std::fmt::Display for Barred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Barred::Withdrawn(reason) => write!(f, "withdrawn: {reason}"),
            Barred::Filtered(reason) => write!(f, "filtered: {reason}"),
        }
    }
}

/// The units of all repositories. A copy shares them with the original.
#[derive(Debug, Clone, Default)]
pub struct Universe {
    repositories: Arc<Vec<Repository>>,
    units: Arc<Vec<UniverseUnit>>,
    names: Arc<HashMap<LayerName, [Option<NameId>; 2]>>,
    name_count: u32,
    /// All units by [`NameId`], the best of each name first.
    candidates: Arc<Vec<UnitId>>,
    /// By [`NameId`], where its units start in `candidates`; one more at the end.
    starts: Arc<Vec<u32>>,
    /// Names of which a unit is essential.
    essential: Arc<BTreeSet<NameId>>,
    /// By virtual name: the providers and the version they provide; best first:
    /// by the repository's priority, then the layer's, then name and version.
    providers: Arc<Providers>,
    /// Units that the configuration leaves out, with the reason.
    filtered: Arc<HashMap<UnitId, String>>,
    /// What leaves out more units of this copy ([`Universe::narrowed`]).
    narrowed: Arc<Vec<Filter>>,
}

type Providers = HashMap<LayerName, Vec<(UnitId, Option<LayerVersion>)>>;

fn kind_index(kind: LayerKind) -> usize {
    match kind {
        LayerKind::Software => 0,
        LayerKind::Configuration => 1,
    }
}

impl Universe {
    /// Indexes databases that were made or read whole; see [`Universe::from_texts`].
    ///
    /// # Panics
    /// A unit's metadata is such that no database could hold it.
    pub fn new(databases: Vec<(RepositoryName, u32, Database)>) -> Self {
        let text = |(name, priority, database)| (name, priority, DatabaseText::from(database));
        Universe::from_texts(databases.into_iter().map(text).collect())
    }

    /// Indexes the databases. `u32` is the repository's priority: of two units
    /// of one layer, the one of the higher priority is better, then the newer.
    /// No unit is read but for its names; that happens when it is looked at.
    pub fn from_texts(databases: Vec<(RepositoryName, u32, DatabaseText)>) -> Self {
        let mut universe = Universe::default();
        let count = databases.iter().map(|(_, _, database)| database.len()).sum();
        Arc::make_mut(&mut universe.units).reserve(count);
        Arc::make_mut(&mut universe.names).reserve(count);
        for (index, (name, priority, database)) in (0u32..).zip(databases) {
            for place in database.places() {
                universe.insert(index, &database, *place);
            }
            let repositories = Arc::make_mut(&mut universe.repositories);
            repositories.push(Repository { name, priority, database });
        }
        universe.rank_candidates();
        universe.rank_providers();
        universe
    }

    fn insert(&mut self, repository: u32, database: &DatabaseText, place: UnitPlace) {
        let id = UnitId(u32::try_from(self.units.len()).expect("limits::DATABASE_BYTES bounds it"));
        let name = self.intern(database, &place);
        if place.essential {
            Arc::make_mut(&mut self.essential).insert(name);
        }
        for provided in database.provides(&place) {
            let version = provided.constraint.map(|(_, text)| LayerVersion::of_checked(text));
            let all = Arc::make_mut(&mut self.providers);
            match all.get_mut(provided.name) {
                Some(providers) => providers.push((id, version)),
                None => {
                    let name = LayerName::of_checked(provided.name);
                    all.insert(name, vec![(id, version)]);
                }
            }
        }
        let (unit, links) = (OnceLock::new(), OnceLock::new());
        Arc::make_mut(&mut self.units).push(UniverseUnit { repository, name, place, unit, links });
    }

    fn intern(&mut self, database: &DatabaseText, place: &UnitPlace) -> NameId {
        let layer = LayerName::of_checked(database.layer(place));
        let names = Arc::make_mut(&mut self.names);
        let name = &mut names.entry(layer).or_default()[kind_index(place.kind)];
        *name.get_or_insert_with(|| {
            self.name_count += 1;
            NameId(self.name_count - 1)
        })
    }

    fn rank_candidates(&mut self) {
        let mut starts = vec![0u32; self.name_count as usize + 1];
        for unit in self.units.iter() {
            starts[unit.name.0 as usize + 1] += 1;
        }
        for name in 1..starts.len() {
            starts[name] += starts[name - 1];
        }
        let mut free = starts.clone();
        let mut candidates = vec![UnitId(0); self.units.len()];
        for (id, unit) in (0u32..).zip(self.units.iter()) {
            let at = &mut free[unit.name.0 as usize];
            candidates[*at as usize] = UnitId(id);
            *at += 1;
        }
        for name in starts.windows(2).filter(|range| range[1] - range[0] > 1) {
            let of_name = &mut candidates[name[0] as usize..name[1] as usize];
            of_name.sort_by(|a, b| self.better(*a, *b));
        }
        (self.candidates, self.starts) = (Arc::new(candidates), Arc::new(starts));
    }

    fn rank_providers(&mut self) {
        let mut all = Arc::unwrap_or_clone(std::mem::take(&mut self.providers));
        for providers in all.values_mut().filter(|providers| providers.len() > 1) {
            providers.sort_by(|(a, _), (b, _)| {
                let priority = |id| self.repository_of(id).priority;
                let importance = |id| self.slot(id).place.priority;
                priority(*b)
                    .cmp(&priority(*a))
                    .then_with(|| importance(*a).cmp(&importance(*b)))
                    .then_with(|| self.layer_text(*a).cmp(self.layer_text(*b)))
                    .then_with(|| self.better(*a, *b))
            });
        }
        self.providers = Arc::new(all);
    }

    /// Orders two units of one layer, the better first.
    fn better(&self, a: UnitId, b: UnitId) -> Ordering {
        let rank = |id| {
            let repository = self.repository_of(id);
            (repository.priority, Reverse(&repository.name))
        };
        let ((a_priority, a_name), (b_priority, b_name)) = (rank(a), rank(b));
        b_priority
            .cmp(&a_priority)
            .then_with(|| self.compare_versions(b, a))
            .then_with(|| b_name.cmp(&a_name))
    }

    /// The order of two units' versions, without reading the units.
    pub(crate) fn compare_versions(&self, a: UnitId, b: UnitId) -> Ordering {
        let (a, b) = (self.version_text(a), self.version_text(b));
        version::debian_cmp(a, b).then_with(|| a.cmp(b))
    }

    fn slot(&self, id: UnitId) -> &UniverseUnit {
        &self.units[id.0 as usize]
    }

    fn repository_of(&self, id: UnitId) -> &Repository {
        &self.repositories[self.slot(id).repository as usize]
    }

    /// The name of a unit's layer, without reading the unit.
    pub(crate) fn layer_text(&self, id: UnitId) -> &str {
        self.repository_of(id).database.layer(&self.slot(id).place)
    }

    /// A unit's version, without reading the unit.
    pub(crate) fn version_text(&self, id: UnitId) -> &str {
        self.repository_of(id).database.version(&self.slot(id).place)
    }

    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// All units, in no particular order; withdrawn ones too.
    pub fn ids(&self) -> impl Iterator<Item = UnitId> + use<> {
        (0..self.units.len()).map(|at| UnitId(at as u32))
    }

    /// A unit; it is read when it is asked for the first time.
    pub fn unit(&self, id: UnitId) -> &Unit {
        let slot = self.slot(id);
        slot.unit.get_or_init(|| Box::new(self.repository_of(id).database.unit(&slot.place)))
    }

    /// The layer that a unit is of.
    pub(crate) fn layer(&self, id: UnitId) -> LayerName {
        LayerName::of_checked(self.layer_text(id))
    }

    pub(crate) fn version(&self, id: UnitId) -> LayerVersion {
        LayerVersion::of_checked(self.version_text(id))
    }

    pub fn repository(&self, id: UnitId) -> &RepositoryName {
        &self.repository_of(id).name
    }

    pub fn has_repository(&self, name: &RepositoryName) -> bool {
        self.repositories.iter().any(|known| known.name == *name)
    }

    /// The unit `repository/layer version`.
    pub fn get(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> Option<UnitId> {
        self.in_repository(repository, layer).find(|id| self.version_text(*id) == version.as_str())
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
        for name in self.essential.iter() {
            let best = self
                .candidates(*name)
                .iter()
                .find(|id| self.repository(**id) == repository && !self.barred(**id));
            if let Some(best) = best.filter(|id| self.slot(**id).place.essential) {
                names.push(&self.unit(*best).metadata.layer);
            }
        }
        names.sort_unstable();
        names
    }

    /// Leaves out units that the configuration does not want: `reason` is asked
    /// for each unit that is not left out yet, and names the rule.
    pub fn filter(&mut self, mut reason: impl FnMut(&Universe, UnitId) -> Option<String>) {
        for id in (0..self.units.len() as u32).map(UnitId) {
            if !self.filtered.contains_key(&id)
                && let Some(reason) = reason(self, id)
            {
                Arc::make_mut(&mut self.filtered).insert(id, reason);
            }
        }
    }

    /// Applies what the configuration says of all units: the architecture of the
    /// fleet and the pins.
    pub fn configure(&mut self, configuration: &Configuration) {
        if let Some(architecture) = configuration.architecture.as_deref() {
            self.filter(|universe, id| {
                let database = &universe.repository_of(id).database;
                match database.architecture(&universe.slot(id).place) {
                    "" | "all" => None,
                    own if own == architecture => None,
                    own => Some(format!(
                        "it is for {own}, and {CONFIGURATION_FILE} says {architecture}"
                    )),
                }
            });
        }
        for pin in &configuration.pins {
            let names = self.names.get(&pin.layer).copied().unwrap_or_default();
            let taken = std::mem::take(&mut self.candidates);
            let mut candidates = Arc::unwrap_or_clone(taken);
            for name in names.into_iter().flatten() {
                let range = |at: u32| self.starts[at as usize] as usize;
                candidates[range(name.0)..range(name.0 + 1)]
                    .sort_by_key(|id| !pin.prefers(self.repository(*id), self.version_text(*id)));
            }
            self.candidates = Arc::new(candidates);
        }
    }

    /// A copy in which these filters leave out more units; whether one does is found when
    /// a unit is asked for.
    pub fn narrowed(&self, filters: impl IntoIterator<Item = Filter>) -> Universe {
        let mut all = self.narrowed.as_ref().clone();
        all.extend(filters);
        Universe { narrowed: Arc::new(all), ..self.clone() }
    }

    /// Whether nothing new may use a unit.
    pub fn barred(&self, id: UnitId) -> bool {
        self.slot(id).place.withdrawn
            || self.filtered.contains_key(&id)
            || self.narrowed.iter().any(|filter| filter.leaves_out(self.unit(id)))
    }

    /// Why nothing new may use a unit, where that is so.
    pub fn bar(&self, id: UnitId) -> Option<Barred> {
        if let Some(reason) = self.filtered.get(&id) {
            return Some(Barred::Filtered(reason.clone()));
        }
        if self.slot(id).place.withdrawn {
            let reason = self.unit(id).withdrawn.clone().unwrap_or_default();
            return Some(Barred::Withdrawn(reason));
        }
        let unit = self.unit(id);
        self.narrowed.iter().find_map(|filter| filter.reason(unit)).map(Barred::Filtered)
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
        format!("{}/{} {}", self.repository(id), self.layer_text(id), self.version_text(id))
    }

    /// All units that satisfy a relation that `from` declares: the layers of
    /// that name, best first, then its providers; barred ones too.
    pub fn satisfiers(&self, relation: &Relation, from: UnitId) -> Vec<UnitId> {
        let mut found = Vec::new();
        self.add_satisfiers(&relation.as_text(), from, &mut found);
        found
    }

    /// Adds those that are not there yet.
    fn add_satisfiers(&self, relation: &RelationText<'_>, from: UnitId, found: &mut Vec<UnitId>) {
        let kinds = self.names.get(relation.name).copied().unwrap_or_default();
        let named = kinds.into_iter().flatten().flat_map(|name| self.candidates(name)).copied();
        let named = named.filter(|id| relation.admits(self.version_text(*id)));
        let provided = self.providers.get(relation.name).into_iter().flatten();
        let providers = provided
            .filter(|(id, version)| {
                relation.admits_provided(version.as_ref().map(LayerVersion::as_str))
                    || (version.is_none() && self.provides_all_versions(*id))
            })
            .map(|(id, _)| *id);
        for id in named.chain(providers) {
            if self.is_of_architecture(id, relation, from) && !found.contains(&id) {
                found.push(id);
            }
        }
    }

    /// Whether a unit satisfies (or, for a conflict, is meant by) a relation
    /// that `from` declares. An unversioned Provides satisfies no versioned
    /// relation, but of an RPM package any; an architecture that is named must be the unit's
    /// own.
    pub fn satisfies(&self, id: UnitId, relation: &Relation, from: UnitId) -> bool {
        let relation = relation.as_text();
        let named = self.layer_text(id) == relation.name && relation.admits(self.version_text(id));
        let mut provided = self.repository_of(id).database.provides(&self.slot(id).place);
        let provides = |provided: RelationText<'_>| {
            let version = provided.constraint.map(|(_, version)| version);
            provided.name == relation.name
                && (relation.admits_provided(version)
                    || (version.is_none() && self.provides_all_versions(id)))
        };
        (named || provided.any(provides)) && self.is_of_architecture(id, &relation, from)
    }

    /// Whether a Provides without a version stands for every version, as rpm has it.
    fn provides_all_versions(&self, id: UnitId) -> bool {
        self.unit(id).metadata.system == Some(System::Rpm)
    }

    fn is_of_architecture(&self, id: UnitId, relation: &RelationText<'_>, from: UnitId) -> bool {
        let of = |id: UnitId| {
            let name = self.repository_of(id).database.architecture(&self.slot(id).place);
            (!matches!(name, "" | "all")).then_some(name)
        };
        match relation.architecture {
            None | Some("any" | "native") => true,
            Some(named) => of(id).or(of(from)).is_none_or(|found| found == named),
        }
    }

    /// What a unit needs: for each dependency, Pre-Depends first, the units that
    /// satisfy it, in the order of its alternatives; barred ones too.
    pub(crate) fn needs(&self, id: UnitId) -> &[Box<[UnitId]>] {
        &self.links(id).needs
    }

    /// The units that a unit conflicts with or breaks, other than those of its own name.
    pub(crate) fn excluded(&self, id: UnitId) -> &[UnitId] {
        &self.links(id).excluded
    }

    fn links(&self, id: UnitId) -> &Links {
        let slot = self.slot(id);
        slot.links.get_or_init(|| {
            let database = &self.repository_of(id).database;
            let mut needs: Vec<Vec<UnitId>> = Vec::new();
            for relation in database.dependencies(&slot.place) {
                if !relation.alternative {
                    needs.push(Vec::new());
                }
                if let Some(last) = needs.last_mut() {
                    self.add_satisfiers(&relation, id, last);
                }
            }
            let mut excluded = Vec::new();
            for relation in database.conflicts(&slot.place) {
                self.add_satisfiers(&relation, id, &mut excluded);
            }
            excluded.retain(|other| self.name_of(*other) != slot.name);
            excluded.sort_unstable();
            let needs = needs.into_iter().map(Vec::into_boxed_slice).collect();
            Box::new(Links { needs, excluded: excluded.into() })
        })
    }

    pub(crate) fn name_of(&self, id: UnitId) -> NameId {
        self.slot(id).name
    }

    /// All units of a name and kind, best first; withdrawn ones too.
    pub(crate) fn candidates(&self, name: NameId) -> &[UnitId] {
        let range = |at: u32| self.starts[at as usize] as usize;
        &self.candidates[range(name.0)..range(name.0 + 1)]
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
            universe.named(&name("a")).filter(|id| universe.barred(*id)).collect();
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
    fn an_unversioned_provides_of_rpm_satisfies_any_version() {
        let unit = |system: &str| {
            format!(
                "Layer: p{system}\nVersion: 1\nSystem: {system}\nProvides: v\nDepends: v (>= 3)\n"
            )
        };
        let universe = universe(&[("main", 1, &format!("{}\n{}", unit("deb"), unit("rpm")))]);
        for (system, satisfied) in [("deb", false), ("rpm", true)] {
            let p = universe.named(&name(&format!("p{system}"))).next().expect("p");
            let relation = &universe.unit(p).metadata.depends[0].alternatives[0];
            assert_eq!(universe.satisfies(p, relation, p), satisfied, "{system}");
            assert_eq!(universe.satisfiers(relation, p).contains(&p), satisfied, "{system}");
        }
    }

    #[test]
    fn essential_is_what_its_best_unit_says() {
        let text = "Layer: a\nVersion: 1\nEssential: yes\n\nLayer: b\nVersion: 1\nEssential: yes\n\nLayer: b\nVersion: 2\n";
        let universe = universe(&[("main", 1, text)]);
        assert_eq!(universe.essential(&"main".parse().expect("a name")), [&name("a")]);
    }
}
