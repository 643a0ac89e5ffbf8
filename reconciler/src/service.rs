//! What the main loop has around it as a service: listeners, receivers, metrics, the
//! service manager's messages, and a configuration that can be taken anew.
//!
//! None of it can hold a pass up: the loop adds numbers and sends datagrams, all else
//! runs in tasks of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sd_notify::NotifyState;
use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord, ReconcilerChange};
use strata_store::Store;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};

use crate::audit::AuditLog;
use crate::http_server::Server;
use crate::pass::{PassError, PassReport};
use crate::revert;
use crate::serve::health::Heartbeat;
use crate::serve::metrics::Metrics;
use crate::serve::{self, Routes, health};
use crate::settings::{Settings, SettingsError};
use crate::source::Source;
use crate::state::milliseconds;
use crate::telling::Telling;
use crate::traces::{Traces, TracesError};

/// A loop that stands still for so long beyond the longest fetch hangs.
const STILL: Duration = Duration::from_secs(300);

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Task(tokio::spawn(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("{address} cannot be listened on: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error("reading it broke off: {0}")]
    Join(#[from] JoinError),
}

/// Who is told what happens, from any task.
#[derive(Debug, Clone)]
pub struct Ears {
    audit: Arc<AuditLog>,
    metrics: Arc<Metrics>,
}

impl Ears {
    /// Counts what is in the audit log already.
    pub fn happened(&self, events: &[EventRecord]) {
        events.iter().for_each(|record| self.metrics.happened(&record.event));
    }

    /// Writes what was found to the audit log. What was only looked at is no worse for a
    /// log that cannot be written; that is told.
    pub fn found(&self, events: impl Iterator<Item = Event>) {
        let at_ms = milliseconds(SystemTime::now());
        let events: Vec<_> = events.map(|event| EventRecord::new(at_ms, event)).collect();
        if let Err(error) = self.audit.tell(&Who::default(), &events) {
            tracing::error!(%error, "what was found is not in the audit log");
        }
        self.happened(&events);
    }
}

#[derive(Debug)]
pub struct Service {
    store: Arc<Store>,
    source: Source,
    traces: Traces,
    file: Option<PathBuf>,
    settings: Settings,
    telling: Telling,
    reverting: Option<Task>,
    ears: Ears,
    heartbeat: Arc<Heartbeat>,
    listener: Option<Server>,
    _watchdog: Option<Task>,
}

impl Service {
    /// Listens and tells as the configuration says. `longest` is the longest fetch.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        store: Arc<Store>,
        audit: Arc<AuditLog>,
        source: Source,
        configuration: Option<(PathBuf, Settings)>,
        longest: Duration,
        traces: Traces,
    ) -> Result<Self, ReloadError> {
        let (file, settings) = configuration.unzip();
        let heartbeat = Arc::new(Heartbeat::new(longest + STILL));
        let watchdog = sd_notify::watchdog_enabled().map(|every| {
            let heartbeat = heartbeat.clone();
            Task::spawn(feed(heartbeat, every / 2))
        });
        let ears = Ears { audit, metrics: Arc::default() };
        let mut service = Service {
            store,
            source,
            traces,
            file,
            settings: Settings::default(),
            telling: Telling::default(),
            reverting: None,
            ears,
            heartbeat,
            listener: None,
            _watchdog: watchdog,
        };
        service.take(settings.unwrap_or_default()).await?;
        Ok(service)
    }

    /// Says that all is up.
    pub fn ready(&self) {
        self.note(ReconcilerChange::Started);
        say(&[NotifyState::Ready]);
    }

    pub fn ears(&self) -> &Ears {
        &self.ears
    }

    /// The main loop moves.
    pub fn beat(&self) {
        self.heartbeat.beat();
    }

    pub fn passed(&self, passed: &Result<PassReport, PassError>) {
        self.heartbeat.passed();
        let status = match passed {
            Ok(report) => {
                let age = report.committed_at_ms.map(|at_ms| {
                    let now_ms = milliseconds(SystemTime::now());
                    Duration::from_millis(now_ms.saturating_sub(at_ms))
                });
                self.ears.metrics.passed(report, age);
                self.ears.happened(&report.events);
                let commit = strata_core::event::short(&report.commit);
                match &report.message {
                    Some(message) => format!("{commit} refused: {message}"),
                    None => format!("{commit} applied"),
                }
            }
            Err(error) => {
                self.ears.metrics.failed();
                format!("failing: {error}")
            }
        };
        let line: String = status.chars().filter(|c| !c.is_control()).take(500).collect();
        say(&[NotifyState::Status(&line)]);
    }

    /// Reads the configuration anew and takes it, all or nothing.
    pub async fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => say(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
        }
        match self.reread().await {
            Ok(()) => {
                tracing::info!("the new configuration was taken");
                self.note(ReconcilerChange::Reloaded);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration was not taken; the one before holds");
            }
        }
        say(&[NotifyState::Ready]);
    }

    async fn reread(&mut self) -> Result<(), ReloadError> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let settings = tokio::task::spawn_blocking(move || Settings::read(&file)).await??;
        let fixed = |settings: &Settings| {
            (settings.source.clone(), settings.trust.clone(), settings.webhook.clone())
        };
        if fixed(&settings) != fixed(&self.settings) {
            tracing::warn!("what [source], [trust] and [webhook] say is taken at the next start");
        }
        self.take(settings).await
    }

    /// Takes a configuration; what can fail comes first.
    async fn take(&mut self, settings: Settings) -> Result<(), ReloadError> {
        let traces = match settings.traces == self.settings.traces {
            true => None,
            false => Some(Traces::prepare(settings.traces.as_ref(), &self.store)?),
        };
        if settings.listen != self.settings.listen {
            self.listener = match settings.listen {
                None => None,
                Some(address) => {
                    let listener = TcpListener::bind(address).await;
                    let listener =
                        listener.map_err(|source| ReloadError::Listen { address, source })?;
                    let (heartbeat, metrics) = (self.heartbeat.clone(), self.ears.metrics.clone());
                    let router = health::router(self.store.clone(), heartbeat, metrics);
                    Some(Server::start(listener, serve::LIMITS, Routes(router)))
                }
            };
        }
        if let Some(traces) = traces {
            self.traces.take(traces);
        }
        self.telling.restart(&self.store, &settings);
        self.reverting = settings.revert.clone().map(|revert| {
            let (store, ears) = (self.store.clone(), self.ears.clone());
            Task::spawn(revert::run(store, ears, self.source.remotes()[0].clone(), revert))
        });
        self.settings = settings;
        Ok(())
    }

    /// Ends what listens, and lets what is being answered finish.
    pub async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop().await;
        }
    }

    fn note(&self, change: ReconcilerChange) {
        let source = self.source.to_string();
        self.ears.found(std::iter::once(Event::Reconciler { change, source }));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        say(&[NotifyState::Stopping]);
        self.note(ReconcilerChange::Ended);
    }
}

/// Tells the service manager, where there is one.
fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Feeds the watchdog as long as the main loop moves.
async fn feed(heartbeat: Arc<Heartbeat>, every: Duration) {
    loop {
        match heartbeat.is_alive() {
            true => say(&[NotifyState::Watchdog]),
            false => {
                let still_s = heartbeat.age().as_secs();
                tracing::error!(still_s, "the main loop does not move; the watchdog is not fed");
            }
        }
        tokio::time::sleep(every).await;
    }
}
