//! From death to serving again: the same small web server, killed with SIGKILL again and again, under whoever brings it back.
//! Prints one line of JSON for each arm. `cargo xtask bench` runs this and makes a table of it.
//!
//! Systemd runs here as a user's service manager on a bus of its own: the program, unit logic and D-Bus interface are those of
//! the one that is process 1, and it runs on a machine that has another process 1.

mod daemons;
mod engines;
mod manager;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Deaths for each arm, and how long a service lives before it is killed again. Docker waits longer after each start that did
/// not last for ten seconds.
const DEATHS: (usize, Duration) = (15, Duration::from_millis(1500));
const DEATHS_DOCKER: (usize, Duration) = (5, Duration::from_secs(11));
/// Whoever has not brought it back by now will not.
const NEVER: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_micros(200);

/// Somebody who looks after a web server, and takes it along when dropped.
trait Keeper {
    /// The present main process, when there is one.
    fn main(&self) -> Option<u32>;
    /// Its steps, where Defib is in it: what it wrote down of each death.
    fn incidents(&self) -> Vec<Value> {
        Vec::new()
    }
    /// When a start was asked for, as somebody else saw it; Unix time in microseconds.
    fn asked_us(&self) -> Vec<u64> {
        Vec::new()
    }
}

/// Starts a keeper of a server on a port; the error says what is missing here.
type Start = fn(u16) -> Result<Box<dyn Keeper>, String>;

const ARMS: [(&str, Start); 9] = [
    ("systemd, `Restart=always` (100 ms)", |port| manager::start(port, "Restart=always", false)),
    ("systemd, `Restart=always`, `RestartSec=0`", |port| manager::start(port, "Restart=always\nRestartSec=0", false)),
    ("supervisord, `autorestart=true`", daemons::supervisord),
    ("monit, every second (its shortest)", daemons::monit),
    ("Docker, `--restart=always`", |port| engines::start(port, "always", false)),
    ("systemd, `Restart=no`", |port| manager::start(port, "Restart=no", false)),
    ("systemd, `Restart=no`, and Defib", |port| manager::start(port, "Restart=no", true)),
    ("Docker, `--restart=no`, and Defib", |port| engines::start(port, "no", true)),
    ("no supervisor but Defib", daemons::defib),
];

/// What every arm runs.
fn server(port: u16) -> String {
    format!("/bin/busybox httpd -f -p 127.0.0.1:{port} -h /")
}

/// Defib's configuration for one service that is to be brought back at once, however often.
fn config(service: &str) -> String {
    format!(
        "[defaults]\nrestart = true\ngrace = \"0s\"\nbackoff = {{ reset_after = \"100ms\" }}\n\
         budget = {{ per_service = \"1000/10m\", per_host = \"1000/10m\" }}\n\
         [[service]]\nhealth = \"exec:/bin/true\"\n{service}\n"
    )
}

#[expect(clippy::print_stderr, reason = "progress, beside lines that a program reads")]
fn main() {
    for (name, start) in ARMS {
        eprintln!("bench: from death to serving again: {name}");
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let line = match start(port) {
            Ok(keeper) => arm(name, &*keeper, port),
            Err(missing) => json!({ "name": name, "missing": missing }),
        };
        println!("{line}");
    }
}

/// Whether a process is there, and not only for its parent to ask how it ended.
fn is_alive(pid: u32) -> bool {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    text.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn arm(name: &str, keeper: &dyn Keeper, port: u16) -> Value {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let serves = || TcpStream::connect(address).is_ok();
    tests::eventually("the first start", || serves().then_some(()));
    let mut back_ms = Vec::new();
    let (deaths, life) = if name.starts_with("Docker") { DEATHS_DOCKER } else { DEATHS };
    for _ in 0..deaths {
        sleep(life);
        let main = tests::eventually("a main process", || keeper.main().filter(|&pid| is_alive(pid)));
        kill_process(Pid::from_raw(main.cast_signed()).expect("a pid"), Signal::KILL).expect("it is ours");
        let killed = Instant::now();
        // Its socket is open until it is gone.
        while is_alive(main) {
            sleep(POLL);
        }
        while !serves() && killed.elapsed() < NEVER {
            sleep(POLL);
        }
        if killed.elapsed() >= NEVER {
            break;
        }
        back_ms.push(killed.elapsed().as_secs_f64() * 1e3);
    }
    json!({ "name": name, "back_ms": back_ms, "incidents": keeper.incidents(), "asked_us": keeper.asked_us() })
}
