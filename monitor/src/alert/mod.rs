//! Alerts that go straight to Alertmanager, without waiting for a scrape.
//!
//! ```text
//! deaths, outages, pauses, forecasts ──▶ Board (pure): what is to be known now
//!                                          │ one for all peers            ▲ what was accepted
//!                                          └──▶ Outbox (pure), for each peer ──▶ POST /api/v2/alerts
//! ```
//!
//! What is kept is the state of each alert, not messages: a peer that was away hears the newest state, and what waits is
//! never more than what there is. Alerts have the names and labels of the rules in `deploy/prometheus/`, so Alertmanager
//! takes both for one.
//!
//! * [`kind`]: which alerts there are, and their words
//! * [`board`]: which of them are to be known
//! * [`outbox`]: which of these a peer has to hear
//! * [`post`]: how it is told

mod board;
mod kind;
mod metrics;
mod outbox;
mod post;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    config::{AlertmanagerConfig, Peer},
    diagnosis::Scope,
    host::clock,
    memory::forecast::Forecast,
};

use board::Board;
pub(crate) use board::{Kept, Standing};
pub(crate) use metrics::AlertMetrics;
use outbox::{Answer, Next, Outbox};

/// Writes down the newest version of an alert under its name; without one, it is over and told.
pub(crate) type Keep = Box<dyn Fn(String, Option<Kept>) + Send + Sync>;

/// A handle on the alerts. Cheap to clone; without a peer it does nothing.
#[derive(Clone)]
pub(crate) struct Alerts {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    board: Mutex<Board>,
    /// Tells the peers' loops that the board has changed.
    changed: watch::Sender<()>,
    keep: Keep,
    config: AlertmanagerConfig,
}

impl Alerts {
    /// Goes on with the alerts that an earlier agent left. Levels (an outage, a leak) hold until [`Self::settle`] unless they
    /// are confirmed.
    pub(crate) fn new(config: AlertmanagerConfig, left: Vec<Kept>, keep: Keep) -> Self {
        if config.urls.is_empty() {
            return Self { shared: None };
        }
        let mut board = Board::default();
        let now = clock::boot_ns();
        for kept in left {
            board.restore(kept, now, clock::wall(now));
        }
        let shared = Shared { board: Mutex::new(board), changed: watch::channel(()).0, keep, config };
        Self { shared: Some(Arc::new(shared)) }
    }

    /// The kernel killed a process for want of memory. `at_ns`: CLOCK_BOOTTIME, as everywhere here.
    pub(crate) fn oom_kill(&self, service: &str, scope: Option<Scope>, at_ns: u64, text: &str) {
        self.change(|board, now| board.oom_kill(service, Scope::label(scope), at_ns, text, now));
    }

    /// How a service stands, after anything that may have changed that.
    pub(crate) fn stands(&self, service: &str, standing: Standing<'_>) {
        self.change(|board, now| board.stands(service, standing, now));
    }

    /// What is foreseen for its memory.
    pub(crate) fn foresees(&self, service: &str, forecast: &Forecast) {
        self.change(|board, now| board.foresees(service, forecast, now));
    }

    /// All services are known now: what an earlier agent left and nobody has confirmed is over.
    pub(crate) fn settle(&self) {
        self.change(Board::settle);
    }

    /// Alerts that are to be known now, and alerts that were dropped since the start.
    fn sizes(&self) -> (usize, u64) {
        self.shared.as_ref().map_or((0, 0), |shared| {
            let board = shared.board();
            (board.firing(), board.dropped())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Board, u64)) {
        let Some(shared) = &self.shared else { return };
        let mut board = shared.board();
        change(&mut board, clock::boot_ns());
        // Loops of their own advance the board and write it down: once for a storm, and not on the steward's time.
        if board.take_news() {
            shared.changed.send_replace(());
        }
    }

    /// Hands what has changed to the store; for a clean end of the agent.
    pub(crate) fn write_down(&self) {
        let Some(shared) = &self.shared else { return };
        let now = clock::boot_ns();
        let mut board = shared.board();
        board.advance(now);
        shared.write_down(&mut board, now);
    }

    /// Writes the board down and tells every peer, each at its own pace, for ever.
    ///
    /// # Errors
    /// When one of these loops fails.
    pub(crate) async fn tell(self, metrics: AlertMetrics) -> Result<()> {
        let Some(shared) = self.shared else { return std::future::pending().await };
        let mut loops = JoinSet::new();
        loops.spawn(keep_written(Arc::clone(&shared)));
        for peer in shared.config.urls.clone() {
            loops.spawn(tell_one(Arc::clone(&shared), peer, metrics.clone()));
        }
        while let Some(ended) = loops.join_next().await {
            ended?;
        }
        Ok(())
    }
}

impl Shared {
    /// A panic elsewhere while the lock was held leaves alerts that are whole.
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_down(&self, board: &mut Board, now: u64) {
        for (key, kept) in board.take_changed(now, clock::wall(now)) {
            (self.keep)(key, kept);
        }
    }
}

/// Writes down what changes, at once: a peer's loop may be waiting for a peer that is away.
async fn keep_written(shared: Arc<Shared>) {
    let mut changed = shared.changed.subscribe();
    loop {
        let now = clock::boot_ns();
        changed.mark_unchanged();
        let until_ns = {
            let mut board = shared.board();
            board.advance(now);
            shared.write_down(&mut board, now);
            board.deadline()
        };
        let wait = until_ns.map_or(Duration::MAX, |until| Duration::from_nanos(until.saturating_sub(now)));
        // The sender lives in `shared`; time running out is the other way to wake up.
        drop(timeout(wait, changed.changed()).await);
    }
}

/// One peer. It never holds up another: a host that swallows packets costs its own loop a time-out.
async fn tell_one(shared: Arc<Shared>, peer: Peer, metrics: AlertMetrics) {
    let mut outbox = Outbox::default();
    let mut changed = shared.changed.subscribe();
    // Word of trouble is said when it begins and when it is over, not for every post.
    let mut troubled = false;
    loop {
        let now = clock::boot_ns();
        changed.mark_unchanged();
        let next = {
            let mut board = shared.board();
            board.advance(now);
            shared.write_down(&mut board, now);
            outbox.next(&board, now)
        };
        let batch = match next {
            Next::Post(batch) => batch,
            Next::Wait { until_ns } => {
                let wait = until_ns.map_or(Duration::MAX, |until| Duration::from_nanos(until.saturating_sub(now)));
                // The sender lives in `shared`; time running out is the other way to wake up.
                drop(timeout(wait, changed.changed()).await);
                continue;
            }
            // Whatever changes meanwhile, this peer is left alone.
            Next::Hold { until_ns } => {
                tokio::time::sleep(Duration::from_nanos(until_ns.saturating_sub(now))).await;
                continue;
            }
        };
        let body = post::body(&batch, &shared.config.labels, now);
        let answer = post::post(&peer, body).await;
        metrics.sent(&peer, &answer, batch.len());
        match &answer {
            Answer::Accepted if troubled => tracing::info!(peer = %peer, "Alertmanager takes alerts again"),
            Answer::Accepted => {}
            Answer::Refused(why) | Answer::Failed(why) if !troubled => {
                tracing::warn!(peer = %peer, "alerts are not delivered: {why}");
            }
            Answer::Refused(why) | Answer::Failed(why) => tracing::debug!(peer = %peer, "not delivered: {why}"),
        }
        troubled = answer != Answer::Accepted;
        let now = clock::boot_ns();
        let accepted = outbox.answered(&batch, &answer, now);
        let mut board = shared.board();
        for (key, version) in accepted {
            board.delivered(&key, version, now);
        }
        shared.write_down(&mut board, now);
    }
}

#[cfg(test)]
mod tests;
