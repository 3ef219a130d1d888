//! How alerts are told: Alertmanager's HTTP API, version 2 (`POST /api/v2/alerts`, api/v2/openapi.yaml in its sources).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use axum::body::Body;
use hyper::{StatusCode, header};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{net::TcpStream, time::timeout};

use super::{
    board::TTL,
    outbox::{Answer, Posting},
};
use crate::{config::Peer, host::clock, text::Clean};

/// A peer answers within milliseconds, or it does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer that refuses, so much is read: 4 KiB tell why.
const ANSWER_MAX: usize = 4096;
/// Bytes of a label's value, and of an annotation. Names of units have 255 at most.
const LABEL_MAX: usize = 256;
const ANNOTATION_MAX: usize = 1024;

/// As the API wants it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    labels: BTreeMap<&'a str, String>,
    annotations: BTreeMap<&'a str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// The body of a post. `labels`: those that every alert of this agent has, `instance` among them.
pub(super) fn body(batch: &[Posting], labels: &BTreeMap<String, String>, now: u64) -> String {
    let instance = labels.get("instance").map_or("", String::as_str);
    let wire = |posting: &Posting| {
        let kind = posting.kind;
        let mut all: BTreeMap<_, _> =
            labels.iter().map(|(name, value)| (name.as_str(), bounded(value, LABEL_MAX))).collect();
        all.insert("alertname", kind.name().to_owned());
        all.insert("severity", kind.severity().to_owned());
        all.insert("service", bounded(&posting.service, LABEL_MAX));
        all.extend(kind.scope().map(|scope| ("scope", scope.to_owned())));
        Wire {
            labels: all,
            annotations: BTreeMap::from([
                ("summary", bounded(&kind.summary(&posting.service, instance), ANNOTATION_MAX)),
                ("description", bounded(&posting.text, ANNOTATION_MAX)),
                ("runbook", kind.runbook()),
            ]),
            starts_at: clock::wall(posting.since_ns),
            ends_at: clock::wall(posting.ended_ns.unwrap_or(now.saturating_add(TTL))),
        }
    };
    let all: Vec<_> = batch.iter().map(wire).collect();
    // Strings and times always serialize.
    serde_json::to_string(&all).unwrap_or_default()
}

/// Text that fits, with control characters made visible.
fn bounded(text: &str, max: usize) -> String {
    let mut text = Clean(text).to_string();
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

/// Posts a body to a peer.
pub(super) async fn post(peer: &Peer, body: String) -> Answer {
    match timeout(PATIENCE, send(peer, body)).await {
        Ok(Ok((status, _))) if status.is_success() => Answer::Accepted,
        // These say that the alerts are wrong. Others say that the way to the peer is, or that it is busy, which may change.
        Ok(Ok((
            status @ (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY),
            text,
        ))) => Answer::Refused(format!("it answers {status}: {}", bounded(text.trim(), ANNOTATION_MAX))),
        Ok(Ok((status, text))) => {
            Answer::Failed(format!("it answers {status}: {}", bounded(text.trim(), ANNOTATION_MAX)))
        }
        Ok(Err(error)) => Answer::Failed(format!("{error:#}")),
        Err(_) => Answer::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn send(peer: &Peer, body: String) -> Result<(StatusCode, String)> {
    let (host, port) = (peer.host(), peer.port());
    let stream = TcpStream::connect((host, port)).await.with_context(|| format!("cannot connect to {peer}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post(peer.path())
        .header(header::HOST, peer.to_string())
        .header(header::USER_AGENT, "defib")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)?;
    let answer = async {
        let answer = sender.send_request(request).await.with_context(|| format!("no HTTP answer from {peer}"))?;
        let status = answer.status();
        // What does not fit, or breaks off, is only the explanation.
        let text = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_MAX).await.unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }
    .await;
    connection.abort();
    answer
}

#[cfg(test)]
mod tests;
