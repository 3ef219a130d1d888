//! At most so many members of a pool out by plan at once: with a real etcd cluster, and with holders that are killed, stopped,
//! and cut off. Of time only the order is asserted, by what the holders themselves have written.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread::{scope, sleep},
    time::Duration,
};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address, get, run},
    etcd::Cluster,
    eventually, live,
    victim::binary,
};

/// So often each worker has the slot.
const TURNS: usize = 8;

/// True when the test can run.
fn can_run(name: &str) -> bool {
    if let Some(what) = Cluster::missing() {
        live::skip(name, &format!("needs {what}"));
        return false;
    }
    true
}

/// A cluster and a configuration that names it.
struct Site {
    etcd: Cluster,
    directory: tempfile::TempDir,
}

impl Site {
    fn new(ttl: &str) -> Self {
        let site = Self { etcd: Cluster::start(3), directory: tempfile::tempdir().expect("a directory") };
        fs::write(site.file(), site.config(ttl)).expect("written");
        site
    }

    fn config(&self, ttl: &str) -> String {
        format!("[fleet]\netcd = [{}]\nmax_unavailable = 1\nttl = \"{ttl}\"\n", self.etcd.urls())
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("defib.toml")
    }

    /// Tries to hold a slot of `be_web`.
    fn hold(&self, reason: &str, arguments: &[&str]) -> Holding {
        Holding::start(&self.file(), reason, arguments)
    }

    /// Who has slots of `be_web`, and under which leases.
    fn slots(&self) -> Vec<(String, String)> {
        let file = self.file();
        let output = run(&["fleet", "--json", "--config", file.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pools: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let pool = pools.as_array().into_iter().flatten().find(|pool| pool["pool"] == "be_web");
        let holders = pool.and_then(|pool| pool["holders"].as_array()).cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        holders.iter().map(|holder| (text(&holder["service"]), text(&holder["lease"]))).collect()
    }

    fn holders(&self) -> Vec<String> {
        self.slots().into_iter().map(|(service, _)| service).collect()
    }
}

/// `defib fleet hold`.
struct Holding {
    /// Until its end is waited for.
    child: Option<Child>,
    out: BufReader<ChildStdout>,
}

impl Holding {
    fn start(config: &Path, reason: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary("defib"))
            .args(["fleet", "hold", "be_web", "--json", "--reason", reason, "--config"])
            .arg(config)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("defib starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child: Some(child), out }
    }

    /// When it came to that state; `None` when it ended before.
    fn reached(&mut self, state: &str) -> Option<Timestamp> {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("readable");
        let value: Value = serde_json::from_str(&line).ok()?;
        assert_eq!(value["state"], state, "{line}");
        Some(value["time"].as_str()?.parse().expect("a time"))
    }

    fn signal(&self, signal: Signal) {
        let pid =
            self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?)).expect("a process");
        kill_process(pid, signal).expect("signalled");
    }

    /// Its exit code, and what it had to say.
    fn end(mut self) -> (Option<i32>, String) {
        let output = self.child.take().expect("it ends once").wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Asks it to end, as Ctrl-C does.
    fn stop(self) {
        self.signal(Signal::INT);
        let (code, text) = self.end();
        assert_eq!(code, Some(0), "{text}");
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn of_many_that_want_one_slot_never_two_have_it_at_once() {
    if !can_run("of_many_that_want_one_slot_never_two_have_it_at_once") {
        return;
    }
    let site = Site::new("10s");
    let (mut held, mut refused) = (Vec::new(), 0);
    scope(|scope| {
        let worker = |number: usize| {
            let site = &site;
            scope.spawn(move || {
                let mut refused = 0;
                let mut once = || {
                    let mut holding = site.hold(&format!("worker{number}"), &["--for", "50ms"]);
                    let Some(from) = holding.reached("held") else {
                        let (code, text) = holding.end();
                        assert_eq!(code, Some(1));
                        assert!(text.contains("out by plan already") && text.contains("worker"), "{text}");
                        refused += 1;
                        return None;
                    };
                    let to = holding.reached("given_back").expect("it comes to its end");
                    assert_eq!(holding.end().0, Some(0));
                    Some((from, to))
                };
                let held: Vec<_> = (0..TURNS).map(|_| eventually("its turn", &mut once)).collect();
                (held, refused)
            })
        };
        let workers: Vec<_> = (0..3).map(worker).collect();
        for _ in 0..20 {
            assert!(site.holders().len() <= 1);
        }
        for worker in workers {
            let (mut own, no) = worker.join().expect("a worker");
            held.append(&mut own);
            refused += no;
        }
    });
    held.sort();
    println!("the slot was held {} times, and refused {refused} times", held.len());
    assert!(held.len() == 3 * TURNS && refused > 0, "there was a contest");
    for pair in held.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two had it at once: {pair:?}");
    }
    assert!(site.holders().is_empty());
}

#[test]
fn who_is_killed_or_stopped_loses_its_slot_when_its_lease_runs_out() {
    if !can_run("who_is_killed_or_stopped_loses_its_slot_when_its_lease_runs_out") {
        return;
    }
    let site = Site::new("10s");
    let mut killed = site.hold("killed", &[]);
    let from = killed.reached("held").expect("the slot is free");
    let output = site.etcd.etcdctl(&["get", "--prefix", "/defib/be_web/slots/"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/defib/be_web/slots/0\n") && text.contains(r#""service":"killed""#), "{text}");
    killed.signal(Signal::KILL);
    killed.end();
    assert_eq!(site.holders(), ["killed"], "its lease lives");
    let mut next = eventually("the slot to be free", || {
        let mut holding = site.hold("stopped", &[]);
        let now = holding.reached("held")?;
        println!("free {:.1} s after it was taken, with a TTL of 10 s", now.duration_since(from).as_secs_f64());
        Some(holding)
    });
    assert_eq!(site.holders(), ["stopped"]);

    // A process that is stopped does not know, and must find out before it does anything.
    next.signal(Signal::STOP);
    let mut third = eventually("the slot to be free again", || {
        let mut holding = site.hold("third", &[]);
        holding.reached("held").map(|_| holding)
    });
    next.signal(Signal::CONT);
    assert_eq!(next.reached("given_back"), None);
    let (code, text) = next.end();
    assert_eq!(code, Some(1));
    assert!(text.contains("the slot of be_web is lost"), "{text}");
    assert_eq!(site.holders(), ["third"], "what is lost is not given back in another's name");

    // As the guide has it: a slot that is freed by hand, of which its holder hears when it wants to renew it.
    let slots = site.slots();
    let output = site.etcd.etcdctl(&["lease", "revoke", &slots[0].1]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut fourth = site.hold("fourth", &[]);
    fourth.reached("held").expect("it is free");
    assert_eq!(third.reached("given_back"), None);
    let (code, text) = third.end();
    assert!(code == Some(1) && text.contains("is lost"), "{text}");
    fourth.stop();

    // And a slot that is taken by hand.
    assert!(site.etcd.etcdctl(&["put", "/defib/be_web/slots/by-hand", "no deploys today"]).status.success());
    assert_eq!(site.slots(), [("?".to_owned(), "?".to_owned())], "no agent has written it");
    let (code, text) = site.hold("fifth", &[]).end();
    assert!(code == Some(1) && text.contains("1 out by plan already") && text.contains("somebody"), "{text}");
    assert!(site.etcd.etcdctl(&["del", "/defib/be_web/slots/by-hand"]).status.success());
    let mut fifth = site.hold("fifth", &[]);
    fifth.reached("held").expect("it is free");
    fifth.stop();
}

#[test]
fn one_member_less_changes_nothing_and_without_etcd_only_planned_actions_stop() {
    let name = "one_member_less_changes_nothing_and_without_etcd_only_planned_actions_stop";
    if !can_run(name) || !live::can_run(name) {
        return;
    }
    let mut site = Site::new("10s");
    let cgroup = Cgroup::new(None);
    let service = format!(
        "[[service]]\nname = \"api\"\nrestart = true\ngrace = \"0s\"\nhealth = \"exec:/bin/true\"\npool = \"be_web/api\"\n\
         command = {{ start = [\"/bin/sleep\", \"1000\"], cgroup = \"{}\" }}\n",
        cgroup.path
    );
    let agent = Agent::start(&format!("{}{service}", site.config("10s")));
    let up = |wanted: f64| {
        eventually("defib_fleet_up", || (agent.metrics().get("defib_fleet_up") == Some(wanted)).then_some(()));
    };
    let value = |series: &str| agent.metrics().get(series);
    let restarts = || value("defib_restarts_total{result=\"ok\",service=\"api\"}").unwrap_or(0.0);
    up(1.0);
    for series in ["slots_held{pool=\"be_web\"}", "refused_total{reason=\"full\"}", "slots_lost_total"] {
        assert_eq!(value(&format!("defib_fleet_{series}")), Some(0.0), "{series} exists from the start");
    }

    let mut holding = site.hold("first", &[]);
    holding.reached("held").expect("the slot is free");
    site.etcd.freeze(0);
    // Longer than the lease lives without a renewal.
    sleep(Duration::from_secs(12));
    assert_eq!(site.holders(), ["first"], "two of three members renew it");
    holding.stop();
    site.etcd.kill(0);
    let mut holding = site.hold("second", &[]);
    holding.reached("held").expect("given back, and free");
    assert_eq!(value("defib_fleet_up"), Some(1.0));

    site.etcd.kill(1);
    let (code, text) = holding.end();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is lost"), "who cannot renew stops: {text}");
    let (code, text) = site.hold("third", &[]).end();
    assert!(code == Some(1) && text.contains("etcd does not answer"), "{text}");
    up(0.0);
    site.etcd.kill(2);
    assert!(agent.log().contains("nothing is done by plan"), "{}", agent.log());
    assert!(agent.metrics().sum("defib_fleet_requests_total") > 0.0);
    // What dies is brought back all the same.
    let before = restarts();
    for pid in cgroup.members().into_iter().filter_map(Pid::from_raw) {
        kill_process(pid, Signal::KILL).expect("killed");
    }
    eventually("the restart", || (restarts() > before).then_some(()));
    assert_eq!(value("defib_fleet_up"), Some(0.0));

    site.etcd.start_again(&[0, 1, 2]);
    up(1.0);
    assert!(agent.log().contains("etcd answers again"), "{}", agent.log());
    let holding = eventually("a slot", || {
        let mut holding = site.hold("fourth", &[]);
        holding.reached("held").map(|_| holding)
    });
    holding.stop();
}

/// What a server may use, what it holds when it begins to leak, MiB, and how fast it does: full after a minute, or so. With a
/// minute of the forecast in two seconds, that is foreseen half a minute ahead.
const LIMIT: u64 = 96 << 20;
const HELD: &str = "/hold/64";
const LEAK: &str = "/leak/512";

#[test]
fn three_agents_whose_servers_leak_at_once_restart_them_one_after_the_other() {
    let name = "three_agents_whose_servers_leak_at_once_restart_them_one_after_the_other";
    if !live::can_run(name) || !can_run(name) {
        return;
    }
    let site = Site::new("10s");
    let hosts: Vec<_> = (1..=3)
        .map(|host| {
            let (server, cgroup) = (free_address(), Cgroup::new(Some(LIMIT)));
            let config = format!(
                "{}[forecast]\nsample = \"2s\"\n[[service]]\nname = \"web{host}\"\nrestart = true\npool = \"be_web/web{host}\"\n\
                 health = \"http://{server}/healthz\"\n\
                 planned_restart = {{ when = \"0s\", drain = \"1s\", min_uptime = \"3s\" }}\n\
                 command = {{ start = [\"{}\", \"serve\", \"{}\"], cgroup = \"{}\" }}\n",
                site.config("10s"),
                binary("victim").display(),
                server.port(),
                cgroup.path
            );
            (Agent::start(&config), server, cgroup)
        })
        .collect();
    for (host, (agent, server, _)) in (1..).zip(&hosts) {
        let stands = format!("defib_pool_state{{service=\"web{host}\",state=\"in\"}}");
        eventually("it to serve", || (agent.metrics().get(&stands) == Some(1.0)).then_some(()));
        get(*server, HELD);
    }
    for (_, server, _) in &hosts {
        get(*server, LEAK);
    }
    let mut most = 0;
    let planned: Vec<(Timestamp, Timestamp)> = (1..)
        .zip(&hosts)
        .map(|(host, (agent, ..))| {
            let record = eventually("its planned restart", || {
                most = most.max(site.slots().len());
                let last = agent.incidents(&format!("web{host}")).pop()?;
                (last["outcome"] == "renewed").then_some(last)
            });
            let time = |key: &str| record[key].as_str().expect("a time").parse().expect("a time");
            (time("began"), time("ended"))
        })
        .collect();
    assert_eq!(most, 1, "one slot");
    let mut in_order = planned;
    in_order.sort();
    println!("MEASURED three planned restarts in one pool: {in_order:?}");
    for (before, after) in in_order.iter().zip(&in_order[1..]) {
        assert!(before.1 <= after.0, "one is over before the next begins: {in_order:?}");
    }
    for (agent, _, cgroup) in &hosts {
        assert_eq!(cgroup.oom_kills().unwrap_or(0), 0, "none died: {}", agent.log());
    }
    eventually("the slot to be given back", || site.slots().is_empty().then_some(()));
}
