//! A container engine of a test's own: its own data, its own socket, no network; gone with the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// Whose engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// dockerd.
    Docker,
    /// Podman's API service; its containers need none and live on without it.
    Podman,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    child: Child,
    directory: tempfile::TempDir,
    /// The engine's parent cgroups that were not there before; it leaves them behind.
    made: Vec<PathBuf>,
}

impl Kind {
    /// What it needs; `None` when all is here.
    pub fn missing(self) -> Option<&'static str> {
        let needs: &[(&str, &str)] = match self {
            Self::Docker => &[("/usr/sbin/dockerd", "dockerd (Debian package docker.io)")],
            Self::Podman => &[("/usr/bin/podman", "podman"), ("/usr/sbin/runc", "runc")],
        };
        let all = needs.iter().chain(&[("/bin/busybox", "a static busybox (busybox-static)")]);
        all.into_iter().find(|(path, _)| !Path::new(path).exists()).map(|(_, what)| *what)
    }

    /// The variable that tells its clients where it listens.
    fn variable(self) -> &'static str {
        match self {
            Self::Docker => "DOCKER_HOST",
            Self::Podman => "CONTAINER_HOST",
        }
    }

    /// Where it makes its parent cgroup: in every hierarchy.
    fn parents(self) -> impl Iterator<Item = PathBuf> {
        let name = match self {
            Self::Docker => "docker",
            Self::Podman => "libpod_parent",
        };
        let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        mounts.chain([PathBuf::from("/sys/fs/cgroup")]).map(move |mount| mount.join(name))
    }

    /// The program that listens, not started yet.
    fn server(self, place: &Path) -> Command {
        let at = |name: &str| place.join(name);
        match self {
            Self::Docker => {
                let mut command = Command::new("/usr/sbin/dockerd");
                command.args(["--iptables=false", "--bridge=none", "--storage-driver=vfs", "--host", &host(place)]);
                command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
                command.arg("--pidfile").arg(at("pid"));
                command
            }
            Self::Podman => {
                let mut command = self.client(place);
                command.args(["system", "service", "--time", "0", &host(place)]);
                command
            }
        }
    }

    /// The client, without its words.
    fn client(self, place: &Path) -> Command {
        match self {
            Self::Docker => {
                let mut command = Command::new("docker");
                // The builder that every engine has.
                command.env(self.variable(), host(place)).env("DOCKER_BUILDKIT", "0");
                command
            }
            Self::Podman => {
                let mut command = Command::new("/usr/bin/podman");
                for (option, name) in [("--root", "data"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
                    command.arg(option).arg(place.join(name));
                }
                // crun takes no host with both cgroup versions.
                command.args([
                    "--cgroup-manager",
                    "cgroupfs",
                    "--storage-driver",
                    "vfs",
                    "--runtime",
                    "/usr/sbin/runc",
                ]);
                command.args(["--events-backend", "file"]);
                command
            }
        }
    }

    /// Options of `run` without which no container starts in a restricted root's hands: Podman raises limits.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &[],
            Self::Podman => &["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"],
        }
    }
}

/// `DOCKER_HOST` or `CONTAINER_HOST` for the clients of an engine in this directory.
pub fn host(directory: &Path) -> String {
    format!("unix://{}", directory.join("engine.sock").display())
}

impl Engine {
    /// Starts an engine with one image, `busybox`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(kind: Kind) -> Self {
        Self::start_in(kind, tempfile::tempdir().expect("a directory for the engine"))
    }

    /// Likewise, in a directory that tells its [`host`] before it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_in(kind: Kind, directory: tempfile::TempDir) -> Self {
        let log = fs::File::create(directory.path().join("log")).expect("the engine's log can be made");
        let made = kind.parents().filter(|path| !path.exists()).collect();
        let child = kind
            .server(directory.path())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .expect("the engine starts");
        let engine = Self { kind, child, directory, made };
        let socket = engine.directory.path().join("engine.sock");
        eventually("the engine to answer", || {
            (socket.exists() && engine.try_run(&["version"]).status.success()).then_some(())
        });
        let image = engine.directory.path().join("image/bin");
        fs::create_dir_all(&image).expect("a directory for the image");
        fs::copy("/bin/busybox", image.join("sh")).expect("busybox can be copied");
        std::os::unix::fs::symlink("sh", image.join("sleep")).expect("a link");
        let tar = engine.directory.path().join("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(engine.directory.path().join("image"))
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .expect("tar starts");
        assert!(packed.success(), "the image can be packed");
        engine.run(&["import", tar.to_str().expect("UTF-8"), "busybox"]);
        engine
    }

    /// Lets the engine stand still: it takes questions and answers none.
    ///
    /// # Panics
    /// When it cannot be stopped.
    pub fn stand_still(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When it cannot be continued.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the engine is ours");
    }

    /// Where the containerd behind a dockerd listens.
    pub fn containerd(&self) -> PathBuf {
        self.directory.path().join("exec/containerd/containerd.sock")
    }

    /// The variable that leads its clients to it.
    pub fn variable(&self) -> (&'static str, String) {
        (self.kind.variable(), host(self.directory.path()))
    }

    /// Runs the client; its output.
    ///
    /// # Panics
    /// When the client fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        assert!(output.status.success(), "{:?} {words:?}: {}", self.kind, String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a container that runs a shell script, with these options; its id.
    ///
    /// # Panics
    /// When the client fails.
    pub fn start_container(&self, name: &str, options: &[&str], script: &str) -> String {
        let first = ["run", "-d", "--name", name, "--network", "none"];
        self.run(&[&first[..], self.kind.options(), options, &["busybox", "sh", "-c", script]].concat())
    }

    fn try_run(&self, words: &[&str]) -> Output {
        let mut client = self.kind.client(self.directory.path());
        client.args(words).stdin(Stdio::null()).output().expect("the client starts")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.directory.path().join("log")).unwrap_or_default());
        }
        self.go_on();
        let left = self.try_run(&["ps", "-aq"]);
        for id in String::from_utf8_lossy(&left.stdout).split_whitespace() {
            self.try_run(&["rm", "-f", id]);
        }
        self.signal(Signal::TERM);
        self.child.wait().ok();
        // Podman mounts its storage over itself, and Docker the network that its containers share; both leave it so.
        let mounted = match self.kind {
            Kind::Docker => "exec/netns/default",
            Kind::Podman => "data",
        };
        Command::new("umount").args(["--lazy", "--quiet"]).arg(self.directory.path().join(mounted)).output().ok();
        for path in &self.made {
            // Most were not made; one that another engine uses by now is not empty, and stays.
            fs::remove_dir(path).ok();
        }
    }
}
