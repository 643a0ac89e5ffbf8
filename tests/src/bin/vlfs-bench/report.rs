//! Figures and goals: progress on stderr, a table on stdout, JSON.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::system::{ALL, Kind};
use crate::work::{Goal, Measured, Workload};

/// Where the bench works: on a disk, not in memory.
pub fn scratch() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// The middle value; of an even number the lower of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Median of the ratios of two file systems, round by round.
fn ratio(measured: &Measured, of: Kind, to: Kind) -> Option<f64> {
    let (of, to) = (measured.get(&of)?, measured.get(&to)?);
    let ratios: Vec<_> = of.iter().zip(to).map(|(of, to)| of / to).collect();
    Some(median(&ratios))
}

pub struct Report {
    started: Instant,
    goals: Vec<Value>,
    figures: Vec<String>,
    rows: Vec<String>,
}

impl Report {
    pub fn new(started: Instant) -> Report {
        Report { started, goals: Vec::new(), figures: Vec::new(), rows: Vec::new() }
    }

    pub fn progress(&self, what: &str) {
        eprintln!("[{:4.0} s] {what}", self.started.elapsed().as_secs_f64());
    }

    /// A figure that no goal is set for.
    pub fn figure(&mut self, what: &str, value: f64, unit: &str) {
        eprintln!("         {what}: {value:.2} {unit}");
        self.figures.push(format!("{what:<58} {value:>10.2} {unit}"));
    }

    /// A value that must be at most `limit`, or at least where `at_least` is set.
    pub fn goal(&mut self, goal: &str, value: f64, limit: f64, unit: &str, at_least: bool) {
        let holds = if at_least { value >= limit } else { value <= limit };
        let word = if holds { "holds" } else { "DOES NOT HOLD" };
        eprintln!("         {goal}: {value:.3} {unit}, limit {limit}: {word}");
        let value = (value * 1000.0).round() / 1000.0;
        self.goals.push(
            json!({ "goal": goal, "value": value, "limit": limit, "unit": unit, "holds": holds }),
        );
    }

    pub fn workload(&mut self, workload: &Workload, measured: &Measured) {
        let native = measured.get(&Kind::Native).map_or(f64::NAN, |seconds| median(seconds));
        let mut row = format!("{:<26} {:>9.1}", workload.name, native * 1000.0);
        for kind in ALL.into_iter().filter(|kind| *kind != Kind::Native) {
            match ratio(measured, kind, Kind::Native) {
                Some(ratio) => row.push_str(&format!(" {ratio:>9.2}")),
                None => row.push_str("         –"),
            }
        }
        eprintln!("         {row}");
        self.rows.push(row);
        for goal in workload.goals {
            let (name, limit, to, at_least) = match *goal {
                Goal::Native(limit) => (String::new(), limit, Kind::Native, false),
                Goal::FasterThan(kind) => (format!(" against {}", kind.name()), 1.0, kind, false),
                Goal::TimesFaster(kind, limit) => {
                    (format!(", times faster than {}, at least", kind.name()), limit, kind, true)
                }
            };
            let (of, to) = if at_least { (to, Kind::Strata) } else { (Kind::Strata, to) };
            if let Some(value) = ratio(measured, of, to) {
                let unit = if at_least || to != Kind::Native { "×" } else { "× native" };
                self.goal(&format!("{}{name}", workload.name), value, limit, unit, at_least);
            }
        }
    }

    /// Prints everything. Returns whether all goals hold.
    pub fn finish(&self, json: Option<&Path>) -> Result<bool> {
        if !self.rows.is_empty() {
            println!(
                "workload                    native ms  overlay fuse-ovl    strata  no-passth  (× native)"
            );
            self.rows.iter().for_each(|row| println!("{row}"));
            println!();
        }
        self.figures.iter().for_each(|figure| println!("{figure}"));
        println!("\n{:<58} {:>10} {:>8}", "goal", "value", "limit");
        for goal in &self.goals {
            let holds = if goal["holds"] == true { "holds" } else { "DOES NOT HOLD" };
            let (name, unit) = (goal["goal"].as_str(), goal["unit"].as_str());
            let number = |key: &str| goal[key].as_f64().unwrap_or(f64::NAN);
            println!(
                "{:<58} {:>10.3} {:>8} {:<9} {holds}",
                name.unwrap_or_default(),
                number("value"),
                number("limit"),
                unit.unwrap_or_default()
            );
        }
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&self.goals)? + "\n";
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(self.goals.iter().all(|goal| goal["holds"] == true))
    }
}
