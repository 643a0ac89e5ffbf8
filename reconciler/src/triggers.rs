//! What makes the main loop look at the source before the poll floor does: file events,
//! webhooks, and operators who ask.
//!
//! Each is a hint that holds once, however often it comes while a pass is under way.
//! Whoever asked through the control socket hears of a pass that began after that.

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use strata_store::Store;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use crate::control::{self, Answer, Waiter};
use crate::http_server::Server;
use crate::pass::{PassError, PassReport};
use crate::run::Schedule;
use crate::secret::SecretError;
use crate::service::Task;
use crate::source::Source;
use crate::watch::RefWatch;
use crate::webhook::{self, Verifier, WebhookSettings, Webhooks};

/// Passes that webhooks cause begin this far apart: a forge that is asked for every
/// event of a busy day would count it as a flood.
const WEBHOOK_PAUSE: Duration = Duration::from_secs(1);
/// Operators who may wait at a time.
const WAITERS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    #[error("[webhook] listen: cannot listen for webhooks at {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("[webhook]: {0}")]
    Secret(#[from] SecretError),
}

/// All of them. What serves them ends with it.
#[derive(Debug)]
pub struct Triggers {
    watch: Option<RefWatch>,
    webhooks: Receiver<()>,
    /// For those that answer webhooks; there may be none.
    hints: Sender<()>,
    /// Whether a webhook came that no pass has followed yet.
    hinted: bool,
    not_before: Instant,
    asking: Receiver<Waiter>,
    waiting: Vec<Waiter>,
    webhook: Option<Webhook>,
    _control: Option<Task>,
}

/// Where webhooks are listened for.
#[derive(Debug)]
struct Webhook {
    listen: SocketAddr,
    handler: Webhooks,
    server: Server,
}

/// What is needed to listen for webhooks as some settings say.
#[derive(Debug)]
pub enum PreparedWebhook {
    None,
    /// Where it is listened already.
    Same(Verifier),
    Other {
        listen: SocketAddr,
        listener: TcpListener,
        verifier: Verifier,
    },
}

impl Triggers {
    /// Starts to watch and to listen.
    ///
    /// # Errors
    /// Webhooks are asked for and cannot be listened for.
    pub async fn start(
        (store, source): (&Store, &Source),
        schedule: Schedule,
        webhook: Option<&WebhookSettings>,
    ) -> Result<Self, TriggerError> {
        let (hints, webhooks) = channel(1);
        let (waiters, asking) = channel(WAITERS);
        let control = match control::listen(store) {
            Ok(listener) => Some(Task::spawn(control::serve(listener, waiters))),
            Err(error) => {
                tracing::warn!(%error, "`strata reconcile now` cannot reach this program");
                None
            }
        };
        let mut triggers = Triggers {
            watch: watch(source, schedule),
            webhooks,
            hints,
            hinted: false,
            not_before: Instant::now(),
            asking,
            waiting: Vec::new(),
            webhook: None,
            _control: control,
        };
        let webhook = triggers.prepare(webhook).await?;
        triggers.take(webhook);
        Ok(triggers)
    }

    /// Makes ready to listen as other settings say.
    ///
    /// # Errors
    /// The address is taken, or the secret cannot be read.
    pub async fn prepare(
        &self,
        settings: Option<&WebhookSettings>,
    ) -> Result<PreparedWebhook, TriggerError> {
        let Some(&WebhookSettings { listen, forge, ref secret }) = settings else {
            return Ok(PreparedWebhook::None);
        };
        let verifier = Verifier::new(forge, secret.read()?);
        if self.webhook.as_ref().is_some_and(|webhook| webhook.listen == listen) {
            return Ok(PreparedWebhook::Same(verifier));
        }
        let failed = |source| TriggerError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        Ok(PreparedWebhook::Other { listen, listener, verifier })
    }

    /// Listens as the settings say that this was made ready for. Who is being answered
    /// still is.
    pub fn take(&mut self, prepared: PreparedWebhook) {
        match (prepared, &self.webhook) {
            (PreparedWebhook::None, _) => self.webhook = None,
            // Whose address it is cannot have changed since.
            (PreparedWebhook::Same(verifier), webhook) => {
                if let Some(webhook) = webhook {
                    webhook.handler.use_verifier(verifier);
                }
            }
            (PreparedWebhook::Other { listen, listener, verifier }, _) => {
                tracing::info!(%listen, "listening for webhooks");
                let handler = Webhooks::new(verifier, self.hints.clone());
                let server = Server::start(listener, webhook::LIMITS, handler.clone());
                self.webhook = Some(Webhook { listen, handler, server });
            }
        }
    }

    /// Watches the source that the reconciler looks at now.
    pub fn watch(&mut self, source: &Source, schedule: Schedule) {
        self.watch = watch(source, schedule);
    }

    /// Ends what listens, and lets what is being answered finish.
    pub async fn stop(&mut self) {
        if let Some(webhook) = self.webhook.take() {
            webhook.server.stop().await;
        }
    }

    /// Waits until there is a reason to look at the source. May be cancelled.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                () = hint(&mut self.watch) => return,
                Some(waiter) = self.asking.recv() => {
                    self.waiting.push(waiter);
                    return;
                }
                () = tokio::time::sleep_until(self.not_before), if self.hinted => return,
                Some(()) = self.webhooks.recv(), if !self.hinted => self.hinted = true,
                else => std::future::pending().await,
            }
        }
    }

    /// Takes all that a pass that begins now will answer.
    pub fn begin_pass(&mut self) {
        while let Ok(waiter) = self.asking.try_recv() {
            self.waiting.push(waiter);
        }
        while self.webhooks.try_recv().is_ok() {}
        self.hinted = false;
        self.not_before = Instant::now() + WEBHOOK_PAUSE;
    }

    /// Tells those who asked how the pass went.
    pub fn end_pass(&mut self, passed: &Result<PassReport, PassError>) {
        for waiter in self.waiting.drain(..) {
            let answer = match passed {
                Ok(report) => match serde_json::to_value(report) {
                    Ok(report) => Answer::Passed { report },
                    Err(error) => Answer::Failed { message: error.to_string() },
                },
                Err(error) => Answer::Failed { message: error.to_string() },
            };
            if waiter.send(answer).is_err() {
                tracing::debug!("who asked for a pass does not listen any more");
            }
        }
    }
}

/// A tenth more or less than `wait`, so that many reconcilers do not ask at once.
pub fn jitter(wait: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish() % 2_001;
    wait.mul_f64(0.9 + random as f64 / 10_000.0)
}

/// Starts to watch a local source. Without events the poll floor is left, which
/// is worth a word.
fn watch(source: &Source, schedule: Schedule) -> Option<RefWatch> {
    let path = source.local_path().filter(|_| schedule.events)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_differ_by_a_tenth() {
        let waits: Vec<_> = (0..100).map(|_| jitter(Duration::from_secs(100))).collect();
        let (least, most) = (Duration::from_secs(90), Duration::from_millis(110_010));
        assert!(waits.iter().all(|wait| (least..most).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
