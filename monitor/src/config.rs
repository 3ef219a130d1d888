//! TOML → validated configuration. What parses is valid: each value's own type checks it while it is read, so every
//! error has a place in the file.

mod alertmanager;
mod before_oom;
mod fleet;
mod planned;
mod pool;
mod trace;
mod values;

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use crate::{
    control,
    host::{bounded, guarded, privilege::Needs},
    kernel::Watched,
    pool::{Endpoint, Name},
};

pub(crate) use alertmanager::{AlertmanagerConfig, Peer};
pub(crate) use before_oom::BeforeOom;
pub(crate) use fleet::FleetConfig;
pub(crate) use planned::PlannedRestart;
pub(crate) use pool::PoolConfig;
pub(crate) use trace::Trace;
pub(crate) use values::{Budget, Health, Pattern};
use values::{cgroup_path, host_names, optional_duration, program, rights, sample_period, share, stop_time};

/// The default place of the configuration.
pub(crate) const DEFAULT_PATH: &str = "/etc/defib/defib.toml";

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{file}{place}: {message}", file = file.display())]
pub(crate) struct ConfigError {
    file: PathBuf,
    place: String,
    message: String,
}

impl ConfigError {
    /// Of a file that the configuration names; `place` as in `:2: key 'listen'`.
    pub(crate) fn of(file: &Path, place: String, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), place, message: message.into() }
    }
}

/// How much the agent may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// See and count; decide nothing.
    Observe,
    /// Decide, and say what would be done.
    DryRun,
    /// Decide and do.
    #[default]
    Act,
}

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The agent itself.
    #[serde(default)]
    pub(crate) agent: AgentConfig,
    /// Its HTTP server.
    #[serde(default)]
    pub(crate) http: HttpConfig,
    /// How memory is followed.
    #[serde(default)]
    pub(crate) forecast: ForecastConfig,
    /// What every service has unless it says otherwise.
    #[serde(default)]
    defaults: Settings,
    /// The services.
    #[serde(default)]
    service: Vec<Spanned<RawService>>,
    /// How load balancers come to know.
    #[serde(default)]
    pub(crate) pool: PoolConfig,
    /// Who is told of what happens.
    #[serde(default)]
    pub(crate) alertmanager: AlertmanagerConfig,
    /// Where many hosts agree on planned actions.
    #[serde(default)]
    pub(crate) fleet: FleetConfig,
}

/// `[agent]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentConfig {
    /// Where state is kept.
    pub(crate) state_dir: PathBuf,
    /// How much the agent may do.
    pub(crate) mode: Mode,
    /// Where `defib status`, `pause` and `resume` reach the agent.
    pub(crate) control_socket: PathBuf,
    /// Services that get a metric label of their own; the rest share `other`.
    pub(crate) max_services: usize,
    /// Directory in a bpffs where the kernel programs are pinned, so that they run on while no agent does.
    pub(crate) pin_dir: Option<PathBuf>,
    /// Whether requests for memory that the kernel refuses are watched, as evidence of an application's own want of memory.
    pub(crate) failed_allocations: Watched,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/defib".into(),
            mode: Mode::default(),
            control_socket: control::DEFAULT_PATH.into(),
            max_services: 1000,
            pin_dir: None,
            failed_allocations: Watched::default(),
        }
    }
}

/// `[http]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HttpConfig {
    /// Address of `/metrics` and the rest.
    pub(crate) listen: SocketAddr,
    /// TLS and passwords, in the format of the exporter-toolkit; without, everybody may come in, over plain HTTP.
    pub(crate) web_config: Option<PathBuf>,
    /// More names of this host that requests may use where there is neither a password nor TLS.
    #[serde(deserialize_with = "host_names")]
    pub(crate) hosts: Vec<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9669)), web_config: None, hosts: Vec::new() }
    }
}

/// `[forecast]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ForecastConfig {
    /// Between two samples of a service's memory. All times of the forecast scale with it: at 1 s, what takes days at a minute
    /// takes hours.
    #[serde(deserialize_with = "sample_period")]
    pub(crate) sample: Duration,
}

impl Default for ForecastConfig {
    fn default() -> Self {
        Self { sample: Duration::from_secs(60) }
    }
}

/// Times between tries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    /// Before the second try.
    pub(crate) initial: Duration,
    /// Never longer.
    pub(crate) max: Duration,
    /// Share by which a wait varies, 0 to 1.
    pub(crate) jitter: f64,
    /// A service that has been healthy for this long starts again from the first try.
    pub(crate) reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
            jitter: 0.2,
            reset_after: Duration::from_secs(600),
        }
    }
}

/// What is said of the back-off in one place; the rest comes from `[defaults]`, then from the built-in values.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBackoff {
    #[serde(deserialize_with = "optional_duration")]
    initial: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    max: Option<Duration>,
    #[serde(deserialize_with = "share")]
    jitter: Option<f64>,
    #[serde(deserialize_with = "optional_duration")]
    reset_after: Option<Duration>,
}

impl RawBackoff {
    fn over(self, base: Backoff) -> Backoff {
        Backoff {
            initial: self.initial.unwrap_or(base.initial),
            max: self.max.unwrap_or(base.max),
            jitter: self.jitter.unwrap_or(base.jitter),
            reset_after: self.reset_after.unwrap_or(base.reset_after),
        }
    }
}

/// Most bytes of a configuration: ten thousand services with all of their settings.
const SIZE_MAX: usize = 16 * 1024 * 1024;
/// Restarts in ten minutes: for a service, and for the host.
const PER_SERVICE: Budget = Budget { count: 5, window: Duration::from_secs(600) };
const PER_HOST: Budget = Budget { count: 10, window: Duration::from_secs(600) };

/// Budgets of restarts, in `[defaults]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBudgets {
    per_service: Option<Budget>,
    per_host: Option<Budget>,
}

/// The budget of one service; the host has one for all.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBudget {
    per_service: Option<Budget>,
}

/// What can stand in `[defaults]` and in every `[[service]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    restart: Option<bool>,
    #[serde(deserialize_with = "optional_duration")]
    grace: Option<Duration>,
    backoff: RawBackoff,
    budget: RawBudgets,
    health: Option<Health>,
    pool: Option<Name>,
    #[serde(deserialize_with = "share")]
    drain_at: Option<f64>,
    trace: Option<Trace>,
    before_oom: before_oom::Raw,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawService {
    unit: Option<Pattern>,
    container: Option<Pattern>,
    command: Option<Command>,
    name: Option<String>,
    restart: Option<bool>,
    #[serde(deserialize_with = "optional_duration")]
    grace: Option<Duration>,
    backoff: RawBackoff,
    budget: RawBudget,
    health: Option<Health>,
    pool: Option<Name>,
    #[serde(deserialize_with = "share")]
    drain_at: Option<f64>,
    before_oom: before_oom::Raw,
    planned_restart: Option<PlannedRestart>,
    trace: Option<Trace>,
}

/// A service without an owner.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    /// Program and arguments; no shell.
    #[serde(deserialize_with = "program")]
    pub(crate) start: Vec<String>,
    /// Its cgroup, below the root of the hierarchy.
    #[serde(deserialize_with = "cgroup_path")]
    pub(crate) cgroup: Arc<str>,
    /// From SIGTERM to SIGKILL, when it is ended for a planned restart.
    #[serde(default = "stop_timeout", deserialize_with = "stop_time")]
    pub(crate) stop_timeout: Duration,
    /// Of the rights by which the agent sees others, those that it gets too.
    #[serde(default, deserialize_with = "rights")]
    pub(crate) capabilities: Vec<String>,
}

/// As container engines have it.
pub(crate) const fn stop_timeout() -> Duration {
    Duration::from_secs(10)
}

/// What a `[[service]]` stands for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// systemd units.
    Unit(Pattern),
    /// Containers.
    Container(Pattern),
    /// A command that Defib itself keeps alive.
    Command {
        /// The service's name.
        name: String,
        /// How it is started.
        command: Command,
    },
}

/// One validated `[[service]]`, defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// What it stands for.
    pub(crate) target: Target,
    /// Bring it back.
    pub(crate) restart: bool,
    /// Least time that its own supervisor gets.
    pub(crate) grace: Duration,
    /// Times between tries.
    pub(crate) backoff: Backoff,
    /// Restarts of this service in a window.
    pub(crate) budget: Budget,
    /// Proof of health.
    pub(crate) health: Health,
    /// The name that load balancers have for it.
    pub(crate) pool: Option<Name>,
    /// Share of its memory limit at which it leaves the pool.
    pub(crate) drain_at: Option<f64>,
    /// What is looked at before memory is out.
    pub(crate) before_oom: BeforeOom,
    /// When it is restarted before it dies; `None`: never.
    pub(crate) planned_restart: Option<PlannedRestart>,
    /// Whether the agent traces it by itself.
    pub(crate) trace: Trace,
}

impl Config {
    /// Reads a file. Without `explicit` the default path is read when it exists, and nothing is configured otherwise.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line, key and what is allowed.
    pub(crate) fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let path = explicit.unwrap_or(Path::new(DEFAULT_PATH));
        guarded::ensure_ours(path).map_err(|error| ConfigError::of(path, String::new(), format!("{error:#}")))?;
        match bounded::text(path, SIZE_MAX) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && explicit.is_none() => Ok(Self::default()),
            Err(error) => Err(ConfigError {
                file: path.to_owned(),
                place: String::new(),
                message: format!("cannot read it: {error}"),
            }),
        }
    }

    /// Parses text; `path` is for errors.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let place = error.span().map(|span| place(text, span.start)).unwrap_or_default();
            ConfigError { file: path.to_owned(), place, message: error.message().replace('\n', "; ") }
        })?;
        for raw in &config.service {
            if let Err(message) = raw.get_ref().target() {
                let place = place(text, raw.span().start);
                return Err(ConfigError { file: path.to_owned(), place, message });
            }
        }
        config
            .check_apart()
            .and_then(|()| config.check_names())
            .and_then(|()| config.check_planned())
            .map_err(|(at, message)| ConfigError { file: path.to_owned(), place: place(text, at), message })?;
        Ok(config)
    }

    /// Command services must not share a name or a cgroup, nor live inside one another: a restart clears the cgroup.
    fn check_apart(&self) -> Result<(), (usize, String)> {
        let mut names = HashSet::new();
        // Cgroups in their order, so that those inside one stand right behind it.
        let mut taken: BTreeMap<String, &str> = BTreeMap::new();
        for raw in &self.service {
            let (Some(name), Some(command)) = (&raw.get_ref().name, &raw.get_ref().command) else { continue };
            if !names.insert(name) {
                return Err((raw.span().start, format!("there are two services of the name {name:?}")));
            }
            // With a slash at its end, a cgroup begins with all that it is inside of.
            let cgroup = format!("{}/", command.cgroup.trim_end_matches('/'));
            let above = cgroup.match_indices('/').find_map(|(at, _)| taken.get_key_value(&cgroup[..=at]));
            let inside = || taken.range(cgroup.clone()..).next().filter(|(other, _)| other.starts_with(&cgroup));
            if let Some((other, owner)) = above.or_else(inside) {
                let shared = other.trim_end_matches('/');
                let message = format!("{name:?} and {owner:?} share the cgroup {shared:?}; each needs one of its own");
                return Err((raw.span().start, message));
            }
            taken.insert(cgroup, name);
        }
        Ok(())
    }

    /// HAProxy's runtime API names a server by its backend too.
    fn check_names(&self) -> Result<(), (usize, String)> {
        if self.pool.haproxy.is_empty() {
            return Ok(());
        }
        for raw in &self.service {
            let name = raw.get_ref().pool.as_ref().or(self.defaults.pool.as_ref());
            if let Some(name) = name.filter(|name| name.parts().is_none()) {
                let message =
                    format!("pool {:?}: with [pool] haproxy, allowed are names like be_web/web1", name.as_str());
                return Err((raw.span().start, message));
            }
        }
        Ok(())
    }

    /// A service that is never started must not be ended.
    fn check_planned(&self) -> Result<(), (usize, String)> {
        let wrong = |raw: &&Spanned<RawService>| {
            let raw = raw.get_ref();
            raw.planned_restart.is_some() && !raw.restart.or(self.defaults.restart).unwrap_or(false)
        };
        match self.service.iter().find(wrong) {
            Some(raw) => Err((raw.span().start, "planned_restart needs restart = true".to_owned())),
            None => Ok(()),
        }
    }

    /// The services, in the order of the file.
    pub(crate) fn services(&self) -> Vec<Service> {
        let resolve = |raw: &RawService| {
            let base = &self.defaults;
            Some(Service {
                target: raw.target().ok()?,
                restart: raw.restart.or(base.restart).unwrap_or(false),
                grace: raw.grace.or(base.grace).unwrap_or(Duration::from_secs(2)),
                backoff: raw.backoff.over(base.backoff.over(Backoff::default())),
                budget: raw.budget.per_service.or(base.budget.per_service).unwrap_or(PER_SERVICE),
                health: raw.health.clone().or_else(|| base.health.clone()).unwrap_or(Health::Survival),
                pool: raw.pool.clone().or_else(|| base.pool.clone()),
                drain_at: raw.drain_at.or(base.drain_at),
                before_oom: raw.before_oom.over(base.before_oom.over(BeforeOom::default())),
                planned_restart: raw.planned_restart,
                trace: raw.trace.or(base.trace).unwrap_or_default(),
            })
        };
        self.service.iter().filter_map(|raw| resolve(raw.get_ref())).collect()
    }

    /// What rights it takes to act by it.
    pub(crate) fn needs(&self) -> Needs {
        let starts = self.service.iter().any(|raw| raw.get_ref().command.is_some());
        let speaks = self.pool.haproxy.iter().any(|endpoint| matches!(endpoint, Endpoint::Unix(_)));
        Needs { writes: starts || speaks, starts }
    }

    /// Adds a service; for callers that make their configuration themselves.
    pub(crate) fn with_command(name: &str, command: Command, grace: Duration, health: Health) -> Self {
        let raw = RawService {
            command: Some(command),
            name: Some(name.to_owned()),
            restart: Some(true),
            grace: Some(grace),
            health: Some(health),
            ..RawService::default()
        };
        Self { service: vec![Spanned::new(0..0, raw)], ..Self::default() }
    }

    /// Budget of the host.
    pub(crate) fn host_budget(&self) -> Budget {
        self.defaults.budget.per_host.unwrap_or(PER_HOST)
    }
}

impl RawService {
    fn target(&self) -> Result<Target, String> {
        match (&self.unit, &self.container, &self.command, &self.name) {
            (Some(pattern), None, None, None) => Ok(Target::Unit(pattern.clone())),
            (None, Some(pattern), None, None) => Ok(Target::Container(pattern.clone())),
            (None, None, Some(_), Some(name)) if name.ends_with(".service") || name.ends_with(".scope") => {
                Err(format!("name {name:?}: that is how units are called; choose one without .service or .scope"))
            }
            (None, None, Some(command), Some(name)) if is_name(name) => {
                Ok(Target::Command { name: name.clone(), command: command.clone() })
            }
            (None, None, Some(_), Some(name)) => {
                Err(format!("name {name:?}: allowed are 1 to 128 letters, digits and the characters . _ @ : -"))
            }
            (None, None, Some(_), None) => Err("a [[service]] with a command needs a name".to_owned()),
            (_, _, None, Some(_)) => Err("name goes with command only; units and containers have theirs".to_owned()),
            _ => Err("a [[service]] needs exactly one of unit, container or command".to_owned()),
        }
    }
}

fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:-".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(fine)
}

/// `:line: key 'x'` for a byte offset; the key is what stands before `=` on that line.
fn place(text: &str, offset: usize) -> String {
    let offset = offset.min(text.len());
    let line = text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count();
    let content = text.lines().nth(line).unwrap_or_default();
    match content.split_once('=').map(|(key, _)| key.trim()) {
        Some(key) if !key.is_empty() => format!(":{}: key '{key}'", line + 1),
        _ => format!(":{}", line + 1),
    }
}

#[cfg(test)]
mod tests;
