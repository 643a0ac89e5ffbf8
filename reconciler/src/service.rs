//! What the main loop has around it as a service: listeners, receivers, metrics, the
//! service manager's messages, and a configuration that can be taken anew.
//!
//! None of it can hold a pass up: the loop adds numbers and sends datagrams, all else
//! runs in tasks of its own.

use std::net::SocketAddr;
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
use crate::traces::{self, Traces, TracesError};
use crate::triggers::TriggerError;

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
    #[error("[listen] metrics: {address} cannot be listened on: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    #[error("[source]: {0}")]
    Source(#[from] PassError),
    #[error("no source is named: [source] is gone, and the command line gave none")]
    NoSource,
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
    settings: Settings,
    telling: Telling,
    reverting: Option<Task>,
    ears: Ears,
    heartbeat: Arc<Heartbeat>,
    listener: Option<Server>,
    _watchdog: Option<Task>,
}

/// What is needed to take other settings: where one is other than before.
#[derive(Debug)]
pub struct Prepared {
    traces: Option<traces::Prepared>,
    listener: Option<TcpListener>,
}

impl Service {
    /// Listens and tells as the settings say. `longest` is the longest fetch.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        store: Arc<Store>,
        audit: Arc<AuditLog>,
        source: Source,
        settings: Settings,
        longest: Duration,
        traces: Traces,
    ) -> Result<Self, ReloadError> {
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
            settings: Settings::default(),
            telling: Telling::default(),
            reverting: None,
            ears,
            heartbeat,
            listener: None,
            _watchdog: watchdog,
        };
        let prepared = service.prepare(&settings).await?;
        service.take(prepared, settings);
        Ok(service)
    }

    /// Says that all is up.
    pub fn ready(&self) {
        self.note(ReconcilerChange::Started, None);
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

    /// Settings are about to be read anew.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => say(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
        }
    }

    /// They were taken, or why not.
    pub fn reloaded(&self, refused: Option<String>) {
        match refused {
            None => {
                tracing::info!("the new configuration was taken");
                self.note(ReconcilerChange::Reloaded, None);
            }
            Some(message) => {
                tracing::error!(
                    error = %message,
                    "the configuration was not taken; the one before holds"
                );
                self.note(ReconcilerChange::SettingsRefused, Some(message));
            }
        }
        say(&[NotifyState::Ready]);
    }

    /// Makes ready what other settings say, so that they can be taken without a fault.
    ///
    /// # Errors
    /// Something of it cannot be done.
    pub async fn prepare(&self, settings: &Settings) -> Result<Prepared, ReloadError> {
        let traces = match settings.traces == self.settings.traces {
            true => None,
            false => Some(Traces::prepare(settings.traces.as_ref(), &self.store)?),
        };
        let listener = match settings.listen {
            Some(address) if settings.listen != self.settings.listen => {
                let listener = TcpListener::bind(address).await;
                Some(listener.map_err(|source| ReloadError::Listen { address, source })?)
            }
            _ => None,
        };
        Ok(Prepared { traces, listener })
    }

    /// Takes the settings that this was made ready for.
    pub fn take(&mut self, prepared: Prepared, settings: Settings) {
        let Prepared { traces, listener } = prepared;
        if let Some(traces) = traces {
            self.traces.take(traces);
        }
        if let Some(listener) = listener {
            let (heartbeat, metrics) = (self.heartbeat.clone(), self.ears.metrics.clone());
            let router = health::router(self.store.clone(), heartbeat, metrics);
            self.listener = Some(Server::start(listener, serve::LIMITS, Routes(router)));
        } else if settings.listen.is_none() {
            self.listener = None;
        }
        self.telling.restart(&self.store, &settings);
        self.reverting = settings.revert.clone().map(|revert| {
            let (store, ears) = (self.store.clone(), self.ears.clone());
            Task::spawn(revert::run(store, ears, self.source.remotes()[0].clone(), revert))
        });
        self.settings = settings;
    }

    /// The settings that count.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The reconciler looks at another source, where a fetch takes so long at most. What is
    /// done with the source starts anew with the settings that are taken next.
    pub fn follow(&mut self, source: Source, longest: Duration) {
        self.source = source;
        self.heartbeat.set_limit(longest + STILL);
    }

    /// Ends what listens, and lets what is being answered finish.
    pub async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop().await;
        }
    }

    fn note(&self, change: ReconcilerChange, message: Option<String>) {
        let source = self.source.to_string();
        self.ears.found(std::iter::once(Event::Reconciler { change, source, message }));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        say(&[NotifyState::Stopping]);
        self.note(ReconcilerChange::Ended, None);
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
