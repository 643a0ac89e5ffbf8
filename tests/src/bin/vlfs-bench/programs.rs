//! Workloads that are programs of others: a C build, an archive, Postmark.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use strata_tests::commands::run;
use strata_tests::workloads;

use crate::trees::{PROGRAM, PROJECT};
use crate::work::Place;

/// Starts a program of the tree again and again, and waits for its end.
pub fn processes(place: &Place<'_>) -> Result<f64> {
    let path = place.path(PROGRAM);
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    for _ in 0..place.size.processes {
        ensure!(command.status()?.success(), "{} failed", path.display());
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Compiles the C project with two jobs; its objects are removed again untimed.
pub fn build(place: &Place<'_>) -> Result<f64> {
    workloads::build(&place.path(PROJECT), place.size.whole_project)
}

/// Unpacks documents and sources; the tree is removed again untimed.
pub fn unpack(place: &Place<'_>) -> Result<f64> {
    let directory = place.path(&format!("unpacked-{}", place.round));
    fs::create_dir(&directory)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&place.trees.archive).arg("-C").arg(&directory);
    let begin = Instant::now();
    run(&mut tar)?;
    let seconds = begin.elapsed().as_secs_f64();
    fs::remove_dir_all(&directory)?;
    Ok(seconds)
}

/// Postmark at the paper's setting (§6.4); what it leaves is removed again untimed.
pub fn postmark(place: &Place<'_>, below: &str) -> Result<f64> {
    let directory = place.path(below).join(format!("postmark-{}", place.round));
    workloads::postmark(&directory, place.size.postmark_files, place.size.postmark_transactions)
}
