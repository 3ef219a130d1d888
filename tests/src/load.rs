//! Requests without end to one address, each on a connection of its own, counted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use crate::defib::request;

/// Clients at once.
const CLIENTS: usize = 2;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);
/// No load goes on for longer than this.
const LONGEST: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// Begins to send.
    pub fn start(address: SocketAddr) -> Self {
        Self::of(address, CLIENTS, "GET", "/")
    }

    /// Begins to send such requests, from so many clients.
    pub fn of(address: SocketAddr, clients: usize, method: &'static str, path: &'static str) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let client = |_| {
            let (stop, counts, begin) = (Arc::clone(&stop), Arc::clone(&counts), Instant::now());
            spawn(move || {
                while !stop.load(Ordering::Relaxed) && begin.elapsed() < LONGEST {
                    let fine = matches!(request(address, method, path), Some((200, _)));
                    counts.sent.fetch_add(1, Ordering::Relaxed);
                    counts.failed.fetch_add(u64::from(!fine), Ordering::Relaxed);
                    sleep(PAUSE);
                }
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, counts, clients }
    }

    /// Requests that have an end by now, and those of them that failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.sent.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }

    /// Ends it; requests, and those of them that failed.
    ///
    /// # Panics
    /// When a client did.
    pub fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client ends");
        }
        (self.counts.sent.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }
}
