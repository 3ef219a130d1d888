//! The control socket: what an operator tells the agent, and what the agent tells of its services. HTTP and JSON over a Unix
//! socket that only root may open.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{http, incident::Sample, memory::forecast::Forecast, pool};

/// Where the agent listens unless it is told otherwise.
pub(crate) const DEFAULT_PATH: &str = "/run/defib/control.sock";
/// The agent answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer about ten thousand services is some megabytes.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Requests that wait for the agent's attention.
pub(crate) const WAITING: usize = 16;

/// One service as it is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its name.
    pub(crate) service: String,
    /// `running`, `proving`, `asking`, `restarting`, `stopped`, `left_alone`, `unknown`, or what it waits for: `grace`,
    /// `back-off`, `supervisor`, `maintenance`, `circuit open`, …
    pub(crate) state: String,
    /// Path of its cgroup, below the root of the hierarchy; empty when none was seen yet.
    #[serde(default)]
    pub(crate) cgroup: Option<String>,
    /// Its main process.
    pub(crate) pid: Option<u32>,
    /// When that began.
    pub(crate) started: Option<Timestamp>,
    /// When the outage began.
    pub(crate) down_since: Option<Timestamp>,
    /// The id of its open incident.
    pub(crate) incident: Option<i64>,
    /// The end of a pause.
    pub(crate) paused_until: Option<Timestamp>,
    /// Memory in use, bytes; `null` before it was first measured.
    pub(crate) memory_bytes: Option<u64>,
    /// Its memory limit, bytes.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Where it stands in its pool; `null` while that is not known.
    pub(crate) pool: Option<pool::State>,
    /// What is foreseen for its memory.
    pub(crate) forecast: Forecast,
    /// The same in words.
    pub(crate) forecast_text: String,
}

/// A pause that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pause {
    /// The service.
    pub(crate) service: String,
    /// Seconds.
    pub(crate) seconds: u64,
    /// In the operator's words.
    pub(crate) reason: String,
}

/// The end of a pause that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Resume {
    /// The service.
    pub(crate) service: String,
}

/// What the agent is asked, with the place for the answer. An error is for the operator.
#[derive(Debug)]
pub(crate) enum Command {
    /// All services.
    Status(oneshot::Sender<Vec<Status>>),
    /// What the flight recorder has of these services, in their order; nothing of one that is not known.
    Curves(Vec<String>, oneshot::Sender<Vec<Vec<Sample>>>),
    /// No restarts for a while.
    Pause(Pause, oneshot::Sender<Result<Status, String>>),
    /// Restarts again.
    Resume(Resume, oneshot::Sender<Result<Status, String>>),
}

/// Makes sure that no other agent is at work: two would restart everything twice.
///
/// # Errors
/// When one listens on the socket.
pub(crate) fn ensure_alone(path: &Path) -> Result<()> {
    ensure!(
        std::os::unix::net::UnixStream::connect(path).is_err(),
        "another agent listens on {}; end it, or give this one another place with --control-socket or [agent] \
         control_socket",
        path.display()
    );
    Ok(())
}

/// Binds the socket, in the place of one that an agent left when it was killed.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn bind(path: &Path) -> Result<Socket> {
    let shown = path.display();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // A file that is no socket refuses connections too, and was not left by an agent.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let left = std::os::unix::net::UnixStream::connect(path);
    if is_socket && left.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path).with_context(|| format!("cannot remove {shown}, which an earlier agent left"))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(|| format!("cannot protect {shown}"))?;
    Ok(Socket { listener: Some(listener), path: path.to_owned() })
}

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Socket {
    /// Answers until it is dropped.
    ///
    /// # Errors
    /// When the listener fails.
    pub(crate) async fn serve(mut self, commands: mpsc::Sender<Command>) -> Result<()> {
        let listener = self.listener.take().context("it serves once")?;
        let service = router(commands).layer(from_fn(only_root)).into_make_service_with_connect_info::<Peer>();
        axum::serve(listener, service).await.context("the control socket failed")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// Who asks, as the kernel knows it (`SO_PEERCRED`, unix(7)): the user at the time of the connection.
#[derive(Clone, Copy, Debug)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// The mode of the socket keeps others out; should that be changed, or the socket be handed on, this does.
async fn only_root(ConnectInfo(Peer(user)): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let own = rustix::process::geteuid().as_raw();
    match user {
        Some(user) if user == 0 || user == own => next.run(request).await,
        Some(user) => {
            tracing::warn!("user {user} asked on the control socket and was refused");
            (StatusCode::FORBIDDEN, format!("the agent takes no orders from user {user}; ask as root")).into_response()
        }
        None => (StatusCode::FORBIDDEN, "the agent cannot tell who asks").into_response(),
    }
}

fn router(commands: mpsc::Sender<Command>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .with_state(Arc::new(commands))
}

type Commands = State<Arc<mpsc::Sender<Command>>>;

async fn status(State(commands): Commands) -> Response {
    let (reply, answer) = oneshot::channel();
    if commands.send(Command::Status(reply)).await.is_err() {
        return stopping();
    }
    answer.await.map_or_else(|_| stopping(), |status| Json(status).into_response())
}

async fn pause(State(commands): Commands, Json(pause): Json<Pause>) -> Response {
    ask(&commands, |reply| Command::Pause(pause, reply)).await
}

async fn resume(State(commands): Commands, Json(resume): Json<Resume>) -> Response {
    ask(&commands, |reply| Command::Resume(resume, reply)).await
}

async fn ask(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<Status, String>>) -> Command,
) -> Response {
    let (reply, answer) = oneshot::channel();
    if commands.send(command(reply)).await.is_err() {
        return stopping();
    }
    match answer.await {
        Ok(Ok(status)) => Json(status).into_response(),
        Ok(Err(refused)) => (StatusCode::NOT_FOUND, refused).into_response(),
        Err(_) => stopping(),
    }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping").into_response()
}

/// Asks the agent: `GET` without a body, `POST` with one.
///
/// # Errors
/// When no agent listens, or with its own words when it refuses.
pub(crate) async fn request<A: DeserializeOwned>(socket: &Path, path: &str, body: Option<impl Serialize>) -> Result<A> {
    let answer = timeout(PATIENCE, send(socket, path, body)).await;
    answer.with_context(|| format!("the agent at {} does not answer", socket.display()))?
}

async fn send<A: DeserializeOwned>(socket: &Path, path: &str, body: Option<impl Serialize>) -> Result<A> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no agent listens on {shown}; is 'defib run' running, with that [agent] control_socket, and are you root?"
        )
    })?;
    let json = body.map(|body| serde_json::to_string(&body)).transpose()?;
    let answer = http::exchange(stream, "localhost", path, json, ANSWER_MAX).await;
    let answer = answer.with_context(|| format!("no answer from {shown}"))?;
    let body = answer.body.with_context(|| format!("no whole answer from {shown}"))?;
    if !answer.status.is_success() {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    serde_json::from_slice(&body).with_context(|| format!("{shown} answers with something else"))
}

/// Has any bytes come over a connection to an agent that knows no service.
#[cfg(any(test, fuzzing))]
pub(crate) async fn fuzz(bytes: &[u8]) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    /// Has one connection, and then none.
    struct Once(Option<DuplexStream>);
    impl axum::serve::Listener for Once {
        type Io = DuplexStream;
        type Addr = ();
        async fn accept(&mut self) -> (DuplexStream, ()) {
            match self.0.take() {
                Some(stream) => (stream, ()),
                None => std::future::pending().await,
            }
        }
        fn local_addr(&self) -> io::Result<()> {
            Ok(())
        }
    }

    let (commands_in, mut commands) = mpsc::channel(WAITING);
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let agent = async {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Status(reply) => drop(reply.send(Vec::new())),
                Command::Pause(Pause { service, .. }, reply) => drop(reply.send(Err(service))),
                Command::Resume(Resume { service }, reply) => drop(reply.send(Err(service))),
                Command::Curves(..) => {}
            }
        }
    };
    let asked = async {
        client.write_all(bytes).await.ok();
        client.shutdown().await.ok();
        client.read_to_end(&mut Vec::new()).await.ok();
    };
    tokio::select! {
        () = asked => {}
        () = agent => {}
        _ = axum::serve(Once(Some(server)), router(commands_in)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_and_refusals_go_through() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/control.sock");
        let (commands_in, mut commands) = mpsc::channel(WAITING);
        let socket = bind(&path).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let server = tokio::spawn(socket.serve(commands_in));
        assert!(ensure_alone(&path).is_err(), "a second agent");
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Status(reply) => reply.send(Vec::new()).expect("awaited"),
                    Command::Pause(pause, reply) => {
                        let refused = format!("no service {} for {} s", pause.service, pause.seconds);
                        reply.send(Err(refused)).expect("awaited");
                    }
                    Command::Curves(..) | Command::Resume(..) => {}
                }
            }
        });
        let all: Vec<Status> = request(&path, "/status", None::<()>).await.expect("answered");
        assert!(all.is_empty());
        let pause = Pause { service: "web".to_owned(), seconds: 60, reason: String::new() };
        let refused = request::<Status>(&path, "/pause", Some(pause)).await.expect_err("refused");
        assert_eq!(refused.to_string(), "no service web for 60 s");
        let resume = Resume { service: "web".to_owned() };
        let lost = request::<Status>(&path, "/resume", Some(resume)).await.expect_err("nobody answers");
        assert_eq!(lost.to_string(), "the agent is stopping");
        server.abort();
        drop(server.await);
        assert!(!path.exists(), "its file goes with it");
        let error = request::<Vec<Status>>(&path, "/status", None::<()>).await.expect_err("gone").to_string();
        assert!(error.contains("no agent listens"), "{error}");
    }

    #[tokio::test]
    async fn what_a_killed_agent_left_is_no_obstacle() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        ensure_alone(&path).expect("nobody is there");
        bind(&path).expect("bound again");
    }
}
