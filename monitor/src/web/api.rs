//! JSON for programs: services as the agent sees them now, incidents as they are written down. Read-only, and bounded: in
//! time, in the number of records, and in how many look into the store at once.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{events, traces};
use crate::{control::Command, store::Reader, timeline::Timeline};

/// The agent answers from memory, as soon as its first scan is done.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks into the store at a time; beyond, others wait, and no longer than [`PATIENCE`].
const READERS: usize = 4;
/// Incidents in one answer: by default, and at most. A record has some 8 KiB.
const INCIDENTS: u32 = 100;
const MAX_INCIDENTS: u32 = 1000;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    commands: mpsc::Sender<Command>,
    state_dir: PathBuf,
    readers: Arc<Semaphore>,
    /// What happens, and how many more may follow it.
    pub(super) timeline: Timeline,
    pub(super) streams: Arc<Semaphore>,
}

/// Which incidents.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    service: Option<String>,
    limit: Option<u32>,
}

impl Api {
    /// Asks the agent through `commands`, looks into the store in `state_dir`, and hears what happens from `timeline`.
    pub(crate) fn new(commands: mpsc::Sender<Command>, state_dir: PathBuf, timeline: Timeline) -> Self {
        let (readers, streams) = (Arc::new(Semaphore::new(READERS)), Arc::new(Semaphore::new(events::STREAMS)));
        Self { commands, state_dir, readers, timeline, streams }
    }

    /// The routes below `/api/v1`.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/services", get(services))
            .route("/incidents", get(incidents))
            .route("/incidents/{id}", get(incident))
            .route("/events", get(events::stream))
            .merge(traces::router())
            .with_state(self)
    }

    /// Looks into the store beside everything else.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        self.look(move |state_dir| look(&Reader::open(state_dir)?)).await
    }

    /// Looks into the state directory beside everything else.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&std::path::Path) -> Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        let look = async {
            let permit = Arc::clone(&self.readers).acquire_owned().await;
            let directory = self.state_dir.clone();
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                look(&directory)
            })
            .await
        };
        match timeout(PATIENCE, look).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => Err(unavailable(format!("{error:#}"))),
            Ok(Err(_)) => Err(unavailable("the look into the store failed".to_owned())),
            Err(_) => Err(unavailable("the store does not answer".to_owned())),
        }
    }

    /// Asks the agent.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Response> {
        let asked = async {
            let (reply, answer) = oneshot::channel();
            self.commands.send(question(reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout(PATIENCE, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(unavailable("the agent is stopping".to_owned())),
            Err(_) => Err(unavailable("the agent is not ready; see /readyz".to_owned())),
        }
    }
}

fn unavailable(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response()
}

async fn services(State(api): State<Api>) -> Response {
    match api.ask(Command::Status).await {
        Ok(all) => Json(all).into_response(),
        Err(error) => error,
    }
}

async fn incidents(State(api): State<Api>, Query(Which { service, limit }): Query<Which>) -> Response {
    let limit = limit.unwrap_or(INCIDENTS);
    if limit > MAX_INCIDENTS {
        let why = format!("limit={limit} is too many; allowed is up to {MAX_INCIDENTS}\n");
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    match api.read(move |reader| reader.incidents(service.as_deref(), limit)).await {
        Ok(all) => Json(all).into_response(),
        Err(error) => error,
    }
}

async fn incident(State(api): State<Api>, Path(id): Path<i64>) -> Response {
    match api.read(move |reader| reader.incident(id)).await {
        Ok(Some(incident)) => Json(incident).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, format!("there is no incident {id}\n")).into_response(),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests;
