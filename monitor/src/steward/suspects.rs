//! Suspects are traced: a service that is said to leak shows where, before anybody asks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::{Steward, Word};
use crate::{
    config::{Config, Service, Trace},
    host::{clock, process::Identity},
    memory::forecast::Forecast,
    timeline::What,
    trace::{self, NoTrace, Order, Summary},
};

/// A trace that is told to end does so within this.
const PATIENCE: Duration = Duration::from_secs(2);

/// The rule, and the trace that is at work.
#[derive(Debug)]
pub(crate) struct Traces {
    suspects: trace::Suspects,
    state_dir: PathBuf,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Traces {
    /// None yet.
    pub(crate) fn new(config: &Config) -> Self {
        let suspects = trace::Suspects::new(config.forecast.sample);
        Self { suspects, state_dir: config.agent.state_dir.clone(), running: None }
    }

    /// A service that is looked after. What is watched is not changed by it, so the agent's mode does not matter.
    pub(super) fn add(&mut self, service: &Arc<str>, rule: &Service) {
        if rule.trace == Trace::Suspects {
            self.suspects.allow(service);
        }
    }

    /// Forgets a service that is no longer managed.
    pub(super) fn remove(&mut self, service: &str) {
        self.suspects.forget(service);
    }

    /// Ends what is at work.
    pub(super) async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            drop(stop);
            // Should it hang, it ends with this process.
            timeout(PATIENCE, task).await.ok();
        }
    }
}

impl Steward {
    /// There is a new forecast of a service's memory.
    pub(super) fn suspect(&mut self, service: &Arc<str>, process: Identity, forecast: &Forecast) {
        let (Some(hierarchy), Some(managed)) = (&self.hierarchy, self.roster.get(service)) else { return };
        if !self.traces.suspects.begin(service, process, forecast.verdict, clock::boot_ns()) {
            return;
        }
        let order = Order {
            service: service.to_string(),
            cgroup: hierarchy.directory(&managed.cgroup),
            duration: self.traces.suspects.duration(),
            apart: self.traces.suspects.apart(),
            state_dir: self.traces.state_dir.clone(),
        };
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let duration = order.duration;
            let begins = async || {
                let begins = Word::Moment(Arc::clone(&service), clock::boot_ns(), What::TraceBegins(duration));
                // The send fails only when the agent stops.
                words.send(begins).await.ok();
            };
            let result = trace::by_child(order, begins, stopped).await;
            words.send(Word::Traced(service, result)).await.ok();
        });
        self.traces.running = Some((stop, task));
    }

    /// The trace of a suspect has ended.
    pub(super) fn traced(&mut self, service: &Arc<str>, result: Result<Summary, NoTrace>) {
        self.traces.running = None;
        self.metrics.own().traced(&result);
        match result {
            Err(NoTrace::Busy) => return self.traces.suspects.put_off(),
            Err(NoTrace::Recent | NoTrace::Stopped) => {}
            Ok(summary) => self.say(clock::boot_ns(), service, What::Traced(summary.to_string())),
            Err(NoTrace::Broken(error)) => {
                self.say(clock::boot_ns(), service, What::TraceFailed(format!("{error:#}")));
            }
        }
        self.traces.suspects.ended();
    }
}
