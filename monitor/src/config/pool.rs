//! `[pool]`.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::values::duration;
use crate::pool::Endpoint;

/// How load balancers come to know where services stand, and how fast one is in again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PoolConfig {
    /// Where HAProxy's agent checks are answered.
    pub(crate) agent_check: Option<SocketAddr>,
    /// Runtime APIs of HAProxies that are told at once.
    pub(crate) haproxy: Vec<Endpoint>,
    /// A service is in again when it has been healthy for so long; doubled with every return that did not last.
    #[serde(deserialize_with = "duration")]
    pub(crate) settle: Duration,
    /// Never doubled beyond this.
    #[serde(deserialize_with = "duration")]
    pub(crate) settle_max: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            agent_check: None,
            haproxy: Vec::new(),
            settle: Duration::from_millis(200),
            settle_max: Duration::from_secs(300),
        }
    }
}
