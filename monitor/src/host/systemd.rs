//! systemd over D-Bus: its view of a unit at the moment at which it ended one of its processes, the state that tells what
//! it is going to do, and the calls that start one.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const JOB: &str = "org.freedesktop.systemd1.Job";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// systemd's D-Bus error for an unknown unit (bus-common-errors.h).
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// How systemd writes a time without end.
const FOR_EVER: u64 = u64::MAX;

/// systemd answers within milliseconds; one that is this slow is asked again later.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions under way at a time. Each has three calls under way at most, and dbus-daemon allows a connection 128.
const AT_ONCE: usize = 32;

/// Properties by their names.
type Told = HashMap<String, OwnedVariant>;

/// The host's systemd. Cheap to clone; the clones share one connection, which is made again when it was lost.
#[derive(Clone, Debug)]
pub(crate) struct Systemd {
    bus: Arc<Mutex<Option<Connection>>>,
    turns: Arc<Semaphore>,
}

impl Default for Systemd {
    fn default() -> Self {
        Self { bus: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// What a unit is and does, in systemd's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    /// `LoadState`.
    pub(crate) load_state: String,
    /// `ActiveState`.
    pub(crate) active_state: String,
    /// `SubState`.
    pub(crate) sub_state: String,
    /// `Result` of a service; empty for other units.
    pub(crate) result: String,
    /// `Restart` of a service; empty for other units.
    pub(crate) restart: String,
    /// `Type` of a service; empty for other units.
    pub(crate) kind: String,
    /// `KillMode`.
    pub(crate) kill_mode: String,
    /// Type of the job that is queued or running for it; empty without one.
    pub(crate) job: String,
    /// Changes with each start.
    pub(crate) invocation: Vec<u8>,
    /// `MainPID`; 0: none.
    pub(crate) main_pid: u32,
    /// Its cgroup; empty while it has none.
    pub(crate) cgroup: String,
    /// Time until the next automatic restart: `RestartUSecNext` (since 254), else `RestartUSec`.
    pub(crate) restart_after: Duration,
    /// `StartLimitBurst` and `StartLimitIntervalUSec`.
    pub(crate) start_limit: (u32, Duration),
    /// `RestartPreventExitStatus` names something.
    pub(crate) prevents_some: bool,
    /// It names SIGKILL.
    pub(crate) prevents_restart: bool,
    /// This run was active, and was so no longer when its main process ended: it was being stopped, by whatever means (`ExecStop=`).
    pub(crate) stopped_first: bool,
    /// Sockets, timers and paths that start it on demand.
    pub(crate) triggers: Vec<String>,
    /// The host is going down.
    pub(crate) host_stops: bool,
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

/// How far the start of a service has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Changes with each start.
    pub(crate) invocation: Vec<u8>,
    /// `ActiveState`.
    pub(crate) active_state: String,
    /// A job is queued or running for it.
    pub(crate) has_job: bool,
    /// `MainPID`; 0: none.
    pub(crate) main_pid: u32,
}

/// Whether a cgroup is a unit's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The cgroup is the unit's own.
    Here {
        /// `MainPID` of a service; 0: none.
        main_pid: u32,
    },
    /// The cgroup belongs to another unit or to none.
    Elsewhere,
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
    /// It has unloaded the unit, as it does with one that ended well; one that failed stays, unless it is to be collected.
    Forgotten,
    /// Nothing in its view explains it.
    NotInvolved,
}

impl Systemd {
    /// Connects to the system bus now, so that the first question is not a slow one.
    ///
    /// # Errors
    /// When there is none, as on hosts without systemd.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.bus().await.map(drop)
    }

    async fn bus(&self) -> Result<Bus> {
        let mut shared = self.bus.lock().await;
        let connection = match &*shared {
            Some(connection) => connection.clone(),
            None => {
                let connection = Connection::system().await;
                shared
                    .insert(connection.context("cannot connect to the system bus; is dbus installed and running?")?)
                    .clone()
            }
        };
        Ok(Bus(connection))
    }

    /// Asks; after a failure the next question connects again.
    async fn ask<T>(&self, question: impl AsyncFnOnce(&Bus) -> Result<T>) -> Result<T> {
        let _turn =
            timeout(PATIENCE, self.turns.acquire()).await.context("systemd is too slow for all questions")??;
        let answer = async {
            let bus = self.bus().await?;
            question(&bus).await
        };
        let answer = timeout(PATIENCE, answer).await.context("systemd does not answer").flatten();
        // What systemd refuses, it has answered.
        if answer.as_ref().is_err_and(|error| !matches!(error.downcast_ref(), Some(zbus::Error::MethodError(..)))) {
            *self.bus.lock().await = None;
        }
        answer
    }

    /// What systemd says of a unit; `None` when it does not know it (any more).
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn view(&self, unit: &str) -> Result<Option<View>> {
        self.ask(async |bus| bus.view(unit).await).await
    }

    /// What a unit is and does. One that is not loaded is loaded for that.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn unit(&self, name: &str) -> Result<Unit> {
        self.ask(async |bus| bus.unit(name).await).await
    }

    /// How far the start of a service has come. Asked again and again, so without the properties of services, which systemd reads
    /// from files.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn progress(&self, name: &str) -> Result<Progress> {
        self.ask(async |bus| bus.progress(name).await).await
    }

    /// The main process of a service; 0: none.
    ///
    /// # Errors
    /// When the bus or systemd does not answer, or does not know it.
    pub(crate) async fn main_pid(&self, unit: &str) -> Result<u32> {
        self.ask(async |bus| bus.main_pid(unit).await).await
    }

    /// Whether the cgroup at `path` is the own cgroup of `unit`.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn placed(&self, unit: &str, path: &str) -> Result<Placed> {
        self.ask(async |bus| bus.placed(unit, path).await).await
    }

    /// Whether systemd has a unit loaded: it is up, has failed, or a loaded unit refers to it.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn is_loaded(&self, unit: &str) -> Result<bool> {
        self.ask(async |bus| bus.is_loaded(unit).await).await
    }

    /// Names of all loaded services.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub(crate) async fn services(&self) -> Result<Vec<String>> {
        self.ask(async |bus| bus.services().await).await
    }

    /// Asks for a start; a job that is queued and contradicts it wins.
    ///
    /// # Errors
    /// With systemd's own words when it refuses.
    pub(crate) async fn start(&self, unit: &str) -> Result<()> {
        self.ask(async |bus| {
            bus.manager("StartUnit", &(unit, "fail")).await.with_context(|| format!("systemd refuses to start {unit}"))
        })
        .await
        .map(drop)
    }

    /// Asks for a restart of a unit that is up; one that somebody has stopped meanwhile stays so. A job that is queued and
    /// contradicts it wins.
    ///
    /// # Errors
    /// With systemd's own words when it refuses.
    pub(crate) async fn try_restart(&self, unit: &str) -> Result<()> {
        self.ask(async |bus| {
            let job = bus.manager("TryRestartUnit", &(unit, "fail")).await;
            job.with_context(|| format!("systemd refuses to restart {unit}"))
        })
        .await
        .map(drop)
    }

    /// Forgets that a unit failed, and how often.
    ///
    /// # Errors
    /// With systemd's own words when it refuses.
    pub(crate) async fn reset_failed(&self, unit: &str) -> Result<()> {
        self.ask(async |bus| {
            bus.manager("ResetFailedUnit", &(unit,)).await.with_context(|| format!("systemd does not reset {unit}"))
        })
        .await
        .map(drop)
    }
}

impl Unit {
    /// What systemd told of a unit, without what is asked for elsewhere: whether the host stops, and the type of the job at
    /// this path.
    fn read(mut told: Told) -> Result<(Self, Option<OwnedObjectPath>)> {
        let mut words = |name: &str| told.remove(name).map(text).transpose().map(Option::unwrap_or_default);
        let (load_state, active_state, sub_state) = (words("LoadState")?, words("ActiveState")?, words("SubState")?);
        let (result, restart, kind) = (words("Result")?, words("Restart")?, words("Type")?);
        let (kill_mode, cgroup) = (words("KillMode")?, words("ControlGroup")?);
        let span =
            |value: Option<OwnedVariant>| value.and_then(|value| u64::try_from(value).ok()).map(Duration::from_micros);
        let next = span(told.remove("RestartUSecNext")).filter(|next| !next.is_zero());
        let usual = span(told.remove("RestartUSec"));
        let job = job_of(&mut told)?;
        let mut moment = |name: &str| told.remove(name).and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        // All by systemd's own clock. After a death of its own, a unit leaves its active state when that is noticed. A run that
        // did not become active has the moments of an earlier one.
        let (began, active) = (moment("InactiveExitTimestampMonotonic"), moment("ActiveEnterTimestampMonotonic"));
        let (left, ended) = (moment("ActiveExitTimestampMonotonic"), moment("ExecMainExitTimestampMonotonic"));
        let stopped_first = (began..).contains(&active) && (active..ended).contains(&left) && left != 0;
        // Two lists, of codes and of signals.
        let prevents = told.remove("RestartPreventExitStatus");
        let prevents = prevents.and_then(|lists| TryInto::<(Vec<i32>, Vec<i32>)>::try_into(lists).ok());
        let unit = Self {
            load_state,
            active_state,
            sub_state,
            result,
            restart,
            kind,
            kill_mode,
            job: String::new(),
            cgroup,
            invocation: invocation(&mut told),
            main_pid: told.remove("MainPID").and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            restart_after: next.or(usual).unwrap_or_default(),
            start_limit: (
                told.remove("StartLimitBurst").and_then(|burst| u32::try_from(burst).ok()).unwrap_or(0),
                span(told.remove("StartLimitIntervalUSec")).unwrap_or_default(),
            ),
            prevents_some: prevents.as_ref().is_some_and(|(codes, signals)| !codes.is_empty() || !signals.is_empty()),
            prevents_restart: prevents.is_some_and(|(_, signals)| signals.contains(&9)),
            stopped_first,
            triggers: told.remove("TriggeredBy").and_then(|names| Vec::try_from(names).ok()).unwrap_or_default(),
            host_stops: false,
        };
        Ok((unit, job))
    }

    /// Why systemd would leave this service dead after an OOM kill of its main process; `None`: it brings it back.
    ///
    /// The result of such a death is `oom-kill`, which `on-abort` does not mean (`service_shall_restart`).
    pub(crate) fn gap(&self) -> Option<String> {
        match self.restart.as_str() {
            _ if self.kind == "oneshot" => None,
            "always" | "on-failure" | "on-abnormal" if self.prevents_restart => {
                Some(format!("Restart={}, and RestartPreventExitStatus= names SIGKILL", self.restart))
            }
            "always" | "on-failure" | "on-abnormal" => None,
            restart => Some(format!("Restart={restart} does not mean an OOM kill")),
        }
    }

    /// True when systemd gave up because of the start limit.
    ///
    /// `Result` keeps the reason of the last death (`service_enter_dead`), so that says it only of a unit that had not
    /// failed before. Otherwise it follows: a failed unit whose setting covers its result would be in `auto-restart`.
    pub(crate) fn hit_start_limit(&self) -> bool {
        let covered = match self.restart.as_str() {
            "always" => true,
            "on-failure" => self.result != "success",
            "on-abnormal" => !matches!(self.result.as_str(), "success" | "exit-code"),
            "on-abort" => matches!(self.result.as_str(), "signal" | "core-dump"),
            "on-watchdog" => self.result == "watchdog",
            _ => false,
        };
        let (burst, interval) = self.start_limit;
        let limited = burst > 0 && !interval.is_zero() && self.sub_state == "failed" && self.job.is_empty();
        self.result == "start-limit-hit" || limited && covered && !self.prevents_some
    }

    /// How soon systemd gives up on one that dies again and again; `None`: never.
    pub(crate) fn gives_up_after(&self) -> Option<String> {
        let (burst, interval) = self.start_limit;
        let counted = !interval.is_zero() && burst > 0 && self.restart_after.saturating_mul(burst) < interval;
        counted.then(|| format!("gives up after {burst} deaths in {}", humantime::format_duration(interval)))
    }
}

/// A connection that holds.
struct Bus(Connection);

impl Bus {
    async fn manager(
        &self,
        method: &str,
        words: &(impl serde::Serialize + zbus::wire::Type),
    ) -> zbus::Result<zbus::Message> {
        self.0.call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), method, words).await
    }

    async fn services(&self) -> Result<Vec<String>> {
        /// Name, description, load, active and sub state, unit that it follows, path, id and type of a job, its path.
        type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
        let none: [&str; 0] = [];
        let reply = self.manager("ListUnitsByPatterns", &(&none[..], &["*.service"][..])).await;
        let listed: Vec<Listed> = reply
            .context("systemd does not list its units")?
            .body()
            .deserialize()
            .context("systemd lists its units in another way")?;
        Ok(listed.into_iter().map(|unit| unit.0).collect())
    }

    /// systemd looks for the unit of the nearest cgroup at or above a path (`manager_get_unit_by_cgroup`), so a path that no unit
    /// has leads to the slice above it.
    async fn placed(&self, unit: &str, path: &str) -> Result<Placed> {
        let reply = self.manager("GetUnitByControlGroup", &(path,)).await;
        let reply = match reply {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => return Ok(Placed::Elsewhere),
            reply => reply.with_context(|| format!("systemd does not tell which unit {path} belongs to"))?,
        };
        let owner: OwnedObjectPath = reply.body().deserialize().context("systemd names a unit in another way")?;
        if owner != unit_path(unit)? {
            return Ok(Placed::Elsewhere);
        }
        // Only services have a main process.
        let main_pid = if unit.ends_with(".service") { self.main_pid(unit).await? } else { 0 };
        Ok(Placed::Here { main_pid })
    }

    async fn is_loaded(&self, unit: &str) -> Result<bool> {
        match self.manager("GetUnit", &(unit,)).await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(false),
            reply => reply.map(|_| true).with_context(|| format!("systemd does not tell whether it knows {unit}")),
        }
    }

    async fn main_pid(&self, name: &str) -> Result<u32> {
        let path = unit_path(name)?;
        Ok(u32::try_from(self.property(&path, SERVICE, "MainPID").await?)?)
    }

    async fn progress(&self, name: &str) -> Result<Progress> {
        let path = unit_path(name)?;
        let (told, main_pid) = tokio::join!(self.all(&path, UNIT), self.property(&path, SERVICE, "MainPID"));
        let mut told = told?;
        Ok(Progress {
            invocation: invocation(&mut told),
            active_state: told.remove("ActiveState").map(text).transpose()?.unwrap_or_default(),
            has_job: job_of(&mut told)?.is_some(),
            main_pid: u32::try_from(main_pid?)?,
        })
    }

    async fn unit(&self, name: &str) -> Result<Unit> {
        let path = unit_path(name)?;
        let manager = OwnedObjectPath::try_from(MANAGER_PATH).context("the manager's path is one")?;
        let (unit, service, host) = tokio::join!(
            self.all(&path, UNIT),
            self.all(&path, SERVICE),
            self.property(&manager, MANAGER, "SystemState"),
        );
        let mut told = unit?;
        // Other units than services have none of these.
        told.extend(service.unwrap_or_default());
        let (mut unit, job) = Unit::read(told)?;
        if let Some(job) = job {
            unit.job = self.job(&job).await;
        }
        unit.host_stops = host.and_then(text).is_ok_and(|state| state == "stopping");
        Ok(unit)
    }

    /// All properties of one interface, in one call: dbus-daemon allows a connection 128 replies that are due
    /// (`max_replies_per_connection`).
    async fn all(&self, path: &OwnedObjectPath, interface: &str) -> Result<Told> {
        let reply = self.0.call_method(Some(DESTINATION), path, Some(PROPERTIES), "GetAll", &(interface,)).await;
        let reply = reply.with_context(|| format!("systemd does not tell of {}", path.as_str()))?;
        reply.body().deserialize().with_context(|| format!("systemd tells of {} in another way", path.as_str()))
    }

    /// The type of a job; nothing when it has ended meanwhile.
    async fn job(&self, path: &OwnedObjectPath) -> String {
        self.property(path, JOB, "JobType").await.and_then(text).unwrap_or_default()
    }

    async fn view(&self, unit: &str) -> Result<Option<View>> {
        let path = unit_path(unit)?;
        let (unit, service) = tokio::join!(self.all(&path, UNIT), self.all(&path, SERVICE));
        // A scope has no result, and before version 244 no longest run.
        let (mut unit, mut service) = (unit?, service.unwrap_or_default());
        let job = match job_of(&mut unit)? {
            Some(job) => self.job(&job).await,
            None => String::new(),
        };
        let mut moment = |name| anyhow::Ok(u64::try_from(told(&mut unit, name)?)?);
        let began = moment("InactiveExitTimestampMonotonic")?;
        let (active, left) = (moment("ActiveEnterTimestampMonotonic")?, moment("ActiveExitTimestampMonotonic")?);
        if began == 0 {
            // It was unloaded since, and loaded again for this question.
            return Ok(None);
        }
        let most = service.remove("RuntimeMaxUSec").and_then(|most| u64::try_from(most).ok()).unwrap_or(FOR_EVER);
        Ok(Some(View {
            active_state: text(told(&mut unit, "ActiveState")?)?,
            sub_state: text(told(&mut unit, "SubState")?)?,
            result: service.remove("Result").map(text).transpose()?.unwrap_or_default(),
            job,
            was_active: active >= began,
            ran_its_time: most != FOR_EVER && left.saturating_sub(active) >= most,
        }))
    }

    async fn property(&self, path: &OwnedObjectPath, interface: &str, name: &str) -> Result<OwnedVariant> {
        let reply = self.0.call_method(Some(DESTINATION), path, Some(PROPERTIES), "Get", &(interface, name)).await;
        let reply = reply.with_context(|| format!("systemd does not tell {name} of {}", path.as_str()))?;
        reply.body().deserialize().with_context(|| format!("systemd tells {name} in another way"))
    }
}

/// A property that every unit has.
fn told(all: &mut Told, name: &str) -> Result<OwnedVariant> {
    all.remove(name).with_context(|| format!("systemd does not tell {name}"))
}

/// `InvocationID`.
fn invocation(told: &mut Told) -> Vec<u8> {
    told.remove("InvocationID").and_then(|id| Vec::try_from(id).ok()).unwrap_or_default()
}

/// The path of the job in `Job`, if there is one.
fn job_of(told: &mut Told) -> Result<Option<OwnedObjectPath>> {
    let job = told.remove("Job").map(TryInto::<(u32, OwnedObjectPath)>::try_into).transpose()?;
    Ok(job.filter(|(id, _)| *id != 0).map(|(_, path)| path))
}

/// Where a unit is on the bus. Asked there, one that is not loaded is loaded; so nobody has to be asked for the path first.
///
/// All bytes but letters and digits are escaped, and a digit that comes first (`bus_label_escape`, basic/bus-label.c).
fn unit_path(name: &str) -> Result<OwnedObjectPath> {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || byte.is_ascii_digit() && index > 0 {
            path.push(char::from(byte));
        } else {
            write!(path, "_{byte:02x}")?;
        }
    }
    OwnedObjectPath::try_from(path).with_context(|| format!("{name:?} is no name of a unit"))
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
            Self::Forgotten => "it ended well, and is not loaded any more",
            Self::NotInvolved => "nothing that explains the signal",
        })
    }
}

/// Takes any bytes for a dictionary of properties as it comes over the bus, of either byte order.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use zbus::wire::{Endian, serialized};
    let Some((order, body)) = bytes.split_first() else { return };
    let endian = if order & 1 == 0 { Endian::Little } else { Endian::Big };
    let data = serialized::Data::new(body, serialized::Context::new(endian, 0));
    let Ok((told, _)) = data.deserialize::<Told>() else { return };
    let Ok((unit, _)) = Unit::read(told) else { return };
    drop((unit.gap(), unit.gives_up_after()));
    unit.hit_start_limit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_s_path_is_its_escaped_name() {
        let path = |name: &str| unit_path(name).expect("a path").as_str().to_owned();
        assert_eq!(path("web@1-a.service"), "/org/freedesktop/systemd1/unit/web_401_2da_2eservice");
        assert_eq!(path("9p_x.service"), "/org/freedesktop/systemd1/unit/_39p_5fx_2eservice");
        assert!(unit_path("").is_err());
    }

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
