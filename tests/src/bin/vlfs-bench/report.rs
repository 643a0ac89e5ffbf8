//! Figures and goals: progress on stderr, a table on stdout, JSON.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use strata_tests::goals::{machine, median};

use crate::system::{ALL, Kind};
use crate::work::{Goal, Measured, Workload};

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
    /// Goals whose value must be at least the limit.
    lower_bounds: BTreeSet<String>,
}

impl Report {
    pub fn new(started: Instant) -> Report {
        Report {
            started,
            goals: Vec::new(),
            figures: Vec::new(),
            rows: Vec::new(),
            lower_bounds: BTreeSet::new(),
        }
    }

    pub fn progress(&self, what: &str) {
        eprintln!("[{:4.0} s] {what}", self.started.elapsed().as_secs_f64());
    }

    /// A figure that no goal is set for.
    pub fn figure(&mut self, what: &str, value: f64, unit: &str) {
        eprintln!("         {what}: {value:.2} {unit}");
        self.figures.push(format!("{what:<68} {value:>10.2} {unit}"));
    }

    /// A value that must be at most `limit`, or at least where `at_least` is set.
    pub fn goal(&mut self, goal: &str, value: f64, limit: f64, unit: &str, at_least: bool) {
        let holds = if at_least { value >= limit } else { value <= limit };
        let word = if holds { "holds" } else { "DOES NOT HOLD" };
        eprintln!("         {goal}: {value:.3} {unit}, limit {limit}: {word}");
        let value = (value * 1000.0).round() / 1000.0;
        if at_least {
            self.lower_bounds.insert(goal.to_owned());
        }
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
        for strata in [Kind::Strata, Kind::StrataOff] {
            workload
                .goals
                .iter()
                .for_each(|goal| self.workload_goal(workload, *goal, strata, measured));
        }
    }

    fn workload_goal(
        &mut self,
        workload: &Workload,
        goal: Goal,
        strata: Kind,
        measured: &Measured,
    ) {
        let name = match strata {
            Kind::StrataOff => format!("{}, no passthrough", workload.name),
            _ => workload.name.to_owned(),
        };
        let (name, value, limit, unit, at_least) = match goal {
            Goal::Native(limit) => {
                (name, ratio(measured, strata, Kind::Native), limit, "× native", false)
            }
            Goal::FasterThan(kind) => {
                let name = format!("{name}, against {}", kind.name());
                (name, ratio(measured, strata, kind), 1.0, "×", false)
            }
            Goal::TimesFaster(kind, limit) => {
                let name = format!("{name}, times faster than {}", kind.name());
                (name, ratio(measured, kind, strata), limit, "×", true)
            }
        };
        if let Some(value) = value {
            self.goal(&name, value, limit, unit, at_least);
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
        println!("\n{:<68} {:>10}   {:>8}", "goal", "value", "limit");
        for goal in &self.goals {
            let holds = if goal["holds"] == true { "holds" } else { "DOES NOT HOLD" };
            let (name, unit) = (goal["goal"].as_str(), goal["unit"].as_str());
            let number = |key: &str| goal[key].as_f64().unwrap_or(f64::NAN);
            println!(
                "{:<68} {:>10.3} {} {:>8} {:<9} {holds}",
                name.unwrap_or_default(),
                number("value"),
                if self.lower_bounds.contains(name.unwrap_or_default()) { "≥" } else { "≤" },
                number("limit"),
                unit.unwrap_or_default()
            );
        }
        println!("\n{}, measured in {:.0} s", machine(), self.started.elapsed().as_secs_f64());
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&self.goals)? + "\n";
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(self.goals.iter().all(|goal| goal["holds"] == true))
    }
}
