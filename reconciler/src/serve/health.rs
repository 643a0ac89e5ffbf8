//! `/metrics`, `/healthz` and `/readyz`, and what the watchdog asks.
//!
//! Healthy means that the main loop moves; ready, that a pass has ended and the store
//! answers. A commit that was refused, or a source out of reach, makes the reconciler
//! neither: restarting it would mend nothing. `/readyz` says so in its conditions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use strata_store::Store;

use super::metrics::Metrics;
use crate::rollout::{RolloutFile, conditions};
use crate::state::ReconcileState;

/// When the main loop last moved.
#[derive(Debug)]
pub struct Heartbeat {
    begun: Instant,
    last_ms: AtomicU64,
    ready: AtomicBool,
    /// A loop that did not move for so long hangs.
    limit_ms: AtomicU64,
}

impl Heartbeat {
    /// `limit` is longer than the longest pass.
    pub fn new(limit: Duration) -> Self {
        let heartbeat = Heartbeat {
            begun: Instant::now(),
            last_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            limit_ms: AtomicU64::new(0),
        };
        heartbeat.set_limit(limit);
        heartbeat
    }

    /// Passes take longer or shorter from now on.
    pub fn set_limit(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.limit_ms.store(limit, Ordering::Relaxed);
    }

    pub fn beat(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// A pass has ended, however.
    pub fn passed(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// How long the loop has not moved.
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }

    pub fn is_alive(&self) -> bool {
        self.age() < Duration::from_millis(self.limit_ms.load(Ordering::Relaxed))
    }
}

#[derive(Debug, Clone)]
struct Shared {
    store: Arc<Store>,
    heartbeat: Arc<Heartbeat>,
    metrics: Arc<Metrics>,
}

pub fn router(store: Arc<Store>, heartbeat: Arc<Heartbeat>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Shared { store, heartbeat, metrics })
}

async fn metrics_page(State(shared): State<Shared>) -> Response {
    let Shared { store, metrics, .. } = shared;
    match tokio::task::spawn_blocking(move || metrics.page(&store)).await {
        Ok(Ok(text)) => {
            ([(header::CONTENT_TYPE, super::metrics::CONTENT_TYPE)], text).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.heartbeat.is_alive() {
        true => (StatusCode::OK, "ok\n").into_response(),
        false => {
            let age = shared.heartbeat.age().as_secs();
            let text = format!("the main loop has not moved for {age} s\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let Shared { store, heartbeat, .. } = shared;
    let looked = tokio::task::spawn_blocking(move || {
        let state = ReconcileState::read(&store).map_err(|error| error.to_string())?;
        let file = RolloutFile::read(&store).map_err(|error| error.to_string())?;
        let conditions = state.as_ref().map(ReconcileState::conditions);
        let open = conditions::unfinished(&file);
        Ok::<_, String>(conditions.map(|all| conditions::refine(all, &open)))
    });
    let (ready, reason, conditions) = match looked.await {
        Ok(Ok(conditions)) if heartbeat.is_ready() => (true, None, conditions),
        Ok(Ok(conditions)) => (false, Some("no pass has ended yet".to_owned()), conditions),
        Ok(Err(error)) => (false, Some(error), None),
        Err(error) => (false, Some(error.to_string()), None),
    };
    let conditions = conditions.into_iter().flatten().collect::<Vec<_>>();
    let body = json!({ "version": 1, "ready": ready, "reason": reason, "conditions": conditions });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_move_is_not_alive() {
        let heartbeat = Heartbeat::new(Duration::from_millis(50));
        heartbeat.beat();
        assert!(heartbeat.is_alive() && !heartbeat.is_ready());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!heartbeat.is_alive());
        heartbeat.beat();
        heartbeat.passed();
        assert!(heartbeat.is_alive() && heartbeat.is_ready());
    }
}
