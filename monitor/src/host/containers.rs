//! Container engines over their API: names (cgroups carry ids, people and configurations use names, which stay over
//! restarts), output, states, starts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{ContainerInspectResponse, ContainerStateStatusEnum, RestartPolicyNameEnum},
    query_parameters::{EventsOptions, ListContainersOptions, LogsOptions},
};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    task::spawn_blocking,
    time::{error::Elapsed, sleep, timeout},
};

use super::bounded::{self, Bounded};

/// One question may take this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A start may take this long: volumes are mounted, networks made.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// A restart may take longer by the container's stop timeout: 10 s unless it says otherwise.
const RESTART_PATIENCE: Duration = Duration::from_secs(120);
/// A name is asked for so often, with this time in between: an engine that is being restarted, or is busy, answers later.
const ASKED: u32 = 5;
const ASKED_AGAIN: Duration = Duration::from_secs(2);
/// Output that is read at most, bytes.
const OUTPUT_MAX: usize = 1024 * 1024;
/// Where Podman keeps names when its service, and so its socket, is not running.
const PODMAN_STORE: &str = "/var/lib/containers/storage/overlay-containers/containers.json";
/// Bytes of that list: about 1 KiB for each container.
const PODMAN_STORE_MAX: usize = 16 * 1024 * 1024;

/// The engines that can be asked.
pub(crate) const ENGINES: [&str; 2] = ["docker", "podman"];

/// What an engine says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its name, without the API's slash.
    pub(crate) name: String,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`; of Podman also [`STOPPED`].
    pub(crate) status: String,
    /// The main process in the initial pid namespace; 0: none.
    pub(crate) pid: u32,
    /// How the last run ended.
    pub(crate) exit_code: i64,
    /// Restart policy: `no`, `always`, `unless-stopped`, `on-failure`.
    pub(crate) policy: String,
    /// Restarts that `on-failure` may do; 0: without end.
    pub(crate) retries: i64,
    /// Restarts by the engine since somebody started it.
    pub(crate) restarts: i64,
    /// When its present or last run began, as the engine writes it.
    pub(crate) started_at: String,
    /// When its last run ended, likewise.
    pub(crate) finished_at: String,
    /// The orchestrator that made it and replaces it when it ends, by its labels: `Docker Swarm` or `Kubernetes`.
    pub(crate) orchestrator: Option<&'static str>,
}

/// Labels that orchestrators put on each of their containers (moby, daemon/cluster; kubelet and cri-dockerd).
const ORCHESTRATORS: [(&str, &str); 3] = [
    ("com.docker.swarm.task.id", "Docker Swarm"),
    ("io.kubernetes.pod.uid", "Kubernetes"),
    ("io.kubernetes.pod.name", "Kubernetes"),
];

impl Container {
    /// Refuses a container that an orchestrator replaces.
    ///
    /// # Errors
    /// With the orchestrator's name.
    pub(crate) fn ensure_not_orchestrated(&self) -> Result<()> {
        match self.orchestrator {
            Some(orchestrator) => bail!("{orchestrator} made the container {} and replaces it itself", self.name),
            None => Ok(()),
        }
    }
}

/// Podman's word for a container that has ended and has not been cleaned up yet, before it is restarted or `exited`. The
/// other fields are not told then.
pub(crate) const STOPPED: &str = "stopped";

/// The name of a container by its full id; `None` when the engine has no such way to ask (containerd, CRI-O).
///
/// # Errors
/// When the engine does not answer for half a minute, or does not know the container.
pub(crate) async fn name(engine: &str, id: &str) -> Result<Option<String>> {
    if !ENGINES.contains(&engine) {
        return Ok(None);
    }
    let container = known(engine, id).await?.with_context(|| format!("{engine} does not know container {id}"))?;
    ensure!(!container.name.is_empty(), "{engine} gives container {id} no name");
    Ok(Some(container.name))
}

/// Asks an engine for a container by its full id; `None` when it knows no such container. Asks again while the engine
/// is silent.
///
/// # Errors
/// When the engine does not answer for half a minute, or cannot be asked this way (containerd, CRI-O).
pub(crate) async fn known(engine: &str, id: &str) -> Result<Option<Container>> {
    for _ in 1..ASKED {
        let container = known_at_once(engine, id).await;
        // A refusal will not change: do not ask again.
        if !container.as_ref().is_err_and(is_silence) {
            return container;
        }
        sleep(ASKED_AGAIN).await;
    }
    known_at_once(engine, id).await
}

async fn known_at_once(engine: &str, id: &str) -> Result<Option<Container>> {
    match state(engine, id).await {
        // Podman runs containers without a service, so its API may be absent. Its list on disk has only the name.
        Ok(None) | Err(_) if engine == "podman" => {
            Ok(Some(Container { name: podman_name(id).await?, ..Container::default() }))
        }
        // Between two runs Podman's API says only that it is stopped.
        Ok(Some(Container { status, .. })) if engine == "podman" && status == STOPPED => {
            Ok(Some(Container { name: podman_name(id).await?, status, ..Container::default() }))
        }
        state => state,
    }
}

async fn podman_name(id: &str) -> Result<String> {
    let id = id.to_owned();
    let stored = spawn_blocking(move || stored(Path::new(PODMAN_STORE), &id));
    stored.await.context("cannot look into Podman's list")?
}

/// The engine did not answer at all.
fn is_silence(error: &anyhow::Error) -> bool {
    let refused = matches!(error.downcast_ref(), Some(Error::DockerResponseServerError { .. }));
    error.is::<Elapsed>() || error.is::<Error>() && !refused
}

/// A container by id or name; `None` when the engine does not know it (any more).
///
/// # Errors
/// When the engine does not answer, or cannot be asked (containerd, CRI-O).
pub(crate) async fn state(engine: &str, id: &str) -> Result<Option<Container>> {
    in_time(engine, PATIENCE, async |docker| understood(engine, id, docker.inspect_container(id, None).await)).await
}

fn understood(engine: &str, id: &str, answer: Result<ContainerInspectResponse, Error>) -> Result<Option<Container>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into())),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        // Docker's API, which is what our client knows, has no such word.
        Err(error) if error.to_string().contains("unknown variant `stopped`") => {
            Ok(Some(Container { status: STOPPED.to_owned(), ..Container::default() }))
        }
        Err(error) => Err(error).with_context(|| format!("{engine} does not tell about container {id}")),
    }
}

/// Starts a container that has ended.
///
/// # Errors
/// With the engine's own words when it refuses.
pub(crate) async fn start(engine: &str, name: &str) -> Result<()> {
    in_time(engine, START_PATIENCE, async |docker| {
        docker.start_container(name, None).await.with_context(|| format!("{engine} does not start {name}"))
    })
    .await
}

/// Stops a container, in its own stop timeout, and starts it again.
///
/// # Errors
/// With the engine's own words when it refuses.
pub(crate) async fn restart(engine: &str, name: &str) -> Result<()> {
    in_time(engine, RESTART_PATIENCE, async |docker| {
        docker.restart_container(name, None).await.with_context(|| format!("{engine} does not restart {name}"))
    })
    .await
}

/// Whether somebody has asked the engine to stop a container since then; by the events that it remembers, the last 256 of
/// Docker.
///
/// # Errors
/// When the engine does not answer.
pub(crate) async fn was_stopped(engine: &str, name: &str, since: Timestamp) -> Result<bool> {
    in_time(engine, PATIENCE, async |docker| {
        let seconds = |at: Timestamp| format!("{}.{:09}", at.as_second(), at.subsec_nanosecond());
        let only = |key: &str, value: &str| (key.to_owned(), vec![value.to_owned()]);
        let options = EventsOptions {
            since: Some(seconds(since)),
            // Without an end it would go on with what happens from now on.
            until: Some(seconds(Timestamp::now())),
            filters: Some([only("container", name), only("event", "stop")].into()),
        };
        let mut events = std::pin::pin!(docker.events(Some(options)));
        let first = events.next().await.transpose();
        Ok(first.with_context(|| format!("{engine} does not tell what happened to {name}"))?.is_some())
    })
    .await
}

/// Names of all containers, those that have ended included.
///
/// # Errors
/// When the engine does not answer.
pub(crate) async fn list(engine: &str) -> Result<Vec<String>> {
    in_time(engine, PATIENCE, async |docker| {
        let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let containers = docker.list_containers(Some(options)).await;
        let containers = containers.with_context(|| format!("{engine} does not list its containers"))?;
        let names = containers.into_iter().filter_map(|container| container.names?.into_iter().next());
        Ok(names.map(|name| plain(&name)).collect())
    })
    .await
}

/// The last lines that a container wrote.
///
/// # Errors
/// When its engine does not answer, or has no such way to ask (containerd, CRI-O).
pub(crate) async fn output(engine: &str, id: &str, lines: usize) -> Result<String> {
    in_time(engine, PATIENCE, async |docker| {
        let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..LogsOptions::default() };
        let mut pieces = std::pin::pin!(docker.logs(id, Some(options)));
        let mut text = String::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.with_context(|| format!("{engine} does not tell what {id} wrote"))?;
            text.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
            if text.len() > OUTPUT_MAX {
                break;
            }
        }
        Ok(text)
    })
    .await
}

/// True when the engine listens on this host.
pub(crate) fn is_here(engine: &str) -> bool {
    socket(engine).is_some_and(|socket| socket.exists())
}

/// Where an engine listens: the variable that its own client honours, else its usual place.
fn socket(engine: &str) -> Option<PathBuf> {
    let (variable, usual) = match engine {
        "docker" => ("DOCKER_HOST", "/run/docker.sock"),
        "podman" => ("CONTAINER_HOST", "/run/podman/podman.sock"),
        _ => return None,
    };
    let named = std::env::var(variable).ok();
    Some(named.as_deref().and_then(|url| url.strip_prefix("unix://")).unwrap_or(usual).into())
}

async fn in_time<T>(engine: &str, patience: Duration, ask: impl AsyncFnOnce(Docker) -> Result<T>) -> Result<T> {
    let socket = socket(engine).with_context(|| format!("{engine} cannot be asked"))?;
    let docker = connect(&socket, patience)?;
    timeout(patience, ask(docker)).await.with_context(|| format!("{engine} does not answer"))?
}

/// The version is not sent (bollard's paths have none), so engines old and new answer in their own.
fn connect(socket: &Path, patience: Duration) -> Result<Docker> {
    let shown = socket.display();
    let path = socket.to_str().with_context(|| format!("{shown} is no path that can be asked"))?;
    // Ours ends first, and says more.
    let docker = Docker::connect_with_unix(path, patience.as_secs() * 2, API_DEFAULT_VERSION);
    docker.with_context(|| format!("cannot connect to {shown}"))
}

/// The API puts a slash before names.
fn plain(name: &str) -> String {
    name.strip_prefix('/').unwrap_or(name).to_owned()
}

impl From<ContainerInspectResponse> for Container {
    fn from(answer: ContainerInspectResponse) -> Self {
        let state = answer.state.unwrap_or_default();
        let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
        let orchestrator = ORCHESTRATORS.iter().find(|(label, _)| labels.contains_key(*label)).map(|(_, name)| *name);
        let policy = answer.host_config.and_then(|config| config.restart_policy).unwrap_or_default();
        let name = policy.name.filter(|name| *name != RestartPolicyNameEnum::EMPTY);
        Self {
            name: plain(&answer.name.unwrap_or_default()),
            status: state.status.unwrap_or(ContainerStateStatusEnum::EMPTY).to_string(),
            pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            exit_code: state.exit_code.unwrap_or(0),
            policy: name.map_or_else(|| "no".to_owned(), |name| name.to_string()),
            retries: policy.maximum_retry_count.unwrap_or(0),
            restarts: answer.restart_count.unwrap_or(0),
            started_at: state.started_at.unwrap_or_default(),
            finished_at: state.finished_at.unwrap_or_default(),
            orchestrator,
        }
    }
}

/// Looks into Podman's own list.
fn stored(path: &Path, id: &str) -> Result<String> {
    let text = bounded::read(path, PODMAN_STORE_MAX)
        .and_then(Bounded::whole)
        .with_context(|| format!("cannot read {}", path.display()))?;
    named(&text, id).with_context(|| path.display().to_string())
}

fn named(text: &[u8], id: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Container {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let list: Vec<Container> = serde_json::from_slice(text).context("this is no list of containers")?;
    match list.into_iter().find(|container| container.id == id).and_then(|container| container.names.into_iter().next())
    {
        Some(name) => Ok(name),
        None => bail!("it does not name container {id}"),
    }
}

/// Takes any bytes for an engine's answer, and for Podman's own list.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<ContainerInspectResponse>(bytes) {
        let container = Container::from(answer);
        assert!(!container.status.is_empty() || container.pid == 0 || !container.policy.is_empty());
    }
    drop(named(bytes, "abc"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    /// An engine of a test's own; the live test with Docker itself stands beside it.
    async fn engine(status: &'static str, answer: &'static str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let len = stream.read(&mut request).await.expect("a request");
            assert!(request[..len].starts_with(b"GET /containers/abc/json"), "no version");
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n");
            let answer = format!("{head}content-length: {}\r\n\r\n{answer}", answer.len());
            stream.write_all(answer.as_bytes()).await.expect("sent");
        });
        (directory, socket)
    }

    #[tokio::test]
    async fn what_an_engine_says_is_read() {
        const ANSWER: &str = "{\"Id\":\"abc\",\"Name\":\"/web-1\",\"State\":{\"Status\":\"exited\",\"ExitCode\":137}}";
        let (_directory, socket) = engine("200 OK", ANSWER).await;
        let docker = connect(&socket, PATIENCE).expect("connected");
        let container = Container::from(docker.inspect_container("abc", None).await.expect("known"));
        assert_eq!((container.name.as_str(), container.status.as_str()), ("web-1", "exited"));
        assert_eq!((container.exit_code, container.policy.as_str(), container.pid), (137, "no", 0));
    }

    #[tokio::test]
    async fn podman_s_word_for_a_container_between_two_runs_is_understood() {
        const ANSWER: &str = "{\"Id\":\"abc\",\"State\":{\"Status\":\"stopped\",\"ExitCode\":137}}";
        let (_directory, socket) = engine("200 OK", ANSWER).await;
        let docker = connect(&socket, PATIENCE).expect("connected");
        let answer = understood("podman", "abc", docker.inspect_container("abc", None).await).expect("understood");
        assert_eq!(answer.map(|container| container.status).as_deref(), Some(STOPPED));
    }

    #[tokio::test]
    async fn only_an_engine_that_says_nothing_is_asked_again() {
        for (status, answer, silent) in
            [("404 Not Found", "{\"message\":\"No such container\"}", false), ("200 OK", "[", true)]
        {
            let (_directory, socket) = engine(status, answer).await;
            let docker = connect(&socket, PATIENCE).expect("connected");
            let error = docker.inspect_container("abc", None).await.expect_err("no container");
            assert_eq!(is_silence(&anyhow::Error::from(error)), silent, "{status}");
        }
        let error = format!("{:#}", connect(Path::new("/nonexistent.sock"), PATIENCE).expect_err("refused"));
        assert!(error.contains("/nonexistent.sock"), "{error}");
    }

    #[test]
    fn podman_s_own_list_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("containers.json");
        std::fs::write(&path, r#"[{"id":"x"},{"id":"abc","names":["db"],"other":1}]"#).expect("written");
        assert_eq!(stored(&path, "abc").expect("named"), "db");
        assert!(stored(&path, "x").is_err());
    }
}
