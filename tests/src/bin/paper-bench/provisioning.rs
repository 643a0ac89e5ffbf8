//! Table 1: what it takes to provision a VA (§6.1).

use std::fs;
use std::path::Path;

use anyhow::Result;
use strata_tests::commands::timed;
use strata_tests::goals::{Goals, Limit, median};

use crate::appliances::APPLIANCES;
use crate::images;
use crate::site::Site;

const LIMIT_MS: f64 = 0.5;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    /// VAs of one command.
    pub batch: usize,
}

/// Milliseconds of an appliance, round by round.
#[derive(Default)]
struct Times {
    raw: Vec<f64>,
    qcow2: Vec<f64>,
    /// A command for one VA.
    one: Vec<f64>,
    /// A VA of a command for many.
    batch: Vec<f64>,
}

/// Measures all appliances, and tells it in Markdown.
pub fn measure(site: &Site, images: &Path, size: Size, goals: &mut Goals) -> Result<String> {
    let present = site.vas().len();
    let mut all = Vec::new();
    for appliance in &APPLIANCES {
        let mut times = Times::default();
        let base = images::base(images, appliance.name);
        let image = images.join("copy");
        for round in 0..size.rounds {
            times.raw.push(images::copy(&base, &image)? * 1000.0);
            fs::remove_file(&image)?;
            times.qcow2.push(images::overlay(&base, &image)? * 1000.0);
            fs::remove_file(&image)?;
            times.one.push(one(site, appliance.name, &format!("alone-{round}"))?);
        }
        all.push(times);
    }
    // They fill the store, and come last.
    for (appliance, times) in APPLIANCES.iter().zip(&mut all) {
        for round in 0..size.rounds {
            let mut many = site.command(&["va", "provision", "--template", appliance.name]);
            many.arg("--count").arg(size.batch.to_string());
            many.arg(format!("{}-{round}", appliance.name));
            times.batch.push(timed(&mut many)? * 1000.0 / size.batch as f64);
        }
    }
    let filled = (0..size.rounds).map(|round| one(site, "apache", &format!("last-{round}")));
    let filled = median(&filled.collect::<Result<Vec<f64>>>()?);
    let mut text = "| | raw copy | QCOW2 overlay | Strata, a command each | Strata, many in a command |\n|---|---|---|---|---|\n".to_owned();
    for (appliance, times) in APPLIANCES.iter().zip(&all) {
        let name = appliance.name;
        let (qcow2, one, batch) = (median(&times.qcow2), median(&times.one), median(&times.batch));
        text.push_str(&format!(
            "| {name} | {:.0} ms | {qcow2:.1} ms | {one:.1} ms | {batch:.3} ms |\n",
            median(&times.raw)
        ));
        let goal = format!("provisioning, {name}, a VA of {} in one command", size.batch);
        goals.goal(&goal, batch, Limit::AtMost(LIMIT_MS), "ms");
        let goal = format!("the same against a QCOW2 overlay, {name}");
        goals.goal(&goal, batch / qcow2, Limit::AtMost(1.0), "×");
        let goal = format!("provisioning, {name}, a command each, against a QCOW2 overlay");
        goals.goal(&goal, one / qcow2, Limit::AtMost(1.0), "×");
    }
    text.push_str(&format!(
        "\nMedians of {} rounds. Raw copies are `qemu-img convert` of an ext4 image with the appliance's root, \
         whose pages are in memory and which is not waited for on the disk; overlays are `qemu-img create -f qcow2` on it; Strata is \
         `strata va provision`, whole commands, for one VA, in turn with the images, while the store has {present} others; and then for {} VAs. They wait until record and \
         link are on the disk, which `qemu-img` does not. A command for one VA in the store that then has {} takes {filled:.1} ms.\n",
        size.rounds,
        size.batch,
        present + APPLIANCES.len() * size.rounds * (size.batch + 1)
    ));
    Ok(text)
}

/// Milliseconds of a command for one VA.
fn one(site: &Site, template: &str, name: &str) -> Result<f64> {
    let mut provision = site.command(&["va", "provision", "--template", template]);
    Ok(timed(provision.arg(format!("{template}-{name}")))? * 1000.0)
}
