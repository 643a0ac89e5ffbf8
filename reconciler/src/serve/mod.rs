//! What the reconciler answers over HTTP: metrics, and how it is. Nothing here reads the
//! store on a runtime thread.

pub mod health;
pub mod metrics;

use std::time::Duration;

use axum::Router;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;

use crate::http_server::{Handler, Limits};

pub const LIMITS: Limits = Limits {
    connections: 64,
    connection_time: Duration::from_secs(30),
    header_time: Duration::from_secs(10),
    header_bytes: 16 << 10,
    headers: 100,
    body_bytes: 64 << 10,
    keep_alive: false,
    grace: Duration::from_secs(2),
};

/// What answers by routes.
#[derive(Debug, Clone)]
pub struct Routes(pub Router);

impl Handler for Routes {
    type Body = axum::body::Body;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<Self::Body> {
        match TowerToHyperService::new(self.0.clone()).call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
