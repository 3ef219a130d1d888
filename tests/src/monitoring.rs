//! Prometheus and Alertmanager of a test's own: on loopback, on free ports, with their own data; gone with the test.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{PATIENCE, defib::free_address, eventually};

/// The rules that are shipped.
pub fn rules() -> PathBuf {
    deploy("prometheus/defib.rules.yml")
}

/// A file below `deploy/`.
pub fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// What is missing of the programs; `None` when all are here.
pub fn missing() -> Option<&'static str> {
    let needs = [
        ("/usr/bin/promtool", "promtool and prometheus (Debian package prometheus)"),
        ("/usr/bin/prometheus", "prometheus"),
        ("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager"),
        ("/usr/bin/amtool", "amtool (Debian package prometheus-alertmanager)"),
    ];
    needs.into_iter().find(|(path, _)| !Path::new(path).exists()).map(|(_, what)| what)
}

/// Runs one of their tools; success, and all that it said.
///
/// # Panics
/// When it does not start.
pub fn tool(program: &str, arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // One that wants no input may have ended.
    child.stdin.take().expect("piped").write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    (output.status.success(), text.concat())
}

/// A GET in HTTP 1.0, whose answer never comes in chunks: status and body.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A server that was started.
#[derive(Debug)]
struct Server {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Server {
    fn start(program: &str, address: SocketAddr, arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let log = File::create(directory.path().join("log")).expect("a log");
        let child = Command::new(program)
            .args(arguments(directory.path()))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut server = Self { child, address, directory };
        eventually(program, || {
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("{program} ended with {status}");
            }
            get(address, "/-/ready").filter(|(status, _)| *status == 200)
        });
        server
    }

    fn json(&self, path: &str) -> Value {
        let (status, text) = eventually(path, || get(self.address, path));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.directory.path().join("log")).unwrap_or_default());
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).ok();
        }
        self.child.wait().ok();
    }
}

/// An Alertmanager.
#[derive(Debug)]
pub struct Alertmanager(Server);

impl Alertmanager {
    /// Starts one with the configuration that is shipped.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(address: SocketAddr) -> Self {
        Self(Server::start("/usr/bin/prometheus-alertmanager", address, |directory| {
            vec![
                format!("--config.file={}", deploy("prometheus/alertmanager.yml").display()),
                format!("--storage.path={}", directory.join("data").display()),
                format!("--web.listen-address={address}"),
                "--cluster.listen-address=".to_owned(),
            ]
        }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The alerts that fire, of that name and service.
    pub fn alerts(&self, name: &str, service: &str) -> Vec<Value> {
        let all = self.0.json("/api/v2/alerts?active=true&silenced=false&inhibited=true");
        let fits = |alert: &Value| alert["labels"]["alertname"] == name && alert["labels"]["service"] == service;
        all.as_array().into_iter().flatten().filter(|alert| fits(alert)).cloned().collect()
    }

    /// The groups in which alerts of that service are.
    pub fn groups(&self, service: &str) -> Vec<Value> {
        let all = self.0.json("/api/v2/alerts/groups");
        let fits = |group: &Value| group["labels"]["service"] == service;
        all.as_array().into_iter().flatten().filter(|group| fits(group)).cloned().collect()
    }

    /// Its own metrics.
    pub fn metrics(&self) -> String {
        eventually("its metrics", || get(self.0.address, "/metrics")).1
    }
}

/// A Prometheus that scrapes one agent each second, with the rules that are shipped.
#[derive(Debug)]
pub struct Prometheus(Server);

impl Prometheus {
    /// Starts one. `instance` names the agent in alerts.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(agent: SocketAddr, instance: &str, alertmanager: SocketAddr) -> Self {
        Self::start_with(&agent.to_string(), instance, alertmanager, "")
    }

    /// Likewise, with more in its `scrape_configs`, as lines of four spaces.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_with(target: &str, instance: &str, alertmanager: SocketAddr, how: &str) -> Self {
        let address = free_address();
        Self(Server::start("/usr/bin/prometheus", address, |directory| {
            let config = directory.join("prometheus.yml");
            let text = format!(
                "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
                 rule_files: ['{}']\n\
                 alerting: {{ alertmanagers: [{{ static_configs: [{{ targets: ['{alertmanager}'] }}] }}] }}\n\
                 scrape_configs:\n  - job_name: defib\n    static_configs:\n      \
                 - {{ targets: ['{target}'], labels: {{ instance: '{instance}' }} }}\n{how}",
                fs::canonicalize(rules()).expect("the rules are there").display()
            );
            fs::write(&config, text).expect("the configuration can be written");
            vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", directory.join("data").display()),
                format!("--web.listen-address={address}"),
            ]
        }))
    }

    /// The alerts that its rules make, of that name and service: pending and firing ones.
    pub fn alerts(&self, name: &str, service: &str) -> Vec<Value> {
        let all = self.0.json("/api/v1/alerts");
        let fits = |alert: &Value| alert["labels"]["alertname"] == name && alert["labels"]["service"] == service;
        all["data"]["alerts"].as_array().into_iter().flatten().filter(|alert| fits(alert)).cloned().collect()
    }

    /// The series that an expression gives now, or why it gives none.
    ///
    /// # Errors
    /// With Prometheus' own words.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            path.push_str(&format!("%{byte:02x}"));
        }
        let (_, text) = eventually("an answer", || get(self.0.address, &path));
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}
