//! `[fleet]`: where many hosts agree, and on how much.

use std::time::Duration;

use axum::http::Uri;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::values;
use crate::http::Server;

/// A cluster has five members at most in practice, and each that is away costs a time-out.
const MAX_MEMBERS: usize = 8;
/// Slots are listed whole, so they are few enough for one answer.
const MAX_SLOTS: u32 = 1000;
/// Below, a busy host loses its slots; above, a dead one keeps them for too long.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(600);

/// `[fleet]`; without etcd, nobody is asked and everything is granted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FleetConfig {
    /// Members of the cluster.
    #[serde(deserialize_with = "members")]
    pub(crate) etcd: Vec<Server>,
    /// Members of a pool that may be out by plan at once.
    #[serde(deserialize_with = "slots")]
    pub(crate) max_unavailable: u32,
    /// Begins every key; ends with a slash.
    #[serde(deserialize_with = "prefix")]
    pub(crate) prefix: String,
    /// A holder that is dead, or cut off, keeps its slot for so long.
    #[serde(deserialize_with = "ttl")]
    pub(crate) ttl: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self { etcd: Vec::new(), max_unavailable: 1, prefix: "/defib/".to_owned(), ttl: Duration::from_secs(30) }
    }
}

fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Server>, D::Error> {
    let urls = Vec::<String>::deserialize(deserializer)?;
    if urls.len() > MAX_MEMBERS {
        return Err(D::Error::custom(format!("{} URLs; allowed are up to {MAX_MEMBERS}", urls.len())));
    }
    let mut members = Vec::new();
    for url in &urls {
        let member = member(url).map_err(D::Error::custom)?;
        if members.contains(&member) {
            return Err(D::Error::custom(format!("{member} is there twice")));
        }
        members.push(member);
    }
    Ok(members)
}

fn member(text: &str) -> Result<Server, String> {
    let allowed = "allowed is http://HOST:PORT, a client URL of an etcd member";
    let uri: Uri = text.parse().map_err(|error| format!("{text:?}: {error}; {allowed}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(format!(
                "{text:?}: defib speaks no TLS to etcd; let a proxy on this host do that (stunnel, nginx), and name it here \
                 as http://127.0.0.1:PORT"
            ));
        }
        _ => return Err(format!("{text:?} is no URL of an etcd member; {allowed}")),
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        // What may be a password is not repeated.
        return Err("a user and password have no place in a URL here".to_owned());
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(format!("{text:?} has a path or a query; {allowed}"));
    }
    Server::of(&uri).ok_or_else(|| format!("{text:?} names no host; {allowed}"))
}

fn slots<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let slots = u32::deserialize(deserializer)?;
    if (1..=MAX_SLOTS).contains(&slots) {
        Ok(slots)
    } else {
        Err(D::Error::custom(format!("{slots} is out of range; allowed is 1 to {MAX_SLOTS}")))
    }
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let prefix = String::deserialize(deserializer)?;
    let fine = prefix.starts_with('/') && prefix.len() <= 128 && prefix.bytes().all(|byte| byte.is_ascii_graphic());
    if !fine {
        return Err(D::Error::custom(format!(
            "prefix {prefix:?}: allowed is a path like /defib/, up to 128 letters, digits and signs, no spaces"
        )));
    }
    Ok(if prefix.ends_with('/') { prefix } else { prefix + "/" })
}

fn ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let ttl = values::duration(deserializer)?;
    // etcd counts in seconds.
    if TTL.contains(&ttl) && ttl.subsec_nanos() == 0 {
        Ok(ttl)
    } else {
        Err(D::Error::custom(format!("ttl {ttl:?}: allowed are whole seconds from 5s to 10m")))
    }
}
