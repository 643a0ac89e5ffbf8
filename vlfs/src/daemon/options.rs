//! What a mount is asked for. A daemon hands it to the program that takes its place.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_core::data_paths::DataPaths;
use strata_core::{GenerationId, MacAddr};

use crate::index::cache;
use crate::scripts::place::Place;

/// Where the layers come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Source {
    /// Directories, topmost first.
    Directories(Vec<PathBuf>),
    /// The link of a VA in a store.
    Va { store: PathBuf, mac: MacAddr, reports: Option<PathBuf> },
    /// A private directory of the past over layers, read-only: files are salvaged
    /// from it (§4.5). It is a layer here, and nothing in it is changed.
    Former { former: PathBuf, layers: FormerLayers },
}

/// What lies below a former private layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FormerLayers {
    Directories(Vec<PathBuf>),
    Generation { store: PathBuf, id: GenerationId },
}

/// All paths absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub source: Source,
    pub private: PathBuf,
    pub mount_point: PathBuf,
    pub passthrough: bool,
    pub read_only: bool,
    /// Check each layer file's content at its first open.
    pub verify_open: bool,
    /// Data directories beside those that the generation declares.
    pub data: DataPaths,
    pub poll: Duration,
    pub report_interval: Duration,
    /// Where the host keeps the indexes of generations.
    #[serde(default = "default_cache")]
    pub index_cache: PathBuf,
    /// The VA that runs on the mount, where scripts of the layers run.
    #[serde(default)]
    pub scripts: Option<Place>,
    /// How long waking an idle processor may take while requests flow, in
    /// microseconds; none: as long as it takes.
    #[serde(default = "default_idle_latency", skip_serializing_if = "is_default_latency")]
    pub idle_latency_us: Option<u32>,
}

/// Processors do not halt while requests flow.
pub const IDLE_LATENCY_US: u32 = 0;

#[expect(clippy::unnecessary_wraps, reason = "what the field holds where a state has none")]
fn default_idle_latency() -> Option<u32> {
    Some(IDLE_LATENCY_US)
}

/// Then it is not told, so that an earlier program can take over, too.
#[expect(clippy::ref_option, reason = "serde asks so")]
fn is_default_latency(latency: &Option<u32>) -> bool {
    *latency == default_idle_latency()
}

fn default_cache() -> PathBuf {
    cache::DEFAULT.into()
}
