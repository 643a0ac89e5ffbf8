//! `ci/bench vlfs`: how fast the VLFS is, against the goals.
//!
//! Every figure is a ratio inside one run: each round does the workload on every
//! file system in turn, a ratio is taken a round, and the median of the rounds
//! counts. So a machine that is busy with other things makes all of them slower,
//! and the ratios stay. Run by the script, which builds and installs what is needed.

mod floor;
mod generations;
mod memory;
mod programs;
mod report;
mod system;
mod trees;
mod work;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use report::Report;
use strata_tests::disk::{Disk, Format};
use strata_tests::goals::scratch;
use strata_tests::workloads::Sources;
use system::{ALL, Kind, System};
use trees::{FULL, QUICK, Trees};

/// What the disk can take at most.
const DISK: u64 = 24 << 30;

struct Arguments {
    vlfs: PathBuf,
    sources: Sources,
    json: Option<PathBuf>,
    quick: bool,
    /// Only workloads whose name has this in it.
    only: Option<String>,
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args_os().skip(1);
    let (mut vlfs, mut libgit2, mut zlib, mut json, mut only) = (None, None, None, None, None);
    let mut quick = false;
    while let Some(argument) = given.next() {
        let name = argument.to_string_lossy().into_owned();
        if name == "--quick" {
            quick = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--vlfs" => vlfs = Some(PathBuf::from(value)),
            "--libgit2" => libgit2 = Some(PathBuf::from(value)),
            "--zlib" => zlib = Some(PathBuf::from(value)),
            "--json" => json = Some(PathBuf::from(value)),
            "--only" => only = Some(value.to_string_lossy().into_owned()),
            _ => bail!("unknown argument {name}"),
        }
    }
    let sources = Sources {
        libgit2: libgit2.context("--libgit2 DIR is missing")?,
        zlib: zlib.context("--zlib DIR is missing")?,
    };
    Ok(Arguments { vlfs: vlfs.context("--vlfs FILE is missing")?, sources, json, quick, only })
}

fn main() -> std::process::ExitCode {
    match bench() {
        Ok(true) => 0.into(),
        Ok(false) => 1.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            2.into()
        }
    }
}

/// Returns whether every goal holds.
fn bench() -> Result<bool> {
    let arguments = arguments()?;
    let size = if arguments.quick { QUICK } else { FULL };
    let started = Instant::now();
    let directory = tempfile::Builder::new().prefix("strata-bench.").tempdir_in(scratch())?;
    let disk = Disk::make(directory.path(), DISK, Format::Ext4)?;
    let work = disk.root();
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only));
    let mut report = Report::new(started);
    if wanted("floor") {
        floor::measure(work, &mut report).context("the empty FUSE server")?;
    }
    let native = work.join("native");
    std::fs::create_dir(&native)?;
    if work::all().iter().any(|workload| wanted(workload.name)) {
        report.progress("making layers");
        let trees = Trees::make(work, &native, &size, &arguments.sources)?;
        let mut systems = vec![System::native(&native)];
        for kind in ALL.into_iter().filter(|kind| *kind != Kind::Native) {
            systems.push(System::mount(kind, work, &trees, &arguments.vlfs)?);
        }
        for workload in work::all().iter().filter(|workload| wanted(workload.name)) {
            report.progress(workload.name);
            let measured = work::measure(workload, &systems, &trees, &size)
                .with_context(|| workload.name.to_owned())?;
            report.workload(workload, &measured);
        }
    }
    if wanted("generations") {
        report.progress("generations");
        generations::measure(work, &arguments.vlfs, &size, &mut report)
            .context("large generations")?;
    }
    report.progress("removing what was made");
    drop(disk);
    directory.close().context("the bench's directory stays")?;
    report.finish(arguments.json.as_deref())
}
