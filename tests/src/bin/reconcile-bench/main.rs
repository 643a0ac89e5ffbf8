//! `ci/bench reconcile`: how fast a commit reaches fleets of any size, and what
//! watching them costs. Run by the script, which builds what is needed.
//!
//! The store, the git repository, the links and the reports are real; only the VAs'
//! file systems are not there: [`fleet::Fleet`] writes their reports.

mod fleet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use strata_tests::goals::{Goals, Limit, median, scratch};
use strata_tests::reconciler::Daemon;

use fleet::{Fleet, TEMPLATES};

/// What a push may take until every ring of the changed template has moved.
const APPLIED_MS: f64 = 100.0;
/// What the last report may take until every ring is known to be in sync.
const VERIFIED_S: f64 = 10.0;
const MEMORY_MIB: f64 = 256.0;
const IDLE_MS: f64 = 50.0;

struct Arguments {
    strata: PathBuf,
    json: Option<PathBuf>,
    quick: bool,
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args_os().skip(1);
    let (mut strata, mut json, mut quick) = (None, None, false);
    while let Some(argument) = given.next() {
        let name = argument.to_string_lossy().into_owned();
        if name == "--quick" {
            quick = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--strata" => strata = Some(PathBuf::from(value)),
            "--json" => json = Some(PathBuf::from(value)),
            _ => bail!("unknown argument {name}"),
        }
    }
    Ok(Arguments { strata: strata.context("--strata FILE is missing")?, json, quick })
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
    let sizes: &[usize] =
        if arguments.quick { &[50, 1_000, 10_000] } else { &[50, 1_000, 10_000, 100_000] };
    let work = tempfile::Builder::new().prefix("strata-reconcile.").tempdir_in(scratch())?;
    let mut goals = Goals::default();
    for size in sizes {
        let directory = work.path().join(size.to_string());
        std::fs::create_dir(&directory)?;
        measure(&arguments, &directory, *size, &mut goals)
            .with_context(|| format!("a fleet of {size}"))?;
        std::fs::remove_dir_all(&directory)?;
    }
    work.close().context("the bench's directory stays")?;
    goals.finish(arguments.json.as_deref())
}

fn measure(arguments: &Arguments, work: &Path, size: usize, goals: &mut Goals) -> Result<()> {
    let commits = if arguments.quick { 5 } else { 15 };
    goals.progress(&format!("{size} VAs: provisioning"));
    let mut fleet = Fleet::make(&arguments.strata, work, size)?;
    fleet.report_all()?;
    let label = |what: &str| format!("{size} VAs: {what}");

    goals.progress(&format!("{size} VAs: one template changes, {commits} times"));
    let mut daemon = Daemon::start(&arguments.strata, &fleet.source(), &fleet.store())?;
    let (mut detected, mut applied) = (Vec::new(), Vec::new());
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    // The first shows that it is awake, and does not count.
    for count in 0..=commits {
        let pushed = fleet.push(&[0])?;
        let moved = fleet.wait_until_moved(&[0], Duration::from_secs(60))?;
        let pass = daemon.wait_for_pass(Duration::from_secs(60))?;
        if count > 0 {
            applied.push(millis(moved - pushed));
            detected.push(millis(pass.begun().saturating_duration_since(pushed)));
            for (phase, took) in pass.phases {
                phases.entry(phase).or_default().push(took);
            }
        }
        fleet.report(&[0])?;
        daemon.wait_for_sync(fleet.rings_of(&[0]), Duration::from_secs(120))?;
    }
    goals.figure(&label("push to detected, one template, median"), median(&detected), "ms");
    for (phase, took) in &phases {
        goals.figure(&label(&format!("of the pass: {phase}, median")), median(took), "ms");
    }
    goals.figure(&label("push to applied, one template, longest"), longest(&applied), "ms");
    let goal = label("push to applied, one template of ten, median");
    goals.goal(&goal, median(&applied), Limit::AtMost(APPLIED_MS), "ms");

    goals.progress(&format!("{size} VAs: all templates change"));
    let all: Vec<usize> = (0..TEMPLATES).collect();
    let pushed = fleet.push(&all)?;
    let moved = fleet.wait_until_moved(&all, Duration::from_secs(60))?;
    goals.figure(&label("push to applied, all templates"), millis(moved - pushed), "ms");
    daemon.wait_for_pass(Duration::from_secs(60))?;
    fleet.report(&all)?;
    let reported = Instant::now();
    goals.figure(
        &label("the VAs' reports, written in turn, took"),
        (reported - moved).as_secs_f64(),
        "s",
    );
    daemon.wait_for_sync(fleet.rings_of(&all), Duration::from_secs(600))?;
    let verified = reported.elapsed().as_secs_f64();
    goals.goal(
        &label("last report to every VA verified"),
        verified,
        Limit::AtMost(VERIFIED_S),
        "s",
    );
    let memory = daemon.peak_memory()? as f64 / f64::from(1 << 20);
    goals.goal(
        &label("memory of the reconciler at its peak"),
        memory,
        Limit::AtMost(MEMORY_MIB),
        "MiB",
    );

    goals.progress(&format!("{size} VAs: idle"));
    let busy = daemon.processor_time_idle(Duration::from_secs(10))?;
    goals.figure(
        &label("processor time of an idle second (poll 60 s, verification round)"),
        busy,
        "ms",
    );
    daemon.end()?;
    let (mut idle, before) = (Vec::new(), fleet.changes()?);
    for _ in 0..5 {
        let pass = fleet.once(&arguments.strata)?;
        ensure!(pass.result == "unchanged", "an idle pass: {}", pass.result);
        idle.push(pass.total_ms);
    }
    let goal = label("an idle pass (its own clock, process new)");
    goals.goal(&goal, median(&idle), Limit::AtMost(IDLE_MS), "ms");
    let written = fleet.changes()?.difference(&before).count();
    goals.goal(&label("writes of five idle passes"), written as f64, Limit::AtMost(0.0), "files");
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn longest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
