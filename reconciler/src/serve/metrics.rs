//! What Prometheus is told (`docs/observability.md`, "Metrics").
//!
//! The main loop only adds numbers. What costs a look at the whole fleet is counted when
//! it is asked for, and not again before twenty times as long as it took.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use strata_core::event::Event;
use strata_core::status::SyncState;
use strata_store::Store;

use crate::fleet::{self, FleetError};
use crate::pass::{PassReport, PassResult};
use crate::rollout::{RolloutFile, conditions};
use crate::state::ReconcileState;
use crate::telling::place;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The shortest time between two looks at the whole fleet, and how many times as long as
/// the look took it is at least.
const FLEET_PAUSE: Duration = Duration::from_secs(15);
const FLEET_SHARE: u32 = 20;
/// From a millisecond to an hour.
const BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0,
];

/// A label with a fixed name; values come from the program or are names that it checked.
macro_rules! label {
    ($name:ident { $($member:ident),* }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($member: String),* }
    };
}

label!(ByResult { result });
label!(ByPhase { phase });
label!(ByStage { stage });
label!(ByKind { kind });
label!(VaLabels { template, state });
label!(ConditionLabels { condition });
label!(RolloutLabels { phase });
label!(ReceiverLabels { receiver });
label!(BuildLabels { version });
label!(CommitLabels { commit });

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Family<ByResult, Counter>,
    pass_seconds: Histograms<ByPhase>,
    stage_seconds: Histograms<ByStage>,
    events: Family<ByKind, Counter>,
    vas: Family<VaLabels, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    rollouts: Family<RolloutLabels, Gauge>,
    commit: Family<CommitLabels, Gauge>,
    delivered: Family<ReceiverLabels, Gauge>,
    dropped: Family<ReceiverLabels, Gauge>,
    failing: Family<ReceiverLabels, Gauge>,
    last_pass: Gauge<f64, std::sync::atomic::AtomicU64>,
    resident: Gauge,
    descriptors: Gauge,
    /// When the fleet was last counted, and how long that took.
    counted: Mutex<Option<(Instant, Duration)>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            passes: Family::default(),
            pass_seconds: Family::new_with_constructor(histogram),
            stage_seconds: Family::new_with_constructor(histogram),
            events: Family::default(),
            vas: Family::default(),
            conditions: Family::default(),
            rollouts: Family::default(),
            commit: Family::default(),
            delivered: Family::default(),
            dropped: Family::default(),
            failing: Family::default(),
            last_pass: Gauge::default(),
            resident: Gauge::default(),
            descriptors: Gauge::default(),
            counted: Mutex::new(None),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let own = self.registry.sub_registry_with_prefix("strata");
        own.register("passes", "Passes, by how they ended", self.passes.clone());
        let help = "How long passes took, by part";
        own.register_with_unit("pass_duration", help, Unit::Seconds, self.pass_seconds.clone());
        let help = "From a commit to the VAs: detected since it was committed, planned and applied \
                    since it was detected, verified since its ring was moved";
        own.register_with_unit("stage_duration", help, Unit::Seconds, self.stage_seconds.clone());
        own.register("events", "Events, by kind", self.events.clone());
        own.register("vas", "VAs, by template and state", self.vas.clone());
        own.register("condition", "1 where the condition holds", self.conditions.clone());
        own.register("rollouts", "Rollouts, by phase", self.rollouts.clone());
        own.register(
            "applied_commit",
            "1 for the commit that was last applied",
            self.commit.clone(),
        );
        own.register(
            "told",
            "Messages delivered to a receiver, since it is known",
            self.delivered.clone(),
        );
        own.register(
            "telling_dropped",
            "Messages a receiver refused or that became too old",
            self.dropped.clone(),
        );
        own.register("telling_failing", "1 where a receiver cannot be told", self.failing.clone());
        let help = "When the last pass ended well, in seconds since 1970";
        own.register_with_unit("last_pass_timestamp", help, Unit::Seconds, self.last_pass.clone());
        let build: Family<BuildLabels, Gauge> = Family::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION").to_owned() }).set(1);
        own.register("build", "The program's version", build);
        let process = self.registry.sub_registry_with_prefix("process");
        let help = "Memory of this process that is in use";
        process.register_with_unit("resident_memory", help, Unit::Bytes, self.resident.clone());
        process.register("open_fds", "Open file descriptors", self.descriptors.clone());
    }

    /// A pass has ended. `commit_age` is how old the commit was when it was first seen.
    pub fn passed(&self, report: &PassReport, commit_age: Option<Duration>) {
        let result = match report.result {
            PassResult::Applied => "applied",
            PassResult::Unchanged => "unchanged",
            PassResult::Refused => "refused",
        };
        self.passes.get_or_create(&ByResult { result: result.to_owned() }).inc();
        let timings = &report.timings;
        for (phase, ms) in [
            ("fetch", timings.fetch_ms),
            ("check", timings.check_ms),
            ("plan", timings.plan_ms),
            ("apply", timings.apply_ms),
            ("total", timings.total_ms),
        ] {
            self.pass_seconds
                .get_or_create(&ByPhase { phase: phase.to_owned() })
                .observe(ms / 1000.0);
        }
        let stage = |stage: &str, seconds: f64| {
            self.stage_seconds.get_or_create(&ByStage { stage: stage.to_owned() }).observe(seconds);
        };
        if let Some(age) = commit_age {
            stage("detected", age.as_secs_f64());
        }
        if report.result == PassResult::Applied {
            let planned = timings.check_ms + timings.plan_ms;
            stage("planned", planned / 1000.0);
            stage("applied", (planned + timings.apply_ms) / 1000.0);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.last_pass.set(now.unwrap_or_default().as_secs_f64());
    }

    pub fn failed(&self) {
        self.passes.get_or_create(&ByResult { result: "failed".to_owned() }).inc();
    }

    pub fn happened(&self, event: &Event) {
        self.events.get_or_create(&ByKind { kind: event.kind().to_owned() }).inc();
        if let Event::RingVerified { took_ms, .. } = event {
            let seconds = *took_ms as f64 / 1000.0;
            self.stage_seconds
                .get_or_create(&ByStage { stage: "verified".to_owned() })
                .observe(seconds);
        }
    }

    /// All of it as text.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn page(&self, store: &Store) -> Result<String, MetricsError> {
        self.look_at_state(store)?;
        self.look_at_fleet(store)?;
        self.look_at_process();
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(MetricsError::Text)?;
        Ok(text)
    }

    fn look_at_state(&self, store: &Store) -> Result<(), MetricsError> {
        let file = RolloutFile::read(store)?;
        self.rollouts.clear();
        for phase in ["rolling", "paused", "halted", "quarantined", "done"] {
            let count = file.compositions.values().filter(|state| state.phase() == phase).count();
            let labels = RolloutLabels { phase: phase.to_owned() };
            self.rollouts.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if let Some(state) = ReconcileState::read(store)? {
            let all = conditions::refine(state.conditions(), &conditions::unfinished(&file));
            for condition in all {
                let name = format!("{:?}", condition.kind);
                let labels = ConditionLabels { condition: name };
                self.conditions.get_or_create(&labels).set(i64::from(condition.status));
            }
            self.commit.clear();
            if let Some(applied) = state.applied {
                self.commit.get_or_create(&CommitLabels { commit: applied.commit }).set(1);
            }
        }
        for family in [&self.delivered, &self.dropped, &self.failing] {
            family.clear();
        }
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (receiver, place) in place::all(store)? {
            let labels = ReceiverLabels { receiver };
            self.delivered.get_or_create(&labels).set(count(place.delivered));
            self.dropped.get_or_create(&labels).set(count(place.dropped));
            self.failing.get_or_create(&labels).set(i64::from(place.failing.is_some()));
        }
        Ok(())
    }

    fn look_at_fleet(&self, store: &Store) -> Result<(), MetricsError> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = counted.is_some_and(|(at, took)| {
            at.elapsed() < FLEET_PAUSE.max(took.saturating_mul(FLEET_SHARE))
        });
        if recent {
            return Ok(());
        }
        let begun = Instant::now();
        let vas = fleet::fleet(store)?.vas;
        let mut counts: std::collections::BTreeMap<(String, SyncState), i64> = Default::default();
        for va in &vas {
            for state in SyncState::ALL {
                *counts.entry((va.composition.to_string(), state)).or_default() +=
                    i64::from(state == va.state);
            }
        }
        self.vas.clear();
        for ((template, state), count) in counts {
            let labels = VaLabels { template, state: state.to_string() };
            self.vas.get_or_create(&labels).set(count);
        }
        *counted = Some((Instant::now(), begun.elapsed()));
        Ok(())
    }

    fn look_at_process(&self) {
        let pages = std::fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<i64>().ok());
        let page = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
        self.resident.set(pages.unwrap_or(0).saturating_mul(page));
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        self.descriptors.set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(transparent)]
    Store(#[from] strata_store::StoreError),
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error(transparent)]
    Rollout(#[from] crate::rollout::RolloutFileError),
    #[error("the text cannot be written: {0}")]
    Text(std::fmt::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_prometheus_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(directory.path()).expect("a store");
        let metrics = Metrics::default();
        metrics.failed();
        metrics.happened(&Event::PassFailed { message: "x".to_owned() });
        let page = metrics.page(&store).expect("a page");
        for line in [
            "# TYPE strata_passes counter",
            "strata_passes_total{result=\"failed\"} 1",
            "strata_events_total{kind=\"pass-failed\"} 1",
            "# UNIT strata_last_pass_timestamp_seconds seconds",
            "strata_rollouts{phase=\"halted\"} 0",
            "process_open_fds ",
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        let mut families = std::collections::BTreeSet::new();
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(families.insert(name.to_owned()), "{name} twice");
        }
        assert!(families.len() >= 7, "{families:?}");
    }
}
