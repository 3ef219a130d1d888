//! An etcd cluster of a test's own: on loopback, on free ports, with its own data; gone with the test.

use std::{
    fs::File,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    defib::{free_address, get},
    eventually,
};

/// Debian packages etcd-server and etcd-client.
const PROGRAM: &str = "/usr/bin/etcd";
const TOOL: &str = "/usr/bin/etcdctl";

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    directory: tempfile::TempDir,
}

#[derive(Debug)]
struct Member {
    child: Option<Child>,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Cluster {
    /// What it needs; `None` when all is here.
    pub fn missing() -> Option<&'static str> {
        let needs = [(PROGRAM, "etcd (Debian package etcd-server)"), (TOOL, "etcdctl (Debian package etcd-client)")];
        needs.into_iter().find(|(path, _)| !Path::new(path).exists()).map(|(_, what)| what)
    }

    /// Starts so many members, and returns when they agree.
    ///
    /// # Panics
    /// When they do not.
    pub fn start(members: usize) -> Self {
        let member = |_| Member { child: None, client: free_address(), peer: free_address() };
        let directory = tempfile::tempdir().expect("a directory");
        let mut cluster = Self { members: (0..members).map(member).collect(), directory };
        for index in 0..members {
            cluster.spawn(index);
        }
        cluster.wait();
        cluster
    }

    /// As a configuration has them.
    pub fn urls(&self) -> String {
        let urls: Vec<_> = self.members.iter().map(|member| format!("\"http://{}\"", member.client)).collect();
        urls.join(", ")
    }

    /// Kills a member.
    ///
    /// # Panics
    /// When that is not running.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// Stops a member, which then takes connections and says nothing.
    ///
    /// # Panics
    /// When that is not running.
    pub fn freeze(&self, index: usize) {
        let child = self.members[index].child.as_ref().expect("it runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::STOP).expect("stopped");
    }

    /// Starts a member that was killed, with its data, and waits until the cluster is whole.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn start_again(&mut self, indexes: &[usize]) {
        for &index in indexes {
            self.spawn(index);
        }
        self.wait();
    }

    /// Runs etcdctl.
    ///
    /// # Panics
    /// When it does not start.
    pub fn etcdctl(&self, words: &[&str]) -> Output {
        let clients: Vec<_> = self.members.iter().map(|member| member.client.to_string()).collect();
        let mut command = Command::new(TOOL);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(clients.join(",")).args(words);
        command.stdin(Stdio::null()).output().expect("etcdctl starts")
    }

    fn spawn(&mut self, index: usize) {
        let all = self.members.iter().enumerate().map(|(index, member)| format!("m{index}=http://{}", member.peer));
        let all: Vec<_> = all.collect();
        let directory = self.directory.path();
        let log = File::options().create(true).append(true).open(directory.join(format!("m{index}.log")));
        let member = &mut self.members[index];
        let (client, peer) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        let child = Command::new(PROGRAM)
            .args(["--name", &format!("m{index}")])
            .arg("--data-dir")
            .arg(directory.join(format!("m{index}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-token", &format!("defib-test-{}", std::process::id())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("etcd starts");
        member.child = Some(child);
    }

    fn wait(&self) {
        for member in self.members.iter().filter(|member| member.child.is_some()) {
            let healthy = |(status, body): &(u16, String)| *status == 200 && body.contains("true");
            eventually("etcd to be healthy", || get(member.client, "/health").filter(healthy));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (index, member) in self.members.iter_mut().enumerate() {
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.directory.path().join(format!("m{index}.log")));
                println!(
                    "etcd {index}: {}",
                    log.unwrap_or_default().lines().rev().take(5).collect::<Vec<_>>().join("\n")
                );
            }
            let Some(child) = &mut member.child else { continue };
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
            child.wait().ok();
        }
    }
}
