//! The values of a configuration: each checks itself while it is read, so an error has a place in the file.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::host::privilege;

/// So many in such a time: `5/10m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// How many.
    pub(crate) count: u32,
    /// In how long.
    pub(crate) window: Duration,
}

/// How health is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It lives for ten seconds.
    Survival,
    /// An HTTP GET answers with 2xx. Boxed: it is three times the size of the others.
    Http(Box<axum::http::Uri>),
    /// A connection is accepted.
    Tcp(SocketAddr),
    /// A program exits with 0.
    Exec(PathBuf),
}

/// A name with wildcards.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(GlobMatcher);

impl Pattern {
    /// True when `name` fits.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= Duration::from_secs(7 * 24 * 3600) => Ok(duration),
        Ok(_) => Err(format!("{text:?} is too long; allowed is up to 7d")),
        Err(_) => Err(format!("{text:?} is no duration; allowed are numbers with a unit: 500ms, 2s, 10m, 1h")),
    }
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Up to 64 DNS names (RFC 1123, section 2.1): no address, no port, no wildcard.
pub(super) fn host_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    const MOST: usize = 64;
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.len() > MOST {
        return Err(D::Error::custom(format!("{} names; allowed are up to {MOST}", names.len())));
    }
    let is_label = |label: &str| {
        let right = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(right)
    };
    for name in &names {
        let labels = name.strip_suffix('.').unwrap_or(name);
        if labels.len() > 253 || !labels.split('.').all(is_label) {
            let what = "is not a host name; allowed are names such as \"defib.example\", without a port";
            return Err(D::Error::custom(format!("{name:?} {what}")));
        }
    }
    Ok(names)
}

/// From 10 ms, at which measuring is all that the agent does, to an hour.
pub(super) fn sample_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let period = parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)?;
    if (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&period) {
        Ok(period)
    } else {
        Err(D::Error::custom(format!("{period:?} is out of range; allowed is 10ms to 1h")))
    }
}

/// Up to two minutes: a planned restart that takes longer counts as failed.
pub(super) fn stop_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)?;
    if time <= Duration::from_secs(120) {
        Ok(time)
    } else {
        Err(D::Error::custom(format!("{time:?} is too long; allowed is up to 2m")))
    }
}

pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&value) {
        Ok(Some(value))
    } else {
        Err(D::Error::custom(format!("{value} is out of range; allowed is 0 to 1")))
    }
}

pub(super) fn program<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        Some(program) => {
            Err(D::Error::custom(format!("{program:?} is no absolute path; the program is run without a shell")))
        }
        None => Err(D::Error::custom("start is empty; it needs a program and may have arguments")),
    }
}

pub(super) fn rights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let known = privilege::EYES.map(|(name, _)| name);
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(wrong) => Err(D::Error::custom(format!(
            "{wrong:?} is not for the agent to keep back; allowed are {}; all others a service has as the agent was given them",
            known.join(", ")
        ))),
        None => Ok(names),
    }
}

pub(super) fn cgroup_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    let path = String::deserialize(deserializer)?;
    let mut names = path.split('/').skip(1);
    // What a service manager owns is not ours to clear before a restart.
    let foreign = [".slice", ".scope", ".service"];
    let fine = |name: &str| {
        !name.is_empty() && name != "." && name != ".." && !foreign.iter().any(|kind| name.ends_with(kind))
    };
    if path.starts_with('/') && names.all(fine) {
        Ok(path.into())
    } else {
        Err(D::Error::custom(format!(
            "cgroup {path:?}: allowed is a path like /batch, for this service alone: not the root, without . or .., and \
             nothing of systemd's (.slice, .scope, .service)"
        )))
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(D::Error::custom("an empty name matches nothing"));
        }
        Glob::new(&text).map(|glob| Self(glob.compile_matcher())).map_err(|error| D::Error::custom(error.to_string()))
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no budget; allowed is a number and a time: 5/10m");
        let (count, window) = text.split_once('/').ok_or_else(wrong)?;
        let count = count.trim().parse().ok().filter(|&count| count <= 1000).ok_or_else(wrong)?;
        let window = parse_duration(window.trim())?;
        if window.is_zero() { Err(wrong()) } else { Ok(Self { count, window }) }
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl FromStr for Health {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed are http://HOST:PORT/PATH, tcp://ADDRESS:PORT and exec:/PROGRAM";
        if text.starts_with("http://") {
            let uri: axum::http::Uri = text.parse().map_err(|error| format!("{text:?}: {error}; {allowed}"))?;
            return if uri.host().is_some() {
                Ok(Self::Http(Box::new(uri)))
            } else {
                Err(format!("{text:?} names no host; {allowed}"))
            };
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            return address
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("{text:?} is no address with a port; {allowed}"));
        }
        match text.strip_prefix("exec:") {
            Some(path) if path.starts_with('/') => Ok(Self::Exec(path.into())),
            _ => Err(format!("{text:?} is no health check; {allowed}")),
        }
    }
}

impl<'de> Deserialize<'de> for Health {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Survival => out.write_str("10 s of survival"),
            Self::Http(uri) => write!(out, "{uri}"),
            Self::Tcp(address) => write!(out, "tcp://{address}"),
            Self::Exec(path) => write!(out, "exec:{}", path.display()),
        }
    }
}
