//! `[alertmanager]`: who is told, and what the agent's alerts are labelled with.

use std::{collections::BTreeMap, fmt};

use axum::http::Uri;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::http::Server;

/// Peers of one Alertmanager cluster are few, and each costs a connection for every alert.
const MAX_PEERS: usize = 8;
const MAX_LABELS: usize = 16;
/// Labels that say which alert it is.
const TAKEN: [&str; 4] = ["alertname", "severity", "service", "scope"];

/// `[alertmanager]`; without a URL the agent tells nobody, and leaves alerts to Prometheus.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AlertmanagerConfig {
    /// Every one of them is told.
    #[serde(deserialize_with = "peers")]
    pub(crate) urls: Vec<Peer>,
    /// Of each alert, beside its own. Alerts of a rule in Prometheus have `instance` and Prometheus' external labels.
    #[serde(deserialize_with = "labels")]
    pub(crate) labels: BTreeMap<String, String>,
}

/// An Alertmanager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    server: Server,
    path: String,
}

impl Peer {
    /// Where it listens.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Where alerts are posted.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.fmt(out)
    }
}

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed is http://HOST:PORT, with the path that Alertmanager has behind a proxy";
        let uri: Uri = text.parse().map_err(|error| format!("{text:?}: {error}; {allowed}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(format!(
                    "{text:?}: defib speaks no TLS to Alertmanager; let a proxy on this host do that (nginx, stunnel), and \
                     name it here as http://127.0.0.1:PORT"
                ));
            }
            _ => return Err(format!("{text:?} is no URL of an Alertmanager; {allowed}")),
        }
        let authority = uri.authority().ok_or_else(|| format!("{text:?} names no host; {allowed}"))?;
        if authority.as_str().contains('@') {
            // What may be a password is not repeated.
            return Err("a user and password have no place in a URL here; let a proxy on this host add them".to_owned());
        }
        if uri.query().is_some() {
            return Err(format!("{text:?} has a query; {allowed}"));
        }
        Ok(Self {
            server: Server::of(&uri).ok_or_else(|| format!("{text:?} names no host; {allowed}"))?,
            path: format!("{}/api/v2/alerts", uri.path().trim_end_matches('/')),
        })
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn peers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Peer>, D::Error> {
    let peers = Vec::<Peer>::deserialize(deserializer)?;
    if peers.len() > MAX_PEERS {
        return Err(D::Error::custom(format!("{} URLs; allowed are up to {MAX_PEERS}", peers.len())));
    }
    match peers
        .iter()
        .enumerate()
        .find(|&(at, peer)| peers[..at].iter().any(|other| other.to_string() == peer.to_string()))
    {
        Some((_, twice)) => Err(D::Error::custom(format!("{twice} is there twice"))),
        None => Ok(peers),
    }
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::<String, String>::deserialize(deserializer)?;
    if labels.len() > MAX_LABELS {
        return Err(D::Error::custom(format!("{} labels; allowed are up to {MAX_LABELS}", labels.len())));
    }
    for (name, value) in &labels {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(D::Error::custom(format!("{name:?} is no label; allowed are letters, digits and _")));
        }
        if TAKEN.contains(&name.as_str()) {
            return Err(D::Error::custom(format!("the label {name:?} is each alert's own")));
        }
        if value.is_empty() || value.len() > 256 {
            return Err(D::Error::custom(format!("the label {name:?} needs a value of 1 to 256 bytes")));
        }
    }
    Ok(labels)
}
