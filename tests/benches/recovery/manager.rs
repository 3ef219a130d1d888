//! A systemd of the bench's own, as a user's service manager, with Defib beside it or without.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tests::{defib::Agent, eventually};

use super::{Keeper, config, server};

const UNIT: &str = "defib-bench.service";

/// Enters the cgroups that are given, and runs a manager there: it takes everything in its cgroup for its own. It runs only
/// where systemd is process 1, and takes a directory for the sign of it.
const ENTER_AND_RUN: &str = "for procs; do echo $$ > $procs || exit; done; \
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec \"$0\" --user";

/// A cgroup in every hierarchy that takes processes, with all that systemd makes below; removed when dropped.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let roots = below.chain([root.to_owned()]).filter(|path| {
            // Processes cannot enter a cpuset that has no processors yet; there is nothing to manage in it.
            path.join("cgroup.procs").exists() && path.join("cgroup.procs") != root.join("cpuset/cgroup.procs")
        });
        // On version 2 what is below the root are cgroups, not hierarchies.
        let is_v2 = root.join("cgroup.controllers").exists();
        let roots = roots.filter(|path| !is_v2 || path == root);
        let name = format!("defib-bench-manager-{}", std::process::id());
        let cgroups = Self(roots.map(|path| path.join(&name)).collect());
        for cgroup in &cgroups.0 {
            fs::create_dir(cgroup).expect("a cgroup for the manager");
        }
        cgroups
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for cgroup in &self.0 {
            let gone =
                Command::new("find").arg(cgroup).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]).status();
            assert!(gone.is_ok_and(|status| status.success()), "{} can be removed", cgroup.display());
        }
    }
}

/// See the module. What comes first goes first.
struct Manager {
    agent: Option<Agent>,
    monitor: Option<Child>,
    systemd: Child,
    _cgroups: Cgroups,
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
    let cgroups = Cgroups::new();
    let systemd = Command::new("unshare")
        .args(["--mount", "sh", "-c", ENTER_AND_RUN, program])
        .args(cgroups.0.iter().map(|cgroup| cgroup.join("cgroup.procs")))
        .env("XDG_RUNTIME_DIR", directory.path())
        .env("XDG_CONFIG_HOME", directory.path())
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare starts");
    let mut manager = Manager { agent: None, monitor: None, systemd, _cgroups: cgroups, directory };
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
