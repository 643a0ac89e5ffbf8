//! Pairs of versions, and what dpkg says of their order.

use std::cmp::Ordering;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use strata_core::LayerVersion;

use crate::random::Random;

/// Pairs that are hard to order: mostly small changes of one another.
pub fn pairs(seed: u64, count: usize) -> Vec<(String, String)> {
    let mut random = Random::new(seed);
    let mut pairs = Vec::with_capacity(count);
    while pairs.len() < count {
        let a = version(&mut random);
        let b = match random.below(4) {
            0 => version(&mut random),
            _ => changed(&mut random, &a),
        };
        if valid(&a) && valid(&b) {
            pairs.push((a, b));
        }
    }
    pairs
}

/// dpkg wants a digit first, which Strata does not (the paper's versions).
fn valid(text: &str) -> bool {
    let upstream = text.split_once(':').map_or(text, |(_, rest)| rest);
    upstream.starts_with(|c: char| c.is_ascii_digit()) && LayerVersion::new(text).is_ok()
}

const PIECES: [&str; 24] = [
    "0",
    "1",
    "00",
    "10",
    "9",
    "2024",
    "18446744073709551616",
    ".",
    ".",
    "+",
    "~",
    "~~",
    "-",
    "-",
    "a",
    "b",
    "Z",
    "rc",
    "dfsg",
    "+b1",
    "~deb12u1",
    "ubuntu",
    ":",
    "alpha",
];

fn version(random: &mut Random) -> String {
    let mut text = match random.below(4) {
        0 => format!("{}:", random.below(12)),
        _ => String::new(),
    };
    text.push_str(&random.below(30).to_string());
    for _ in 0..random.below(7) {
        text.push_str(PIECES[random.below(PIECES.len())]);
    }
    text
}

fn changed(random: &mut Random, text: &str) -> String {
    let mut changed = text.to_owned();
    for _ in 0..=random.below(2) {
        let at = random.below(changed.len() + 1);
        if random.below(2) == 0 && at < changed.len() {
            changed.remove(at);
        } else {
            changed.insert_str(at, PIECES[random.below(PIECES.len())]);
        }
    }
    changed
}

/// Strata's order.
///
/// # Panics
/// One is no version.
pub fn our_order(a: &str, b: &str) -> Ordering {
    let version = |text| LayerVersion::new(text).expect("a version");
    version(a).debian_cmp(&version(b))
}

/// What `dpkg --compare-versions` says.
///
/// # Errors
/// dpkg refuses a version.
pub fn dpkg_order(a: &str, b: &str) -> Result<Ordering> {
    for (operator, order) in [("lt", Ordering::Less), ("eq", Ordering::Equal)] {
        let mut command = Command::new("dpkg");
        let output = command.args(["--compare-versions", a, operator, b]).output();
        let output = output.context("run dpkg")?;
        if !output.stderr.is_empty() {
            bail!("dpkg on {a} and {b}: {}", String::from_utf8_lossy(&output.stderr));
        }
        match output.status.code() {
            Some(0) => return Ok(order),
            Some(1) => {}
            _ => bail!("dpkg --compare-versions {a} {operator} {b}: {}", output.status),
        }
    }
    Ok(Ordering::Greater)
}
