//! What becomes of those who come, for `/metrics`.

use anyhow::Result;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct WebMetrics {
    connections: IntGauge,
    refused: IntCounterVec,
    reload_ok: IntGauge,
}

/// A connection that stands, counted while it does.
pub(super) struct Connected(IntGauge);

impl WebMetrics {
    /// Registers everything; each reason has its series from the start.
    ///
    /// # Errors
    /// When a name is taken.
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let refused = Opts::new(
            "defib_http_refused_total",
            "Refused by the HTTP server: no TLS handshake, no right password, too many passwords to check (busy), a name that is \
             not this host's, no place for a request (crowded), a place that another peer needed (evicted).",
        );
        let metrics = Self {
            connections: IntGauge::new("defib_http_connections", "Connections to the HTTP server.")?,
            refused: IntCounterVec::new(refused, &["reason"])?,
            reload_ok: IntGauge::new(
                "defib_web_config_reload_success",
                "1 when the web configuration that was read last is in use, 0 when it was wrong and an older one is.",
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.reload_ok.clone()))?;
        for reason in ["handshake", "password", "busy", "host", "crowded", "evicted"] {
            metrics.refused.with_label_values(&[reason]);
        }
        metrics.reload_ok.set(1);
        Ok(metrics)
    }

    /// The web configuration was read again.
    pub(super) fn reloaded(&self, right: bool) {
        self.reload_ok.set(i64::from(right));
    }

    /// One more, until what is returned is dropped.
    pub(super) fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// Counts one refusal; `reason` must be one of those in [`Self::new`].
    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
