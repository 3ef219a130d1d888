//! HTTP: metrics for Prometheus, liveness and readiness, for load balancers where services stand, JSON for programs,
//! pages for people. Read-only; who may come in, and whether over TLS, says a file ([`gate`]).

mod api;
mod events;
mod gate;
mod hosts;
mod metrics;
mod pages;
mod places;
mod serve;
mod traces;

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;

pub(crate) use self::{
    api::Api,
    gate::{Gate, check},
    hosts::Hosts,
    metrics::WebMetrics,
};
use crate::{
    host::listener,
    metrics::Table,
    pool::{self, Board},
};

/// What start-up still has to do; ready when nothing is left.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    latches: Vec<&'static str>,
    notes: Vec<String>,
}

impl Readiness {
    /// Not ready until each of `latches` is released.
    pub(crate) fn new(latches: &[&'static str]) -> Self {
        Self { state: Mutex::new(Waiting { latches: latches.to_vec(), notes: Vec::new() }) }
    }

    /// One thing is done.
    pub(crate) fn release(&self, latch: &'static str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).latches.retain(|&waiting| waiting != latch);
    }

    /// Something does not work here, and the rest does.
    pub(crate) fn note(&self, note: String) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).notes.push(note);
    }

    /// Whether it is ready, and the text that says so.
    fn describe(&self) -> (bool, String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = if state.latches.is_empty() {
            "ready\n".to_owned()
        } else {
            format!("not ready: waiting for {}\n", state.latches.join(", "))
        };
        for note in &state.notes {
            text.push_str("off here: ");
            text.push_str(note);
            text.push('\n');
        }
        (state.latches.is_empty(), text)
    }
}

/// What the handlers share.
pub(crate) struct Web {
    /// The metrics of the agent itself.
    pub(crate) registry: Registry,
    /// Those of services.
    pub(crate) services: Arc<Table>,
    /// Start-up.
    pub(crate) readiness: Arc<Readiness>,
    /// Brings counters up to date before a scrape.
    pub(crate) refresh: Box<dyn Fn() -> Result<()> + Send + Sync>,
    /// Where services stand in their pools.
    pub(crate) board: Arc<Board>,
    /// What does not work just now, and did or will.
    pub(crate) trouble: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// JSON below `/api/v1`.
    pub(crate) api: Api,
}

/// Binds the listener, so that a taken port is known before anything else begins.
///
/// # Errors
/// When the address cannot be had.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    listener::listen(address).with_context(|| {
        format!(
            "cannot listen on {address} (is another agent running? choose another address with --listen or [http] listen)"
        )
    })
}

/// Serves until `shutdown` completes.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    web: Web,
    gate: Arc<Gate>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (api, pages) = (web.api.clone().router(), pages::router(web.api.clone()));
    let web = Arc::new(web);
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(&web))
        .nest("/api/v1", api)
        .merge(pages)
        .layer(from_fn_with_state(Arc::clone(&gate), gate::ask));
    // Load balancers can mostly send no password, and a check that fails takes a good server out of its pool.
    let open = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/pool/{*service}", get(standing))
        .with_state(web);
    let router = open.merge(guarded).layer(from_fn_with_state(Arc::clone(&gate), gate::dress));
    serve::apart(listener, gate, router, shutdown).await.context("the HTTP server stopped")
}

async fn metrics(State(web): State<Arc<Web>>) -> Response {
    if let Err(error) = (web.refresh)() {
        tracing::warn!("metrics may be stale: {error:#}");
    }
    let encoder = TextEncoder::new();
    let mut own = String::new();
    match encoder.encode_utf8(&web.registry.gather(), &mut own) {
        Ok(()) => {
            // In parts, as whoever asks takes them: of many services it is tens of megabytes.
            let parts = std::iter::once(own).chain(Arc::clone(&web.services).text()).filter(|part| !part.is_empty());
            let body = Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>)));
            ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode metrics: {error}\n")).into_response(),
    }
}

/// What Envoy takes at once for a host that must get nothing more, whatever its threshold (its manual, "health checking").
const ENVOY_FAIL: &str = "x-envoy-immediate-health-check-fail";

/// Whether a service shall get traffic, for whoever asks over HTTP: 200 or 503, and 404 for one that nobody knows.
async fn standing(State(web): State<Arc<Web>>, Path(service): Path<String>) -> Response {
    let Some(standing) = web.board.find(&service) else {
        let known = "no such service is looked after; defib status lists those that are\n";
        return (StatusCode::NOT_FOUND, known).into_response();
    };
    match standing {
        Some(standing) if standing.state == pool::State::In => Json(standing).into_response(),
        Some(standing) if standing.state == pool::State::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(standing)).into_response()
        }
        Some(standing) => (StatusCode::SERVICE_UNAVAILABLE, [(ENVOY_FAIL, "true")], Json(standing)).into_response(),
        None => {
            let text = "its state is not known yet\n";
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
        }
    }
}

async fn ready(State(web): State<Arc<Web>>) -> Response {
    let (ready, mut text) = web.readiness.describe();
    if let Some(trouble) = (web.trouble)() {
        text.push_str(&format!("not working: {trouble}\n"));
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}
