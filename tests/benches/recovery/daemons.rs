//! Daemons that start a program themselves: supervisord, monit, and Defib with a command.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{cgroup::Cgroup, defib::Agent, eventually};

use super::{Keeper, config, server};

/// A daemon in the foreground, and where it or its service writes the main process's id.
struct Daemon {
    child: Child,
    pid_file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Keeper for Daemon {
    fn main(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        Path::new("/proc").join(pid.to_string()).exists().then_some(pid)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let signal = |pid: u32, signal| Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, signal).ok());
        // First the one who would bring it back.
        signal(self.child.id(), Signal::TERM);
        self.child.wait().ok();
        if let Some(main) = self.main() {
            signal(main, Signal::KILL);
        }
    }
}

/// A script that starts the server in its own place and writes down its id.
fn script(directory: &Path, port: u16, background: bool) -> (PathBuf, PathBuf) {
    let (path, pid_file) = (directory.join("start"), directory.join("pid"));
    let text = if background {
        format!("#!/bin/sh\nsetsid {} >/dev/null 2>&1 </dev/null &\necho $! > {}\n", server(port), pid_file.display())
    } else {
        format!("#!/bin/sh\necho $$ > {}\nexec {}\n", pid_file.display(), server(port))
    };
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("it can be run");
    (path, pid_file)
}

fn daemon(program: &str, config: &str, arguments: &[&str], directory: tempfile::TempDir, pid_file: PathBuf) -> Daemon {
    let file = directory.path().join("config");
    fs::write(&file, config).expect("a configuration");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is nobody else's");
    let child = Command::new(program)
        .args(arguments)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    Daemon { child, pid_file, _directory: directory }
}

pub(super) fn supervisord(port: u16) -> Result<Box<dyn Keeper>, String> {
    let program = "/usr/bin/supervisord";
    if !Path::new(program).exists() {
        return Err("supervisord (Debian package supervisor)".to_owned());
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (start, pid_file) = script(directory.path(), port, false);
    let config = format!(
        "[supervisord]\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={0}/supervisord.pid\n\
         [program:server]\ncommand={1}\nautorestart=true\n",
        directory.path().display(),
        start.display()
    );
    Ok(Box::new(daemon(program, &config, &["--nodaemon", "--configuration"], directory, pid_file)))
}

pub(super) fn monit(port: u16) -> Result<Box<dyn Keeper>, String> {
    let program = "/usr/bin/monit";
    if !Path::new(program).exists() {
        return Err("monit (Debian package monit)".to_owned());
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (start, pid_file) = script(directory.path(), port, true);
    let config = format!(
        "set daemon 1\nset pidfile {0}/monit.pid\nset idfile {0}/id\nset statefile {0}/state\n\
         check process server with pidfile {1}\n start program = \"{2}\"\n",
        directory.path().display(),
        pid_file.display(),
        start.display()
    );
    Ok(Box::new(daemon(program, &config, &["-I", "-c"], directory, pid_file)))
}

/// Defib alone.
struct Alone {
    agent: Agent,
    cgroup: Cgroup,
}

pub(super) fn defib(port: u16) -> Result<Box<dyn Keeper>, String> {
    let cgroup = Cgroup::new(None);
    let words: Vec<_> = server(port).split(' ').map(|word| format!("{word:?}")).collect();
    let command = format!("command = {{ start = [{}], cgroup = {:?} }}", words.join(", "), cgroup.path);
    let agent = Agent::start(&config(&format!("name = \"server\"\n{command}")));
    let up = "defib_service_up{service=\"server\"}";
    eventually("the server to be up", || (agent.metrics().get(up) == Some(1.0)).then_some(()));
    Ok(Box::new(Alone { agent, cgroup }))
}

impl Alone {
    fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.cgroup.directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Keeper for Alone {
    fn main(&self) -> Option<u32> {
        self.processes().into_iter().min()
    }

    fn incidents(&self) -> Vec<Value> {
        self.agent.incidents("server")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // The agent's end does not end its services.
        let paused = self.agent.control(&["pause", "server"]);
        assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
        for process in self.processes() {
            if let Some(pid) = Pid::from_raw(process.cast_signed()) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}
