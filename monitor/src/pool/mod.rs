//! The pool: whether a load balancer shall send a service traffic, and how it comes to know.
//!
//! ```text
//! marks, deaths, probes, memory ──▶ member.rs: step(input, now) -> orders     (pure)
//!                                        │ standings
//!                                        ▼
//!                                    board.rs ──▶ agent_check.rs: HAProxy asks us
//!                                        │    └─▶ web.rs: /pool/SERVICE, for every other load balancer
//!                                        │ wishes; a newer one replaces an older one
//!                                        ▼
//!                    haproxy.rs: I/O ◀──▶ desk.rs: wished against seen -> commands     (pure)
//! ```
//! * [`member`]: one service: in, draining, out, and what must hold before it is in again
//! * [`board`]: what everybody is told, answered from memory
//! * [`agent_check`]: the listener for HAProxy's agent checks
//! * [`desk`]: what a HAProxy must be told so that its servers are as we wish, and how to undo it
//! * [`haproxy`]: tells it, through its runtime API

mod agent_check;
mod board;
mod desk;
mod haproxy;
mod member;

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

pub(crate) use agent_check::{AgentCheck, Answered};
pub(crate) use board::{Board, Standing, Wish, Wishes};
pub(crate) use desk::Claims;
pub(crate) use haproxy::{Endpoint, HaProxy, Spoken};
pub(crate) use member::{Input, Member, Memory, Order, Policy};
#[cfg(any(test, fuzzing))]
pub(crate) use {agent_check::fuzz as fuzz_agent_check, desk::fuzz as fuzz_haproxy};

/// Whether it gets traffic. In the order of how far out it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It does.
    In,
    /// It finishes what it has, and gets nothing new.
    Draining,
    /// It gets nothing.
    Out,
}

impl State {
    /// All, for series that exist from the start.
    pub(crate) const ALL: [Self; 3] = [Self::In, Self::Draining, Self::Out];

    /// As metrics and JSON have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Draining => "draining",
            Self::Out => "out",
        }
    }
}

/// Why it is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// It was running when the agent began.
    FoundRunning,
    /// It is not running, and was not seen to die.
    NotRunning,
    /// The kernel chose it to die for want of memory.
    OomKill,
    /// Its main process got a fatal signal; the core dump may take a while.
    Crashing,
    /// Its main process died.
    Died,
    /// Another process took its place without a word of the first one's death.
    Replaced,
    /// It lives and fails its health check.
    Unhealthy,
    /// Its memory is near its limit.
    Memory,
    /// Its memory runs out within minutes.
    Forecast,
    /// It is about to be restarted, before it dies.
    PlannedRestart,
    /// It has proven to be healthy for as long as was asked of it.
    Healthy,
    /// It should drain, and nobody else can serve.
    LastOne,
    /// The agent ends, and takes back what it has asked for.
    AgentStops,
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::FoundRunning => "it was running when the agent began",
            Self::NotRunning => "it is not running",
            Self::OomKill => "the kernel chose it to die for want of memory",
            Self::Crashing => "its main process got a fatal signal",
            Self::Died => "its main process died",
            Self::Replaced => "another process took its place",
            Self::Unhealthy => "it lives and fails its health check",
            Self::Memory => "its memory is near its limit",
            Self::Forecast => "its memory runs out within minutes",
            Self::PlannedRestart => "it is about to be restarted, before it dies",
            Self::Healthy => "it is healthy, and steadily so",
            Self::LastOne => "nobody else can serve",
            Self::AgentStops => "the agent ends",
        })
    }
}

/// The name that a load balancer has for a server: `be_web/web1`. Safe to put into a command: nothing in it has a meaning
/// there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Name(Arc<str>);

/// Longer than any name that people give, short enough for a line that somebody else sends.
const NAME_MAX: usize = 128;

impl Name {
    /// As it is written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Backend and server; `None` when it has not got these two parts.
    pub(crate) fn parts(&self) -> Option<(&str, &str)> {
        self.0.split_once('/')
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What HAProxy itself allows in a name (configuration manual, section 2.1), and one slash between two of them.
        let fine = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        let parts = text.split_once('/').map_or(fine(text), |(backend, server)| fine(backend) && fine(server));
        if parts && text.len() <= NAME_MAX {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "{text:?} names no server of a pool; allowed are BACKEND/SERVER and SERVER, of letters, digits and - _ . :, \
                 {NAME_MAX} characters at most"
            ))
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What an earlier agent left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Of services, by name.
    pub(crate) members: HashMap<String, Memory>,
    /// Of HAProxies, by where they listen.
    pub(crate) claims: HashMap<String, Claims>,
}
