//! The binary under test: as a watcher whose JSON is read, as an agent whose metrics are asked for, or run to its end.

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{PATIENCE, cage::Cage, eventually, victim::binary};

/// `defib watch --json`, ready and followed.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Watch {
    /// Starts watching, and returns when the first death has been seen, so that no later one is missed.
    ///
    /// # Panics
    /// When the watcher does not start.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[], arguments)
    }

    /// Likewise, with these variables.
    ///
    /// # Panics
    /// When the watcher does not start.
    pub fn start_with(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = Command::new(binary("defib"));
        command.envs(variables.iter().copied()).args(["watch", "--json"]).args(arguments);
        Self::of(command)
    }

    /// Likewise, started by this command.
    ///
    /// # Panics
    /// When the watcher does not start.
    pub fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the watcher starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines() {
                let Ok(line) = line else { return };
                let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        let mut watch = Self { child, lines, seen: Vec::new() };
        // Programs attach one after the other; a canary is seen once the last is.
        let begin = Instant::now();
        loop {
            let canary = crate::victim::Victim::start(None, &["exit", "99"]);
            let pid = canary.pid();
            canary.wait();
            if watch.find(Duration::from_millis(200), |line| line["tgid"] == pid).is_some() {
                return watch;
            }
            assert!(begin.elapsed() < PATIENCE, "defib watch never saw its canary");
        }
    }

    /// The death of process `pid`.
    ///
    /// # Panics
    /// When it is not reported.
    pub fn death_of(&mut self, pid: u32) -> Value {
        self.find(PATIENCE, |line| line["tgid"] == pid).unwrap_or_else(|| panic!("the death of {pid} was not reported"))
    }

    /// The first death, reported by now or within `patience`, that fits.
    pub fn find(&mut self, patience: Duration, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(found) = self.seen.iter().find(|line| fits(line)) {
            return Some(found.clone());
        }
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if fits(&line) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// All deaths reported so far.
    pub fn seen(&self) -> &[Value] {
        &self.seen
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// `defib run`, ready.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: SocketAddr,
    /// Its state, removed with it.
    pub state: tempfile::TempDir,
}

impl Agent {
    /// Starts an agent on a free port with this configuration, and returns when it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(config: &str) -> Self {
        Self::start_with(&[], config)
    }

    /// Likewise, with these arguments.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_with(arguments: &[&str], config: &str) -> Self {
        Self::launch(scratch(), &[], arguments, config)
    }

    /// Likewise, with these variables.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_among(variables: &[(&str, &str)], config: &str) -> Self {
        Self::launch(scratch(), variables, &[], config)
    }

    /// Starts an agent with the state that another has left.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_in(state: tempfile::TempDir, config: &str) -> Self {
        Self::start_in_among(state, &[], config)
    }

    /// Likewise, with these variables.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_in_among(state: tempfile::TempDir, variables: &[(&str, &str)], config: &str) -> Self {
        Self::launch(state, variables, &[], config)
    }

    /// Starts an agent with the state that another has left, and returns at once.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn begin_in(state: tempfile::TempDir, config: &str) -> Self {
        Self::begin(Command::new(binary("defib")), state, &[], &[], config)
    }

    /// Starts an agent within the limits of the packaged unit, with these environment variables.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_caged(cage: &Cage, variables: &[(&str, &str)], config: &str) -> Self {
        Self::ready(Self::begin(cage.command(&binary("defib")), scratch(), variables, &[], config), config)
    }

    fn launch(state: tempfile::TempDir, variables: &[(&str, &str)], arguments: &[&str], config: &str) -> Self {
        Self::ready(Self::begin(Command::new(binary("defib")), state, variables, arguments, config), config)
    }

    fn ready(agent: Self, config: &str) -> Self {
        // Whoever has a web configuration may not answer everybody, or not over plain HTTP.
        let guarded = config.contains("web_config");
        eventually("the agent to be ready", || match guarded {
            true => agent.log().contains(" watching ").then_some(()),
            false => agent.try_get("/readyz").filter(|(status, _)| *status == 200).map(drop),
        });
        agent
    }

    fn begin(
        mut command: Command,
        state: tempfile::TempDir,
        variables: &[(&str, &str)],
        arguments: &[&str],
        config: &str,
    ) -> Self {
        let address = free_address();
        let file = state.path().join("defib.toml");
        std::fs::write(&file, config).expect("the configuration can be written");
        let child = command
            .arg("run")
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(state.path())
            .arg("--control-socket")
            .arg(state.path().join("control.sock"))
            .arg("--listen")
            .arg(address.to_string())
            .args(arguments)
            .envs(variables.iter().copied())
            .stderr(OpenOptions::new().create(true).append(true).open(state.path().join("agent.log")).expect("a log"))
            .spawn()
            .expect("defib starts");
        Self { child, address, state }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it read this configuration in the place of its own.
    ///
    /// # Panics
    /// When that cannot be written, or the agent has gone.
    pub fn reload(&self, config: &str) {
        std::fs::write(self.state.path().join("defib.toml"), config).expect("the configuration can be written");
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::HUP).expect("the agent is there");
    }

    /// Where its HTTP server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks its HTTP server; status and body.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        get(self.address, path)
    }

    /// Its metrics.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.try_get("/metrics").expect("the agent answers");
        assert_eq!(status, 200, "{text}");
        Metrics(text)
    }

    /// Runs `defib COMMAND…` of those that talk to the agent.
    ///
    /// # Panics
    /// When it does not start.
    pub fn control(&self, words: &[&str]) -> Output {
        let socket = self.state.path().join("control.sock");
        run(&[words, &["--socket", socket.to_str().expect("UTF-8")]].concat())
    }

    /// The incidents of a service, the oldest first, as far as they are written.
    ///
    /// # Panics
    /// When they cannot be listed.
    pub fn incidents(&self, service: &str) -> Vec<Value> {
        let state = self.state.path().to_str().expect("UTF-8");
        let output = run(&["incidents", "--json", "--limit", "100000", "--service", service, "--state-dir", state]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut incidents: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        incidents.reverse();
        incidents
    }

    /// What is written down of a service's engine; `None` without anything.
    ///
    /// # Panics
    /// When the store cannot be read.
    pub fn kept(&self, service: &str) -> Option<Value> {
        let store = Connection::open_with_flags(self.state.path().join("defib.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
            .expect("the store opens");
        let row =
            store.query_row("SELECT memory FROM service WHERE name = ?1", [service], |row| row.get::<_, String>(0));
        let memory = row.optional().expect("the store can be read")?;
        Some(serde_json::from_str(&memory).expect("JSON"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("agent.log")).unwrap_or_default()
    }

    /// Kills it, as a crash would, and leaves its state.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn crash(mut self) -> tempfile::TempDir {
        self.child.kill().expect("the agent can be killed");
        self.child.wait().expect("the agent ends");
        std::mem::replace(&mut self.state, tempfile::tempdir().expect("a directory"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.state.path().join("agent.log")).unwrap_or_default());
        }
        end(&mut self.child);
    }
}

/// A scrape.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The value of a series, written as in the exposition: `name{label="value"}`. `None` when it does not exist.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// The sum of all series of a metric.
    pub fn sum(&self, name: &str) -> f64 {
        let own = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        self.0.lines().filter(own).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Runs the binary to its end.
///
/// # Panics
/// When it does not start.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(binary("defib")).args(arguments).stdin(Stdio::null()).output().expect("defib starts")
}

/// An address on loopback that is free now.
///
/// # Panics
/// When there is none.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound")
}

/// A plain HTTP GET: status and body; `None` when there was no whole answer.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, "GET", path)
}

/// A plain HTTP request without a body, likewise.
pub fn request(address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // At once: in pieces, each would wait until the one before is acknowledged. In version 1.0 a body of unknown length ends with
    // the connection, and is not in chunks.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0");
    let request = format!("{head}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Asks a child to end, and makes it if it does not.
pub(crate) fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).ok();
    }
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().ok();
    child.wait().ok();
}

/// The state directory of a test that wants one without an agent.
///
/// # Panics
/// When none can be made.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}
