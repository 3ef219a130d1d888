//! The runtime API of one HAProxy: a task that makes its servers as the newest wishes say, at once and again and again,
//! since a restart of HAProxy forgets them. It owns the connection and nothing else; what to say is [`Desk`]'s.

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use serde::{Deserialize, Deserializer, de::Error as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::{oneshot, watch},
    time::{sleep, timeout},
};

use super::{Board, Claims, Name, State, Wish, Wishes, desk::Desk};
use crate::host::{bounded, clock};

/// Between looks at a HAProxy that nothing is wished from: 1 s. A restart of it is noticed by then, and the floor is no
/// older.
const LOOK: Duration = Duration::from_secs(1);
/// Likewise while a server drains: its connections are waited for. 100 ms.
const LOOK_AT_DRAINING: Duration = Duration::from_millis(100);
/// After a failure, doubled to 5 s.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A connection, its commands and their replies; HAProxy answers in well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// A reply may be this long: 4 MiB, a backend of some 30,000 servers.
const REPLY_MAX: usize = 4 << 20;
/// For leaving, all of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where a HAProxy takes commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed are /PATH of a socket and tcp://ADDRESS:PORT";
        match text.strip_prefix("tcp://") {
            Some(address) => {
                address.parse().map(Self::Tcp).map_err(|_| format!("{text:?} is no address with a port; {allowed}"))
            }
            None if text.starts_with('/') => Ok(Self::Unix(text.into())),
            None => Err(format!("{text:?} is no place of a runtime API; {allowed}")),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "{}", path.display()),
            Self::Tcp(address) => write!(out, "tcp://{address}"),
        }
    }
}

/// What came of speaking. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Spoken {
    requests: IntCounterVec,
    up: IntGaugeVec,
}

impl Spoken {
    /// Registers the metrics, with the series of these endpoints.
    pub(crate) fn new(registry: &Registry, endpoints: &[Endpoint]) -> Result<Self> {
        let spoken = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "defib_pool_haproxy_requests_total",
                    "Exchanges with a HAProxy's runtime API: ok, or failed (no answer, half an answer, not as wished).",
                ),
                &["endpoint", "result"],
            )?,
            up: IntGaugeVec::new(
                Opts::new("defib_pool_haproxy_up", "1 while that HAProxy answers and its servers are as wished."),
                &["endpoint"],
            )?,
        };
        registry.register(Box::new(spoken.requests.clone()))?;
        registry.register(Box::new(spoken.up.clone()))?;
        for endpoint in endpoints {
            let endpoint = endpoint.to_string();
            spoken.up.with_label_values(&[&endpoint]).set(0);
            for result in ["ok", "failed"] {
                spoken.requests.with_label_values(&[endpoint.as_str(), result]);
            }
        }
        Ok(spoken)
    }

    fn note(&self, endpoint: &str, ok: bool) {
        self.requests.with_label_values(&[endpoint, if ok { "ok" } else { "failed" }]).inc();
        self.up.with_label_values(&[endpoint]).set(i64::from(ok));
    }
}

/// See the module.
pub(crate) struct HaProxy {
    /// Where it listens.
    pub(crate) endpoint: Endpoint,
    /// The servers that the configuration names; others that were changed by an earlier agent are given back.
    pub(crate) names: BTreeSet<Name>,
    /// What an earlier agent has changed there.
    pub(crate) claims: Claims,
    /// Where what it sees is put.
    pub(crate) board: Arc<Board>,
    /// What came of it.
    pub(crate) spoken: Spoken,
    /// Takes what was changed, to be there for the next agent.
    pub(crate) keep: Keep,
}

/// Takes what was changed at an endpoint.
pub(crate) type Keep = Box<dyn Fn(&str, Claims) + Send + Sync>;

impl HaProxy {
    /// Runs until `leave` completes; then gives back what it can.
    ///
    /// # Errors
    /// Never; for the agent, whose parts can fail.
    pub(crate) async fn run(self, mut wishes: watch::Receiver<Wishes>, mut leave: oneshot::Receiver<()>) -> Result<()> {
        let place: Arc<str> = self.endpoint.to_string().into();
        let mut desk = Desk::new(self.claims.clone());
        let (mut retry, mut said) = (RETRY, None);
        loop {
            let newest = self.completed(&wishes.borrow_and_update().clone(), desk.claims());
            let outcome = match newest.is_empty() {
                // Nobody is known yet, so there is nothing to ask for.
                true => Ok(()),
                false => {
                    let outcome = self.round(&place, &mut desk, &newest, false).await;
                    self.spoken.note(&place, outcome.is_ok());
                    outcome
                }
            };
            let pause = match outcome {
                Ok(()) => {
                    if said.take().is_some() {
                        tracing::info!("HAProxy at {place} answers, and its servers are as wished");
                    }
                    retry = RETRY;
                    let drains = newest.values().any(|wish| wish.state == State::Draining);
                    if drains { LOOK_AT_DRAINING } else { LOOK }
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if said.as_ref() != Some(&text) {
                        tracing::warn!("HAProxy at {place}: {text}");
                    }
                    said = Some(text);
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    pause
                }
            };
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() { break },
                () = sleep(pause) => {}
                _ = &mut leave => break,
            }
        }
        let newest = self.completed(&wishes.borrow_and_update().clone(), desk.claims());
        let farewell = async {
            for _ in 0..2 {
                if self.round(&place, &mut desk, &newest, true).await.is_ok() {
                    break;
                }
            }
        };
        if timeout(FAREWELL, farewell).await.is_err() || !desk.claims().is_empty() {
            tracing::warn!("HAProxy at {place} keeps servers out until an agent runs again");
        }
        Ok(())
    }

    /// The wishes, and for servers that are no longer ours that they be as before.
    fn completed(&self, wishes: &Wishes, claims: &Claims) -> Wishes {
        let foreign: Vec<Name> = claims.names().filter(|name| !self.names.contains(name)).collect();
        if foreign.is_empty() {
            return Arc::clone(wishes);
        }
        let mut all = (**wishes).clone();
        all.extend(foreign.into_iter().map(|name| (name, Wish { state: State::In, weight: 100 })));
        Arc::new(all)
    }

    /// Says what is to be said, and takes what comes back.
    async fn round(&self, place: &Arc<str>, desk: &mut Desk, wishes: &Wishes, leaving: bool) -> Result<()> {
        let before = desk.claims().clone();
        let lines = desk.lines(wishes, leaving, clock::boot_ns());
        // Whoever comes after us must know what is ours to undo. Not waited for: traffic is failing meanwhile.
        if *desk.claims() != before {
            (self.keep)(place, desk.claims().clone());
        }
        let before = desk.claims().clone();
        let outcome = async {
            let mut replies = String::new();
            for line in lines {
                replies.push_str(&self.exchange(&line).await?);
            }
            Ok::<_, anyhow::Error>(replies)
        }
        .await
        .and_then(|replies| desk.learn(wishes, &replies, leaving, clock::boot_ns()).map_err(anyhow::Error::msg));
        if *desk.claims() != before {
            (self.keep)(place, desk.claims().clone());
        }
        match outcome {
            Ok(view) => {
                self.board.see(place, Some(view));
                Ok(())
            }
            Err(error) => {
                self.board.see(place, None);
                Err(error)
            }
        }
    }

    async fn exchange(&self, line: &str) -> Result<String> {
        let exchange = async {
            match &self.endpoint {
                Endpoint::Unix(path) => {
                    converse(UnixStream::connect(path).await.context("cannot connect")?, line).await
                }
                Endpoint::Tcp(address) => {
                    converse(TcpStream::connect(address).await.context("cannot connect")?, line).await
                }
            }
        };
        timeout(PATIENCE, exchange).await.unwrap_or_else(|_| bail!("no whole answer within {PATIENCE:?}"))
    }
}

/// One line, and all that comes back until the other side closes.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> Result<String> {
    stream.write_all(format!("{line}\n").as_bytes()).await.context("cannot send")?;
    let reply = bounded::receive(&mut stream, REPLY_MAX).await.context("cannot receive")?;
    let reply = reply.all().with_context(|| format!("an answer of more than {REPLY_MAX} bytes"))?;
    String::from_utf8(reply).context("an answer that is no text")
}

#[cfg(test)]
mod tests;
