//! Who may come in, and how: TLS and passwords, from a file that is read again when it or what it names has changed.
//!
//! One task owns the files; connections and requests take the terms that stand. A file that is wrong leaves the old terms and is
//! said so, and none takes TLS or passwords away while the agent runs: half-written, it would open the door.

mod format;
mod tls;
mod users;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::ServerConfig;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    format::Wrong,
    users::{Checks, Users, Verdict},
};
use super::{hosts::Hosts, metrics::WebMetrics};
use crate::{config::ConfigError, host::guarded, text::Clean};

/// Between two looks whether a file has changed: four `stat` calls.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of the file.
const LONGEST: usize = 64 << 10;

/// What holds for whoever comes.
#[derive(Debug)]
pub(super) struct Terms {
    /// Spoken on each new connection; without it, plain HTTP.
    pub(super) tls: Option<Arc<ServerConfig>>,
    users: Users,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// See the module.
pub(crate) struct Gate {
    /// The files, the one that names the others first, as they were when they were opened; empty without one.
    opened: Vec<(PathBuf, Stamp)>,
    terms: RwLock<Arc<Terms>>,
    checks: Checks,
    hosts: Hosts,
    pub(super) metrics: WebMetrics,
}

impl Gate {
    /// Reads `file`; without one, plain HTTP admits every request that is sent to one of `hosts`.
    ///
    /// # Errors
    /// [`ConfigError`] when the file, or one that it names, is wrong.
    pub(crate) fn open(file: Option<PathBuf>, hosts: Hosts, metrics: WebMetrics) -> Result<Arc<Self>> {
        let (terms, opened) = match &file {
            Some(file) => {
                let Attempt { stamps, outcome } = load(file);
                let terms = outcome?;
                tracing::info!("HTTP: {}", terms.describe());
                (terms, stamps)
            }
            None => (Terms { tls: None, users: Users::new(Default::default()), headers: Vec::new() }, Vec::new()),
        };
        Ok(Arc::new(Self { opened, terms: RwLock::new(Arc::new(terms)), checks: Checks::new()?, hosts, metrics }))
    }

    /// What holds now.
    pub(super) fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks after the files, for as long as the agent runs.
    ///
    /// # Errors
    /// Never; as the agent's other tasks.
    pub(crate) async fn follow(self: Arc<Self>) -> Result<()> {
        let mut seen = self.opened.clone();
        let Some((file, _)) = seen.first().cloned() else { return std::future::pending().await };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let Some(attempt) = look(file.clone(), seen.clone()).await? else { continue };
            if !attempt.settled() {
                // Somebody is at it; what is read in the middle of that means nothing.
                continue;
            }
            seen = attempt.stamps;
            self.take(attempt.outcome);
        }
    }

    /// New terms, or why there are none.
    fn take(&self, outcome: Result<Terms, ConfigError>) {
        let old = self.terms();
        let outcome = outcome.map_err(|error| error.to_string()).and_then(|new| match new.gives_away(&old) {
            Some(what) => Err(format!("{what} would be gone; if that is meant, restart the agent")),
            None => Ok(new),
        });
        self.metrics.reloaded(outcome.is_ok());
        match outcome {
            Ok(new) => {
                tracing::info!("HTTP: read again: {}", new.describe());
                self.checks.forget_all_but(&new.users);
                *self.terms.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
            }
            Err(error) => tracing::error!("what is wrong is not used, and what was right stays: {error}"),
        }
    }

    async fn admits(&self, terms: &Terms, headers: &HeaderMap) -> Verdict {
        match credentials(headers) {
            Some((user, password)) => self.checks.check(&terms.users, &user, &password).await,
            None => Verdict::Wrong,
        }
    }
}

impl Terms {
    /// What it lacks that `old` has.
    fn gives_away(&self, old: &Self) -> Option<&'static str> {
        if old.tls.is_some() && self.tls.is_none() {
            return Some("TLS");
        }
        (self.users.is_empty() && !old.users.is_empty()).then_some("passwords")
    }

    fn describe(&self) -> &'static str {
        match (self.tls.is_some(), !self.users.is_empty()) {
            (true, true) => "over TLS, with passwords",
            (true, false) => "over TLS, without passwords",
            (false, true) => "with passwords, but without TLS: they can be read on the wire",
            (false, false) => "neither TLS nor passwords are asked for",
        }
    }
}

/// Says whether a file is right, as the agent would find it.
///
/// # Errors
/// [`ConfigError`] when it, or one that it names, is not.
pub(crate) fn check(file: &Path) -> Result<&'static str, ConfigError> {
    load(file).outcome.map(|terms| terms.describe())
}

/// A file as it was when it was looked at: device, inode, size, and times of contents and of state in ns. `None`: not there.
type Stamp = Option<[i128; 5]>;

/// One reading of all files.
struct Attempt {
    stamps: Vec<(PathBuf, Stamp)>,
    outcome: Result<Terms, ConfigError>,
}

impl Attempt {
    /// Whether nothing has changed since.
    fn settled(&self) -> bool {
        unchanged(&self.stamps)
    }
}

fn unchanged(stamps: &[(PathBuf, Stamp)]) -> bool {
    stamps.iter().all(|(path, before)| stamp(path) == *before)
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Some([
        found.dev().into(),
        found.ino().into(),
        found.size().into(),
        nanos(found.mtime(), found.mtime_nsec()),
        nanos(found.ctime(), found.ctime_nsec()),
    ])
}

/// Reads all again if something is not as it was `seen`; beside everything else, as a disk may be slow.
async fn look(file: PathBuf, seen: Vec<(PathBuf, Stamp)>) -> Result<Option<Attempt>> {
    let looked = tokio::task::spawn_blocking(move || {
        let same = !seen.is_empty() && unchanged(&seen);
        (!same).then(|| load(&file))
    });
    looked.await.context("a look at the web configuration failed")
}

fn load(file: &Path) -> Attempt {
    let mut stamps = vec![(file.to_owned(), stamp(file))];
    let outcome = read(file, &mut stamps);
    Attempt { stamps, outcome }
}

/// Adds the files that are named to `stamps`, before they are read.
fn read(file: &Path, stamps: &mut Vec<(PathBuf, Stamp)>) -> Result<Terms, ConfigError> {
    let bytes = guarded::read(file, LONGEST).map_err(|why| ConfigError::of(file, String::new(), why))?;
    let text = String::from_utf8(bytes).map_err(|_| ConfigError::of(file, String::new(), "is no text (UTF-8)"))?;
    let placed = |wrong: Wrong| ConfigError::of(file, place(&text, &wrong), wrong.message);
    let wanted = format::parse(&text, file.parent().unwrap_or(Path::new("/"))).map_err(placed)?;
    if let Some(tls) = &wanted.tls {
        let ca = match &tls.clients {
            format::Clients::Any => None,
            format::Clients::RightIfGiven(ca) | format::Clients::Right(ca) => Some(ca),
        };
        let named = [&tls.certificate, &tls.key].into_iter().chain(ca);
        stamps.extend(named.map(|path| (path.clone(), stamp(path))));
    }
    Ok(Terms {
        tls: wanted.tls.as_ref().map(tls::server).transpose().map_err(placed)?,
        users: Users::new(wanted.users),
        headers: wanted.headers,
    })
}

/// `:line: key 'x'`, as far as it is known.
fn place(text: &str, wrong: &Wrong) -> String {
    let Some(key) = wrong.key else {
        let Some(line) = wrong.line else { return String::new() };
        let content = usize::try_from(line).ok().and_then(|line| text.lines().nth(line.saturating_sub(1)));
        let key = content.and_then(|content| Some(content.split_once(':')?.0.trim()));
        let word = |key: &&str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        return key.filter(word).map_or_else(|| format!(":{line}"), |key| format!(":{line}: key '{key}'"));
    };
    let of_key =
        |line: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
    match text.lines().position(of_key) {
        Some(at) => format!(":{}: key '{key}'", at + 1),
        None => format!(": key '{key}'"),
    }
}

/// Of `Authorization: Basic …` (RFC 7617).
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// With passwords, admits a request that has a right one. With neither passwords nor TLS, admits one that is sent to a
/// name of this host.
pub(super) async fn ask(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let terms = gate.terms();
    if terms.users.is_empty() {
        // Over TLS the browser compares the name with the certificate.
        let foreign = if terms.tls.is_some() { None } else { gate.hosts.refuses(request.uri(), request.headers()) };
        return match foreign {
            None => next.run(request).await,
            Some(name) => {
                gate.metrics.refused("host");
                (StatusCode::MISDIRECTED_REQUEST, misdirected(&name)).into_response()
            }
        };
    }
    match gate.admits(&terms, request.headers()).await {
        Verdict::Right => next.run(request).await,
        Verdict::Wrong => {
            gate.metrics.refused("password");
            let head = [(header::WWW_AUTHENTICATE, "Basic realm=\"defib\""), (header::CACHE_CONTROL, "no-store")];
            (StatusCode::UNAUTHORIZED, head, "a user and the right password are needed\n").into_response()
        }
        Verdict::Busy => {
            gate.metrics.refused("busy");
            let head = [(header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, head, "too many passwords to check; try again\n").into_response()
        }
    }
}

/// The answer to a request for a name that is not known to be this host's.
fn misdirected(name: &str) -> String {
    const SHOWN: usize = 100;
    let name: String = Clean(name).to_string().chars().take(SHOWN).collect();
    format!(
        "{name:?} is not known as a name of this host; if it is one, add it to hosts in [http] of the configuration\n"
    )
}

/// Adds the headers that are wanted of every answer.
pub(super) async fn dress(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in &gate.terms().headers {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

#[cfg(test)]
mod tests;
