//! `/api/v1/traces`: where the memory of services grew, as it is kept. Read-only; a path is taken apart here and followed nowhere
//! but below the directory of kept traces.

use std::{
    fs::File,
    io::{self, Read as _},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::stream;
use serde::Deserialize;

use super::Api;
use crate::trace::show::kept::{FILES, Shelf};

/// The picture has a script of its own, which asks what to search for, and names that other people chose. Whatever should get in
/// there finds itself in an origin of its own, where it can ask nobody and read nothing.
const PICTURE: &str = "sandbox allow-scripts allow-modals; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                       frame-ancestors 'none'";
/// The rest is no page at all.
const DATA: &str = "sandbox; default-src 'none'; frame-ancestors 'none'";
/// Bytes of a file that are held at a time: nobody needs all of it at once.
const PART: usize = 64 << 10;

/// Which traces.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    service: Option<String>,
}

/// The routes below `/api/v1`.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/traces", get(list)).route("/traces/{service}/{time}/{file}", get(file))
}

async fn list(State(api): State<Api>, Query(Which { service }): Query<Which>) -> Response {
    match api.look(move |state_dir| Shelf::of(state_dir).list(service.as_deref())).await {
        Ok(all) => Json(all).into_response(),
        Err(error) => error,
    }
}

async fn file(State(api): State<Api>, Path((service, time, name)): Path<(String, String, String)>) -> Response {
    let Some((name, kind)) = FILES.into_iter().find(|(known, _)| *known == name) else { return unknown() };
    match api.look(move |state_dir| Shelf::of(state_dir).file(&service, &time, name)).await {
        Ok(Some(file)) => {
            let policy = if kind == "image/svg+xml" { PICTURE } else { DATA };
            let headers = [
                (header::CONTENT_TYPE, kind),
                (header::CONTENT_SECURITY_POLICY, policy),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                // A trace never changes; that it has gone is no news to whoever has read it.
                (header::CACHE_CONTROL, "private, max-age=86400"),
            ];
            (headers, Body::from_stream(parts(file))).into_response()
        }
        Ok(None) => unknown(),
        Err(error) => error,
    }
}

fn unknown() -> Response {
    let known = "no such trace is kept; /api/v1/traces lists those that are\n";
    (StatusCode::NOT_FOUND, known).into_response()
}

/// The file, part by part as it is taken, read beside everything else.
fn parts(file: File) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let read = move || {
            let mut part = vec![0; PART];
            let count = file.read(&mut part)?;
            part.truncate(count);
            Ok::<_, io::Error>((part, file))
        };
        let (part, file) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        Ok((!part.is_empty()).then(|| (Bytes::from(part), file)))
    })
}
