//! `ci/proof resolutions`: random packages of the archive, resolved by Strata
//! and by apt. They must agree on what can be installed, and every difference
//! between two sets must have a reason.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;
use strata_core::universe::{UnitId, Universe};
use strata_tests::random::Random;
use strata_tests::resolution;

use crate::apt::Apt;
use crate::compare::{Reason, differences};

/// Compares the resolutions of `count` packages. Returns whether all agree.
pub fn compare(
    universe: &Universe,
    scratch: &Path,
    count: usize,
    seed: u64,
    json: Option<&Path>,
) -> Result<bool> {
    let apt = Apt::new(scratch, true)?;
    let essential = resolution::essential(universe)?;
    let names = sample(universe, count, seed);
    let (mut solved, mut same, mut disagree) = (0, 0, Vec::new());
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut differing = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if at % 20 == 0 {
            eprintln!("{at} of {} packages", names.len());
        }
        let goals: Vec<&str> =
            essential.iter().map(String::as_str).chain([name.as_str()]).collect();
        let answer = apt.simulate(&goals)?.installed;
        let (found, _) = resolution::resolved(universe, &resolution::desired(&[name])?)?;
        let (ours, apts) = match (found, answer) {
            (Err(_), None) => continue,
            (Ok(_), None) => {
                disagree.push(json!({ "package": name, "apt": "no solution" }));
                continue;
            }
            (Err(message), Some(_)) => {
                disagree.push(json!({ "package": name, "strata": message }));
                continue;
            }
            (Ok(ours), Some(apts)) => (ours, resolution::units_of(universe, &apts)?),
        };
        solved += 1;
        let found = differences(universe, &ours, &apts);
        same += usize::from(found.is_empty());
        for difference in &found {
            *reasons.entry(difference.reason).or_default() += 1;
        }
        if !found.is_empty() {
            let found: Vec<_> = found.iter().map(|difference| difference.json()).collect();
            differing.push(json!({ "package": name, "differences": found }));
        }
    }
    println!("{:<52} {:>6}", "packages", names.len());
    println!("{:<52} {:>6}", "Strata and apt agree that they can be installed", solved);
    let agreed = names.len() - solved - disagree.len();
    println!("{:<52} {agreed:>6}", "Strata and apt agree that they cannot");
    println!("{:<52} {:>6}", "Strata and apt disagree", disagree.len());
    println!("{:<52} {same:>6}", "the same set");
    println!("{:<52} {:>6}", "different sets", solved - same);
    for (reason, count) in &reasons {
        println!("  {:<50} {count:>6} units", reason.as_str());
    }
    for package in disagree.iter().chain(&differing) {
        eprintln!("{package}");
    }
    let unexplained = reasons.get(&Reason::Unexplained).copied().unwrap_or(0);
    if let Some(path) = json {
        let report = json!({
            "seed": seed, "packages": names.len(), "installable": solved, "not_installable": agreed,
            "same": same, "unexplained": unexplained, "disagree": disagree, "different": differing,
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(disagree.is_empty() && unexplained == 0)
}

/// Names of random layers, each once; the same seed gives the same ones.
fn sample(universe: &Universe, count: usize, seed: u64) -> Vec<String> {
    let ids: Vec<UnitId> = universe.ids().collect();
    let mut random = Random::new(seed);
    let mut names: Vec<String> = Vec::new();
    while names.len() < count.min(ids.len() / 2) {
        let unit = ids[random.below(ids.len())];
        let name = universe.unit(unit).metadata.layer.to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
