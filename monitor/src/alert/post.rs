//! How alerts are told: Alertmanager's HTTP API, version 2 (`POST /api/v2/alerts`, api/v2/openapi.yaml in its sources).

use std::{collections::BTreeMap, time::Duration};

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    board::TTL,
    outbox::{Answer, Posting},
};
use crate::{
    config::Peer,
    host::clock,
    http::{self, Bounds},
    text::Clean,
};

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
            starts_at: clock::wall_of(posting.since_ns),
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
    let bounds = Bounds { patience: PATIENCE, body: ANSWER_MAX };
    let answer =
        http::ask(peer.server(), peer.path(), Some(body), bounds).await.map(|http::Answer { status, body }| {
            // What does not fit, or breaks off, is only the explanation.
            (status, String::from_utf8_lossy(&body.unwrap_or_default()).into_owned())
        });
    match answer {
        Ok((status, _)) if status.is_success() => Answer::Accepted,
        // These say that the alerts are wrong. Others say that the way to the peer is, or that it is busy, which may change.
        Ok((
            status @ (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY),
            text,
        )) => Answer::Refused(format!("it answers {status}: {}", bounded(text.trim(), ANNOTATION_MAX))),
        Ok((status, text)) => Answer::Failed(format!("it answers {status}: {}", bounded(text.trim(), ANNOTATION_MAX))),
        Err(error) => Answer::Failed(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests;
