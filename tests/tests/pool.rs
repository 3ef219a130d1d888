//! Out of the pool before it fails, and back only when healed: with a real HAProxy, real servers and real OOM kills, under
//! load. Requests are counted; times are printed and only asserted where minutes would be wrong.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address, get},
    eventually,
    haproxy::HaProxy,
    live,
    load::Load,
    victim::binary,
};

/// What a server may use.
const LIMIT: u64 = 96 << 20;
/// Bits of a server's administrative state at HAProxy.
const MAINT: u32 = 1;
const DRAIN: u32 = 8;

fn can_run(name: &str) -> bool {
    if !live::can_run(name) {
        return false;
    }
    if let Some(what) = HaProxy::missing() {
        live::skip(name, what);
        return false;
    }
    true
}

/// Two servers with a cgroup each, and where everybody listens.
struct Site {
    cgroups: [Cgroup; 2],
    servers: [SocketAddr; 2],
    agent_check: SocketAddr,
    /// The front of the pool that the agent looks after, and of one that HAProxy alone does.
    fronts: [SocketAddr; 2],
}

impl Site {
    fn new() -> Self {
        Self {
            cgroups: [Cgroup::new(Some(LIMIT)), Cgroup::new(Some(LIMIT))],
            servers: [free_address(), free_address()],
            agent_check: free_address(),
            fronts: [free_address(), free_address()],
        }
    }

    /// The same two servers twice: with agent checks, and with nothing but HAProxy's plain health check.
    fn haproxy(&self) -> HaProxy {
        let mut sections = String::new();
        for (front, backend) in self.fronts.iter().zip(["be_web", "be_plain"]) {
            sections += &format!("frontend to_{backend}\n    bind {front}\n    default_backend {backend}\n");
            sections += &format!("backend {backend}\n    option httpchk GET /healthz\n");
            for (number, address) in (1..).zip(&self.servers) {
                sections += &format!("    server web{number} {address} weight 100 check");
                if backend == "be_web" {
                    let port = self.agent_check.port();
                    sections += &format!(" agent-check agent-addr 127.0.0.1 agent-port {port} agent-inter 200ms");
                    sections += &format!(" agent-send \"be_web/web{number}\\n\"");
                }
                sections += "\n";
            }
        }
        HaProxy::start(&sections)
    }

    /// `haproxy`: whether the runtime API is used.
    fn config(&self, haproxy: Option<&HaProxy>, settings: &str) -> String {
        let mut config = format!("[forecast]\nsample = \"200ms\"\n[pool]\nagent_check = \"{}\"\n", self.agent_check);
        if let Some(haproxy) = haproxy {
            config += &format!("haproxy = [\"{}\"]\n", haproxy.socket().display());
        }
        for (number, (address, cgroup)) in (1..).zip(self.servers.iter().zip(&self.cgroups)) {
            config += &format!(
                "[[service]]\nname = \"web{number}\"\nrestart = true\npool = \"be_web/web{number}\"\n{settings}\n\
                 health = \"http://{address}/healthz\"\n\
                 command = {{ start = [\"{}\", \"serve\", \"{}\"], cgroup = \"{}\" }}\n",
                binary("victim").display(),
                address.port(),
                cgroup.path
            );
        }
        config
    }

    /// What an agent check for a server is told; empty when it is told nothing.
    fn ask(&self, name: &str) -> String {
        let mut stream = TcpStream::connect(self.agent_check).expect("the agent listens");
        stream.write_all(format!("{name}\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok();
        answer
    }

    fn tell(&self, server: usize, path: &str) {
        // One that dies of it does not answer.
        get(self.servers[server], path);
    }
}

fn stands(agent: &Agent, service: &str, state: &str) -> bool {
    let series = format!("defib_pool_state{{service=\"{service}\",state=\"{state}\"}}");
    agent.metrics().get(&series) == Some(1.0)
}

fn until(agent: &Agent, service: &str, state: &str) {
    eventually(&format!("{service} to be {state}"), || stands(agent, service, state).then_some(()));
}

/// Everybody serves, and everybody knows.
fn at_peace(agent: &Agent, haproxy: &HaProxy) {
    for service in ["web1", "web2"] {
        until(agent, service, "in");
        for backend in ["be_web", "be_plain"] {
            haproxy.until(backend, service, "to serve", |server| server.op == 2 && server.admin == 0);
        }
    }
}

/// When each of these words was said in the last outage of a service, in milliseconds.
fn said(incident: &Value) -> BTreeMap<String, f64> {
    let entries = incident["timeline"].as_array().into_iter().flatten();
    let one = |entry: &Value| {
        let at: jiff::Timestamp = entry["at"].as_str()?.parse().ok()?;
        Some((entry["what"].as_str()?.to_owned(), at.as_nanosecond() as f64 / 1e6))
    };
    entries.filter_map(one).collect()
}

#[test]
fn an_oom_kill_under_load_costs_a_tenth_at_most_of_what_a_health_check_costs() {
    if !can_run("an_oom_kill_under_load_costs_a_tenth_at_most_of_what_a_health_check_costs") {
        return;
    }
    let site = Site::new();
    let haproxy = site.haproxy();
    let agent = Agent::start(&site.config(Some(&haproxy), "grace = \"2s\""));
    for service in ["web1", "web2"] {
        for state in ["in", "draining", "out"] {
            let series = format!("defib_pool_state{{service=\"{service}\",state=\"{state}\"}}");
            assert!(agent.metrics().get(&series).is_some(), "{series} exists from the start");
        }
    }
    at_peace(&agent, &haproxy);
    let loads = site.fronts.map(Load::start);
    eventually("some load", || loads.iter().all(|load| load.counts().0 > 200).then_some(()));
    assert!(loads.iter().all(|load| load.counts().1 == 0), "nothing fails before");

    site.tell(0, "/leak");
    until(&agent, "web1", "out");
    haproxy.until("be_web", "web1", "to be in maintenance", |server| server.admin & MAINT != 0);
    let (status, body) = agent.try_get("/pool/web1").expect("it answers");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["state"], &body["cause"]), (503, &"out".into(), &"oom_kill".into()), "{body}");
    assert!(site.ask("be_web/web1").starts_with("down #"), "the agent check says the same");

    until(&agent, "web1", "in");
    haproxy.until("be_web", "web1", "to serve again", |server| server.op == 2 && server.admin == 0);
    let plain = |server: tests::haproxy::Server| server.op == 2;
    haproxy.until("be_plain", "web1", "to be found by its health check", plain);
    let before = loads.each_ref().map(Load::counts);
    eventually("more load", || {
        loads.iter().zip(&before).all(|(load, before)| load.counts().0 > before.0 + 200).then_some(())
    });
    let [(fast_sent, fast), (plain_sent, plain)] = loads.map(Load::stop);
    println!("MEASURED failed requests: {fast} of {fast_sent} with the runtime API, {plain} of {plain_sent} without");
    assert!(plain > 0 && fast * 10 <= plain, "{fast} failed with the runtime API, {plain} without");

    let incident = eventually("the record", || {
        agent.incidents("web1").pop().filter(|incident| said(incident).contains_key("pool_in"))
    });
    let at = said(&incident);
    let back = at["pool_in"] - at["healthy"];
    println!(
        "MEASURED OOM mark to out of the pool: {:.2} ms; death to in the pool: {:.0} ms; proof of health to in: {back:.0} ms",
        at["pool_out"] - at["oom_mark"],
        at["pool_in"] - at["died"],
    );
    assert!(at["oom_mark"] <= at["pool_out"] && at["pool_out"] < at["restart_asked"], "{incident}");
    assert!(at["restart_asked"] < at["pool_in"] && back < 1000.0, "{incident}");
    assert_eq!(site.ask("be_web/web1"), "up ready 100%\n");
    let moves = |state: &str| format!("defib_pool_moves_total{{service=\"web1\",state=\"{state}\"}}");
    assert_eq!(agent.metrics().get(&moves("out")), Some(2.0), "not running at first, and killed");
    assert_eq!(agent.metrics().get(&moves("in")), Some(2.0));
}

#[test]
fn a_crashing_server_is_out_before_its_core_is_written_and_one_that_survives_stays() {
    if !live::can_run("a_crashing_server_is_out_before_its_core_is_written_and_one_that_survives_stays") {
        return;
    }
    let (cgroup, server) = (Cgroup::new(None), free_address());
    let cores = tempfile::tempdir().expect("a directory for the core");
    let victim = binary("victim");
    let start = format!(
        "[\"{}\", \"--core\", \"{}\", \"serve\", \"{}\"]",
        victim.display(),
        cores.path().display(),
        server.port()
    );
    let agent = Agent::start(&format!(
        "[[service]]\nname = \"web\"\nrestart = true\npool = \"be_web/web\"\ngrace = \"2s\"\n\
         health = \"http://{server}/healthz\"\ncommand = {{ start = {start}, cgroup = \"{}\" }}\n",
        cgroup.path
    ));
    until(&agent, "web", "in");
    let pool = || {
        let (status, body) = agent.try_get("/pool/web").expect("it answers");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        (status, body["cause"].as_str().unwrap_or_default().to_owned())
    };
    get(server, "/survive");
    get(server, "/hold/256");
    assert_eq!(pool().0, 200, "what is blocked ends nobody");

    get(server, "/crash");
    until(&agent, "web", "out");
    assert_eq!(pool(), (503, "crashing".to_owned()));
    until(&agent, "web", "in");
    let incident = eventually("the record", || {
        agent.incidents("web").pop().filter(|incident| said(incident).contains_key("pool_in"))
    });
    let at = said(&incident);
    println!("MEASURED out of the pool before the end of a crash with a core: {:.1} ms", at["died"] - at["pool_out"]);
    let moves = |state: &str| format!("defib_pool_moves_total{{service=\"web\",state=\"{state}\"}}");
    assert_eq!(
        agent.metrics().get(&moves("out")),
        Some(2.0),
        "not running at first, and crashed; not for what it survived"
    );
}

#[test]
fn a_full_memory_drains_a_server_but_never_the_last() {
    if !can_run("a_full_memory_drains_a_server_but_never_the_last") {
        return;
    }
    let site = Site::new();
    let mut haproxy = site.haproxy();
    let agent = Agent::start(&site.config(Some(&haproxy), "grace = \"50ms\"\ndrain_at = 0.8"));
    at_peace(&agent, &haproxy);
    let load = Load::start(site.fronts[0]);
    site.tell(0, "/hold/85");
    until(&agent, "web1", "draining");
    haproxy.until("be_web", "web1", "to drain", |server| server.admin == DRAIN);
    assert_eq!(site.ask("be_web/web1"), "drain\n");
    assert_eq!(agent.try_get("/pool/be_web/web1").expect("it answers").0, 503);

    // The other one is the last now, whatever its memory; it gets half of its weight, which is no less for the only one.
    site.tell(1, "/hold/85");
    let kept = "defib_pool_kept_total{service=\"web2\"}";
    eventually("the floor", || (agent.metrics().get(kept) == Some(1.0)).then_some(()));
    sleep(Duration::from_secs(1));
    assert!(stands(&agent, "web2", "in"));
    haproxy.until("be_web", "web2", "to have half its weight", |server| server.weight == 50 && server.admin == 0);
    assert_eq!(site.ask("be_web/web2"), "up ready 50%\n");

    // HAProxy forgets what it was told, and is told again.
    haproxy.start_again();
    haproxy.until("be_web", "web1", "to drain again", |server| server.admin == DRAIN);

    for server in [0, 1] {
        site.tell(server, "/release");
    }
    at_peace(&agent, &haproxy);
    for server in ["web1", "web2"] {
        haproxy.until("be_web", server, "to have its weight", |server| server.weight == 100);
    }
    // The requests that HAProxy itself dropped when it was killed are not counted against anybody.
    let (sent, failed) = load.stop();
    println!("MEASURED draining under load, with a killed HAProxy between: {failed} of {sent} requests failed");

    site.tell(0, "/sick");
    until(&agent, "web1", "out");
    haproxy.until("be_web", "web1", "to be out", |server| server.admin == MAINT);
    site.tell(0, "/well");
    until(&agent, "web1", "in");
    at_peace(&agent, &haproxy);
}

#[test]
fn agents_that_go_leave_no_server_behind() {
    if !can_run("agents_that_go_leave_no_server_behind") {
        return;
    }
    let site = Site::new();
    let haproxy = site.haproxy();
    let config = site.config(Some(&haproxy), "grace = \"1h\"\ndrain_at = 0.8");
    let agent = Agent::start(&config);
    at_peace(&agent, &haproxy);
    haproxy.say("disable agent be_web/web2;set server be_web/web2 state maint").expect("an operator's word");
    site.tell(0, "/hold/85");
    let kept = "defib_pool_kept_total{service=\"web1\"}";
    eventually("the floor", || (agent.metrics().get(kept) == Some(1.0)).then_some(()));
    haproxy.say("set server be_web/web2 state ready;enable agent be_web/web2").expect("an operator's word");
    until(&agent, "web1", "draining");
    haproxy.until("be_web", "web1", "to drain", |server| server.admin == DRAIN);

    // A crash leaves it so, and the next agent goes on; a clean end takes it back.
    let state = agent.crash();
    assert_eq!(haproxy.server("be_web", "web1").admin, DRAIN);
    let agent = Agent::start_in(state, &config);
    until(&agent, "web2", "in");
    site.tell(0, "/release");
    until(&agent, "web1", "in");
    haproxy.until("be_web", "web1", "to serve", |server| server.op == 2 && server.admin == 0);
    site.tell(0, "/hold/85");
    until(&agent, "web1", "draining");
    haproxy.until("be_web", "web1", "to drain", |server| server.admin == DRAIN);
    drop(agent);
    let left = haproxy.server("be_web", "web1");
    assert_eq!((left.op, left.admin), (2, 0), "in again: it was drained, not dead");
    site.tell(0, "/release");
}

#[test]
fn without_a_runtime_api_agent_checks_alone_do_it_and_take_no_harm() {
    if !can_run("without_a_runtime_api_agent_checks_alone_do_it_and_take_no_harm") {
        return;
    }
    let site = Site::new();
    let haproxy = site.haproxy();
    let agent = Agent::start(&site.config(None, "grace = \"1s\""));
    at_peace(&agent, &haproxy);

    // Slow readers and senders, crowds and garbage, while HAProxy keeps asking.
    let slow: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(site.agent_check).ok()).collect();
    for (number, mut stream) in slow.iter().enumerate() {
        let bytes: &[u8] = if number % 2 == 0 { b"be_web/we" } else { b"be_web/web1\n" };
        stream.write_all(bytes).ok();
    }
    for garbage in ["be_web/web9", "", "GET / HTTP/1.1", "be_web/web1; shutdown", &"x".repeat(100_000)] {
        assert_eq!(site.ask(garbage), "", "{garbage:.40}");
    }
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(site.ask("be_web/web1"), "up ready 100%\n");
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "MEASURED agent check, connection and all, beside 100 slow ones: median {:?}, p99 {:?}",
        times[250], times[494]
    );
    drop(slow);
    let counted = |result: &str| {
        let series = format!("defib_pool_agent_checks_total{{result=\"{result}\"}}");
        agent.metrics().get(&series).unwrap_or_default()
    };
    assert!(counted("unknown") >= 2.0 && counted("malformed") >= 1.0, "{}", agent.metrics().0);
    eventually("slow ones to be counted", || (counted("slow") + counted("malformed") >= 51.0).then_some(()));

    site.tell(0, "/leak");
    until(&agent, "web1", "out");
    haproxy.until("be_web", "web1", "to be down", |server| server.op == 0);
    until(&agent, "web1", "in");
    haproxy.until("be_web", "web1", "to be up", |server| server.op == 2 && server.admin == 0);
    let (status, body) = agent.try_get("/pool/web1").expect("it answers");
    assert_eq!(status, 200, "{body}");
    assert_eq!(agent.try_get("/pool/web9").expect("it answers").0, 404);
}
