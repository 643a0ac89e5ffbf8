//! Sealed generations of many layers: mount, swap, memory at rest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::UnmountFlags;
use strata_core::database::unit_digest;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::{CompositionName, Digest, MacAddr, RepositoryName};
use strata_store::{Store, VaTarget};
use strata_tests::commands::run;
use strata_tests::goals::median;

use crate::report::Report;
use crate::trees::Size;

/// The number of layers that the goals speak of.
const MANY: usize = 404;
const ROUNDS: usize = 5;
/// How many times as long a mount of many files may take as one of few, to count as flat.
const FLAT: f64 = 1.5;
const DEADLINE: Duration = Duration::from_secs(60);

struct Host<'a> {
    store: Store,
    vlfs: &'a Path,
    point: PathBuf,
    private: PathBuf,
}

pub fn measure(work: &Path, vlfs: &Path, size: &Size, report: &mut Report) -> Result<()> {
    let store = Store::init(&work.join("store"))?;
    let (point, private) = (work.join("va"), work.join("va-private"));
    fs::create_dir(&point)?;
    let host = Host { store, vlfs, point, private };
    let each = size.generation_files / MANY;
    let most = size.generations.iter().copied().max().unwrap_or(MANY);
    let names: Vec<_> = (0..most).map(|n| (format!("layer-{n}"), "1", files(n, each))).collect();
    let units = host.publish(&names)?;
    let mut many = f64::NAN;
    for layers in size.generations {
        let mut times = Vec::new();
        host.roll_out(units[..*layers].to_vec())?;
        for round in 0..=ROUNDS {
            let begin = Instant::now();
            host.mount()?;
            // The first mount may make what later ones find.
            if round > 0 {
                times.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
            if *layers == MANY && round == ROUNDS {
                host.at_rest(size, report)?;
            }
            host.unmount()?;
        }
        if *layers == MANY {
            let goal = format!("mount, {MANY} layers, {} files", each * MANY);
            many = median(&times);
            report.goal(&goal, many, 50.0, "ms", false);
        } else {
            report.figure(&format!("mount, {layers} layers"), median(&times), "ms");
        }
    }
    host.flat(many, report)?;
    for layers in size.generations {
        host.swaps(&units[..*layers], report)?;
    }
    Ok(())
}

/// Files of the n-th layer: those above 404 only add to the number of layers.
fn files(layer: usize, each: usize) -> usize {
    if layer < MANY { each } else { 20 }
}

impl Host<'_> {
    /// Publishes units of the repository `main`: name, version, number of files.
    fn publish(&self, units: &[(String, &str, usize)]) -> Result<Vec<LayerSetEntry>> {
        let repository = RepositoryName::new("main")?;
        let mut entries = Vec::new();
        let mut writer = self.store.write_repository(&repository)?;
        for (name, version, count) in units {
            let staged = self.store.stage_unit(&repository)?;
            let mut tree = BTreeMap::new();
            for directory in ["", "usr", "usr/share"] {
                tree.insert(directory.to_owned(), Kind::Directory);
            }
            let own = format!("usr/share/{name}");
            for file in 0..*count {
                let directory = format!("{own}/part-{}", file / 64);
                fs::create_dir_all(staged.filesystem().join(&directory))?;
                let path = format!("{directory}/file-{file}");
                let content = format!("{name} {version} {file}\n");
                fs::write(staged.filesystem().join(&path), &content)?;
                let digest = Digest::of(content.as_bytes());
                tree.insert(path, Kind::Regular { size: content.len() as u64, digest });
                tree.insert(directory, Kind::Directory);
            }
            tree.insert(own, Kind::Directory);
            let manifest = Manifest::new(tree.into_iter().map(entry).collect())?;
            let metadata = Metadata::new(name.parse()?, version.parse()?, LayerKind::Software);
            entries.push(LayerSetEntry {
                kind: LayerKind::Software,
                repository: repository.clone(),
                layer: metadata.layer.clone(),
                version: metadata.version.clone(),
                digest: unit_digest(&metadata, &manifest.print(), &BTreeMap::default()),
            });
            writer.publish(staged, metadata, &manifest)?;
        }
        writer.commit()?;
        Ok(entries)
    }

    /// Makes these layers what the VA should serve. Returns the generation's id.
    fn roll_out(&self, mut layers: Vec<LayerSetEntry>) -> Result<String> {
        layers.sort_by(|a, b| (&a.layer, &a.version).cmp(&(&b.layer, &b.version)));
        let composition: CompositionName = "bench".parse()?;
        let ldf = layers.iter().map(|entry| format!("{entry}\n")).collect();
        let generation = Generation::new(composition.clone(), layers, ldf)?;
        let (id, _) = self.store.seal_generation(&generation, "bench")?;
        let ring = "all".parse()?;
        self.store.move_ring(&composition, &ring, &id)?;
        if self.store.va_target(mac()?)?.is_none() {
            self.store.claim_va(mac()?, &VaTarget::Ring { composition, ring })?;
        }
        Ok(id.to_string())
    }

    fn mount(&self) -> Result<()> {
        let mut command = Command::new(self.vlfs);
        command.args(["mount", "--va", &mac()?.to_string(), "--poll-ms", "10", "--store"]);
        command.arg(self.store.root()).arg("--private").arg(&self.private);
        command.arg("--index-cache").arg(self.private.with_file_name("index")).arg(&self.point);
        run(command.stdout(Stdio::null()))
    }

    fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(self.vlfs);
        command.arg("status").arg(&self.point).args(["--output", "json"]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn daemon(&self) -> Result<PathBuf> {
        let pid = self.status()?["pid"].as_u64().context("the status has no pid")?;
        Ok(PathBuf::from(format!("/proc/{pid}")))
    }

    fn unmount(&self) -> Result<()> {
        let daemon = self.daemon()?;
        rustix::mount::unmount(&self.point, UnmountFlags::empty())?;
        wait("the daemon's end", || Ok(!daemon.join("exe").exists()))
    }

    fn at_rest(&self, size: &Size, report: &mut Report) -> Result<()> {
        let rollup = fs::read_to_string(self.daemon()?.join("smaps_rollup"))?;
        let kib = |name: &str| -> f64 {
            let lines = rollup.lines().filter_map(|line| line.strip_prefix(name));
            let values =
                lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            values.sum::<f64>() / 1024.0
        };
        let goal = format!("memory at rest, {MANY} layers, {} files", size.generation_files);
        report.goal(&goal, kib("Pss:"), 64.0, "MiB", false);
        let private = kib("Private_Clean:") + kib("Private_Dirty:");
        report.figure("memory at rest, private to the daemon", private, "MiB");
        Ok(())
    }

    /// As many layers with few files: what of a mount depends on their number.
    fn flat(&self, many_files: f64, report: &mut Report) -> Result<()> {
        let names: Vec<_> = (0..MANY).map(|n| (format!("small-{n}"), "1", 5)).collect();
        let units = self.publish(&names)?;
        self.roll_out(units)?;
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let begin = Instant::now();
            self.mount()?;
            if round > 0 {
                times.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
            self.unmount()?;
        }
        let what = format!("mount, {MANY} layers, {} files", 5 * MANY);
        report.figure(&what, median(&times), "ms");
        let goal = format!("mount, {MANY} layers, against that with {} files", 5 * MANY);
        report.goal(&goal, many_files / median(&times), FLAT, "×", false);
        Ok(())
    }

    /// Replaces one layer again and again while files of another are opened.
    fn swaps(&self, units: &[LayerSetEntry], report: &mut Report) -> Result<()> {
        let count = units.len();
        let other = self.publish(&[("layer-1".to_owned(), "2", 300)])?;
        let mut replaced = units.to_vec();
        replaced[1] = other[0].clone();
        self.roll_out(units.to_vec())?;
        self.mount()?;
        let observer = Observer::new(self.point.join("usr/share/layer-0/part-0/file-0"));
        let measured = std::thread::scope(|scope| {
            let watching = scope.spawn(|| observer.watch());
            let swapped = (0..ROUNDS * 2).map(|round| {
                let next = if round % 2 == 0 { &replaced } else { units };
                self.swap_once(next, &observer)
            });
            let swapped: Result<Vec<_>> = swapped.collect();
            observer.stop.store(true, Ordering::Relaxed);
            watching.join().map_err(|_| anyhow::anyhow!("the observer panicked"))?;
            swapped
        });
        let gauges = self.status()?["gauges"].take();
        self.unmount()?;
        let measured = measured?;
        let wall: Vec<_> = measured.iter().map(|(wall, _)| *wall).collect();
        let longest: Vec<_> = measured.iter().map(|(_, longest)| *longest).collect();
        report.figure(&format!("swap of one layer among {count}, whole"), median(&wall), "ms");
        let failed = observer.failed.load(Ordering::Relaxed) as f64;
        if count == MANY {
            let goal = format!("swap of one layer among {count}, longest open");
            report.goal(&goal, median(&longest), 1.0, "ms", false);
            report.goal("failed opens during swaps", failed, 0.0, "", false);
            for (what, gauge) in [
                ("names wait for the exchange", "longest_exchange_us"),
                ("an answer", "longest_answer_in_swap_us"),
            ] {
                let longest = gauges[gauge].as_f64().context("the status has no such gauge")?;
                let what = format!("the same swaps, in the daemon: {what}, at most");
                report.figure(&what, longest / 1000.0, "ms");
            }
        }
        Ok(())
    }

    /// Milliseconds until the mount serves the new set, and the longest open meanwhile.
    fn swap_once(&self, layers: &[LayerSetEntry], observer: &Observer) -> Result<(f64, f64)> {
        observer.longest.store(0, Ordering::Relaxed);
        let begin = Instant::now();
        let id = self.roll_out(layers.to_vec())?;
        let mut value = [0; 128];
        wait("the swap", || {
            let length =
                rustix::fs::getxattr(&self.point, "user.strata.generation", &mut value[..])?;
            Ok(value[..length] == *id.as_bytes())
        })?;
        let wall = begin.elapsed().as_secs_f64() * 1000.0;
        Ok((wall, observer.longest.load(Ordering::Relaxed) as f64 / 1e6))
    }
}

/// Opens a file that no swap touches, all the time.
struct Observer {
    path: PathBuf,
    stop: AtomicBool,
    /// Nanoseconds.
    longest: AtomicU64,
    failed: AtomicU64,
}

impl Observer {
    fn new(path: PathBuf) -> Observer {
        let (longest, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Observer { path, stop: AtomicBool::new(false), longest, failed }
    }

    fn watch(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            if File::open(&self.path).is_err() {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
    }
}

fn mac() -> Result<MacAddr> {
    Ok("52:54:00:00:00:01".parse()?)
}

fn entry((path, kind): (String, Kind)) -> Entry {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let (mtime, xattrs) = (Timestamp::default(), BTreeMap::default());
    Entry { path: path.into_bytes(), kind, mode, uid: 0, gid: 0, mtime, link_count: 1, xattrs }
}

/// Waits for a condition, at most a minute.
fn wait(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !condition()? {
        ensure!(begin.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        // Looking all the time would take a processor from who is measured.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
