//! Docker or Podman as the owner of a container.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::{sync::Mutex, time::sleep};

use super::{Answer, Permit, Supervisor, living};
use crate::{
    healing::Plan,
    host::{
        containers::{self, Container},
        process::Identity,
    },
};

/// A container that the engine has started has a main process by then.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// The engine hears of a death from the container's shim.
const NOTICES: Duration = Duration::from_millis(50);
/// Docker waits 100 ms before its first restart, twice as long before each further one, at most a minute
/// (moby, restartmanager).
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// Keeps one container.
#[derive(Debug)]
pub(crate) struct ContainerSupervisor {
    engine: &'static str,
    name: String,
    /// One start at a time.
    starting: Mutex<()>,
}

impl ContainerSupervisor {
    /// The supervisor of the container `name` of `engine`.
    pub(crate) fn new(engine: &'static str, name: &str) -> Self {
        Self { engine, name: name.to_owned(), starting: Mutex::default() }
    }

    async fn start_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        let state = || containers::state(self.engine, &self.name);
        let (before, ()) = tokio::join!(state(), permit);
        let before = before?.with_context(|| format!("{} has removed {}", self.engine, self.name))?;
        // The engine itself starts none before the old one and its whole namespace are gone.
        containers::start(self.engine, &self.name).await?;
        let begin = Instant::now();
        loop {
            let now = state().await?.with_context(|| format!("{} has removed {}", self.engine, self.name))?;
            if now.started_at != before.started_at {
                match living(now.pid)? {
                    Some(process) => return Ok(process),
                    None if now.status == "exited" => {
                        bail!("{} was started and ended at once with {}", self.name, now.exit_code);
                    }
                    None => {}
                }
            }
            if begin.elapsed() > START_TIMEOUT {
                bail!("{} has no main process {} s after its start", self.name, START_TIMEOUT.as_secs());
            }
            sleep(LOOK).await;
        }
    }
}

impl Supervisor for ContainerSupervisor {
    fn plan(&self, _: u64) -> Answer<'_, Plan> {
        Box::pin(async {
            let Some(container) = containers::state(self.engine, &self.name).await? else {
                return Ok(Plan::Intended { why: "it was removed".to_owned() });
            };
            let plan = plan(&container, living(container.pid)?);
            // What the death itself shows to whoever was there; an agent that was not asks.
            if let (Plan::GivesUp { .. }, Ok(since)) = (&plan, container.started_at.parse())
                && containers::was_stopped(self.engine, &self.name, since).await?
            {
                return Ok(Plan::Intended { why: "somebody stopped it".to_owned() });
            }
            Ok(plan)
        })
    }

    fn start(&self, permit: Permit) -> Answer<'_, Identity> {
        Box::pin(self.start_alone(permit))
    }

    fn is_main(&self, process: Identity) -> Option<Answer<'_, bool>> {
        Some(Box::pin(async move {
            let container = containers::state(self.engine, &self.name).await?;
            Ok(container.is_some_and(|container| container.pid == process.tgid))
        }))
    }
}

/// What the engine is going to do about a container whose main process we believe dead.
fn plan(container: &Container, main: Option<Identity>) -> Plan {
    let policy = container.policy.as_str();
    match (container.status.as_str(), main) {
        ("running" | "paused", Some(process)) => Plan::Alive(process),
        ("running" | "paused" | "stopping", None) => {
            Plan::Restarts { within: NOTICES, why: "it has not noticed yet".to_owned() }
        }
        ("restarting", _) => {
            let doublings = u32::try_from(container.restarts.clamp(0, 16)).unwrap_or(0);
            let within = FIRST.saturating_mul(1 << doublings).min(LONGEST);
            Plan::Restarts { within, why: format!("restart policy {policy}, restart {}", container.restarts + 1) }
        }
        ("exited", _) => match policy {
            // The engine goes from its end to restarting in one step; what is found ended was stopped by a person.
            "always" | "unless-stopped" => {
                Plan::Intended { why: format!("restart policy {policy}, and it is not restarted") }
            }
            "on-failure" if container.exit_code == 0 => {
                Plan::GivesUp { why: "restart policy on-failure, and it ended with 0".to_owned() }
            }
            "on-failure" if container.retries > 0 && container.restarts >= container.retries => Plan::GivesUp {
                why: format!("restart policy on-failure, and all {} tries are spent", container.retries),
            },
            "on-failure" => Plan::Intended { why: "restart policy on-failure, and it is not restarted".to_owned() },
            _ => Plan::GivesUp { why: format!("restart policy {policy}") },
        },
        (status, _) => Plan::Held { why: format!("it is {status}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(status: &str, policy: &str) -> Container {
        Container { status: status.to_owned(), policy: policy.to_owned(), exit_code: 137, ..Container::default() }
    }

    #[test]
    fn each_state_has_its_plan() {
        let process = Identity { tgid: 7, start_ns: 1 };
        for (container, main, expected) in [
            (container("exited", "no"), None, "GivesUp"),
            (Container { exit_code: 0, ..container("exited", "on-failure") }, None, "GivesUp"),
            (Container { retries: 3, restarts: 3, ..container("exited", "on-failure") }, None, "GivesUp"),
            (Container { retries: 3, restarts: 2, ..container("exited", "on-failure") }, None, "Intended"),
            (container("exited", "always"), None, "Intended"),
            (container("exited", "unless-stopped"), None, "Intended"),
            (container("restarting", "always"), None, "Restarts"),
            (container("running", "no"), None, "Restarts"),
            (container("running", "no"), Some(process), "Alive"),
            (container("removing", "no"), None, "Held"),
        ] {
            let plan = plan(&container, main);
            assert!(format!("{plan:?}").starts_with(expected), "{container:?}: {plan:?}");
        }
    }

    #[test]
    fn the_engine_s_back_off_is_known() {
        for (restarts, within) in [(0, 100), (3, 800), (9, 51_200), (10, 60_000), (1000, 60_000)] {
            let container = Container { restarts, ..container("restarting", "always") };
            let Plan::Restarts { within: found, .. } = plan(&container, None) else { panic!("at it") };
            assert_eq!(found, Duration::from_millis(within));
        }
    }
}
