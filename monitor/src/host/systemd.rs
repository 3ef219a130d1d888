//! systemd's view of a unit at the moment at which it ended one of its processes, over D-Bus.

use std::fmt;

use anyhow::{Context as _, Result};
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const JOB: &str = "org.freedesktop.systemd1.Job";
/// How systemd writes a time without end.
const FOR_EVER: u64 = u64::MAX;

/// A connection to the system bus.
#[derive(Clone, Debug)]
pub(crate) struct Systemd {
    bus: Connection,
}

/// What systemd says of a unit, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// `ActiveState`.
    pub(crate) active_state: String,
    /// `SubState`.
    pub(crate) sub_state: String,
    /// `Result` of a service; empty for other units.
    pub(crate) result: String,
    /// Type of the job that is queued or running for it; empty without one.
    pub(crate) job: String,
    /// It has been active in its present run: it came up after it began to start.
    pub(crate) was_active: bool,
    /// It was active for as long as it may be (`RuntimeMaxSec`), if that has an end.
    pub(crate) ran_its_time: bool,
}

/// Why systemd ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Somebody asked for it.
    Stop,
    /// Likewise, and it did not end in time.
    StopTimedOut,
    /// It did not come up in time.
    StartTimeout,
    /// It had run as long as it may.
    RuntimeLimit,
    /// It gave no sign of life.
    Watchdog,
    /// Another process of the unit was killed for want of memory.
    OomPolicy,
    /// Nothing in its view explains it.
    NotInvolved,
}

impl Systemd {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// When there is none, as on hosts without systemd.
    pub(crate) async fn connect() -> Result<Self> {
        let bus =
            Connection::system().await.context("cannot connect to the system bus; is dbus installed and running?")?;
        Ok(Self { bus })
    }

    /// What systemd says of a unit; `None` when it does not know it (any more).
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn view(&self, unit: &str) -> Result<Option<View>> {
        let path: OwnedObjectPath =
            match self.bus.call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), "GetUnit", &(unit,)).await {
                Ok(reply) => reply.body().deserialize().context("systemd answers GetUnit with something else")?,
                Err(zbus::Error::MethodError(name, ..)) if name.as_str().ends_with(".NoSuchUnit") => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("systemd does not tell about {unit}")),
            };
        let (active_state, sub_state, result, job, began, active, left, most) = tokio::join!(
            self.property(&path, UNIT, "ActiveState"),
            self.property(&path, UNIT, "SubState"),
            // A scope has no result.
            self.property(&path, SERVICE, "Result"),
            self.property(&path, UNIT, "Job"),
            self.property(&path, UNIT, "InactiveExitTimestampMonotonic"),
            self.property(&path, UNIT, "ActiveEnterTimestampMonotonic"),
            self.property(&path, UNIT, "ActiveExitTimestampMonotonic"),
            // Neither has a scope before version 244.
            self.property(&path, SERVICE, "RuntimeMaxUSec"),
        );
        let (_, job): (u32, OwnedObjectPath) = job?.try_into().context("the job of a unit is something else")?;
        let job = match job.as_str() {
            "/" => String::new(),
            // It may end while we ask.
            _ => self.property(&job, JOB, "JobType").await.and_then(text).unwrap_or_default(),
        };
        let moment = |value: Result<OwnedVariant>| anyhow::Ok(u64::try_from(value?)?);
        let (began, active, left) = (moment(began)?, moment(active)?, moment(left)?);
        let most = moment(most).unwrap_or(FOR_EVER);
        Ok(Some(View {
            active_state: text(active_state?)?,
            sub_state: text(sub_state?)?,
            result: result.and_then(text).unwrap_or_default(),
            job,
            was_active: active >= began,
            ran_its_time: most != FOR_EVER && left.saturating_sub(active) >= most,
        }))
    }

    async fn property(&self, path: &OwnedObjectPath, interface: &str, name: &str) -> Result<OwnedVariant> {
        let properties = "org.freedesktop.DBus.Properties";
        let reply = self.bus.call_method(Some(DESTINATION), path, Some(properties), "Get", &(interface, name)).await;
        let reply = reply.with_context(|| format!("systemd does not tell {name} of {}", path.as_str()))?;
        reply.body().deserialize().with_context(|| format!("systemd tells {name} in another way"))
    }
}

fn text(value: OwnedVariant) -> Result<String> {
    value.try_into().context("systemd answers with something else than text")
}

impl View {
    /// Why systemd ended a process of the unit, if it did.
    ///
    /// A service's result is set when systemd sends the first signal (`service_enter_signal`), so it is there by the death;
    /// a stop by job is a success until its time runs out. A start or run that took too long leaves `timeout` without a
    /// job, since the start job fails as soon as the unit is on its way down (`unit_notify`); so does a stop that took too
    /// long, once it is over.
    pub(crate) fn meaning(&self) -> Meaning {
        let stopping = matches!(self.job.as_str(), "stop" | "restart" | "try-restart" | "reload-or-start");
        match self.result.as_str() {
            "watchdog" => Meaning::Watchdog,
            _ if self.sub_state.ends_with("-watchdog") => Meaning::Watchdog,
            "oom-kill" => Meaning::OomPolicy,
            "timeout" if stopping => Meaning::StopTimedOut,
            "timeout" if self.ran_its_time => Meaning::RuntimeLimit,
            "timeout" if self.was_active => Meaning::StopTimedOut,
            "timeout" => Meaning::StartTimeout,
            _ if stopping => Meaning::Stop,
            _ if self.active_state == "deactivating" => Meaning::Stop,
            _ => Meaning::NotInvolved,
        }
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Stop => "it is being stopped",
            Self::StopTimedOut => "it is being stopped, and did not end in time",
            Self::StartTimeout => "its start took too long",
            Self::RuntimeLimit => "it ran as long as it may",
            Self::Watchdog => "its watchdog got no sign of life",
            Self::OomPolicy => "another process of the unit was killed for want of memory",
            Self::NotInvolved => "nothing that explains the signal",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_and_what_it_means() {
        let view = |active: &str, sub: &str, result: &str, job: &str, was_active| View {
            ran_its_time: false,
            active_state: active.to_owned(),
            sub_state: sub.to_owned(),
            result: result.to_owned(),
            job: job.to_owned(),
            was_active,
        };
        for (view, meaning) in [
            (view("deactivating", "stop-sigterm", "success", "stop", true), Meaning::Stop),
            (view("deactivating", "stop-sigterm", "success", "restart", true), Meaning::Stop),
            (view("deactivating", "stop-sigkill", "timeout", "stop", true), Meaning::StopTimedOut),
            (view("deactivating", "stop-sigterm", "timeout", "", false), Meaning::StartTimeout),
            (view("failed", "failed", "timeout", "", false), Meaning::StartTimeout),
            (view("failed", "failed", "timeout", "", true), Meaning::StopTimedOut),
            (
                View { ran_its_time: true, ..view("deactivating", "stop-sigterm", "timeout", "", true) },
                Meaning::RuntimeLimit,
            ),
            (view("deactivating", "stop-watchdog", "watchdog", "", true), Meaning::Watchdog),
            (view("failed", "failed", "watchdog", "", true), Meaning::Watchdog),
            (view("deactivating", "stop-sigterm", "oom-kill", "", true), Meaning::OomPolicy),
            (view("active", "running", "success", "", true), Meaning::NotInvolved),
            (view("inactive", "dead", "success", "", true), Meaning::NotInvolved),
        ] {
            assert_eq!(view.meaning(), meaning, "{view:?}");
        }
    }
}
