//! Conversion of a closure of 400 packages against unpacking it with dpkg-deb, and the
//! check of its layers for shared paths.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use strata_core::manifest::Manifest;
use strata_core::metadata::Metadata;
use strata_core::shared_paths::{may_obscure, shared_paths, stacking_order};
use strata_store::Store;
use strata_tests::goals::{Goals, Limit, median};
use strata_tests::{packages, resolution};

use crate::bench::Bench;

/// Together they need some 460 packages.
const GOALS: [&str; 13] = [
    "apache2",
    "mariadb-server",
    "samba",
    "openssh-server",
    "postgresql",
    "build-essential",
    "git",
    "vim",
    "nginx",
    "postfix",
    "php",
    "xterm",
    "ffmpeg",
];
const PACKAGES: usize = 400;
/// The repository that they are imported into.
const IMPORTED: &str = "converted";

pub fn measure(bench: &Bench<'_>, directory: &Path, goals: &mut Goals) -> Result<()> {
    let files = download(&bench.database, directory, Some(PACKAGES))?;
    let bytes: u64 = files.iter().map(|file| file.metadata().map_or(0, |m| m.len())).sum();
    goals.progress(&format!("{} packages, {} MB", files.len(), bytes / 1_000_000));
    let rounds = if bench.quick { 1 } else { 3 };
    let (mut ratios, mut times) = (Vec::new(), Vec::new());
    let mut peak: f64 = 0.0;
    let store = bench.work.join("converted");
    for round in 0..rounds {
        let (ours, memory) = import(bench, &store, &files)?;
        let dpkgs = unpack(bench, &files)?;
        ratios.push(ours / dpkgs);
        times.push(ours);
        peak = peak.max(memory);
        if round + 1 < rounds {
            std::fs::remove_dir_all(&store)?;
        }
    }
    goals.figure(&format!("strata layer import, {} packages", files.len()), median(&times), "s");
    let goal = format!("conversion of {} packages against dpkg-deb -x", files.len());
    goals.goal(&goal, median(&ratios), Limit::AtMost(1.0), "×");
    goals.goal("memory of strata layer import", peak, Limit::AtMost(512.0), "MiB");
    goals.progress("shared paths");
    shared(bench, &store, goals)?;
    Ok(std::fs::remove_dir_all(&store)?)
}

/// How long the check for shared paths takes, with the manifests in memory: no pair of
/// layers of a closure that apt would install shares one that neither takes over.
fn shared(bench: &Bench<'_>, store: &Path, goals: &mut Goals) -> Result<()> {
    let store = Store::open(store)?;
    let repository = IMPORTED.parse()?;
    let units: Vec<Metadata> =
        store.database(&repository)?.into_units().map(|unit| unit.metadata).collect();
    let of_order: Vec<&Metadata> = units.iter().collect();
    let order: Vec<&Metadata> =
        stacking_order(&of_order).into_iter().map(|at| of_order[at]).collect();
    let read = |metadata: &&Metadata| {
        Ok(store.manifest(&repository, &metadata.layer, &metadata.version)?)
    };
    let manifests: Vec<Manifest> = order.iter().map(read).collect::<Result<_>>()?;
    let manifests: Vec<&Manifest> = manifests.iter().collect();
    let paths: usize = manifests.iter().map(|manifest| manifest.entries().len()).sum();
    let permits =
        |upper: usize, lower: usize, path: &[u8]| may_obscure(order[upper], order[lower], path);
    let mut times = Vec::new();
    for _ in 0..if bench.quick { 3 } else { 15 } {
        let started = Instant::now();
        let found = shared_paths(&manifests, permits);
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        if let Some(first) = found.first() {
            let (a, b) = (&order[first.first].layer, &order[first.second].layer);
            eprintln!("{a} and {b} share /{}", String::from_utf8_lossy(&first.path));
        }
    }
    let goal = format!("shared paths of {} layers, {paths} paths", manifests.len());
    goals.goal(&goal, median(&times), Limit::AtMost(50.0), "ms");
    Ok(())
}

/// The packages that the goals need, or the first `most` of them.
pub fn download(database: &Path, directory: &Path, most: Option<usize>) -> Result<Vec<PathBuf>> {
    let (universe, _) = resolution::load(database)?;
    let (found, _) = resolution::resolved(&universe, &resolution::desired(&GOALS)?)?;
    let units = found.map_err(anyhow::Error::msg)?;
    let most = most.unwrap_or(units.len());
    ensure!(units.len() >= most, "the goals need only {} packages", units.len());
    packages::download(&universe, units.into_iter().take(most), directory)
}

/// Returns the seconds that it took and the MiB that it had in memory at most.
fn import(bench: &Bench<'_>, store: &Path, files: &[PathBuf]) -> Result<(f64, f64)> {
    let mut init = Command::new(&bench.strata);
    ensure!(init.arg("init").arg(store).output()?.status.success(), "strata init failed");
    let mut command = Command::new("/usr/bin/time");
    command.args(["-f", "%M"]).arg(&bench.strata);
    command.args(["layer", "import", "--repo", IMPORTED, "--store"]).arg(store).args(files);
    let started = Instant::now();
    let output = command.output().context("run strata layer import")?;
    let took = started.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let kilobytes: f64 = said.lines().last().unwrap_or("").parse().context("time's answer")?;
    Ok((took, kilobytes / 1024.0))
}

fn unpack(bench: &Bench<'_>, files: &[PathBuf]) -> Result<f64> {
    let root = bench.work.join("unpacked");
    std::fs::create_dir(&root)?;
    let mut took = 0.0;
    for (at, file) in files.iter().enumerate() {
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(file).arg(root.join(at.to_string()));
        let started = Instant::now();
        let output = command.output().context("run dpkg-deb")?;
        took += started.elapsed().as_secs_f64();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(&root)?;
    Ok(took)
}
