//! A Docker engine of a test's own: its own data, its own socket, no network; gone with the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// See the module.
#[derive(Debug)]
pub struct Engine {
    child: Child,
    directory: tempfile::TempDir,
    /// The engine's parent cgroups that were not there before; it leaves them behind.
    made: Vec<PathBuf>,
}

/// Where an engine makes its parent cgroup: in every hierarchy.
fn parents() -> impl Iterator<Item = PathBuf> {
    let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    mounts.chain([PathBuf::from("/sys/fs/cgroup")]).map(|mount| mount.join("docker"))
}

/// What an engine needs; `None` when all is here.
pub fn missing() -> Option<&'static str> {
    [("/usr/sbin/dockerd", "dockerd (Debian package docker.io)"), ("/bin/busybox", "a static busybox (busybox-static)")]
        .into_iter()
        .find(|(path, _)| !Path::new(path).exists())
        .map(|(_, what)| what)
}

/// `DOCKER_HOST` for the clients of an engine in this directory.
pub fn host(directory: &Path) -> String {
    format!("unix://{}", directory.join("docker.sock").display())
}

impl Engine {
    /// Starts an engine with one image, `busybox`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory for the engine"))
    }

    /// Likewise, in a directory that tells its [`host`] before it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_in(directory: tempfile::TempDir) -> Self {
        let place = |name: &str| directory.path().join(name);
        let log = fs::File::create(place("log")).expect("the engine's log can be made");
        let child = Command::new("/usr/sbin/dockerd")
            .args(["--iptables=false", "--bridge=none", "--storage-driver=vfs"])
            .arg("--data-root")
            .arg(place("data"))
            .arg("--exec-root")
            .arg(place("exec"))
            .arg("--pidfile")
            .arg(place("pid"))
            .arg("--host")
            .arg(host(directory.path()))
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .expect("dockerd starts");
        let made = parents().filter(|path| !path.exists()).collect();
        let engine = Self { child, directory, made };
        eventually("the engine to answer", || engine.try_run(&["version"]).status.success().then_some(()));
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

    /// `DOCKER_HOST` for its clients.
    pub fn host(&self) -> String {
        host(self.directory.path())
    }

    /// Runs the client; its output.
    ///
    /// # Panics
    /// When the client fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        assert!(output.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn try_run(&self, words: &[&str]) -> Output {
        Command::new("docker")
            .env("DOCKER_HOST", self.host())
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("the client starts")
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
        for path in &self.made {
            // Most were not made; one that another engine uses by now is not empty, and stays.
            fs::remove_dir(path).ok();
        }
    }
}
