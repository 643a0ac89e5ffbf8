//! The reconciler's main loop.
//!
//! One task owns the [`Keeper`] and lends it to a blocking thread for each piece of work;
//! what triggers a pass ([`crate::triggers`]), the poll floor, the retry after an
//! error and the end all meet in one `select!`. A pass begins on another thread, with the
//! [`crate::pass::Inspector`] ([`crate::looking`]), so that orders and rings that fail wait for no
//! remote. Another task owns the [`Verifier`] and is told of rollouts by
//! message, so that reading reports never delays a pass. SIGTERM and SIGINT let
//! the step under way end; a fetch is killed.

mod reload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strata_core::MacAddr;
use strata_core::plan::Action;
use strata_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::audit;
use crate::drift::DriftRound;
use crate::link_watch::LinkWatch;
use crate::looking::{Looked, Looking};
use crate::pass::{Inspected, Keeper, PassError, PassReport, Policy, Reconciler};
use crate::report_watch::ReportWatch;
use crate::service::{Ears, ReloadError, Service, Task};
use crate::settings::Settings;
use crate::traces::Traces;
use crate::traces::spans::Origin;
use crate::triggers::{TriggerError, Triggers, jitter};
use crate::verify::Verifier;

pub use reload::Configuration;

/// The wait after the first error; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// Clocks that are set are noticed after this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Between two looks at private layers.
const DRIFT_PAUSE: Duration = Duration::from_secs(20);
/// Operators' requests are looked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The wait after a step of the rollouts that failed.
const STEP_RETRY: Duration = Duration::from_secs(5);
/// Reports that are written within this time are looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// The links are looked at this long after one has changed, and no sooner again.
const LINKS_PAUSE: Duration = Duration::from_millis(500);
/// The links are looked at this often where no event told of them.
const LINKS_FLOOR: Duration = Duration::from_secs(60);
/// What still runs at the end is left after so long.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// Rollouts that may wait for the verifier.
const ROLLOUTS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error("a pass broke off: {0}")]
    Join(#[from] JoinError),
    #[error(transparent)]
    Service(#[from] ReloadError),
}

/// How the loop is woken.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// The source is looked at this often at least, give or take a tenth.
    pub poll: Duration,
    /// Whether file events of a local source and of reports are used.
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
    configuration: Option<Configuration>,
    traces: &Traces,
    tell: impl FnMut(&PassReport),
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async move {
        let (main_loop, keeper) =
            MainLoop::start(reconciler, schedule, configuration, traces.clone(), tell).await?;
        main_loop.run(keeper).await
    });
    // A receiver that is being told something waits for nobody.
    runtime.shutdown_timeout(SHUTDOWN);
    traces.end();
    done
}

/// What made the loop go on.
enum Wake {
    Pass,
    /// What was looked at has been.
    Looked(Looked),
    /// Rollouts are due, or an operator may have asked for something.
    Step,
    /// A link of a ring or a VA has changed.
    Links,
    /// The configuration is to be read anew.
    Reload,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        let hangup = signal(SignalKind::hangup())?;
        Ok(Signals { terminate: signal(terminate)?, interrupt: signal(interrupt)?, hangup })
    }

    async fn next(&mut self) -> Wake {
        tokio::select! {
            _ = self.terminate.recv() => Wake::End,
            _ = self.interrupt.recv() => Wake::End,
            _ = self.hangup.recv() => Wake::Reload,
        }
    }

    /// As [`Self::next`], and leaves what is to be read anew for later.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The loop, but for the keeper, which it lends out.
struct MainLoop<T> {
    signals: Signals,
    /// Where the settings are, and whether the source is not from there.
    configuration: Option<(PathBuf, bool)>,
    service: Service,
    triggers: Triggers,
    looking: Looking,
    schedule: Schedule,
    /// The longest that one fetch takes.
    longest: Duration,
    /// Tells the verifier.
    rollouts: Sender<Moved>,
    verification: JoinHandle<Result<(), RunError>>,
    _drift: Option<Task>,
    tell: T,
    /// Passes that failed since one did not.
    failures: u32,
    next_pass: Instant,
    next_step: Instant,
    links: Option<LinkWatch>,
    /// Whether a link changed since they were looked at.
    links_changed: bool,
    next_links: Instant,
}

impl<T: FnMut(&PassReport)> MainLoop<T> {
    async fn start(
        reconciler: Reconciler,
        schedule: Schedule,
        configuration: Option<Configuration>,
        traces: Traces,
        tell: T,
    ) -> Result<(Self, Keeper), RunError> {
        let signals = Signals::new()?;
        let (inspector, keeper) = reconciler.into_parts();
        let (rollouts, receiver) = channel(ROLLOUTS);
        let (store, audit_log) = (keeper.store().clone(), keeper.audit().clone());
        let source = keeper.source().clone();
        let longest = inspector.longest_fetch();
        let (configuration, settings) = match configuration {
            Some(Configuration { file, settings, source_is_given }) => {
                (Some((file, source_is_given)), settings)
            }
            None => (None, Settings::default()),
        };
        let webhook = settings.webhook.clone();
        let service = Service::start(store, audit_log, source, settings, longest, traces).await?;
        let verifier = Verifier::new(keeper.store().clone());
        let reports = watch_reports(keeper.store(), schedule);
        let verification =
            tokio::spawn(verify(verifier, receiver, reports, service.ears().clone()));
        let drift = keeper.programs().map(|programs| {
            let (store, ears) = (keeper.store().clone(), service.ears().clone());
            Task::spawn(drift_round(store, programs.vlfs.clone(), ears))
        });
        let links = watch_links(keeper.store(), schedule);
        let place = (&**keeper.store(), keeper.source());
        let triggers = Triggers::start(place, schedule, webhook.as_ref()).await?;
        service.ready();
        let now = Instant::now();
        let main_loop = MainLoop {
            signals,
            configuration,
            service,
            triggers,
            looking: Looking::new(inspector),
            schedule,
            longest,
            rollouts,
            verification,
            _drift: drift,
            tell,
            failures: 0,
            next_pass: now,
            next_step: now,
            links,
            links_changed: false,
            next_links: now + LINKS_FLOOR,
        };
        Ok((main_loop, keeper))
    }

    async fn run(mut self, mut keeper: Keeper) -> Result<(), RunError> {
        loop {
            if !self.looking.is_stuck(self.longest) {
                self.service.beat();
            }
            let busy = self.looking.is_under_way();
            let due = self.next_step.min(self.next_links);
            let next_look = due.min(Instant::now() + ASK_AGAIN);
            let wake = tokio::select! {
                biased;
                wake = self.signals.next() => wake,
                looked = self.looking.done() => Wake::Looked(looked?),
                () = self.triggers.next(), if !busy => Wake::Pass,
                () = tokio::time::sleep_until(self.next_pass), if !busy => Wake::Pass,
                () = tokio::time::sleep_until(next_look) => Wake::Step,
                () = changed(&mut self.links), if !self.links_changed => Wake::Links,
                ended = &mut self.verification => return ended?,
            };
            let returned = match wake {
                Wake::End => {
                    tracing::info!("ending");
                    None
                }
                Wake::Reload => self.reload(keeper).await?,
                Wake::Links => {
                    // Several that change together are looked at together.
                    self.links_changed = true;
                    self.next_links = self.next_links.min(Instant::now() + LINKS_PAUSE);
                    Some(keeper)
                }
                Wake::Step if Instant::now() < due && !keeper.is_asked() => Some(keeper),
                Wake::Step => self.step(keeper).await?,
                Wake::Pass => {
                    self.triggers.begin_pass();
                    // First what was taken before: the head may be out of reach for long.
                    match keeper.lacks_commit() {
                        true => self.looking.recall(keeper.known()?),
                        false => self.looking.inspect(keeper.known()?),
                    }
                    Some(keeper)
                }
                Wake::Looked(looked) => self.looked(keeper, looked).await?,
            };
            let Some(returned) = returned else {
                let (ended, (), ()) =
                    tokio::join!(self.looking.end(), self.triggers.stop(), self.service.stop());
                return Ok(ended?);
            };
            keeper = returned;
        }
    }

    /// Goes on with the rollouts. Returns nothing where the end was asked for.
    async fn step(&mut self, keeper: Keeper) -> Result<Option<Keeper>, RunError> {
        let links = Instant::now() >= self.next_links;
        if links {
            // What changes from here on is looked at by the next look.
            (self.links_changed, self.next_links) = (false, Instant::now() + LINKS_FLOOR);
        }
        let work = move |keeper: &mut Keeper, flag: &AtomicBool| match links {
            true => keeper.step_with_links(flag),
            false => keeper.step(flag),
        };
        let (keeper, stepped, ended) = lend(keeper, &mut self.signals, work).await?;
        match stepped {
            Ok(report) => {
                self.next_step = due(report.as_ref().and_then(|report| report.wake_at_ms));
                if let Some(report) = report.filter(|report| report.news) {
                    report.trace.log().in_scope(|| {
                        report.events.iter().for_each(crate::rollout::log);
                    });
                    self.service.ears().happened(&report.events);
                    (self.tell)(&report);
                    self.follow(report);
                }
            }
            Err(_) if ended => {}
            Err(error) if error.policy() == Policy::Fatal => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a step of the rollouts failed");
                self.next_step = Instant::now() + STEP_RETRY;
                if links {
                    self.next_links = self.next_step;
                }
            }
        }
        Ok(Some(keeper).filter(|_| !ended))
    }

    /// Goes on with what was looked at. Returns nothing where the end was asked for.
    async fn looked(
        &mut self,
        mut keeper: Keeper,
        looked: Looked,
    ) -> Result<Option<Keeper>, RunError> {
        match looked {
            Looked::Recalled(recalled) => {
                match recalled {
                    Ok(Some(accepted)) => keeper.accept(accepted),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "the last commit cannot be read"),
                }
                self.next_step = Instant::now();
                self.looking.inspect(keeper.known()?);
                Ok(Some(keeper))
            }
            Looked::Tidied => Ok(Some(keeper)),
            Looked::Inspected(inspected) => self.bring_in(keeper, *inspected).await,
        }
    }

    /// Brings in what was inspected. Returns nothing where the end was asked for.
    async fn bring_in(
        &mut self,
        keeper: Keeper,
        inspected: Inspected,
    ) -> Result<Option<Keeper>, RunError> {
        let span = inspected.span().clone();
        let work = |keeper: &mut Keeper, flag: &AtomicBool| keeper.take(inspected, flag);
        let (keeper, passed, ended) = lend(keeper, &mut self.signals, work).await?;
        self.service.passed(&passed);
        self.triggers.end_pass(&passed);
        let news = passed.as_ref().is_ok_and(|report| report.news);
        let pause = match passed {
            Ok(report) => {
                self.failures = 0;
                self.next_step = match report.refusal {
                    // Rollouts of the last commit that was taken go on.
                    Some(_) => Instant::now(),
                    None => due(report.wake_at_ms),
                };
                if report.news {
                    span.in_scope(|| report.events.iter().for_each(crate::rollout::log));
                    (self.tell)(&report);
                    self.follow(report);
                }
                self.schedule.poll
            }
            Err(_) if ended => return Ok(None),
            Err(error) => span.in_scope(|| retry(error, &mut self.failures))?,
        };
        self.next_pass = Instant::now() + jitter(pause);
        if news && !ended {
            self.looking.tidy();
        }
        Ok(Some(keeper).filter(|_| !ended))
    }

    /// Tells the verifier of rings that moved.
    fn follow(&self, report: PassReport) {
        let moved = Moved { actions: report.actions, origin: report.trace };
        if !moved.actions.is_empty() && self.rollouts.try_send(moved).is_err() {
            tracing::warn!("too many rollouts wait for verification");
        }
    }
}

/// When a time of the wall clock is, as far as one can tell now.
fn due(at_ms: Option<u64>) -> Instant {
    let Some(at_ms) = at_ms else { return far() };
    let now_ms = crate::state::milliseconds(std::time::SystemTime::now());
    let wait = Duration::from_millis(at_ms.saturating_sub(now_ms));
    Instant::now() + wait.min(LONGEST_SLEEP)
}

fn far() -> Instant {
    Instant::now() + LONGEST_SLEEP
}

/// Lends the keeper to a blocking thread for one piece of work. The last value
/// says whether the end was asked for meanwhile.
async fn lend<T: Send + 'static>(
    mut keeper: Keeper,
    signals: &mut Signals,
    work: impl FnOnce(&mut Keeper, &AtomicBool) -> Result<T, PassError> + Send + 'static,
) -> Result<(Keeper, Result<T, PassError>, bool), RunError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = cancelled.clone();
    let mut task = tokio::task::spawn_blocking(move || {
        let done = work(&mut keeper, &flag);
        (keeper, done)
    });
    tokio::select! {
        done = &mut task => {
            let (keeper, done) = done?;
            return Ok((keeper, done, false));
        }
        () = signals.end() => cancelled.store(true, Ordering::Relaxed),
    }
    let (keeper, done) = task.await?;
    Ok((keeper, done, true))
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

/// What a pass or a step moved, and where that is in a trace.
struct Moved {
    actions: Vec<Action>,
    origin: Origin,
}

/// What the verifier has to do.
enum Look {
    Follow(Moved),
    Written(BTreeSet<MacAddr>),
    Tick,
}

/// Follows rollouts for ever, one blocking step at a time.
async fn verify(
    mut verifier: Verifier,
    mut rollouts: Receiver<Moved>,
    reports: Option<ReportWatch>,
    ears: Ears,
) -> Result<(), RunError> {
    let mut next_tick = Instant::now();
    loop {
        let look = tokio::select! {
            moved = rollouts.recv() => moved.map_or(Look::Tick, Look::Follow),
            written = written(&reports) => Look::Written(written),
            () = tokio::time::sleep_until(next_tick) => Look::Tick,
        };
        let ticks = !matches!(look, Look::Written(_));
        let ears = ears.clone();
        let step = tokio::task::spawn_blocking(move || {
            let events = match look {
                Look::Written(macs) => verifier.look(&macs),
                Look::Follow(Moved { actions, origin }) => {
                    verifier.follow(&actions, &origin).and_then(|()| verifier.tick())
                }
                Look::Tick => verifier.tick(),
            };
            ears.found(events.iter().flatten().map(audit::found));
            (verifier, events)
        });
        let (returned, events) = step.await?;
        verifier = returned;
        match events {
            Ok(events) => events.iter().for_each(|event| event.log()),
            Err(error) => tracing::warn!(%error, "the VAs cannot be verified"),
        }
        if ticks {
            next_tick = Instant::now() + verifier.pause();
        }
    }
}

/// Waits for reports to be written, and a moment for more.
async fn written(reports: &Option<ReportWatch>) -> BTreeSet<MacAddr> {
    let Some(reports) = reports else { return std::future::pending().await };
    reports.hint().await;
    tokio::time::sleep(GATHER).await;
    reports.take()
}

/// Looks at one private layer after the other, for ever, slowly.
async fn drift_round(store: Arc<Store>, vlfs: PathBuf, ears: Ears) {
    let mut round = DriftRound::new(store, vlfs);
    loop {
        tokio::time::sleep(DRIFT_PAUSE).await;
        let ears = ears.clone();
        let step = tokio::task::spawn_blocking(move || {
            let events = round.step();
            ears.found(events.iter().map(|record| record.event.clone()));
            (round, events)
        });
        let Ok((returned, events)) = step.await else { return };
        round = returned;
        events.iter().for_each(crate::rollout::log);
    }
}

/// Starts to watch the reports. Without events their turn comes, which is enough.
fn watch_reports(store: &Store, schedule: Schedule) -> Option<ReportWatch> {
    if !schedule.events {
        return None;
    }
    match ReportWatch::start(&store.reports()) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "no file events of reports; VAs are verified in turn");
            None
        }
    }
}

/// Starts to watch the links. Without events they are looked at every minute.
fn watch_links(store: &Store, schedule: Schedule) -> Option<LinkWatch> {
    if !schedule.events {
        return None;
    }
    match LinkWatch::start(store) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "no file events of links; they are looked at every minute");
            None
        }
    }
}

/// Waits until a link has changed; for ever where nobody watches.
async fn changed(links: &mut Option<LinkWatch>) {
    match links {
        Some(links) => links.hint().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is set neither delays what is due for long nor makes it come at once
    /// for ever.
    #[test]
    fn a_clock_that_jumps_is_noticed_within_a_minute() {
        let now_ms = crate::state::milliseconds(std::time::SystemTime::now());
        for (at_ms, least, most) in [
            (Some(0), 0, 1_i32),
            (Some(now_ms + 10_000), 5, 10),
            (Some(now_ms + 86_400_000), 60, 60),
            (Some(u64::MAX), 60, 60),
            (None, 60, 60),
        ] {
            let wait = (due(at_ms) - Instant::now()).as_secs_f64();
            let bounds = f64::from(least) - 1.0..=f64::from(most);
            assert!(bounds.contains(&wait), "{at_ms:?} {wait}");
        }
    }

    #[test]
    fn failures_back_off_to_a_limit() {
        let mut failures = 0;
        let error = || PassError::Store(strata_store::StoreError::NotAStore("/x".into()));
        let waits: Vec<_> =
            (0..12).map(|_| retry(error(), &mut failures).expect("not fatal").as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }
}
