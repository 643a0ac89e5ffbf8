//! The goals of the resolver. Strata and apt do the same in turn in every round,
//! and the median of the rounds' ratios counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use strata_tests::goals::{Goals, Limit, median};
use strata_tests::resolution;

use crate::apt::Apt;
use crate::compare::{Reason, differences};
use crate::conversion;

/// The paper's five appliances (§6), as the distribution calls them.
const SERVERS: [&str; 4] = ["apache2", "mariadb-server", "samba", "openssh-server"];
const DESKTOP: &str = "task-gnome-desktop";

pub struct Bench<'w> {
    pub strata: PathBuf,
    pub work: &'w Path,
    pub store: PathBuf,
    pub database: PathBuf,
    pub quick: bool,
}

impl Bench<'_> {
    /// Returns whether every goal holds.
    pub fn run(&self, packages: &Path, json: Option<&Path>) -> Result<bool> {
        let mut goals = Goals::default();
        self.in_memory(&mut goals)?;
        self.command(&mut goals)?;
        self.sets(&mut goals)?;
        goals.progress("conversion");
        conversion::measure(self, packages, &mut goals)?;
        goals.finish(json)
    }

    fn rounds(&self) -> usize {
        if self.quick { 3 } else { 7 }
    }

    /// Loading, and the first resolution after it.
    fn in_memory(&self, goals: &mut Goals) -> Result<()> {
        goals.progress("load and resolve in memory");
        let mut loads = Vec::new();
        let mut units = 0;
        for (limit, names) in [(5.0, &SERVERS[..]), (20.0, &[DESKTOP][..])] {
            for name in names {
                let desired = resolution::desired(&[name])?;
                let mut times = Vec::new();
                let mut size = 0;
                for _ in 0..self.rounds() {
                    let (universe, load) = resolution::load(&self.database)?;
                    let (found, took) = resolution::resolved(&universe, &desired)?;
                    size = found.map_err(anyhow::Error::msg).context(*name)?.len();
                    units = universe.len();
                    loads.push(load * 1000.0);
                    times.push(took * 1000.0);
                }
                let goal = format!("resolve {name} ({size} layers) after load");
                goals.goal(&goal, median(&times), Limit::AtMost(limit), "ms");
            }
        }
        let goal = format!("database load, {units} units");
        goals.goal(&goal, median(&loads), Limit::AtMost(200.0), "ms");
        Ok(())
    }

    /// The whole command, in turn with apt.
    fn command(&self, goals: &mut Goals) -> Result<()> {
        let fresh = Apt::new(self.work, false)?;
        let cached = Apt::new(self.work, true)?;
        let (universe, _) = resolution::load(&self.database)?;
        let essential = resolution::essential(&universe)?;
        let mut peak: f64 = 0.0;
        for name in SERVERS.into_iter().chain([DESKTOP]) {
            goals.progress(&format!("strata resolve and apt-get -s: {name}"));
            let packages: Vec<&str> = essential.iter().map(String::as_str).chain([name]).collect();
            cached.simulate(&packages)?;
            let (mut times, mut to_fresh, mut to_cached) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.rounds() {
                let took = self.resolve(name)?;
                to_fresh.push(fresh.simulate(&packages)?.took.as_secs_f64() / took);
                to_cached.push(cached.simulate(&packages)?.took.as_secs_f64() / took);
                times.push(took * 1000.0);
            }
            peak = peak.max(self.peak_memory(name)?);
            goals.figure(&format!("strata resolve, whole command, {name}"), median(&times), "ms");
            let goal = format!("whole command, times faster than apt-get -s, {name}");
            goals.goal(&goal, median(&to_fresh), Limit::AtLeast(10.0), "×");
            let what = format!("the same, apt with its caches made before, {name}");
            goals.figure(&what, median(&to_cached), "×");
        }
        goals.goal("memory of the whole command", peak, Limit::AtMost(512.0), "MiB");
        Ok(())
    }

    fn template(&self, name: &str) -> Result<PathBuf> {
        let directory = self.work.join("fleet");
        std::fs::create_dir_all(directory.join("templates"))?;
        std::fs::write(directory.join("strata.toml"), resolution::configuration())?;
        std::fs::write(directory.join("templates/goal.ldf"), resolution::template(&[name]))?;
        Ok(directory)
    }

    fn resolve(&self, name: &str) -> Result<f64> {
        let directory = self.template(name)?;
        let mut command = Command::new(&self.strata);
        command.args(["resolve", "--store"]).arg(&self.store).arg(&directory);
        let started = Instant::now();
        let output = command.output().context("run strata resolve")?;
        let took = started.elapsed().as_secs_f64();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(took)
    }

    /// MiB that the whole command has in memory at most.
    fn peak_memory(&self, name: &str) -> Result<f64> {
        let directory = self.template(name)?;
        let mut command = Command::new("/usr/bin/time");
        command.args(["-f", "%M"]).arg(&self.strata).args(["resolve", "--store"]);
        let output = command.arg(&self.store).arg(&directory).output().context("run time")?;
        let text = String::from_utf8_lossy(&output.stderr);
        let kilobytes: f64 = text.lines().last().unwrap_or("").parse().context("time's answer")?;
        Ok(kilobytes / 1024.0)
    }

    /// The same sets as apt for the five appliances, or each difference explained.
    fn sets(&self, goals: &mut Goals) -> Result<()> {
        let apt = Apt::new(self.work, true)?;
        let (universe, _) = resolution::load(&self.database)?;
        let essential = resolution::essential(&universe)?;
        let mut unexplained = 0;
        for name in SERVERS.into_iter().chain([DESKTOP]) {
            goals.progress(&format!("the sets: {name}"));
            let packages: Vec<&str> = essential.iter().map(String::as_str).chain([name]).collect();
            let installed = apt.simulate(&packages)?.installed;
            let apts = resolution::units_of(&universe, &installed.context("apt has no solution")?)?;
            let (ours, _) = resolution::resolved(&universe, &resolution::desired(&[name])?)?;
            let ours = ours.map_err(anyhow::Error::msg)?;
            let found = differences(&universe, &ours, &apts);
            for difference in &found {
                eprintln!("{name}: {}", difference.json());
            }
            unexplained += found.iter().filter(|d| d.reason == Reason::Unexplained).count();
            let what = format!("layers of {name} that are in one set only, of {}", ours.len());
            goals.figure(&what, found.len() as f64, "");
        }
        let goal = "differences from apt's sets for the five appliances, unexplained";
        goals.goal(goal, f64::from(u32::try_from(unexplained)?), Limit::AtMost(0.0), "");
        Ok(())
    }
}
