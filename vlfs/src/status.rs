//! What a mounted file system says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::data::{self, DataStatus};
use crate::follow::Progress;
use crate::fuse::latency::LatencyStatus;
use crate::fuse::session::Session;
use crate::fuse::worker::MOST_WORKERS;
use crate::gauges::{self, Holder, Memory};
use crate::proc;
use crate::scripts::{Scripts, ScriptsStatus};
use crate::verify::first_open::FirstOpen;
use crate::vfs::Vfs;
use strata_core::data_paths::DataPaths;

/// Files that are named; their number is not bounded by it.
const NAMED: usize = 64;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerStatus {
    /// `repo/layer version`, or the directory.
    pub name: String,
    pub digest: Option<String>,
    pub paths: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldLayer {
    pub name: String,
    pub open_files: usize,
    /// Who holds them, as far as this daemon's `/proc` shows.
    #[serde(default)]
    pub processes: Vec<Holder>,
}

/// What the daemon keeps and may keep.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gauges {
    pub memory: Memory,
    /// Threads that answer requests: now, and while all are busy.
    pub workers: usize,
    pub workers_limit: usize,
    /// Of all swaps: how long names waited for the exchange at most, and how long an
    /// answer took while one was under way.
    pub longest_exchange_us: u64,
    pub longest_answer_in_swap_us: u64,
    /// Whether processors are kept from halting while requests flow.
    pub idle_latency: LatencyStatus,
    /// Files that the kernel reads and writes itself.
    pub backing_files: usize,
    /// How many of them are kept open for the next open, at most.
    pub kept_files_limit: usize,
    /// Descriptors, where they can be counted, and their limit: the bound of open files.
    pub descriptors: Option<usize>,
    pub descriptors_limit: Option<u64>,
    /// -1000: the kernel never ends it to get memory.
    pub oom_score_adj: Option<i32>,
    /// Requests so far, by kind; since the daemon's program began to serve.
    pub requests: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub mount_point: PathBuf,
    pub pid: u32,
    pub mac: Option<String>,
    /// The store that it follows.
    #[serde(default)]
    pub store: Option<PathBuf>,
    pub generation: Option<String>,
    pub composition: Option<String>,
    pub desired: Option<String>,
    /// Why the last swap was refused.
    pub error: Option<String>,
    /// Files of layers that were refused at their first open, some of them by name.
    #[serde(default)]
    pub damaged_files: Vec<String>,
    #[serde(default)]
    pub damaged_count: usize,
    /// Private files whose data is in no layer of the set and cannot be read, some by name.
    #[serde(default)]
    pub unreadable_files: Vec<String>,
    #[serde(default)]
    pub unreadable_count: usize,
    /// Private files whose data is still a layer's.
    #[serde(default)]
    pub borrowed_files: usize,
    /// Topmost first.
    pub layers: Vec<LayerStatus>,
    /// Layers of former sets that open files still hold.
    pub held_layers: Vec<HeldLayer>,
    /// `on`, or why not.
    pub passthrough: String,
    pub private: PathBuf,
    /// Data directories by path.
    pub data: Vec<DataStatus>,
    pub paths: usize,
    pub nodes: usize,
    pub open_files: usize,
    pub open_directories: usize,
    #[serde(default)]
    pub gauges: Gauges,
    /// The layers' scripts; `None` where no VA runs on the mount, and none are run.
    #[serde(default)]
    pub scripts: Option<ScriptsStatus>,
    pub swaps: u64,
    pub uptime_s: u64,
    pub started_at_ms: u64,
}

/// Where a status comes from.
#[derive(Debug)]
pub struct StatusSource {
    pub vfs: Arc<Vfs>,
    pub session: Arc<Session>,
    pub mount_point: PathBuf,
    pub mac: Option<strata_core::MacAddr>,
    pub store: Option<PathBuf>,
    /// The mount's device number.
    pub number: (u32, u32),
    pub wanted_passthrough: bool,
    /// The data directories that were mounted at the start.
    pub mounted_data: DataPaths,
    /// Those that the command line asked for.
    pub further_data: DataPaths,
    pub started: SystemTime,
    pub progress: Arc<Mutex<Progress>>,
    pub scripts: Option<Arc<Scripts>>,
}

impl StatusSource {
    /// Milliseconds since 1970.
    pub fn started_ms(&self) -> u64 {
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn follows_a_store(&self) -> bool {
        self.mac.is_some()
    }

    /// What the last swap of a mount of plain directories failed with, if it did.
    pub fn note_swap(&self, error: Option<String>) {
        self.progress.lock().expect("no panic while held").error = error;
    }

    fn held_layers(&self) -> Vec<HeldLayer> {
        let held = self.vfs.held_layers();
        let wanted = held.iter().flat_map(|(_, files)| files.iter().copied()).collect();
        let holders = gauges::holders(self.number, &wanted);
        let layer = |(name, files): (String, Vec<u64>)| {
            let processes: BTreeSet<_> =
                files.iter().filter_map(|ino| holders.get(ino)).flatten().cloned().collect();
            let processes = processes.into_iter().collect();
            HeldLayer { name, open_files: files.len(), processes }
        };
        held.into_iter().map(layer).collect()
    }

    fn gauges(&self) -> Gauges {
        let count = |directory| std::fs::read_dir(directory).ok().map(Iterator::count);
        let oom = std::fs::read_to_string(proc::own("oom_score_adj"));
        Gauges {
            memory: Memory::now(),
            workers: self.session.turn.workers(),
            workers_limit: MOST_WORKERS,
            longest_exchange_us: self.vfs.longest_exchange.microseconds(),
            longest_answer_in_swap_us: self.session.longest_answer.microseconds(),
            idle_latency: self.session.latency.status(),
            backing_files: self.vfs.backing_count(),
            kept_files_limit: self.vfs.kept_limit(),
            descriptors: count(proc::own("fd")),
            descriptors_limit: getrlimit(Resource::Nofile).current,
            oom_score_adj: oom.ok().and_then(|text| text.trim().parse().ok()),
            requests: self.session.requests.by_name(),
        }
    }

    /// What the active set and the command line ask for together.
    fn wanted_data(&self, declared: &DataPaths) -> DataPaths {
        let together = data::together(declared, &self.further_data);
        // A swap may declare what lies in a path of the command line: the next start
        // refuses that, and until then the declaration is what counts.
        together.unwrap_or_else(|_| declared.clone())
    }

    pub fn status(&self) -> Status {
        let active = self.vfs.active();
        let progress = self.progress.lock().expect("no panic while held").clone();
        let (nodes, open_files, open_directories) = self.vfs.counts();
        let layers = (0..).zip(&active.layers).map(|(position, layer)| LayerStatus {
            name: layer.name.clone(),
            digest: layer.digest.map(|digest| digest.to_string()),
            paths: active.union.index().paths_of(position),
        });
        let held = self.held_layers();
        let damaged = self.vfs.first_open().map(FirstOpen::damaged).unwrap_or_default();
        let unreadable = self.vfs.unreadable(NAMED);
        let passthrough = match (self.wanted_passthrough, self.vfs.has_passthrough()) {
            (false, _) => "off: switched off",
            (true, false) => "off: this kernel has none",
            (true, true) => "on",
        };
        Status {
            mount_point: self.mount_point.clone(),
            pid: std::process::id(),
            mac: self.mac.map(|mac| mac.to_string()),
            store: self.store.clone(),
            generation: active.info.generation.map(|id| id.to_string()),
            composition: active.info.composition.clone(),
            desired: progress.desired.map(|id| id.to_string()),
            error: progress.error.or(progress.report_error),
            damaged_files: damaged.0,
            damaged_count: damaged.1,
            unreadable_files: unreadable.0,
            unreadable_count: unreadable.1,
            borrowed_files: self.vfs.private().loans.count(),
            layers: layers.collect(),
            held_layers: held,
            passthrough: passthrough.to_owned(),
            data: data::states(&self.mounted_data, &self.wanted_data(&active.info.data)),
            private: self.vfs.private().path().to_owned(),
            paths: active.union.node_count(),
            nodes,
            open_files,
            open_directories,
            gauges: self.gauges(),
            scripts: self.scripts.as_ref().map(|scripts| scripts.status()),
            swaps: self.vfs.swap_count(),
            uptime_s: self.started.elapsed().unwrap_or_default().as_secs(),
            started_at_ms: self.started_ms(),
        }
    }
}
