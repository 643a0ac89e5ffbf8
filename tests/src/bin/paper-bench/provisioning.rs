//! Table 1: what it takes to provision a VA (§6.1).

use std::fs;
use std::path::Path;

use anyhow::Result;
use strata_tests::commands::timed;
use strata_tests::goals::{Goals, Limit, median};

use crate::appliances::{APPLIANCES, Appliance};
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

/// Milliseconds a VA.
struct Times {
    raw: f64,
    qcow2: f64,
    one: f64,
    batch: f64,
}

/// Measures all appliances, and tells it in Markdown.
pub fn measure(site: &Site, images: &Path, size: Size, goals: &mut Goals) -> Result<String> {
    let mut text = "| | raw copy | QCOW2 overlay | Strata, a command each | Strata, many in a command |\n|---|---|---|---|---|\n".to_owned();
    for appliance in &APPLIANCES {
        let name = appliance.name;
        let times = measure_one(site, images, appliance, size)?;
        text.push_str(&format!(
            "| {name} | {:.0} ms | {:.1} ms | {:.1} ms | {:.3} ms |\n",
            times.raw, times.qcow2, times.one, times.batch
        ));
        let goal = format!("provisioning, {name}, a VA of {} in one command", size.batch);
        goals.goal(&goal, times.batch, Limit::AtMost(LIMIT_MS), "ms");
        let goal = format!("the same against a QCOW2 overlay, {name}");
        goals.goal(&goal, times.batch / times.qcow2, Limit::AtMost(1.0), "×");
        let goal = format!("provisioning, {name}, a command each, against a QCOW2 overlay");
        goals.goal(&goal, times.one / times.qcow2, Limit::AtMost(1.0), "×");
    }
    text.push_str(&format!(
        "\nMedians of {} rounds, each doing all in turn. Raw copies are `qemu-img convert` of an ext4 image with the appliance's root, \
         whose pages are in memory and which is not waited for on the disk; overlays are `qemu-img create -f qcow2` on it; Strata is \
         `strata va provision`, whole commands, for one VA and for {} VAs. They wait until record and link are on the disk, which `qemu-img` does not.\n",
        size.rounds, size.batch
    ));
    Ok(text)
}

fn measure_one(site: &Site, images: &Path, appliance: &Appliance, size: Size) -> Result<Times> {
    let (name, base) = (appliance.name, images::base(images, appliance.name));
    let (mut raw, mut qcow2, mut one, mut batch) = (vec![], vec![], vec![], vec![]);
    for round in 0..size.rounds {
        let image = images.join("copy");
        raw.push(images::copy(&base, &image)? * 1000.0);
        fs::remove_file(&image)?;
        qcow2.push(images::overlay(&base, &image)? * 1000.0);
        fs::remove_file(&image)?;
        let provision = ["va", "provision", "--template", name];
        let va = format!("{name}-alone-{round}");
        one.push(timed(site.command(&provision).arg(va))? * 1000.0);
        let mut many = site.command(&provision);
        many.arg("--count").arg(size.batch.to_string()).arg(format!("{name}-{round}"));
        batch.push(timed(&mut many)? * 1000.0 / size.batch as f64);
    }
    let median = |values: &[f64]| median(values);
    Ok(Times { raw: median(&raw), qcow2: median(&qcow2), one: median(&one), batch: median(&batch) })
}
