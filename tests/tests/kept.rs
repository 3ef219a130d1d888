//! What a real systemd keeps for the agent: with the unit of the package, nothing is lost over a crash, a restart and a reload,
//! and nothing is left after a stop. Runs where systemd is PID 1, as in `cargo xtask vm --kernel 6.1 --test kept`.
//!
//! And a host whose memory is used up: the agent lives, and has seen every kill. And one whose clock is set.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{
    PATIENCE,
    defib::{Metrics, free_address, get},
    eventually, live,
    victim::{Victim, binary},
};

/// The unit of the package.
const UNIT: &str = include_str!("../../deploy/systemd/defib.service");
/// As it is called here, so that it is not taken for an installed one.
const AGENT: &str = "defib-kept.service";
const CONFIG: &str = "/etc/defib-kept.toml";
const UNITS: &str = "/run/systemd/system";
const SERVICE: &str = "kept-service.service";

fn can_run(name: &str) -> bool {
    if !live::can_run(name) {
        return false;
    }
    if fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "systemd") {
        return true;
    }
    live::skip_ok(name, "needs systemd as PID 1; run it with 'cargo xtask vm --kernel 6.1 --test kept'");
    false
}

fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().expect("systemctl starts");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "systemctl {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", "-P", property, unit])
}

fn main_process(unit: &str) -> i32 {
    show(unit, "MainPID").parse().expect("a pid")
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("killed");
}

/// An agent as a service, with the settings of the package's, and a service that it brings back. Gone with the test.
struct Host {
    address: SocketAddr,
}

impl Host {
    /// The agent comes back so long after a crash.
    fn start(restart: &str) -> Self {
        let address = free_address();
        let config = format!(
            "[agent]\nstate_dir = '/var/lib/defib-kept'\n[http]\nlisten = '{address}'\n\
             [[service]]\nunit = '{SERVICE}'\nrestart = true\ngrace = '0s'\nhealth = 'exec:/bin/true'\n"
        );
        fs::write(CONFIG, config).expect("a configuration");
        let start = format!("ExecStart={} run --config {CONFIG}", binary("defib").display());
        let unit = UNIT
            .replace("ExecStart=/usr/bin/defib run", &start)
            .replace("RestartSec=1s", &format!("RestartSec={restart}"))
            .replace("StateDirectory=defib", "StateDirectory=defib-kept");
        fs::create_dir_all(UNITS).expect("a directory");
        fs::write(format!("{UNITS}/{AGENT}"), unit).expect("a unit");
        let service = format!("[Service]\nRestart=no\nExecStart={} idle\n", binary("victim").display());
        fs::write(format!("{UNITS}/{SERVICE}"), service).expect("a unit");
        systemctl(&["daemon-reload"]);
        systemctl(&["start", AGENT, SERVICE]);
        let host = Self { address };
        host.is_watching();
        host
    }

    fn is_watching(&self) {
        eventually("the service to be looked after", || {
            let up = format!("defib_service_up{{service=\"{SERVICE}\"}}");
            (self.metrics()?.get(&up) == Some(1.0)).then_some(())
        });
    }

    fn metrics(&self) -> Option<Metrics> {
        get(self.address, "/metrics").map(|(_, text)| Metrics(text))
    }

    fn incidents(&self) -> Vec<Value> {
        let output = tests::defib::run(&["incidents", "--json", "--state-dir", "/var/lib/defib-kept"]);
        let mut all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        all.reverse();
        all
    }

    /// The incident of that number, once it is over.
    fn ended(&self, number: usize) -> Value {
        let incident = eventually("the end of the outage", || {
            self.incidents().into_iter().nth(number).filter(|incident| incident["ended"].is_string())
        });
        assert_eq!((&incident["deaths"], &incident["restarts"]), (&1.into(), &1.into()), "{incident:#}");
        assert_eq!(incident["cause"]["kind"], "killed", "its record has told: {incident:#}");
        incident
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = Command::new("journalctl").args(["-u", AGENT, "-n", "80", "--no-pager"]).output();
            println!(
                "{}",
                output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
            );
        }
        Command::new("systemctl").args(["stop", AGENT, SERVICE]).output().ok();
        for unit in [AGENT, SERVICE] {
            fs::remove_file(format!("{UNITS}/{unit}")).ok();
        }
        fs::remove_file(CONFIG).ok();
        fs::remove_dir_all("/var/lib/defib-kept").ok();
        Command::new("systemctl").arg("daemon-reload").output().ok();
    }
}

/// Maps, programs and links that systemd itself holds.
fn kept_by_systemd() -> usize {
    let all = fs::read_dir("/proc/1/fd").expect("readable").flatten();
    all.filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|file| file.to_string_lossy().contains("bpf"))
        .count()
}

fn journal() -> String {
    let output = Command::new("journalctl").args(["-u", AGENT, "--no-pager"]).output().expect("journalctl starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn systemd_keeps_the_programs_over_a_crash_and_a_restart_and_not_over_a_stop() {
    if !can_run("systemd_keeps_the_programs_over_a_crash_and_a_restart_and_not_over_a_stop") {
        return;
    }
    // systemd has programs of its own for its units' firewalls.
    let before = kept_by_systemd();
    let host = Host::start("3s");
    eventually("systemd to keep them", || (show(AGENT, "NFileDescriptorStore") != "0").then_some(()));
    let kept: usize = show(AGENT, "NFileDescriptorStore").parse().expect("a number");
    let attached = host.metrics().expect("metrics").sum("defib_bpf_attached") as usize;
    println!("systemd keeps {kept} descriptors");

    // It dies, and so does the service while nobody is there.
    let agent = main_process(AGENT);
    kill(agent);
    kill(main_process(SERVICE));
    let died = Instant::now();
    let first = host.ended(0);
    assert!(died.elapsed() > Duration::from_secs(2), "no agent was there");
    assert!(!first["timeline"].to_string().contains("no agent was watching"), "{first:#}");
    assert_ne!(main_process(AGENT), agent);
    assert_eq!(kept, 9 + 2 * attached, "nine maps, and for each program itself and its link");
    assert!(journal().contains("goes on with the kernel programs of the agent before"));
    host.is_watching();

    // An upgrade restarts it.
    systemctl(&["restart", AGENT]);
    host.is_watching();
    kill(main_process(SERVICE));
    host.ended(1);

    // It begins again in its place.
    let agent = main_process(AGENT);
    systemctl(&["reload", "--no-block", AGENT]);
    kill(main_process(SERVICE));
    host.ended(2);
    eventually("it to be ready", || (show(AGENT, "ActiveState") == "active").then_some(()));
    host.is_watching();
    assert_eq!((main_process(AGENT), host.incidents().len()), (agent, 3));
    assert_eq!(show(AGENT, "NFileDescriptorStore"), kept.to_string());
    assert_eq!(journal().matches("are replaced").count(), 0, "{}", journal());
    assert_eq!(host.metrics().expect("metrics").get("defib_oom_audit_missed_total"), Some(0.0));

    systemctl(&["stop", AGENT]);
    eventually("systemd to let them go", || (show(AGENT, "NFileDescriptorStore") == "0").then_some(()));
    eventually("systemd to close them", || (kept_by_systemd() <= before).then_some(()));
}

fn oom_kills() -> u64 {
    tests::cgroup::counter("/proc/vmstat".as_ref(), "oom_kill").expect("the kernel counts")
}

/// `DEFIB_EXHAUSTED_SECONDS` has it last longer than a minute.
#[test]
fn on_a_host_without_memory_the_agent_lives_and_tells_of_every_kill() {
    const NAME: &str = "on_a_host_without_memory_the_agent_lives_and_tells_of_every_kill";
    if !can_run(NAME) {
        return;
    }
    if !Path::new("/payload").exists() {
        return live::skip_ok(NAME, "takes all memory: runs in a virtual machine only");
    }
    let seconds = std::env::var("DEFIB_EXHAUSTED_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let host = Host::start("1s");
    let agent = main_process(AGENT);
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{agent}/status")).expect("it lives");
        let kib = |key| {
            status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        };
        (kib("VmRSS:").expect("its size"), kib("VmLck:").expect("what is locked"))
    };
    assert_eq!(fs::read_to_string(format!("/proc/{agent}/oom_score_adj")).expect("it lives").trim(), "-900");
    eventually("its memory to be locked", || (resident().1 > 0).then_some(()));
    let (before, kills, seen) =
        (resident().0, oom_kills(), host.metrics().expect("metrics").sum("defib_oom_kills_total"));
    // What stress-ng has taken is thrashed and now and then killed; what we add is killed each time that it has taken the rest.
    let over = AtomicBool::new(false);
    let status = scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Victim::start(None, &["--oom-score-adj", "1000", "leak"]).wait();
            }
        });
        let status = Command::new("systemd-run")
            .args(["--wait", "--collect", "-q", "-p", "OOMScoreAdjust=-500", "-p", "OOMPolicy=continue", "stress-ng"])
            .args(["--vm", "2", "--vm-bytes", "80%", "--vm-keep", "--timeout", &seconds])
            .status();
        over.store(true, Ordering::Relaxed);
        status.expect("systemd-run starts")
    });
    println!("stress-ng: {status}");
    let killed = oom_kills() - kills;
    assert!(killed > 0, "the host ran out of memory");
    eventually("all of them to be counted", || {
        let now = host.metrics()?.sum("defib_oom_kills_total") - seen;
        (now == killed as f64).then_some(())
    });
    // Two looks of the audit.
    sleep(Duration::from_secs(21));
    let metrics = host.metrics().expect("metrics");
    assert_eq!(metrics.get("defib_oom_audit_missed_total"), Some(0.0));
    assert_eq!(metrics.get("defib_events_lost_total{ring=\"critical\"}"), Some(0.0));
    assert_eq!((main_process(AGENT), show(AGENT, "NRestarts")), (agent, "0".to_owned()), "the same agent");
    println!(
        "MEASURED {killed} kills in {seconds} s, all told; the agent: {before} KiB before, {} KiB after",
        resident().0
    );
    assert!(resident().0 < before + 16 * 1024, "{} KiB, {before} before", resident().0);
}

/// The clock that people read; put back when dropped.
struct SetClock {
    begin: Instant,
    was: SystemTime,
}

impl SetClock {
    fn new() -> Self {
        Self { begin: Instant::now(), was: SystemTime::now() }
    }

    /// Has it be so many seconds ahead of what it would be.
    fn ahead(&self, seconds: u64) {
        let time = self.was + self.begin.elapsed() + Duration::from_secs(seconds);
        let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let time = format!("@{}.{:09}", since.as_secs(), since.subsec_nanos());
        let output = Command::new("date").args(["-s", &time]).output();
        assert!(output.expect("date starts").status.success());
    }
}

impl Drop for SetClock {
    fn drop(&mut self) {
        self.ahead(0);
    }
}

#[test]
fn a_clock_that_is_set_in_an_outage_is_noticed_and_changes_no_span() {
    const NAME: &str = "a_clock_that_is_set_in_an_outage_is_noticed_and_changes_no_span";
    if !can_run(NAME) {
        return;
    }
    if !Path::new("/payload").exists() {
        return live::skip_ok(NAME, "sets the clock: runs in a virtual machine only");
    }
    let host = Host::start("1s");
    let clock = SetClock::new();
    for (outage, ahead) in [(0, 3600), (1, 0)] {
        kill(main_process(SERVICE));
        clock.ahead(ahead);
        let incident = host.ended(outage);
        let lasted = incident["outage_ms"].as_u64().expect("a span");
        assert!(lasted < PATIENCE.as_millis() as u64, "{incident:#}");
        eventually("the step to be seen", || {
            (host.metrics()?.get("defib_clock_steps_total") == Some(outage as f64 + 1.0)).then_some(())
        });
        host.is_watching();
    }
    let metrics = host.metrics().expect("metrics");
    assert_eq!(metrics.sum("defib_restarts_total"), 2.0, "each death is answered once");
}
