//! Workloads that are programs of others: a C build, an archive, Postmark.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::system::finish;
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
    let project = place.path(PROJECT);
    let target = if place.size.whole_project { "whole.a" } else { "part.a" };
    let mut make = Command::new("make");
    make.args(["-s", "-j2", target]).current_dir(&project).stdout(Stdio::null());
    let begin = Instant::now();
    finish(&mut make)?;
    let seconds = begin.elapsed().as_secs_f64();
    finish(Command::new("make").args(["-s", "clean"]).current_dir(&project))?;
    Ok(seconds)
}

/// Unpacks documents and sources; the tree is removed again untimed.
pub fn unpack(place: &Place<'_>) -> Result<f64> {
    let directory = place.path(&format!("unpacked-{}", place.round));
    fs::create_dir(&directory)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&place.trees.archive).arg("-C").arg(&directory);
    let begin = Instant::now();
    finish(&mut tar)?;
    let seconds = begin.elapsed().as_secs_f64();
    fs::remove_dir_all(&directory)?;
    Ok(seconds)
}

/// Postmark at the paper's setting (§6.4): files of 512 bytes to 10 KB.
pub fn postmark(place: &Place<'_>, below: &str) -> Result<f64> {
    let directory = place.path(below).join(format!("postmark-{}", place.round));
    fs::create_dir_all(&directory)?;
    let commands = format!(
        "set location {}\nset size 512 10240\nset number {}\nset transactions {}\nrun\nquit\n",
        directory.display(),
        place.size.postmark_files,
        place.size.postmark_transactions
    );
    let mut child = Command::new("postmark")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("postmark")?;
    let begin = Instant::now();
    let mut input = child.stdin.take().context("no pipe")?;
    std::io::Write::write_all(&mut input, commands.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let seconds = begin.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("transactions"), "postmark failed: {said}");
    ensure!(!said.contains("Error"), "postmark: {said}");
    fs::remove_dir_all(&directory)?;
    Ok(seconds)
}
