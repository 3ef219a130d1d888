//! What operators ask and tell.

use std::{sync::Arc, time::Duration};

use super::Steward;
use crate::{
    control::{Command, Pause, Resume, Status},
    healing::Input,
    host::clock,
    memory::Words,
    roster::Managed,
    text::Clean,
    timeline::What,
};

impl Steward {
    /// An operator wants something.
    pub(super) fn command(&mut self, command: Command) {
        let now = clock::boot_ns();
        match command {
            // Whoever asked may have gone.
            Command::Status(reply) => {
                let mut all: Vec<_> = self.roster.iter().map(|(name, managed)| self.status(name, managed)).collect();
                all.sort_by(|a, b| a.service.cmp(&b.service));
                drop(reply.send(all));
            }
            Command::Curves(services, reply) => {
                let curve = |name: &String| self.roster.get(name).map(|managed| managed.recorder.samples());
                drop(reply.send(services.iter().map(|name| curve(name).unwrap_or_default()).collect()));
            }
            Command::Pause(Pause { service, seconds, reason }, reply) => {
                let until_ns = now.saturating_add(Duration::from_secs(seconds).as_nanos() as u64);
                let what = What::Paused { until: clock::wall(until_ns), reason };
                drop(reply.send(self.told(&service, what, Input::Pause { until_ns })));
            }
            Command::Resume(Resume { service }, reply) => {
                drop(reply.send(self.told(&service, What::Resumed, Input::Resume)));
            }
        }
    }

    fn told(&mut self, service: &str, what: What, input: Input) -> Result<Status, String> {
        if self.roster.get(service).is_none() {
            let mut known: Vec<_> = self.roster.iter().map(|(name, _)| Clean(name).to_string()).collect();
            known.sort();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("no service {service:?} is looked after; those that are: {known}"));
        }
        let name: Arc<str> = service.into();
        let now = clock::boot_ns();
        self.say(now, &name, what);
        self.step(&name, input, now);
        let managed = self.roster.get(&name).ok_or("it has gone")?;
        Ok(self.status(&name, managed))
    }

    fn status(&self, name: &Arc<str>, managed: &Managed) -> Status {
        let engine = managed.engine();
        let forecast = managed.follower.forecast();
        let process = managed.process();
        Status {
            service: name.to_string(),
            state: engine.state().to_owned(),
            cgroup: Some(managed.cgroup.to_string()),
            pid: process.map(|process| process.tgid),
            started: process.map(|process| clock::wall(process.start_ns)),
            down_since: engine.down_since().map(clock::wall),
            incident: self.book.open_id(name),
            paused_until: engine.paused_until(clock::boot_ns()).map(clock::wall),
            memory_bytes: managed.recorder.last(),
            memory_limit_bytes: managed.recorder.limit(),
            pool: self.pool_state(name),
            forecast_text: Words(&forecast).to_string(),
            forecast,
        }
    }
}
