//! Docker or Podman as the owner of a container.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use tokio::{
    sync::{Mutex, OnceCell},
    time::sleep,
};

use super::{Answer, End, Permit, Supervisor};
use crate::{
    healing::Plan,
    host::{
        clock,
        containers::{self, Container, STOPPED},
        process::{self, Identity},
    },
};

/// A container that the engine has started has a main process by then.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// The engine hears of a death from the container's shim.
const NOTICES: Duration = Duration::from_millis(50);
/// Podman has cleaned up after a container, and restarted it where that is its policy, within some 100 ms. One that is not
/// cleaned up after this was left by a `conmon` that died too.
const CLEANED_UP: Duration = Duration::from_secs(10);
/// Docker waits 100 ms before its first restart, twice as long before each further one, at most a minute
/// (moby, restartmanager).
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// Keeps one container.
#[derive(Debug)]
pub(crate) struct ContainerSupervisor {
    /// Whose it is; found out with the first question about a container that was dead before anybody saw where it lives.
    engine: OnceCell<&'static str>,
    name: String,
    /// Since when its deaths are seen.
    watched_since: Timestamp,
    /// One start at a time.
    starting: Mutex<()>,
}

impl ContainerSupervisor {
    /// The supervisor of the container `name` of `engine`; `None`: of whichever engine has one of that name.
    pub(crate) fn new(engine: Option<&'static str>, name: &str) -> Self {
        let engine = OnceCell::new_with(engine);
        Self { engine, name: name.to_owned(), watched_since: Timestamp::now(), starting: Mutex::default() }
    }

    /// Whose it is, and how it is; `None` when nobody has it.
    async fn look(&self) -> Result<Option<(&'static str, Container)>> {
        if let Some(engine) = self.engine.get() {
            return Ok(containers::state(engine, &self.name).await?.map(|container| (*engine, container)));
        }
        for engine in containers::ENGINES.into_iter().filter(|engine| containers::is_here(engine)) {
            if let Some(container) = containers::state(engine, &self.name).await? {
                // Nobody else can have found another one.
                self.engine.set(engine).ok();
                return Ok(Some((engine, container)));
            }
        }
        Ok(None)
    }

    async fn look_again(&self) -> Result<(&'static str, Container)> {
        self.look().await?.with_context(|| format!("{} has been removed", self.name))
    }

    /// Why it is believed that somebody stopped it, if it is: what a death shows to whoever was there, an agent that was not
    /// asks. Docker remembers; Podman does not, so what ended before we came is left as it is.
    async fn stopped_unseen(&self, engine: &str, container: &Container) -> Result<Option<String>> {
        if engine == "docker" {
            let Ok(since) = container.started_at.parse() else { return Ok(None) };
            let stopped = containers::was_stopped(engine, &self.name, since).await?;
            return Ok(stopped.then(|| "somebody stopped it".to_owned()));
        }
        let unseen = container.finished_at.parse().is_ok_and(|ended: Timestamp| ended < self.watched_since);
        let why = "it ended while no agent watched, and Podman does not tell whether somebody stopped it";
        Ok(unseen.then(|| why.to_owned()))
    }

    async fn start_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        let (before, ()) = tokio::join!(self.look_again(), permit);
        let (engine, before) = before?;
        before.ensure_not_orchestrated()?;
        // The engine itself starts none before the old one and its whole namespace are gone.
        containers::start(engine, &self.name).await?;
        self.begun(&before).await
    }

    async fn renew_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        let (before, ()) = tokio::join!(self.look_again(), permit);
        let (engine, before) = before?;
        before.ensure_not_orchestrated()?;
        containers::restart(engine, &self.name).await?;
        self.begun(&before).await
    }

    /// The main process of the run that follows `before`.
    async fn begun(&self, before: &Container) -> Result<Identity> {
        let begin = Instant::now();
        loop {
            let (_, now) = self.look_again().await?;
            if now.started_at != before.started_at {
                match process::living(now.pid)? {
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
    fn plan(&self, End { died_ns, ours }: End) -> Answer<'_, Plan> {
        Box::pin(async move {
            let Some((engine, container)) = self.look().await? else {
                return Ok(Plan::Intended { why: "it was removed".to_owned() });
            };
            let since = Duration::from_nanos(clock::boot_ns().saturating_sub(died_ns));
            let plan = plan(&container, process::living(container.pid)?, since);
            // What we stopped to start it again is no sign of anybody's will, should we not have come to the start.
            if let (Plan::Intended { .. }, true, "exited") = (&plan, ours, container.status.as_str()) {
                return Ok(Plan::GivesUp { why: "it was stopped for a planned restart".to_owned() });
            }
            if ours {
                return Ok(plan);
            }
            if let (Plan::GivesUp { .. }, Some(why)) = (&plan, self.stopped_unseen(engine, &container).await?) {
                return Ok(Plan::Intended { why });
            }
            Ok(plan)
        })
    }

    fn start(&self, permit: Permit) -> Answer<'_, Identity> {
        Box::pin(self.start_alone(permit))
    }

    fn renew(&self, _: Identity, permit: Permit) -> Answer<'_, Identity> {
        Box::pin(self.renew_alone(permit))
    }

    fn knows(&self) -> Answer<'_, bool> {
        Box::pin(async move { Ok(self.look().await?.is_some()) })
    }

    fn main_pid(&self) -> Option<Answer<'_, u32>> {
        Some(Box::pin(async move { Ok(self.look().await?.map_or(0, |(_, container)| container.pid)) }))
    }
}

/// What the engine is going to do about a container whose main process we believe dead.
/// `since` is the time from its death.
fn plan(container: &Container, main: Option<Identity>, since: Duration) -> Plan {
    let policy = container.policy.as_str();
    if let (Some(orchestrator), None) = (container.orchestrator, main) {
        return Plan::Held { why: format!("{orchestrator} made this container and replaces it itself") };
    }
    match (container.status.as_str(), main) {
        (STOPPED, _) if since >= CLEANED_UP => {
            Plan::GivesUp { why: format!("not cleaned up for {} s", since.as_secs()) }
        }
        (STOPPED, _) => Plan::Restarts { within: NOTICES, why: "it is being cleaned up".to_owned() },
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
            (container(STOPPED, "no"), None, "Restarts"),
            (container("removing", "no"), None, "Held"),
        ] {
            let plan = plan(&container, main, Duration::ZERO);
            assert!(format!("{plan:?}").starts_with(expected), "{container:?}: {plan:?}");
        }
    }

    #[test]
    fn an_orchestrator_s_container_is_left_to_it() {
        let task = Container { orchestrator: Some("Docker Swarm"), ..container("exited", "no") };
        let Plan::Held { why } = plan(&task, None, Duration::ZERO) else { panic!("it is not ours to start") };
        assert!(why.contains("Docker Swarm"), "{why}");
        let process = Identity { tgid: 7, start_ns: 1 };
        let living = Container { status: "running".to_owned(), ..task };
        assert_eq!(plan(&living, Some(process), Duration::ZERO), Plan::Alive(process));
    }

    #[test]
    fn a_container_that_nobody_cleans_up_is_given_up() {
        let left = container(STOPPED, "");
        assert!(matches!(plan(&left, None, CLEANED_UP - NOTICES), Plan::Restarts { .. }));
        assert!(matches!(plan(&left, None, CLEANED_UP), Plan::GivesUp { .. }));
    }

    #[test]
    fn the_engine_s_back_off_is_known() {
        for (restarts, within) in [(0, 100), (3, 800), (9, 51_200), (10, 60_000), (1000, 60_000)] {
            let container = Container { restarts, ..container("restarting", "always") };
            let Plan::Restarts { within: found, .. } = plan(&container, None, Duration::ZERO) else { panic!("at it") };
            assert_eq!(found, Duration::from_millis(within));
        }
    }
}
