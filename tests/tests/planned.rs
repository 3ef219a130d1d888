//! A service that is about to run out of memory is restarted before it does, and nobody notices: with real processes, a
//! real HAProxy and load. Time is scaled by configuration: a minute of the forecast is a second.

use std::{net::SocketAddr, thread::sleep, time::Duration};

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
/// What it holds when it begins to leak, MiB, and how fast it does: it is full after half a minute, and the last fifth of
/// its memory takes as long as connections and a restart need on a busy machine.
const HELD: &str = "/hold/64";
const LEAK: &str = "/leak/1024";

fn service(name: &str, address: SocketAddr, cgroup: &Cgroup, settings: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nrestart = true\ngrace = \"100ms\"\nhealth = \"http://{address}/healthz\"\n\
         planned_restart = {{ when = \"0s\", drain = \"5s\", min_uptime = \"3s\" }}\n{settings}\n\
         command = {{ start = [\"{}\", \"serve\", \"{}\"], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        address.port(),
        cgroup.path
    )
}

fn planned(agent: &Agent, service: &str, result: &str) -> Option<f64> {
    agent.metrics().get(&format!("defib_planned_restarts_total{{result=\"{result}\",service=\"{service}\"}}"))
}

fn stands(agent: &Agent, service: &str, state: &str) -> bool {
    agent.metrics().get(&format!("defib_pool_state{{service=\"{service}\",state=\"{state}\"}}")) == Some(1.0)
}

fn words(incident: &Value) -> Vec<&str> {
    incident["timeline"].as_array().into_iter().flatten().filter_map(|entry| entry["what"].as_str()).collect()
}

fn main_process(cgroup: &Cgroup) -> i32 {
    eventually("a process", || cgroup.members().first().copied())
}

#[test]
fn a_leaking_server_is_replaced_before_it_dies_without_a_failed_request() {
    if !live::can_run("a_leaking_server_is_replaced_before_it_dies_without_a_failed_request") {
        return;
    }
    if let Some(what) = HaProxy::missing() {
        live::skip("a_leaking_server_is_replaced_before_it_dies_without_a_failed_request", what);
        return;
    }
    let cgroups = [Cgroup::new(Some(LIMIT)), Cgroup::new(Some(LIMIT))];
    let (servers, front) = ([free_address(), free_address()], free_address());
    let haproxy = HaProxy::start(&format!(
        "frontend web\n    bind {front}\n    default_backend be_web\n\
         backend be_web\n    option httpchk GET /healthz\n\
         \x20   server web1 {} weight 100 check\n    server web2 {} weight 100 check\n",
        servers[0], servers[1]
    ));
    let mut config = format!("[forecast]\nsample = \"1s\"\n[pool]\nhaproxy = [\"{}\"]\n", haproxy.socket().display());
    for (name, (address, cgroup)) in ["web1", "web2"].into_iter().zip(servers.into_iter().zip(&cgroups)) {
        config += &service(name, address, cgroup, &format!("pool = \"be_web/{name}\""));
    }
    let agent = Agent::start(&config);
    for name in ["web1", "web2"] {
        eventually("it to serve", || stands(&agent, name, "in").then_some(()));
        haproxy.until("be_web", name, "to serve", |server| server.op == 2 && server.admin == 0);
        for result in ["ok", "failed", "called_off"] {
            assert_eq!(planned(&agent, name, result), Some(0.0), "exists from the start");
        }
    }
    let before = main_process(&cgroups[0]);
    // What takes a while is waited for.
    let load = Load::of(front, 4, "GET", "/slow/20");
    get(servers[0], HELD);
    get(servers[0], LEAK);
    let incident = eventually("the record", || {
        let last = agent.incidents("web1").pop()?;
        (last["kind"] == "planned_restart" && words(&last).contains(&"pool_in")).then_some(last)
    });
    haproxy.until("be_web", "web1", "to serve again", |server| server.op == 2 && server.admin == 0);
    let counted = load.counts().0;
    eventually("more load", || (load.counts().0 > counted + 50).then_some(()));
    let (sent, failed) = load.stop();
    println!("MEASURED planned restart under load: {failed} of {sent} requests failed");
    println!("MEASURED its record: {:?}", words(&incident));
    assert_eq!(failed, 0, "{}", agent.log());

    let after = main_process(&cgroups[0]);
    assert_ne!(before, after, "another incarnation");
    assert_eq!(cgroups[0].members().len(), 1);
    assert_eq!(cgroups[0].oom_kills().unwrap_or(0), 0, "it did not come to that");
    assert_eq!(planned(&agent, "web1", "ok"), Some(1.0));
    let metrics = agent.metrics();
    let restarts = |name: &str| metrics.get(&format!("defib_restarts_total{{result=\"ok\",service=\"{name}\"}}"));
    assert_eq!(restarts("web1"), Some(1.0), "only the first start is one of the other kind: {}", metrics.0);
    assert_eq!(metrics.get("defib_deaths_total{cause=\"stopped\",service=\"web1\"}"), Some(1.0));
    assert_eq!(metrics.get("defib_incidents_open{service=\"web1\"}"), Some(0.0));

    let mut told = words(&incident).into_iter();
    for word in [
        "pool_draining",
        "forecast",
        "planned_restart",
        "planned_restart_asked",
        "pool_out",
        "planned_restart_done",
        "pool_in",
    ] {
        assert!(told.any(|told| told == word), "{word} in its place: {:?}", words(&incident));
    }
    assert_eq!((&incident["outcome"], &incident["outage_ms"]), (&"renewed".into(), &Value::Null));
    let state = agent.state.path().to_str().expect("UTF-8");
    let report = tests::defib::run(&["incidents", "report", &incident["id"].to_string(), "--state-dir", state]);
    let report = String::from_utf8(report.stdout).expect("UTF-8");
    assert!(report.contains("had a planned restart") && report.contains("restarted it ahead of time"), "{report}");

    // Young again, and with room: nothing more happens to it.
    sleep(Duration::from_secs(4));
    assert_eq!(main_process(&cgroups[0]), after);
    assert_eq!(planned(&agent, "web1", "ok"), Some(1.0));
}

#[test]
fn the_last_one_of_a_pool_and_a_paused_one_are_left_alone() {
    if !live::can_run("the_last_one_of_a_pool_and_a_paused_one_are_left_alone") {
        return;
    }
    // In a pool whose other server is dead, for good.
    let cgroups = [Cgroup::new(Some(LIMIT)), Cgroup::new(Some(LIMIT)), Cgroup::new(None)];
    let servers = [free_address(), free_address()];
    let mut config = "[forecast]\nsample = \"1s\"\n".to_owned();
    config += &service("last", servers[0], &cgroups[0], "pool = \"be_web/last\"");
    config += &service("paused", servers[1], &cgroups[1], "");
    config += &format!(
        "[[service]]\nname = \"dead\"\npool = \"be_web/dead\"\n\
         command = {{ start = [\"/bin/false\"], cgroup = \"{}\" }}\n",
        cgroups[2].path
    );
    let agent = Agent::start(&config);
    eventually("all to be up", || (stands(&agent, "last", "in") && stands(&agent, "paused", "in")).then_some(()));
    assert!(agent.control(&["pause", "paused", "--for", "1h", "--reason", "test"]).status.success());
    let pids = [main_process(&cgroups[0]), main_process(&cgroups[1])];
    for server in &servers {
        get(*server, HELD);
        get(*server, LEAK);
    }
    eventually("the forecast", || {
        let near = |name: &str| {
            let eta = agent.metrics().get(&format!("defib_service_oom_eta_seconds{{service=\"{name}\"}}"));
            eta.is_some_and(f64::is_finite)
        };
        (near("last") && near("paused")).then_some(())
    });
    sleep(Duration::from_secs(2));
    assert_eq!([main_process(&cgroups[0]), main_process(&cgroups[1])], pids, "{}", agent.log());
    // The pause is over: now it goes, at once, since it has no pool.
    assert!(agent.control(&["resume", "paused"]).status.success());
    eventually("its planned restart", || (planned(&agent, "paused", "ok") == Some(1.0)).then_some(()));
    assert_ne!(main_process(&cgroups[1]), pids[1]);
    assert_eq!(planned(&agent, "last", "ok"), Some(0.0));
}
