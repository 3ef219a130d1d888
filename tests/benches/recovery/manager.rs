//! A systemd of the bench's own, as a user's service manager, with Defib beside it or without.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tests::{defib::Agent, eventually};

use super::{Keeper, config, server};

const UNIT: &str = "defib-bench.service";

/// See the module. What comes first goes first.
struct Manager {
    agent: Option<Agent>,
    monitor: Option<Child>,
    systemd: Child,
    directory: tempfile::TempDir,
}

pub(super) fn start(port: u16, restart: &str, with_defib: bool) -> Result<Box<dyn Keeper>, String> {
    let program = "/usr/lib/systemd/systemd";
    if !Path::new(program).exists() || !Path::new("/usr/bin/dbus-daemon").exists() {
        return Err("systemd and dbus".to_owned());
    }
    let directory = tempfile::tempdir().expect("a directory for systemd");
    let units = directory.path().join("systemd/user");
    fs::create_dir_all(&units).expect("a directory for units");
    let unit = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={}\n{restart}\n", server(port));
    fs::write(units.join(UNIT), unit).expect("a unit");
    // It runs only where systemd is process 1, and takes this directory for the sign of it.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec \"$0\" --user";
    let systemd = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, program])
        .env("XDG_RUNTIME_DIR", directory.path())
        .env("XDG_CONFIG_HOME", directory.path())
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare starts");
    let mut manager = Manager { agent: None, monitor: None, systemd, directory };
    eventually("systemd to answer on its bus", || {
        let answers = manager.command("busctl").args(["--user", "status", "org.freedesktop.systemd1"]).output();
        answers.is_ok_and(|output| output.status.success()).then_some(())
    });
    if with_defib {
        let rules = config(&format!("unit = \"{UNIT}\""));
        manager.agent = Some(Agent::start_among(&[("DBUS_SYSTEM_BUS_ADDRESS", &manager.bus())], &rules));
        let log = fs::File::create(manager.directory.path().join("calls")).expect("a file for calls");
        let monitor = manager
            .command("busctl")
            .args(["--user", "--json=short", "monitor", "org.freedesktop.systemd1"])
            .stdout(log)
            .stderr(Stdio::null())
            .spawn();
        manager.monitor = monitor.ok();
    }
    let started = manager.command("systemctl").args(["--user", "start", UNIT]).status().expect("systemctl starts");
    assert!(started.success(), "the unit can be started");
    if let Some(agent) = &manager.agent {
        let up = format!("defib_service_up{{service=\"{UNIT}\"}}");
        eventually("the unit to be looked after", || (agent.metrics().get(&up) == Some(1.0)).then_some(()));
    }
    Ok(Box::new(manager))
}

impl Manager {
    fn bus(&self) -> String {
        format!("unix:path={}", self.directory.path().join("bus").display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("XDG_RUNTIME_DIR", self.directory.path()).env("DBUS_SESSION_BUS_ADDRESS", self.bus());
        command
    }
}

impl Keeper for Manager {
    fn main(&self) -> Option<u32> {
        let shown =
            self.command("systemctl").args(["--user", "show", "-p", "MainPID", "--value", UNIT]).output().ok()?;
        String::from_utf8_lossy(&shown.stdout).trim().parse().ok().filter(|&pid| pid != 0)
    }

    fn incidents(&self) -> Vec<Value> {
        self.agent.as_ref().map(|agent| agent.incidents(UNIT)).unwrap_or_default()
    }

    fn asked_us(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.directory.path().join("calls")).unwrap_or_default();
        let calls = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        calls
            .filter(|call| call["member"] == "StartUnit")
            .filter_map(|call| call["timestamp-realtime"].as_u64())
            .collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.agent = None;
        self.command("systemctl").args(["--user", "stop", UNIT]).status().ok();
        // As a manager it would rather execute itself anew.
        self.command("systemctl").args(["--user", "exit"]).status().ok();
        self.systemd.wait().ok();
        if let Some(monitor) = &mut self.monitor {
            monitor.kill().ok();
            monitor.wait().ok();
        }
    }
}
