//! A HAProxy of a test's own: its own files, ports of loopback; gone with the test.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::eventually;

/// Debian package haproxy.
const PROGRAM: &str = "/usr/sbin/haproxy";

/// See the module.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    directory: tempfile::TempDir,
}

/// A server as HAProxy shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// 0: down, 2: up.
    pub op: u32,
    /// 0: ready; bits: 1 forced maintenance, 8 forced drain.
    pub admin: u32,
    /// Its weight now.
    pub weight: u32,
}

impl HaProxy {
    /// What it needs; `None` when all is here.
    pub fn missing() -> Option<&'static str> {
        (!Path::new(PROGRAM).exists()).then_some("needs haproxy (Debian package haproxy)")
    }

    /// Starts one with these sections, and returns when its runtime API answers.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(sections: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = format!(
            "global\n    stats socket {} mode 600 level admin\n    nbthread 1\n\
             defaults\n    mode http\n    retries 0\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
             {sections}\n",
            socket(&directory).display()
        );
        fs::write(directory.path().join("haproxy.cfg"), config).expect("written");
        let child = spawn(&directory);
        let haproxy = Self { child, directory };
        haproxy.wait();
        haproxy
    }

    /// Kills it and starts another one in its place, which knows nothing of what the first was told.
    ///
    /// # Panics
    /// When that does not start.
    pub fn start_again(&mut self) {
        self.end();
        self.child = spawn(&self.directory);
        self.wait();
    }

    /// Its runtime API.
    pub fn socket(&self) -> PathBuf {
        socket(&self.directory)
    }

    /// Says a line to its runtime API, and returns what it answers; `None` when it does not.
    pub fn say(&self, line: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        writeln!(stream, "{line}").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        Some(reply)
    }

    /// A server of a backend, now.
    ///
    /// # Panics
    /// When there is none.
    pub fn server(&self, backend: &str, server: &str) -> Server {
        let reply = self.say(&format!("show servers state {backend}")).expect("an answer");
        let fields = reply
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(3) == Some(&server))
            .unwrap_or_else(|| panic!("no {backend}/{server} in {reply}"));
        let number = |column: usize| fields[column].parse().expect("a number");
        Server { op: number(5), admin: number(6), weight: number(7) }
    }

    /// Waits until a server is as wanted.
    ///
    /// # Panics
    /// When it never is.
    pub fn until(&self, backend: &str, server: &str, what: &str, fits: impl Fn(Server) -> bool) -> Server {
        eventually(&format!("{backend}/{server} {what}"), || {
            Some(self.server(backend, server)).filter(|&one| fits(one))
        })
    }

    fn wait(&self) {
        eventually("HAProxy to answer", || self.say("show version").filter(|reply| !reply.is_empty()));
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("admin.sock")
}

fn spawn(directory: &tempfile::TempDir) -> Child {
    Command::new(PROGRAM)
        .arg("-db")
        .arg("-f")
        .arg(directory.path().join("haproxy.cfg"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.path().join("haproxy.log")).expect("a log"))
        .spawn()
        .expect("haproxy starts")
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.directory.path().join("haproxy.log")).unwrap_or_default());
        }
    }
}
