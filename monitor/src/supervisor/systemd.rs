//! systemd as the owner of a unit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{sync::Mutex, time::sleep};

use super::{Answer, End, Permit, Supervisor, fence};
use crate::{
    healing::Plan,
    host::{
        cgroup::Hierarchy,
        process::{self, Identity},
        systemd::{Systemd, Unit},
    },
};

/// A start has this long to give a main process; what `ExecStartPre=` does counts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A restart may take longer by the unit's stop: 90 s by default (`DefaultTimeoutStopSec=`).
const RENEW_TIMEOUT: Duration = Duration::from_secs(120);
/// Between looks at a unit that is being started: 5 ms, growing by half up to 200 ms.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// systemd hears of a death by SIGCHLD, within milliseconds.
const NOTICES: Duration = Duration::from_millis(20);
/// A step on a unit's way down or up, after which it is asked again: half of this was enough for most.
const STEP: Duration = Duration::from_millis(100);

/// Keeps one unit.
#[derive(Debug)]
pub(crate) struct SystemdSupervisor {
    unit: String,
    systemd: Systemd,
    hierarchy: Option<Arc<Hierarchy>>,
    /// One start at a time.
    starting: Mutex<()>,
    /// What the last plan rests on. The start that follows from a plan comes right after it, so it need not ask again.
    planned: Mutex<Option<Unit>>,
}

impl SystemdSupervisor {
    /// The supervisor of `unit`; what is left of an incarnation is looked for in `hierarchy`.
    pub(crate) fn new(unit: &str, systemd: Systemd, hierarchy: Option<Arc<Hierarchy>>) -> Self {
        Self { unit: unit.to_owned(), systemd, hierarchy, starting: Mutex::default(), planned: Mutex::default() }
    }

    async fn start_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        permit.await;
        let before = match self.planned.lock().await.take() {
            Some(unit) => unit,
            None => self.systemd.unit(&self.unit).await?,
        };
        let mut was_reset = before.hit_start_limit();
        if was_reset {
            self.systemd.reset_failed(&self.unit).await?;
        }
        // What another kill mode leaves running is meant to run on.
        if let (Some(hierarchy), false, "control-group" | "mixed") =
            (&self.hierarchy, before.cgroup.is_empty(), before.kill_mode.as_str())
        {
            fence::clear(hierarchy, &before.cgroup, &self.unit).await?;
        }
        self.systemd.start(&self.unit).await?;
        let mut begin = Instant::now();
        let mut pause = LOOK;
        loop {
            let now = self.systemd.progress(&self.unit).await?;
            let is_new = now.invocation != before.invocation;
            if is_new && let Some(process) = process::living(now.main_pid)? {
                return Ok(process);
            }
            if is_new && !now.has_job && matches!(now.active_state.as_str(), "failed" | "inactive") {
                let result = self.systemd.unit(&self.unit).await?.result;
                bail!("{} was started and ended at once: {result}", self.unit);
            }
            if !is_new && !now.has_job && begin.elapsed() > STEP {
                // Only a start limit lets a start end so; where its settings did not show it, this does.
                let limited = now.active_state == "failed" && before.start_limit.0 > 0;
                if limited && !std::mem::replace(&mut was_reset, true) {
                    self.systemd.reset_failed(&self.unit).await?;
                    self.systemd.start(&self.unit).await?;
                    begin = Instant::now();
                    continue;
                }
                bail!("systemd dropped the start of {} without a new invocation; see journalctl -u {0}", self.unit);
            }
            if begin.elapsed() > START_TIMEOUT {
                bail!("{} has no main process {} s after its start", self.unit, START_TIMEOUT.as_secs());
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LOOK_MAX);
        }
    }
}

impl SystemdSupervisor {
    /// One job stops and starts it, so systemd goes on with it whatever becomes of us.
    async fn renew_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        permit.await;
        let before = self.systemd.progress(&self.unit).await?;
        self.systemd.try_restart(&self.unit).await?;
        let begin = Instant::now();
        let mut pause = LOOK;
        loop {
            let now = self.systemd.progress(&self.unit).await?;
            let is_new = now.invocation != before.invocation;
            if is_new && let Some(process) = process::living(now.main_pid)? {
                return Ok(process);
            }
            if !now.has_job && begin.elapsed() > STEP && matches!(now.active_state.as_str(), "failed" | "inactive") {
                let result = self.systemd.unit(&self.unit).await?.result;
                bail!("{} was restarted and is {}: {result}", self.unit, now.active_state);
            }
            if !now.has_job && !is_new && begin.elapsed() > STEP && now.active_state == "active" {
                bail!("systemd dropped the restart of {}; see journalctl -u {0}", self.unit);
            }
            if begin.elapsed() > RENEW_TIMEOUT {
                bail!("{} has no new main process {} s after its restart", self.unit, RENEW_TIMEOUT.as_secs());
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LOOK_MAX);
        }
    }
}

impl Supervisor for SystemdSupervisor {
    fn plan(&self, _: End) -> Answer<'_, Plan> {
        Box::pin(async {
            let unit = self.systemd.unit(&self.unit).await?;
            let plan = plan(&unit, process::living(unit.main_pid)?);
            *self.planned.lock().await = matches!(plan, Plan::GivesUp { .. } | Plan::EndedWell { .. }).then_some(unit);
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
        Box::pin(self.systemd.is_loaded(&self.unit))
    }

    fn main_pid(&self) -> Option<Answer<'_, u32>> {
        Some(Box::pin(self.systemd.main_pid(&self.unit)))
    }
}

/// What systemd is going to do about a unit whose main process we believe dead; `main` is the one that it has alive.
fn plan(unit: &Unit, main: Option<Identity>) -> Plan {
    let soon = |within: Duration, why: String| Plan::Restarts { within, why };
    match unit.job.as_str() {
        "stop" => return Plan::Intended { why: "a stop job".to_owned() },
        "" => {}
        job => return soon(STEP, format!("a {job} job")),
    }
    if unit.host_stops {
        return Plan::Held { why: "the host is going down".to_owned() };
    }
    if unit.load_state != "loaded" {
        return Plan::Held { why: format!("its unit file is {}", unit.load_state) };
    }
    match unit.active_state.as_str() {
        // In its own words: auto-restart, and auto-restart-queued since 254.
        "activating" if unit.sub_state.starts_with("auto-restart") => {
            soon(unit.restart_after, format!("{} after {:?}", unit.sub_state, unit.restart_after))
        }
        "active" | "reloading" | "refreshing" | "activating" => match main {
            Some(process) => Plan::Alive(process),
            None if unit.main_pid != 0 => soon(NOTICES, "it has not noticed yet".to_owned()),
            None if unit.sub_state == "exited" => {
                Plan::Intended { why: "it has done its work and remains (RemainAfterExit)".to_owned() }
            }
            None if unit.active_state == "activating" => soon(STEP, format!("it is in {}", unit.sub_state)),
            None => Plan::Held { why: format!("systemd holds it for {} without a main process", unit.sub_state) },
        },
        "deactivating" => soon(STEP, format!("it is in {}", unit.sub_state)),
        // A state for a moment, since 254.
        _ if unit.sub_state.ends_with("-before-auto-restart") => soon(NOTICES, unit.sub_state.clone()),
        // What systemd ended for another reason has that for its result: watchdog, timeout, oom-kill.
        _ if unit.stopped_first && matches!(unit.result.as_str(), "success" | "exit-code" | "signal" | "core-dump") => {
            Plan::Intended { why: "it was being stopped when it ended".to_owned() }
        }
        _ if unit.result == "success" && !unit.triggers.is_empty() => {
            Plan::Intended { why: format!("it ended well, and {} starts it on demand", unit.triggers.join(", ")) }
        }
        _ if unit.result == "success" && unit.kind == "dbus" => {
            Plan::Intended { why: "it ended well, and the bus starts it on demand".to_owned() }
        }
        _ if unit.kind == "oneshot" => Plan::Intended { why: "a oneshot unit ends by itself".to_owned() },
        _ if unit.hit_start_limit() => {
            let (burst, interval) = unit.start_limit;
            Plan::GivesUp { why: format!("start limit: {burst} starts in {interval:?}") }
        }
        // A unit that was stopped, or ended well, may have been unloaded by now, and with it what would tell which.
        _ if unit.result == "success" => Plan::EndedWell { why: format!("Restart={}, result success", unit.restart) },
        _ => Plan::GivesUp { why: format!("Restart={}, result {}", unit.restart, unit.result) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str) -> Unit {
        Unit {
            load_state: "loaded".to_owned(),
            active_state: active.to_owned(),
            sub_state: sub.to_owned(),
            result: "oom-kill".to_owned(),
            restart: "no".to_owned(),
            kind: "simple".to_owned(),
            restart_after: Duration::from_millis(100),
            start_limit: (5, Duration::from_secs(10)),
            ..Unit::default()
        }
    }

    fn kind(plan: &Plan) -> &'static str {
        match plan {
            Plan::Alive(_) => "alive",
            Plan::Restarts { .. } => "restarts",
            Plan::GivesUp { .. } => "gives up",
            Plan::EndedWell { .. } => "ended well",
            Plan::Held { .. } => "held",
            Plan::Intended { .. } => "intended",
        }
    }

    #[test]
    fn each_state_has_its_plan() {
        let process = Identity { tgid: 7, start_ns: 1 };
        let named = |name: &str| name.to_owned();
        let table: [(Unit, Option<Identity>, &str); 23] = [
            (unit("failed", "failed"), None, "gives up"),
            (Unit { result: named("start-limit-hit"), ..unit("failed", "failed") }, None, "gives up"),
            (Unit { restart: named("on-abort"), ..unit("failed", "failed") }, None, "gives up"),
            (Unit { result: named("success"), ..unit("inactive", "dead") }, None, "ended well"),
            (Unit { kind: named("oneshot"), ..unit("inactive", "dead") }, None, "intended"),
            (Unit { stopped_first: true, result: named("signal"), ..unit("failed", "failed") }, None, "intended"),
            (Unit { stopped_first: true, result: named("success"), ..unit("inactive", "dead") }, None, "intended"),
            (Unit { stopped_first: true, result: named("watchdog"), ..unit("failed", "failed") }, None, "gives up"),
            (
                Unit { triggers: vec![named("a.socket")], result: named("success"), ..unit("inactive", "dead") },
                None,
                "intended",
            ),
            (Unit { kind: named("dbus"), result: named("success"), ..unit("inactive", "dead") }, None, "intended"),
            (Unit { job: named("stop"), ..unit("deactivating", "stop-sigterm") }, None, "intended"),
            (Unit { job: named("start"), ..unit("inactive", "dead") }, None, "restarts"),
            (Unit { job: named("restart"), ..unit("deactivating", "stop") }, None, "restarts"),
            (Unit { load_state: named("masked"), ..unit("failed", "failed") }, None, "held"),
            (Unit { load_state: named("not-found"), ..unit("failed", "failed") }, None, "held"),
            (Unit { host_stops: true, ..unit("failed", "failed") }, None, "held"),
            (unit("activating", "auto-restart"), None, "restarts"),
            (unit("failed", "failed-before-auto-restart"), None, "restarts"),
            (unit("deactivating", "stop-post"), None, "restarts"),
            (unit("active", "running"), Some(process), "alive"),
            (Unit { main_pid: 7, ..unit("active", "running") }, None, "restarts"),
            (unit("active", "exited"), None, "intended"),
            (unit("active", "running"), None, "held"),
        ];
        for (unit, main, expected) in table {
            let plan = plan(&unit, main);
            assert_eq!(kind(&plan), expected, "{unit:?}: {plan:?}");
        }
        let Plan::Restarts { within, .. } = plan(&unit("activating", "auto-restart"), None) else { panic!("at it") };
        assert_eq!(within, Duration::from_millis(100), "as long as systemd says");
    }

    #[test]
    fn a_unit_that_should_have_been_restarted_has_hit_its_limit() {
        for (restart, result, hit) in [
            ("always", "exit-code", true),
            ("always", "start-limit-hit", true),
            ("no", "start-limit-hit", true),
            ("no", "oom-kill", false),
            ("on-abort", "oom-kill", false),
            ("on-abort", "signal", true),
            ("on-failure", "oom-kill", true),
            ("on-abnormal", "exit-code", false),
        ] {
            let unit = Unit { restart: restart.to_owned(), result: result.to_owned(), ..unit("failed", "failed") };
            assert_eq!(unit.hit_start_limit(), hit, "{restart} {result}");
            let Plan::GivesUp { why } = plan(&unit, None) else { panic!("it stays dead") };
            assert_eq!(why.contains("start limit: 5 starts in 10s"), hit, "{why}");
        }
        let prevented = Unit { restart: "always".to_owned(), prevents_some: true, ..unit("failed", "failed") };
        assert!(!prevented.hit_start_limit(), "something else may have kept it from that");
        let unlimited =
            Unit { restart: "always".to_owned(), start_limit: (0, Duration::ZERO), ..unit("failed", "failed") };
        assert!(!unlimited.hit_start_limit());
    }
}
