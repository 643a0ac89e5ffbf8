//! The kinds of things that `strata get` lists, and how each is read.

use std::collections::BTreeMap;

use serde::Serialize;
use strata_core::metadata::LayerKind;
use strata_core::rollout::RingStep;
use strata_core::rollout::policy::base_ring;
use strata_core::status::{Age, Summary, VaStatus};
use strata_core::{
    CompositionName, Digest, GenerationId, LayerName, LayerVersion, MacAddr, RepositoryName,
    RingName,
};
use strata_store::{Store, StoreError};

use super::{Item, Wanted};
use crate::cli::Failure;
use crate::cli::status::ago;
use crate::fleet;
use crate::rollout::{RolloutFile, pins};
use crate::state::{milliseconds, time_text as time};

fn short(id: Option<GenerationId>) -> String {
    id.map(|id| id.short()).unwrap_or_default()
}

fn text(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// The VAs of each ring, counted by state.
fn summaries(
    store: &Store,
) -> Result<BTreeMap<(CompositionName, Option<RingName>), Summary>, Failure> {
    let mut summaries: BTreeMap<_, Summary> = BTreeMap::new();
    for va in fleet::fleet(store)?.vas {
        let ring = va.ring.as_ref().map(|ring| base_ring(ring).0);
        summaries.entry((va.composition, ring)).or_default().add(va.state);
    }
    Ok(summaries)
}

#[derive(Serialize)]
pub struct Template {
    name: CompositionName,
    /// The generation that is rolled out; `null` before the first rollout.
    target: Option<GenerationId>,
    commit: Option<String>,
    /// As of `strata rollout status`.
    phase: Option<&'static str>,
    begun_at_ms: Option<u64>,
    rings: usize,
    vas: Summary,
}

impl Item for Template {
    const KIND: &'static str = "templates";
    const NARROW: &'static [&'static str] =
        &["NAME", "GENERATION", "PHASE", "RINGS", "VAS", "IN-SYNC"];
    const WIDE: &'static [&'static str] =
        &["PENDING", "DRIFTED", "FAILED", "UNKNOWN", "COMMIT", "BEGUN"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            short(self.target),
            self.phase.unwrap_or_default().to_owned(),
            self.rings.to_string(),
            self.vas.total.to_string(),
            self.vas.in_sync.to_string(),
            self.vas.pending.to_string(),
            self.vas.drifted.to_string(),
            self.vas.failed.to_string(),
            self.vas.unknown.to_string(),
            self.commit.as_deref().map(strata_core::event::short).unwrap_or_default().to_owned(),
            self.begun_at_ms.map(time).unwrap_or_default(),
        ]
    }
}

pub fn templates(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<Template>, Failure> {
    let file = RolloutFile::read(store)?;
    let mut rings: BTreeMap<CompositionName, usize> = BTreeMap::new();
    for (composition, ring) in store.rings()?.into_keys() {
        *rings.entry(composition).or_default() += usize::from(base_ring(&ring).0 == ring);
    }
    let mut vas: BTreeMap<CompositionName, Summary> = BTreeMap::new();
    for va in fleet::fleet(store)?.vas {
        vas.entry(va.composition.clone()).or_default().add(va.state);
    }
    let mut names: Vec<_> = file.compositions.keys().chain(rings.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| wanted.name(name.as_str()) && wanted.template(name));
    let template = |name: CompositionName| {
        let state = file.compositions.get(&name);
        Template {
            target: state.map(|state| state.target),
            commit: state.map(|state| state.commit.clone()),
            phase: state.map(|state| state.phase()),
            begun_at_ms: state.map(|state| state.begun_at_ms),
            rings: rings.get(&name).copied().unwrap_or(0),
            vas: vas.get(&name).copied().unwrap_or_default(),
            name,
        }
    };
    Ok(names.into_iter().map(template).collect())
}

#[derive(Serialize)]
pub struct Ring {
    template: CompositionName,
    name: RingName,
    generation: GenerationId,
    /// How far its rollout is; `null` where git no longer has the ring.
    step: Option<RingStep>,
    /// Where it goes back to.
    good: Option<GenerationId>,
    moved_at_ms: Option<u64>,
    vas: Summary,
}

impl Item for Ring {
    const KIND: &'static str = "rings";
    const NARROW: &'static [&'static str] =
        &["TEMPLATE", "RING", "GENERATION", "STEP", "VAS", "IN-SYNC", "MOVED"];
    const WIDE: &'static [&'static str] = &["PENDING", "DRIFTED", "FAILED", "UNKNOWN", "GOOD"];

    fn cells(&self) -> Vec<String> {
        let step = self.step.map(|step| match step {
            RingStep::Waiting => "waiting",
            RingStep::Staging => "staging",
            RingStep::Moved => "moved",
            RingStep::Passed => "passed",
        });
        vec![
            self.template.to_string(),
            self.name.to_string(),
            self.generation.short(),
            step.unwrap_or_default().to_owned(),
            self.vas.total.to_string(),
            self.vas.in_sync.to_string(),
            self.moved_at_ms.map(time).unwrap_or_default(),
            self.vas.pending.to_string(),
            self.vas.drifted.to_string(),
            self.vas.failed.to_string(),
            self.vas.unknown.to_string(),
            short(self.good),
        ]
    }
}

pub fn rings(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<Ring>, Failure> {
    let file = RolloutFile::read(store)?;
    let summaries = summaries(store)?;
    let mut rings = Vec::new();
    for ((template, name), generation) in store.rings()? {
        let chosen = wanted.name(name.as_str()) && wanted.template(&template);
        let is_batch = base_ring(&name).1;
        if is_batch || !chosen || !wanted.ring(Some(&name)) {
            continue;
        }
        let state = file.compositions.get(&template).and_then(|state| state.rings.get(&name));
        let vas = summaries.get(&(template.clone(), Some(name.clone())));
        rings.push(Ring {
            generation,
            step: state.map(|state| state.step),
            good: state.and_then(|state| state.good),
            moved_at_ms: store.ring_moved_at(&template, &name)?.map(milliseconds),
            vas: vas.copied().unwrap_or_default(),
            template,
            name,
        });
    }
    Ok(rings)
}

impl Item for VaStatus {
    const KIND: &'static str = "vas";
    const NARROW: &'static [&'static str] =
        &["NAME", "TEMPLATE", "RING", "RUNS", "STATE", "ACTIVE"];
    const WIDE: &'static [&'static str] = &["MAC", "DESIRED", "REPORTED", "WHY"];

    fn cells(&self) -> Vec<String> {
        let ring = self.ring.as_ref().map_or_else(|| "(pinned)".to_owned(), ToString::to_string);
        vec![
            text(self.name.as_ref()),
            self.composition.to_string(),
            ring,
            text(self.run_state.as_ref()),
            self.state.to_string(),
            short(self.active),
            self.mac.to_string(),
            short(self.desired),
            self.report_age_ms.map(|age| format!("{} ago", Age(age))).unwrap_or_default(),
            text(self.reason.as_ref()),
        ]
    }
}

pub fn vas(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<VaStatus>, Failure> {
    let mut vas = fleet::fleet(store)?.vas;
    vas.retain(|va| {
        let named = wanted.name(&va.mac.to_string())
            || va.name.as_ref().is_some_and(|name| wanted.name(name.as_str()));
        let ring = va.ring.as_ref().map(|ring| base_ring(ring).0);
        named && wanted.template(&va.composition) && wanted.ring(ring.as_ref())
    });
    Ok(vas)
}

#[derive(Serialize)]
pub struct SealedGeneration {
    id: GenerationId,
    template: CompositionName,
    layers: usize,
    /// The commit that first produced it.
    commit: String,
    /// When it was sealed or last left by a ring.
    used_at_ms: u64,
    /// The rings whose links lead to it.
    rings: Vec<RingName>,
}

impl Item for SealedGeneration {
    const KIND: &'static str = "generations";
    const NARROW: &'static [&'static str] = &["ID", "TEMPLATE", "LAYERS", "COMMIT", "RINGS"];
    const WIDE: &'static [&'static str] = &["USED", "WHOLE ID"];

    fn cells(&self) -> Vec<String> {
        let rings: Vec<_> = self.rings.iter().map(|ring| ring.as_str()).collect();
        vec![
            self.id.short(),
            self.template.to_string(),
            self.layers.to_string(),
            strata_core::event::short(&self.commit).to_owned(),
            rings.join(" "),
            time(self.used_at_ms),
            self.id.to_string(),
        ]
    }
}

pub fn generations(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<SealedGeneration>, Failure> {
    let links = store.rings()?;
    let mut generations = Vec::new();
    for id in store.generations()? {
        if !wanted.prefix(&id.to_string()) {
            continue;
        }
        let generation = store.generation(&id)?;
        let template = generation.composition().clone();
        if !wanted.template(&template) {
            continue;
        }
        let on = links.iter().filter(|((name, _), at)| **at == id && *name == template);
        generations.push(SealedGeneration {
            id,
            layers: generation.layers().len(),
            commit: store.generation_origin(&id)?,
            used_at_ms: milliseconds(store.generation_used_at(&id)?),
            rings: on.map(|((_, ring), _)| ring.clone()).collect(),
            template,
        });
    }
    generations.sort_by(|a, b| {
        (&a.template, std::cmp::Reverse(a.used_at_ms), a.id).cmp(&(
            &b.template,
            std::cmp::Reverse(b.used_at_ms),
            b.id,
        ))
    });
    Ok(generations)
}

#[derive(Serialize)]
pub struct Layer {
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    kind: LayerKind,
    architecture: Option<String>,
    digest: Digest,
    content_bytes: u64,
    /// Why nothing new may use it; `null` where it may.
    withdrawn: Option<String>,
}

impl Item for Layer {
    const KIND: &'static str = "layers";
    const NARROW: &'static [&'static str] = &["REPOSITORY", "LAYER", "VERSION", "KIND", "SIZE"];
    const WIDE: &'static [&'static str] = &["ARCHITECTURE", "WITHDRAWN", "DIGEST"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.repository.to_string(),
            self.layer.to_string(),
            self.version.to_string(),
            self.kind.to_string(),
            indicatif::HumanBytes(self.content_bytes).to_string(),
            self.architecture.clone().unwrap_or_default(),
            self.withdrawn.clone().unwrap_or_default(),
            self.digest.to_string(),
        ]
    }
}

pub fn layers(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<Layer>, Failure> {
    let mut layers = Vec::new();
    for repository in store.repositories()? {
        let database = match store.database(&repository) {
            Err(error @ StoreError::NoAccess { .. }) => {
                eprintln!("note: {error}");
                continue;
            }
            database => database?,
        };
        let units = database.units().filter(|unit| wanted.name(unit.metadata.layer.as_str()));
        layers.extend(units.map(|unit| Layer {
            repository: repository.clone(),
            layer: unit.metadata.layer.clone(),
            version: unit.metadata.version.clone(),
            kind: unit.metadata.kind,
            architecture: unit.metadata.architecture.clone(),
            digest: unit.digest,
            content_bytes: unit.content_bytes,
            withdrawn: unit.withdrawn.clone(),
        }));
    }
    Ok(layers)
}

#[derive(Serialize)]
pub struct Repository {
    name: RepositoryName,
    units: usize,
    withdrawn: usize,
    content_bytes: u64,
    /// Why it cannot be read by the caller.
    error: Option<String>,
}

impl Item for Repository {
    const KIND: &'static str = "repositories";
    const NARROW: &'static [&'static str] = &["NAME", "UNITS", "WITHDRAWN", "SIZE"];
    const WIDE: &'static [&'static str] = &["ERROR"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.units.to_string(),
            self.withdrawn.to_string(),
            indicatif::HumanBytes(self.content_bytes).to_string(),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

pub fn repositories(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<Repository>, Failure> {
    let mut repositories = Vec::new();
    for name in store.repositories()? {
        if !wanted.name(name.as_str()) {
            continue;
        }
        let mut repository =
            Repository { name, units: 0, withdrawn: 0, content_bytes: 0, error: None };
        match store.database(&repository.name) {
            Ok(database) => {
                repository.units = database.len();
                for unit in database.units() {
                    repository.withdrawn += usize::from(unit.withdrawn.is_some());
                    repository.content_bytes += unit.content_bytes;
                }
            }
            // One that this user may not read does not hide the others.
            Err(error @ StoreError::NoAccess { .. }) => repository.error = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        repositories.push(repository);
    }
    Ok(repositories)
}

#[derive(Serialize)]
pub struct PinnedVa {
    mac: MacAddr,
    name: Option<String>,
    template: CompositionName,
    generation: GenerationId,
    /// Where it belongs when the pin ends.
    ring: RingName,
    reason: String,
    by: String,
    since_ms: u64,
    expires_at_ms: Option<u64>,
}

impl Item for PinnedVa {
    const KIND: &'static str = "pins";
    const NARROW: &'static [&'static str] =
        &["NAME", "TEMPLATE", "GENERATION", "SINCE", "EXPIRES", "BY", "REASON"];
    const WIDE: &'static [&'static str] = &["MAC", "RING"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone().unwrap_or_else(|| self.mac.to_string()),
            self.template.to_string(),
            self.generation.short(),
            format!("{} ago", ago(self.since_ms)),
            self.expires_at_ms.map_or_else(|| "never".to_owned(), time),
            self.by.clone(),
            self.reason.clone(),
            self.mac.to_string(),
            self.ring.to_string(),
        ]
    }
}

pub fn pins(store: &Store, wanted: &Wanted<'_>) -> Result<Vec<PinnedVa>, Failure> {
    let machines = fleet::machines(store).map_err(Failure::new)?;
    let declared = fleet::declared(store);
    let mut found = Vec::new();
    for pin in pins::all(store)? {
        let name = machines.get(&pin.mac).map(|machine| &machine.name);
        let name = name.or_else(|| declared.get(&pin.mac)).map(ToString::to_string);
        let named = wanted.prefix(&pin.mac.to_string())
            || name.as_ref().is_some_and(|name| wanted.name(name));
        if !named || !wanted.template(&pin.composition) || !wanted.ring(Some(&pin.ring)) {
            continue;
        }
        found.push(PinnedVa {
            mac: pin.mac,
            name,
            template: pin.composition,
            generation: pin.generation,
            ring: pin.ring,
            reason: pin.reason,
            by: pin.by,
            since_ms: pin.since_ms,
            expires_at_ms: pin.expires_at_ms,
        });
    }
    Ok(found)
}
