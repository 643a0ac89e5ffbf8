//! Following the VA's link in the store: look, compose aside, swap, report (§4.4, §5.5).
//!
//! The link is the order, the report is the answer. A generation that cannot be
//! composed leaves the one that is served, and the report says why.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use strata_core::report::{Report, SCRIPTS_VERSION, ServingState, VERSION};
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;

use crate::index::cache::Cache;
use crate::layer::LayerSet;
use crate::scripts::{Scripts, Turn};
use crate::set;
use crate::sys::schedule;
use crate::vfs::{SetInfo, SwapOutcome, Vfs};

/// A generation that was refused is tried again this often: its store may be mended.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// What is known of following, for `status` and the report.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub desired: Option<GenerationId>,
    /// Why the last composition was refused.
    pub error: Option<String>,
    /// Why the report cannot be written.
    pub report_error: Option<String>,
}

#[derive(Debug)]
pub struct Follower {
    pub store: Store,
    pub mac: MacAddr,
    pub reports: PathBuf,
    pub mount_point: PathBuf,
    pub report_interval: Duration,
    pub started: SystemTime,
    pub progress: Arc<Mutex<Progress>>,
    pub cache: Cache,
    /// The layers' scripts, where a VA runs on this mount.
    pub scripts: Option<Arc<Scripts>>,
}

impl Follower {
    /// Polls until `stop`, then writes the last report.
    pub fn run(&self, vfs: &Arc<Vfs>, poll: Duration, stop: &crate::stop::Stop) {
        let mut reported: Option<(Instant, Report)> = None;
        let mut refused: Option<(Instant, GenerationId)> = None;
        let mut unwritable: Option<Instant> = None;
        // Requests go first: a set that is composed a little later keeps nobody waiting.
        if let Err(error) = schedule::run_in_stretches(schedule::LONGEST) {
            tracing::debug!(%error, "requests wait for a set that is composed");
        }
        loop {
            if let Err(error) = crate::proc::keep_root() {
                tracing::debug!(%error, "the root directory cannot be looked at");
            }
            self.step(vfs, &mut refused);
            let report = self.report(vfs, ServingState::Serving);
            let due = reported.as_ref().is_none_or(|(at, last)| {
                at.elapsed() >= self.report_interval || !same_state(last, &report)
            });
            if due && unwritable.is_none_or(|at| at.elapsed() >= TRY_AGAIN) {
                match strata_store::write_report(&self.reports, &report) {
                    Ok(()) => {
                        reported = Some((Instant::now(), report));
                        unwritable = None;
                        self.note_report(None);
                    }
                    Err(error) => {
                        // Told once, tried again for as long as it lasts.
                        self.note_report(Some(error.to_string()));
                        if unwritable.replace(Instant::now()).is_none() {
                            tracing::warn!(%error, "the report cannot be written");
                        }
                    }
                }
            }
            if stop.wait(poll) {
                break;
            }
        }
        if let Some(scripts) = &self.scripts {
            scripts.end();
        }
        self.write(&self.report(vfs, ServingState::Stopped));
    }

    /// One look at the link, with the swap that it asks for.
    fn step(&self, vfs: &Arc<Vfs>, refused: &mut Option<(Instant, GenerationId)>) {
        let desired = match self.store.desired(self.mac) {
            Ok(Some(desired)) => desired,
            Ok(None) => return self.note(None, Some("the VA has no link in the store".to_owned())),
            Err(error) => return self.note(None, Some(error.to_string())),
        };
        let turn = self.scripts.as_ref().map_or(Turn::Free, |scripts| scripts.turn(vfs, desired));
        // What is aimed at, and why it is not what the link names.
        let (aim, held) = match turn {
            Turn::Free => (desired, None),
            Turn::Held { why, back } => (back, Some(why)),
            Turn::Busy => return self.note(Some(desired), None),
            Turn::Failed(error) => {
                *refused = Some((Instant::now(), desired));
                return self.note(Some(desired), Some(error));
            }
        };
        let active = vfs.active();
        // A damaged index gives errors until another is in its place.
        let damaged = active.union.is_damaged();
        if active.info.generation == Some(aim) && !damaged {
            *refused = None;
            self.note(Some(desired), held);
            if let Some(scripts) = &self.scripts {
                scripts.settle(vfs, aim);
            }
            return;
        }
        let again = |(at, id): &(Instant, GenerationId)| *id != aim || at.elapsed() >= TRY_AGAIN;
        if !refused.as_ref().is_none_or(again) {
            return;
        }
        let known = (!damaged).then(|| active.set());
        let swapped = set::open_generation(&self.store, &aim, known.as_ref(), Some(&self.cache))
            .map_err(|error| error.to_string())
            .and_then(|(set, info)| self.swap(vfs, set, info));
        match swapped {
            Ok(outcome) => {
                if let Some(outcome) = outcome {
                    tracing::info!(
                        generation = %aim.short(), names = outcome.names,
                        directories = outcome.directories, "swapped"
                    );
                    if let Some(scripts) = &self.scripts {
                        scripts.settle(vfs, aim);
                    }
                }
                *refused = None;
                self.note(Some(desired), held);
            }
            Err(error) => {
                if refused.as_ref().is_none_or(|(_, id)| *id != aim) {
                    tracing::error!(generation = %aim.short(), %error, "the generation is refused");
                }
                *refused = Some((Instant::now(), aim));
                self.note(Some(desired), Some(error));
            }
        }
    }

    /// Swaps; `None` where scripts run first and the swap follows them.
    fn swap(
        &self,
        vfs: &Arc<Vfs>,
        set: LayerSet,
        info: SetInfo,
    ) -> Result<Option<SwapOutcome>, String> {
        match &self.scripts {
            Some(scripts) => scripts.swap(vfs, set, info).map_err(|error| error.to_string()),
            None => vfs.swap(set, info).map(Some).map_err(|errno| errno.to_string()),
        }
    }

    fn note(&self, desired: Option<GenerationId>, error: Option<String>) {
        let mut progress = self.progress.lock().expect("no panic while held");
        progress.desired = desired.or(progress.desired);
        progress.error = error;
    }

    fn note_report(&self, error: Option<String>) {
        let error = error.map(|error| format!("the report cannot be written: {error}"));
        self.progress.lock().expect("no panic while held").report_error = error;
    }

    fn report(&self, vfs: &Vfs, state: ServingState) -> Report {
        let active = vfs.active();
        let progress = self.progress.lock().expect("no panic while held").clone();
        let composition = active.info.composition.as_ref();
        let scripts = self.scripts.as_ref().and_then(|scripts| scripts.report());
        Report {
            version: if scripts.is_some() { SCRIPTS_VERSION } else { VERSION },
            mac: self.mac,
            state,
            generation: active.info.generation,
            composition: composition.and_then(|name| name.parse().ok()),
            layers: u32::try_from(active.layers.len()).unwrap_or(u32::MAX),
            desired: progress.desired,
            error: progress.error.or_else(|| vfs.first_open()?.error()),
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            mount_point: self.mount_point.display().to_string(),
            swaps: vfs.swap_count(),
            started_at_ms: milliseconds(self.started),
            written_at_ms: milliseconds(SystemTime::now()),
            interval_s: u32::try_from(self.report_interval.as_secs()).unwrap_or(u32::MAX),
            scripts,
        }
    }

    /// Says that the VA could not be mounted at all.
    pub fn report_failure(&self, error: &str) {
        let now = milliseconds(SystemTime::now());
        self.write(&Report {
            version: VERSION,
            mac: self.mac,
            state: ServingState::Failed,
            generation: None,
            composition: None,
            layers: 0,
            desired: self.progress.lock().expect("no panic while held").desired,
            error: Some(error.to_owned()),
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            mount_point: self.mount_point.display().to_string(),
            swaps: 0,
            started_at_ms: milliseconds(self.started),
            written_at_ms: now,
            interval_s: u32::try_from(self.report_interval.as_secs()).unwrap_or(u32::MAX),
            scripts: None,
        });
    }

    fn write(&self, report: &Report) {
        if let Err(error) = strata_store::write_report(&self.reports, report) {
            tracing::warn!(%error, "the report cannot be written");
        }
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether two reports differ in nothing but their time.
fn same_state(a: &Report, b: &Report) -> bool {
    let mut b = b.clone();
    b.written_at_ms = a.written_at_ms;
    *a == b
}
