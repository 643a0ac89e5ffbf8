//! Measured values against goals: progress on standard error, a table on
//! standard output, JSON as a list of `{goal, value, limit, unit, holds}`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug)]
pub struct Goals {
    started: Instant,
    goals: Vec<Value>,
    figures: Vec<String>,
}

impl Default for Goals {
    fn default() -> Self {
        Goals { started: Instant::now(), goals: Vec::new(), figures: Vec::new() }
    }
}

impl Goals {
    pub fn progress(&self, what: &str) {
        eprintln!("[{:4.0} s] {what}", self.started.elapsed().as_secs_f64());
    }

    /// A value that no goal is set for.
    pub fn figure(&mut self, what: &str, value: f64, unit: &str) {
        self.figures.push(format!("{what:<72} {value:>10.2} {unit}"));
    }

    pub fn goal(&mut self, goal: &str, value: f64, limit: Limit, unit: &str) {
        let (holds, limit) = match limit {
            Limit::AtMost(limit) => (value <= limit, limit),
            Limit::AtLeast(limit) => (value >= limit, limit),
        };
        let value = (value * 1000.0).round() / 1000.0;
        self.goals.push(
            json!({ "goal": goal, "value": value, "limit": limit, "unit": unit, "holds": holds }),
        );
    }

    /// The goals so far, as JSON has them.
    pub fn goals(&self) -> &[Value] {
        &self.goals
    }

    /// Prints everything. Returns whether all goals hold, and there are any.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&self, json: Option<&Path>) -> Result<bool> {
        self.figures.iter().for_each(|figure| println!("{figure}"));
        println!("\n{:<72} {:>10} {:>8}", "goal", "value", "limit");
        for goal in &self.goals {
            let holds = if goal["holds"] == true { "holds" } else { "DOES NOT HOLD" };
            println!(
                "{:<72} {:>10.3} {:>8} {:<6} {holds}",
                goal["goal"].as_str().unwrap_or_default(),
                goal["value"].as_f64().unwrap_or(f64::NAN),
                goal["limit"].as_f64().unwrap_or(f64::NAN),
                goal["unit"].as_str().unwrap_or_default()
            );
        }
        println!("\n{}, measured in {:.0} s", machine(), self.started.elapsed().as_secs_f64());
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&self.goals)? + "\n";
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(!self.goals.is_empty() && self.goals.iter().all(|goal| goal["holds"] == true))
    }
}

/// Where benches work: on a disk, not in memory.
pub fn scratch() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// What it is measured on, and how busy that is.
pub fn machine() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    format!("Linux {kernel}, {processors} processors, load {load}")
}

/// The middle value; of an even number the lower of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_does_not_hold_fails_the_whole() {
        let mut goals = Goals::default();
        assert!(!goals.finish(None).expect("prints"), "nothing measured is no success");
        goals.goal("a", 1.0, Limit::AtMost(1.0), "ms");
        assert!(goals.finish(None).expect("prints"));
        goals.goal("b", 1.0, Limit::AtLeast(2.0), "×");
        assert!(!goals.finish(None).expect("prints"));
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
