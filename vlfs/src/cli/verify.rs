//! `strata-vlfs verify`: asks which generation, checks, shows how far it is.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;
use strata_vlfs::verify::{self, Options, Outcome, Progress, Sample};

use super::query::{ask_status, print, print_json};
use super::{DIFFERENT, Output, hinted};

/// A check that is shorter shows no progress bar.
const PATIENCE: Duration = Duration::from_secs(1);
const REDRAW: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata-vlfs verify /mnt                                   # what is mounted there
  strata-vlfs verify --store /srv/strata --va 52:54:00:12:34:56
  strata-vlfs verify /mnt --sample 5% --seed 7

Reads every file of every layer and compares content, type, mode, owner, size, time, link target,
device and extended attributes with the layer's manifest. Nothing is written.
Exit status: 0 no difference, 1 differences, 2 an error.")]
pub struct Verify {
    /// Where the file system is mounted.
    #[arg(required_unless_present_any = ["generation", "va"])]
    mount_point: Option<PathBuf>,
    /// The store [default: the one that the mount follows].
    #[arg(long, env = "STRATA_STORE")]
    store: Option<PathBuf>,
    /// A generation, without a mount.
    #[arg(long, value_name = "ID", conflicts_with_all = ["mount_point", "va"])]
    generation: Option<GenerationId>,
    /// The generation that the link of a VA names, without a mount.
    #[arg(long, value_name = "MAC", conflicts_with = "mount_point")]
    va: Option<MacAddr>,
    /// Check some paths only: a share such as `5%`, or a number of paths.
    #[arg(long, value_name = "SHARE|COUNT", value_parser = SampleArgument::from_str)]
    sample: Option<SampleArgument>,
    /// Picks the same sample again [default: another one each time].
    #[arg(long, requires = "sample")]
    seed: Option<u64>,
    /// Threads that read [default: one a processor, at most 8].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy)]
struct SampleArgument(Sample);

impl FromStr for SampleArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "write a share such as 5% or a number of paths such as 1000".to_owned();
        let sample = match text.strip_suffix('%') {
            Some(share) => {
                let percent: f64 = share.parse().map_err(|_| error())?;
                if !(percent > 0.0 && percent <= 100.0) {
                    return Err("a share is above 0 % and at most 100 %".to_owned());
                }
                Sample::Percent(percent)
            }
            None => match text.parse().map_err(|_| error())? {
                0 => return Err("a sample has one path or more".to_owned()),
                count => Sample::Count(count),
            },
        };
        Ok(SampleArgument(sample))
    }
}

impl Verify {
    pub fn run(&self) -> anyhow::Result<u8> {
        let (store, id) = self.generation()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = Options {
            sample: self.sample.map_or(Sample::All, |sample| sample.0),
            seed: self.seed.unwrap_or_else(any_seed),
            threads: self.threads.map_or(processors.min(8), usize::from),
        };
        let outcome = with_progress(&store, &id, &options)?;
        match self.output {
            Output::Json => print_json(&outcome)?,
            Output::Text => print(&text(&outcome))?,
        }
        Ok(if outcome.is_clean() { 0 } else { DIFFERENT })
    }

    fn generation(&self) -> anyhow::Result<(Store, GenerationId)> {
        let named = |hint| {
            let store = self.store.as_ref();
            let store = store.ok_or_else(|| hinted("no store is given", hint))?;
            anyhow::Ok(Store::open(store)?)
        };
        let give = "give --store DIR or set STRATA_STORE";
        if let Some(id) = self.generation {
            return Ok((named(give)?, id));
        }
        if let Some(mac) = self.va {
            let store = named(give)?;
            let desired = store.desired(mac)?.ok_or_else(|| {
                hinted(
                    format!("the store has no generation for the VA {mac}"),
                    "`strata va list` shows the VAs of a store",
                )
            })?;
            return Ok((store, desired));
        }
        let mount_point = self.mount_point.as_ref().ok_or_else(|| anyhow!("nothing is named"))?;
        let status = ask_status(mount_point)?;
        let id = status.generation.ok_or_else(|| {
            hinted(
                format!("{} is a union of plain directories", mount_point.display()),
                "plain directories have no manifests; a VA's mount has",
            )
        })?;
        let store = match (&self.store, &status.store) {
            (Some(_), _) | (None, None) => named("give --store DIR as this host sees it")?,
            (None, Some(store)) => Store::open(store).map_err(|error| {
                hinted(error.to_string(), "give --store DIR as this host sees it")
            })?,
        };
        Ok((store, id.parse()?))
    }
}

fn any_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Verifies in a thread of its own, and draws a bar on a terminal meanwhile.
fn with_progress(store: &Store, id: &GenerationId, options: &Options) -> anyhow::Result<Outcome> {
    let progress = Progress::default();
    let start = Instant::now();
    let (done, wait) = channel();
    std::thread::scope(|scope| {
        let progress = &progress;
        scope.spawn(move || {
            let outcome = verify::verify(store, id, options, progress);
            if done.send(outcome).is_err() {
                tracing::debug!("nobody waits for the outcome");
            }
        });
        let mut bar = None;
        let outcome = loop {
            match wait.recv_timeout(REDRAW) {
                Ok(outcome) => break outcome?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("the thread that verifies panicked"));
                }
            }
            let total = progress.total_bytes.load(Ordering::Relaxed);
            if start.elapsed() >= PATIENCE && total > 0 {
                let bar = bar.get_or_insert_with(|| new_bar(total));
                bar.set_position(progress.done_bytes.load(Ordering::Relaxed));
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(outcome)
    })
}

/// On standard error; draws nothing where that is no terminal.
fn new_bar(total: u64) -> indicatif::ProgressBar {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let bar = indicatif::ProgressBar::new(total);
    match indicatif::ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for difference in &outcome.differences {
        let path = difference.path.as_deref().map(|path| format!(" /{path}")).unwrap_or_default();
        let faults: Vec<_> = difference.faults.iter().map(ToString::to_string).collect();
        let _infallible = writeln!(text, "{}{path}: {}", difference.layer, faults.join("; "));
    }
    if outcome.omitted > 0 {
        let _infallible = writeln!(text, "… and {} more", outcome.omitted);
    }
    let checked = match outcome.seed {
        Some(seed) => format!("{} of {} paths (seed {seed})", outcome.checked_paths, outcome.paths),
        None => format!("{} paths", outcome.paths),
    };
    let count = outcome.differences.len() + outcome.omitted;
    let found = match count {
        0 => "no difference".to_owned(),
        1 => "1 difference".to_owned(),
        _ => format!("{count} differences"),
    };
    let _infallible = writeln!(
        text,
        "{found} in {} layers, {checked}, {} of content; {} sealed by fs-verity",
        outcome.layers,
        indicatif::HumanBytes(outcome.checked_bytes),
        outcome.fs_verity_files
    );
    text
}
