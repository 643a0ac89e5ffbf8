//! The reconciler's main loop.
//!
//! One task owns the [`Reconciler`] and the [`Verifier`] and lends them to a
//! blocking thread for each pass; events, the poll floor, the retry after an
//! error and the end all meet in one `select!`. SIGTERM and SIGINT let the step
//! under way end; a fetch is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::pass::{PassError, PassReport, Policy, Reconciler};
use crate::verify::Verifier;
use crate::watch::RefWatch;

/// The wait after the first error; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error("a pass broke off: {0}")]
    Join(#[from] JoinError),
}

/// How the loop is woken.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// The source is looked at this often at least.
    pub poll: Duration,
    /// Whether file events of a local source are used.
    pub events: bool,
}

/// Runs until SIGTERM or SIGINT. `tell` is called after each pass that found
/// anything new.
///
/// # Errors
/// An error that no retry can mend.
pub fn run(
    reconciler: Reconciler,
    schedule: Schedule,
    tell: impl FnMut(&PassReport),
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main_loop(reconciler, schedule, tell))
}

/// What made the loop go on.
enum Wake {
    Pass,
    Verify,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn main_loop(
    mut reconciler: Reconciler,
    schedule: Schedule,
    mut tell: impl FnMut(&PassReport),
) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let mut verifier = Verifier::new(reconciler.store().clone());
    let mut watch = watch(&reconciler, schedule);
    let mut failures = 0;
    let (mut next_pass, mut next_tick) = (Instant::now(), Instant::now());
    loop {
        let wake = tokio::select! {
            biased;
            () = signals.end() => Wake::End,
            () = hint(&mut watch) => Wake::Pass,
            () = tokio::time::sleep_until(next_pass) => Wake::Pass,
            () = tokio::time::sleep_until(next_tick) => Wake::Verify,
        };
        match wake {
            Wake::End => {
                tracing::info!("ending");
                return Ok(());
            }
            Wake::Pass => {
                let (returned, passed, ended) = pass(reconciler, &mut signals).await?;
                reconciler = returned;
                let pause = match passed {
                    Ok(report) => {
                        failures = 0;
                        if report.news {
                            tell(&report);
                            follow(&mut verifier, &report);
                            next_tick = Instant::now();
                        }
                        schedule.poll
                    }
                    Err(_) if ended => return Ok(()),
                    Err(error) => retry(error, &mut failures)?,
                };
                if ended {
                    return Ok(());
                }
                next_pass = Instant::now() + pause;
            }
            Wake::Verify => {
                verifier = tick(verifier).await?;
                next_tick = Instant::now() + verifier.pause();
            }
        }
    }
}

/// Lends the reconciler to a blocking thread for one pass. The last value says
/// whether the end was asked for meanwhile.
async fn pass(
    mut reconciler: Reconciler,
    signals: &mut Signals,
) -> Result<(Reconciler, Result<PassReport, PassError>, bool), RunError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = cancelled.clone();
    let mut task = tokio::task::spawn_blocking(move || {
        let passed = reconciler.pass(&flag);
        (reconciler, passed)
    });
    tokio::select! {
        done = &mut task => {
            let (reconciler, passed) = done?;
            return Ok((reconciler, passed, false));
        }
        () = signals.end() => cancelled.store(true, Ordering::Relaxed),
    }
    let (reconciler, passed) = task.await?;
    Ok((reconciler, passed, true))
}

/// How long to wait after an error.
fn retry(error: PassError, failures: &mut u32) -> Result<Duration, RunError> {
    if error.policy() == Policy::Fatal {
        return Err(error.into());
    }
    let wait = FIRST_RETRY.saturating_mul(1 << (*failures).min(16)).min(LONGEST_RETRY);
    *failures += 1;
    tracing::warn!(%error, retry_after_s = wait.as_secs(), "the pass failed; nothing was moved by what failed");
    Ok(wait)
}

fn follow(verifier: &mut Verifier, report: &PassReport) {
    if let Err(error) = verifier.follow(&report.actions) {
        tracing::warn!(%error, "the rollout cannot be verified");
    }
}

async fn tick(mut verifier: Verifier) -> Result<Verifier, RunError> {
    let (verifier, ticked) = tokio::task::spawn_blocking(move || {
        let ticked = verifier.tick();
        (verifier, ticked)
    })
    .await?;
    match ticked {
        Ok(events) => events.iter().for_each(|event| event.log()),
        Err(error) => tracing::warn!(%error, "the VAs cannot be verified"),
    }
    Ok(verifier)
}

/// Starts to watch a local source. Without events the poll floor is left, which
/// is worth a word.
fn watch(reconciler: &Reconciler, schedule: Schedule) -> Option<RefWatch> {
    let path = reconciler.source().local_path().filter(|_| schedule.events)?;
    match RefWatch::start(path) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, poll_s = schedule.poll.as_secs(), "no file events; polling only");
            None
        }
    }
}

async fn hint(watch: &mut Option<RefWatch>) {
    match watch {
        Some(watch) => watch.hint().await,
        None => std::future::pending().await,
    }
}
