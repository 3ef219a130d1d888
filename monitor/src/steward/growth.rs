//! Memory of the services: measured beside everything else, followed, and told when it will run out.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Steward, Word};
use crate::{
    host::clock,
    memory::{self, Clocks, Follower, Measured, Pace, Target, Words},
    timeline::What,
};

/// Services whose measurements are taken in at once: a death waits behind no more.
const SLICE: usize = 50;

impl Steward {
    /// Measures the memory of all living services, spread over the time until that is done again.
    pub(super) fn measure(&mut self, interval: Duration) {
        // On a host where this takes longer than it should, the next round is left out rather than run beside it.
        if self.measuring.as_ref().is_some_and(|round| !round.is_finished()) {
            return;
        }
        let Some(hierarchy) = self.hierarchy.clone() else { return };
        let now = clock::boot_ns();
        let mut targets: Vec<_> = self
            .roster
            .iter()
            .filter_map(|(service, managed)| {
                let (service, cgroup) = (Arc::clone(service), Arc::clone(&managed.cgroup));
                let (process, limit) = (managed.process()?, managed.recorder.limit());
                Some(Target { service, process, cgroup, limit, whole: managed.follower.is_due(process, now) })
            })
            .collect();
        let pause = interval.mul_f64(SLICE as f64 / targets.len().max(SLICE) as f64);
        let words = self.words.0.clone();
        let round = self.tasks.spawn(async move {
            while !targets.is_empty() {
                let slice = targets.split_off(targets.len().saturating_sub(SLICE));
                let hierarchy = hierarchy.clone();
                let measure = move || memory::measure(&hierarchy, slice);
                let measured = tokio::task::spawn_blocking(measure).await.unwrap_or_default();
                // The send fails only when the agent stops.
                words.send(Word::Measured(measured)).await.ok();
                if !targets.is_empty() {
                    sleep(pause).await;
                }
            }
        });
        self.measuring = Some(round);
    }

    /// Takes what was measured.
    pub(super) fn measured(&mut self, all: Vec<Measured>) {
        for measured in all {
            let began = clock::wall(measured.process.start_ns);
            let clocks = Clocks { began, now: clock::wall(measured.at_ns), boot_id: clock::boot_id() };
            let news = self.roster.measured(&measured, clocks);
            self.pool_measured(&measured, news.forecast.as_ref(), clock::boot_ns());
            self.pictures_measured(&measured, news.forecast.as_ref());
            let service = &measured.service;
            self.metrics.memory(service, measured.bytes, measured.limit);
            if let Some(forecast) = &news.forecast {
                self.metrics.forecast(service, forecast);
                self.alerts.foresees(service, forecast);
                self.suspect(service, measured.process, forecast);
                if news.raised {
                    self.say(measured.at_ns, service, What::Forecast(Words(forecast).to_string()));
                }
            }
            if news.cleared {
                self.say(measured.at_ns, service, What::ForecastOver);
            }
            if news.keep
                && let Some(managed) = self.roster.get(service)
            {
                self.store.keep_follower(service, managed.follower.clone());
            }
            self.planned_look(service, clock::boot_ns());
        }
    }

    /// What is known of a service's memory: by an earlier agent, if it took samples as often.
    pub(super) fn follower(&mut self, service: &str) -> Follower {
        let pace = Pace { sample_seconds: self.sample.as_secs_f64() };
        let left = self.followers.remove(service).filter(|follower| follower.keeps(pace));
        left.unwrap_or_else(|| Follower::new(pace))
    }
}
