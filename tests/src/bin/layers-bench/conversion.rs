//! Conversion of a closure of 400 packages against unpacking it with dpkg-deb.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use strata_tests::goals::{Goals, Limit, median};

use crate::bench::Bench;
use crate::ours;

/// Together they need some 400 packages.
const GOALS: [&str; 12] = [
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
];
const PACKAGES: usize = 400;

pub fn measure(bench: &Bench<'_>, packages: &Path, goals: &mut Goals) -> Result<()> {
    let files = download(bench, packages)?;
    let bytes: u64 = files.iter().map(|file| file.metadata().map_or(0, |m| m.len())).sum();
    goals.progress(&format!("{} packages, {} MB", files.len(), bytes / 1_000_000));
    let rounds = if bench.quick { 1 } else { 3 };
    let (mut ratios, mut times) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ours = import(bench, &files)?;
        let dpkgs = unpack(bench, &files)?;
        ratios.push(ours / dpkgs);
        times.push(ours);
    }
    goals.figure(&format!("strata layer import, {} packages", files.len()), median(&times), "s");
    let goal = format!("conversion of {} packages against dpkg-deb -x", files.len());
    goals.goal(&goal, median(&ratios), Limit::AtMost(1.0), "×");
    Ok(())
}

/// The packages, downloaded where they are missing; apt checks each.
fn download(bench: &Bench<'_>, packages: &Path) -> Result<Vec<PathBuf>> {
    let (universe, _) = ours::load(&bench.database)?;
    let (found, _) = ours::resolved(&universe, &ours::desired(&GOALS)?)?;
    let units = found.map_err(anyhow::Error::msg)?;
    ensure!(units.len() >= PACKAGES, "the goals need only {} packages", units.len());
    std::fs::create_dir_all(packages)?;
    let mut wanted = Vec::new();
    let mut missing = Vec::new();
    for unit in units.into_iter().take(PACKAGES) {
        let metadata = &universe.unit(unit).metadata;
        let (layer, version) = (&metadata.layer, &metadata.version);
        let architecture = metadata.architecture.as_deref().unwrap_or("all");
        let escaped = version.as_str().replace(':', "%3a");
        let file = packages.join(format!("{layer}_{escaped}_{architecture}.deb"));
        if !file.exists() {
            missing.push(format!("{layer}={version}"));
        }
        wanted.push(file);
    }
    if !missing.is_empty() {
        eprintln!("downloading {} packages into {}", missing.len(), packages.display());
        let mut command = Command::new("apt-get");
        let status = command.args(["-q", "download"]).args(&missing).current_dir(packages).status();
        ensure!(status.context("run apt-get")?.success(), "apt-get download failed");
    }
    Ok(wanted)
}

fn import(bench: &Bench<'_>, files: &[PathBuf]) -> Result<f64> {
    let store = bench.work.join("converted");
    let mut init = Command::new(&bench.strata);
    ensure!(init.arg("init").arg(&store).output()?.status.success(), "strata init failed");
    let mut command = Command::new(&bench.strata);
    command.args(["layer", "import", "--repo", "converted", "--store"]).arg(&store).args(files);
    let started = Instant::now();
    let output = command.output().context("run strata layer import")?;
    let took = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(&store)?;
    Ok(took)
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
