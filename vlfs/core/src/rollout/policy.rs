//! How a rollout proceeds: what `strata.toml` says of rings, windows, freezes,
//! removals and drift (`docs/formats.md`, "Rollout policy").

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, ScheduleReader};
use crate::configuration::{Appliance, CONFIGURATION_FILE, DEFAULT_RING, Placed};
use crate::diagnostic::Diagnostic;
use crate::digest::Digest;
use crate::limits;
use crate::names::{CompositionName, MacAddr, RingName};
use crate::toml_reader::{TableReader, TomlFile};

/// A ring that is not ready after this time is a failed one, unless it says otherwise.
pub const DEFAULT_DEADLINE_MS: u64 = 10 * 60 * 1000;
/// The end of the name under which the VAs of a ring that swap in batches are kept.
pub const STAGED_SUFFIX: &str = "+next";
/// A VA that was not seen for so many days is named, unless the policy says otherwise.
pub const DEFAULT_SILENT_DAYS: u32 = 14;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{0:?} is no time span; write a number with s, m, h or d, as in 90s or 2h")]
    Span(String),
    #[error("{0:?} is neither a number nor a percentage, as in 20 or 5%")]
    Share(String),
    #[error("{0:?} is no percentage from 0% to 100%")]
    Percent(String),
    #[error("{0:?} is neither \"halt\" nor \"auto-rollback\"")]
    OnFailure(String),
    #[error("{0:?} is none of \"report\", \"warn\" and \"enforce\"")]
    DriftMode(String),
    #[error("{0:?} names no path and matches nothing; write one from the root, as in etc/**")]
    Pattern(String),
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A time span, as in `90s`, `10m`, `2h` or `3d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub ms: u64,
}

impl FromStr for Span {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let error = || PolicyError::Span(shown(text));
        let unit = text.chars().last().ok_or_else(error)?;
        let seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(error()),
        };
        let digits = &text[..text.len() - 1];
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        let number: u32 = digits.parse().map_err(|_| error())?;
        Ok(Span { ms: u64::from(number).saturating_mul(seconds).saturating_mul(1000) })
    }
}

/// A whole percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl FromStr for Percent {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let error = || PolicyError::Percent(shown(text));
        let number = text.strip_suffix('%').ok_or_else(error)?.trim();
        let number: u32 = number.parse().map_err(|_| error())?;
        if number > 100 { Err(error()) } else { Ok(Percent(number)) }
    }
}

/// A number of VAs, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    Number(u32),
    Percent(Percent),
}

impl Share {
    /// How many of `total` that is; a percentage is rounded up.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Share::Number(number) => number,
            Share::Percent(Percent(percent)) => {
                let product = u64::from(total) * u64::from(percent);
                u32::try_from(product.div_ceil(100)).unwrap_or(u32::MAX)
            }
        }
    }
}

impl FromStr for Share {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text.ends_with('%') {
            return text.parse().map(Share::Percent);
        }
        text.parse().map(Share::Number).map_err(|_| PolicyError::Share(shown(text)))
    }
}

/// What happens when a ring fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Nothing moves until an operator or a new commit decides.
    #[default]
    Halt,
    /// The rings go back to the last good generation; the commit is quarantined.
    AutoRollback,
}

impl FromStr for OnFailure {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "halt" => Ok(OnFailure::Halt),
            "auto-rollback" => Ok(OnFailure::AutoRollback),
            _ => Err(PolicyError::OnFailure(shown(text))),
        }
    }
}

/// What happens about a difference that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftMode {
    /// It shows in the status.
    Report,
    /// And it is a warning in the log and an event.
    Warn,
    /// And it is put right, where that can be done.
    Enforce,
}

impl FromStr for DriftMode {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "report" => Ok(DriftMode::Report),
            "warn" => Ok(DriftMode::Warn),
            "enforce" => Ok(DriftMode::Enforce),
            _ => Err(PolicyError::DriftMode(shown(text))),
        }
    }
}

/// A pattern of paths, as [`super::patterns`] reads it.
struct Pattern(String);

impl FromStr for Pattern {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text.trim_matches('/').trim() {
            "" => Err(PolicyError::Pattern(shown(text))),
            _ => Ok(Pattern(text.to_owned())),
        }
    }
}

/// Which declared VAs that name no ring belong to one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    pub size: Option<Share>,
    /// All of them must be the VA's.
    pub labels: BTreeMap<String, String>,
}

/// What a ring must show before the next one follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Of the VAs that run, this part must be healthy.
    pub success: Percent,
    /// More unhealthy VAs than this fail the ring; by default those that make
    /// `success` impossible.
    pub unhealthy: Option<Share>,
    /// It must stay so for this long.
    pub soak_ms: u64,
    /// It must become so in this time.
    pub deadline_ms: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            success: Percent(100),
            unhealthy: None,
            soak_ms: 0,
            deadline_ms: DEFAULT_DEADLINE_MS,
        }
    }
}

impl Gate {
    /// Whether, for a ring of any size, as many may be unhealthy as keep it from passing.
    fn may_wait_for_ever(&self) -> bool {
        match self.unhealthy {
            None => false,
            Some(Share::Number(number)) => number > 0 && self.success.0 == 100,
            Some(Share::Percent(Percent(percent))) => percent + self.success.0 > 100,
        }
    }
}

/// One ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingPolicy {
    pub name: RingName,
    pub selector: Selector,
    /// `None` for a ring of the plain list: the next one follows at once.
    pub gate: Option<Gate>,
    /// So many VAs may swap at once; all where there is none.
    pub swapping: Option<u32>,
}

impl RingPolicy {
    /// A ring without a gate.
    pub fn plain(name: RingName) -> Self {
        RingPolicy { name, selector: Selector::default(), gate: None, swapping: None }
    }
}

/// What is looked for in VAs and in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftPolicy {
    /// Links that somebody moved by hand.
    pub links: DriftMode,
    /// Changes in private layers. Enforcing is for people: `strata-vlfs revert`.
    pub private: DriftMode,
    /// Patterns of paths whose change is drift; `setuid` names new setuid files.
    pub watch: Vec<String>,
    /// Patterns of paths that are never drift.
    pub ignore: Vec<String>,
}

impl Default for DriftPolicy {
    fn default() -> Self {
        DriftPolicy {
            links: DriftMode::Enforce,
            private: DriftMode::Report,
            watch: Vec::new(),
            ignore: Vec::new(),
        }
    }
}

/// How rollouts proceed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutPolicy {
    /// In the order of a rollout; never empty.
    pub rings: Vec<RingPolicy>,
    pub on_failure: OnFailure,
    pub schedule: Schedule,
    /// What git no longer has is removed, at most so many things in a pass without
    /// a confirmation; `None`: it stays.
    pub prune: Option<u32>,
    pub silent_days: u32,
    pub drift: DriftPolicy,
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        let ring = RingName::new(DEFAULT_RING).expect("a constant that is a name");
        RolloutPolicy {
            rings: vec![RingPolicy::plain(ring)],
            on_failure: OnFailure::Halt,
            schedule: Schedule::default(),
            prune: None,
            silent_days: DEFAULT_SILENT_DAYS,
            drift: DriftPolicy::default(),
        }
    }
}

impl RolloutPolicy {
    pub fn ring(&self, name: &RingName) -> Option<&RingPolicy> {
        self.rings.iter().find(|ring| ring.name == *name)
    }

    /// Rings without gates, in this order.
    pub fn plain(rings: impl IntoIterator<Item = RingName>) -> Self {
        let rings = rings.into_iter().map(RingPolicy::plain).collect();
        RolloutPolicy { rings, ..RolloutPolicy::default() }
    }

    /// Reads `[rollout]`, `[prune]` and `[drift]`. Returns the templates that windows and
    /// freezes name; whether they are there is for [`crate::desired`].
    pub(crate) fn read(
        &mut self,
        file: &mut TomlFile<'_>,
        reader: &mut TableReader<'_, '_>,
    ) -> Vec<Placed<CompositionName>> {
        let mut named = Vec::new();
        let plain = reader.parsed_list::<RingName>(file, "rings");
        if let Some(rings) = plain {
            let rings = rings.into_iter();
            self.set_rings(file, rings.map(|ring| (RingPolicy::plain(ring.value), ring.line)));
        }
        if let Some((table, at)) = reader.table(file, "rollout") {
            named = self.read_rollout(file, TableReader::new(table, at, "[rollout]"));
        }
        if let Some((table, at)) = reader.table(file, "prune") {
            let mut reader = TableReader::new(table, at, "[prune]");
            let limit = reader.number(file, "limit", limits::REMOVALS);
            reader.finish(file);
            self.prune = Some(limit.unwrap_or(0));
        }
        if let Some((table, at)) = reader.table(file, "drift") {
            self.read_drift(file, TableReader::new(table, at, "[drift]"));
        }
        named
    }

    fn set_rings(
        &mut self,
        file: &mut TomlFile<'_>,
        rings: impl Iterator<Item = (RingPolicy, u32)>,
    ) {
        let mut unique: Vec<RingPolicy> = Vec::new();
        for (ring, line) in rings {
            let name = &ring.name;
            let message = if unique.iter().any(|known| known.name == *name) {
                format!("the ring {name} stands twice")
            } else if name.as_str().ends_with(STAGED_SUFFIX) {
                format!("the ring name {name} may not end in {STAGED_SUFFIX}, which Strata uses")
            } else {
                unique.push(ring);
                continue;
            };
            file.diagnostics.push(Diagnostic::error(CONFIGURATION_FILE, line, "ring", message));
        }
        if !unique.is_empty() {
            self.rings = unique;
        }
    }

    fn read_rollout(
        &mut self,
        file: &mut TomlFile<'_>,
        mut reader: TableReader<'_, '_>,
    ) -> Vec<Placed<CompositionName>> {
        let mut rings = Vec::new();
        for (table, at) in reader.tables(file, "ring") {
            let mut reader = TableReader::new(table, at, "a [[rollout.ring]]");
            if let Some(ring) = read_ring(file, &mut reader) {
                rings.push(ring);
            }
            reader.finish(file);
        }
        self.set_rings(file, rings.into_iter().map(|ring| (ring.value, ring.line)));
        if let Some(on_failure) = reader.parsed::<OnFailure>(file, "on-failure") {
            self.on_failure = on_failure.value;
        }
        if let Some(days) = reader.number(file, "silent-days", 36_500) {
            self.silent_days = days;
        }
        let known: Vec<RingName> = self.rings.iter().map(|ring| ring.name.clone()).collect();
        let mut schedule = ScheduleReader { file, rings: &known, named: Vec::new() };
        self.schedule = schedule.read(&mut reader);
        let named = schedule.named;
        reader.finish(file);
        named
    }

    fn read_drift(&mut self, file: &mut TomlFile<'_>, mut reader: TableReader<'_, '_>) {
        if let Some(mode) = reader.parsed::<DriftMode>(file, "links") {
            self.drift.links = mode.value;
        }
        if let Some(mode) = reader.parsed::<DriftMode>(file, "private") {
            self.drift.private = mode.value;
        }
        let patterns = |list: Option<Vec<Placed<Pattern>>>| {
            list.unwrap_or_default().into_iter().map(|pattern| pattern.value.0).collect()
        };
        self.drift.watch = patterns(reader.parsed_list::<Pattern>(file, "watch"));
        self.drift.ignore = patterns(reader.parsed_list::<Pattern>(file, "ignore"));
        reader.finish(file);
    }
}

fn read_ring(
    file: &mut TomlFile<'_>,
    reader: &mut TableReader<'_, '_>,
) -> Option<Placed<RingPolicy>> {
    let name = reader.required::<RingName>(file, "name");
    let size = reader.parsed_or_number::<Share>(file, "size").map(|size| size.value);
    let labels = reader.table(file, "labels").map(|(table, at)| {
        TableReader::new(table, at, "labels").all_strings(file).into_iter().collect()
    });
    let mut gate = Gate::default();
    if let Some(success) = reader.parsed::<Percent>(file, "success") {
        gate.success = success.value;
    }
    if let Some(unhealthy) = reader.parsed_or_number::<Share>(file, "unhealthy") {
        gate.unhealthy = Some(unhealthy.value);
        if gate.may_wait_for_ever() {
            let message = "`unhealthy` allows what `success` does not: with so many the ring neither fails nor passes";
            let hint = "lower `unhealthy` or `success`; without `unhealthy` a ring fails once `success` is impossible";
            let fault = Diagnostic::error(CONFIGURATION_FILE, unhealthy.line, "unhealthy", message);
            file.diagnostics.push(fault.hint(hint).warning());
        }
    }
    if let Some(soak) = reader.parsed::<Span>(file, "soak") {
        gate.soak_ms = soak.value.ms;
    }
    if let Some(deadline) = reader.parsed::<Span>(file, "deadline") {
        gate.deadline_ms = deadline.value.ms;
    }
    let swapping = reader.number_from(file, "swapping", 1, u32::MAX);
    let Placed { value: name, line } = name?;
    let selector = Selector { size, labels: labels.unwrap_or_default() };
    Some(Placed { value: RingPolicy { name, selector, gate: Some(gate), swapping }, line })
}

/// The link under which the VAs of a ring that swap in batches are kept.
pub fn staged_ring(ring: &RingName) -> RingName {
    RingName::new(format!("{ring}{STAGED_SUFFIX}")).unwrap_or_else(|_| ring.clone())
}

/// The ring that a link belongs to, and whether it is the one for batches.
pub fn base_ring(ring: &RingName) -> (RingName, bool) {
    let base = ring.as_str().strip_suffix(STAGED_SUFFIX);
    match base.and_then(|base| RingName::new(base).ok()) {
        Some(base) => (base, true),
        None => (ring.clone(), false),
    }
}

/// Gives every declared VA that names no ring the one whose selector takes it:
/// labels first, then sizes, each VA in an order that depends on its address
/// alone, so that a new VA moves few others. The last ring takes the rest.
pub(crate) fn assign_rings(policy: &RolloutPolicy, appliances: &mut [(&mut Appliance, bool)]) {
    let last = policy.rings.last().expect("there is a ring").name.clone();
    let mut totals: BTreeMap<CompositionName, u32> = BTreeMap::new();
    for (appliance, _) in appliances.iter() {
        *totals.entry(appliance.composition.clone()).or_default() += 1;
    }
    let mut taken: BTreeMap<(CompositionName, RingName), u32> = BTreeMap::new();
    let mut left: Vec<&mut Appliance> = Vec::new();
    for (appliance, named) in appliances.iter_mut() {
        let labelled = policy.rings.iter().find(|ring| {
            let labels = &ring.selector.labels;
            let holds = |(key, value): (&String, &String)| appliance.labels.get(key) == Some(value);
            !*named && !labels.is_empty() && labels.iter().all(holds)
        });
        if let Some(ring) = labelled {
            appliance.ring = ring.name.clone();
        } else if !*named {
            left.push(appliance);
            continue;
        }
        *taken.entry((appliance.composition.clone(), appliance.ring.clone())).or_default() += 1;
    }
    left.sort_by_key(|appliance| place(appliance.mac));
    for appliance in left {
        let total = totals.get(&appliance.composition).copied().unwrap_or(0);
        let ring = policy.rings.iter().find(|ring| {
            let Some(size) = ring.selector.size else { return false };
            let key = (appliance.composition.clone(), ring.name.clone());
            taken.get(&key).copied().unwrap_or(0) < size.of(total)
        });
        appliance.ring = ring.map_or_else(|| last.clone(), |ring| ring.name.clone());
        *taken.entry((appliance.composition.clone(), appliance.ring.clone())).or_default() += 1;
    }
}

/// A VA's place in a line of all VAs.
fn place(mac: MacAddr) -> Digest {
    Digest::of(&mac.octets())
}

impl fmt::Display for DriftMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DriftMode::Report => "report",
            DriftMode::Warn => "warn",
            DriftMode::Enforce => "enforce",
        })
    }
}

#[cfg(test)]
mod tests;
