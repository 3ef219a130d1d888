//! What is kept of traces, and how it is shown: beside incidents, over HTTP, on a terminal. Nothing is traced here.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{
    cgroup::Cgroup,
    defib::{Agent, get, run, scratch},
    engine::{Engine, Kind},
    eventually, live,
    victim::{Victim, binary},
};

const HOSTILE: &str = "<script>alert(1)</script>\u{1b}[2J";
const TIME: &str = "2026-01-02T03-04-05.000Z";

/// A trace of `service` as it is kept, made at `began`, of which the picture is a text.
fn keep(state: &Path, service: &str, time: &str, began: &str, build: &str, function: &str) {
    let directory = state.join("traces").join(service).join(time);
    fs::create_dir_all(&directory).expect("made");
    let place = |function: &str| {
        json!({ "module": "/usr/bin/web", "build_id": build, "offset": 4096, "function": function, "file": null, "line": null,
                "inlined": false })
    };
    let growth = json!({
        "service": service, "began": began, "seconds": 300.0, "ended": "done",
        "programs": [{ "path": "/usr/bin/web", "build_id": build, "processes": 1, "watched": ["libc.so.6"] }],
        "anonymous_bytes": [0, 1 << 20],
        "stacks": [{ "bytes_per_hour": 2097152.0, "allocations": 9, "bytes": 9000, "whole": true,
                     "frames": [place("malloc"), place(function), place("main")] }],
        "others_bytes_per_hour": 0.0, "cut_share": 0.0,
        "cost": { "watched_seconds": 1.0, "watches": 1, "calls": 9, "lost": 0, "share": 0.01, "memory_bytes": 1, "processor_seconds": 0.1 },
        "notes": []
    });
    let top =
        json!({ "share": 1.0, "bytes_per_hour": 2097152.0, "function": function, "source": null, "callers": ["main"] });
    let summary = json!({
        "service": service, "began": began, "seconds": 300.0, "ended": "done", "builds": [build], "bytes_per_hour": 2097152.0,
        "cost_share": 0.01, "stacks": [top]
    });
    for (name, text) in [
        ("growth.json", growth.to_string()),
        ("summary.json", summary.to_string()),
        ("flame.svg", "<svg/>".to_owned()),
        ("folded.txt", "main;f 1\n".to_owned()),
    ] {
        fs::write(directory.join(name), text).expect("written");
    }
}

fn trace(state: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = run(&[
        &["trace", "--state-dir", state.to_str().expect("text"), "--socket", "/nonexistent"],
        arguments,
    ]
    .concat());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A trace that has begun, with what it said of it.
fn begun(state: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> (Child, String) {
    let mut command = Command::new(binary("defib"));
    command.args(["trace", "--state-dir", state.to_str().expect("text"), "--socket", "/nonexistent"]).args(arguments);
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut said = String::new();
    BufReader::new(child.stderr.take().expect("piped")).read_line(&mut said).expect("a line");
    (child, said)
}

/// Ends it as Ctrl-C does; exit code, and what it said on stdout.
fn interrupted(mut child: Child) -> (i32, String) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid");
    kill_process(pid, Signal::INT).expect("it lives");
    let mut out = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    (child.wait().expect("it ends").code().unwrap_or(-1), out)
}

#[test]
fn a_trace_says_what_it_does_and_ends_early_with_what_it_found() {
    if !live::can_run("a_trace_says_what_it_does_and_ends_early_with_what_it_found") {
        return;
    }
    let (state, (cgroup, _victim)) = (scratch(), leaky());
    let (child, said) = begun(state.path(), &[], &[&cgroup.path, "--for", "1h"]);
    assert!(said.contains(&format!("Tracing {} (", cgroup.path)) && said.contains("for 1h"), "{said}");
    let (code, out, error) = trace(state.path(), &[&cgroup.path]);
    assert!(code == 1 && out.is_empty() && error.contains("another trace is at work"), "{error}");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (code, out) = interrupted(child);
    assert!(code == 0 && out.contains("ended early, as asked") && out.contains("flame.svg"), "{out}");
    let (_, out, _) = trace(state.path(), &["--list", &cgroup.path, "--json"]);
    let all: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(all[0]["ended"], "asked", "{out}");
}

#[test]
fn a_container_is_found_by_its_name_and_by_its_id() {
    let name = "a_container_is_found_by_its_name_and_by_its_id";
    if !live::can_run(name) {
        return;
    }
    if let Some(what) = Kind::Docker.missing() {
        return live::skip_ok(name, &format!("needs {what}"));
    }
    let (state, engine) = (scratch(), Engine::start(Kind::Docker));
    let (variable, host) = engine.variable();
    let id = engine.start_container("web-of-containers", &[], "sleep 1000");
    for called in ["web-of-containers", &id[..12]] {
        let (child, said) = begun(state.path(), &[(variable, &host)], &[called]);
        assert!(said.contains("Tracing web-of-containers (") && said.contains(&id), "{called}: {said}");
        interrupted(child);
    }
    let (mut child, said) = begun(state.path(), &[(variable, &host)], &["web-of-container"]);
    assert!(said.contains("did you mean web-of-containers?"), "{said}");
    child.wait().expect("it ends");
}

#[test]
fn kept_traces_are_listed_shown_and_compared() {
    let state = scratch();
    let (code, out, _) = trace(state.path(), &["--list"]);
    assert!(code == 0 && out.contains("no traces are kept"), "{out}");
    keep(state.path(), "web", TIME, "2026-01-02T03:04:05Z", "aa11", HOSTILE);
    let (code, _, error) = trace(state.path(), &["web", "--compare"]);
    assert!(code == 1 && error.contains("none of another build"), "{error}");
    keep(state.path(), "db.service", TIME, "2026-01-02T03:04:05Z", "aa11", "db::page");
    let (code, out, _) = trace(state.path(), &["--show", "db"]);
    assert!(code == 0 && out.contains("db::page"), "{out}");
    keep(state.path(), "web", "2026-01-03T03-04-05.000Z", "2026-01-03T03:04:05Z", "bb22", "web::insert");
    let (code, out, error) = trace(state.path(), &["--list", "web"]);
    assert_eq!((code, out.lines().count(), error.as_str()), (0, 3, ""), "{out}");
    assert!(out.contains("bb22") && !out.contains('\u{1b}'), "{out}");
    let (code, out, _) = trace(state.path(), &["--show", "web"]);
    assert!(code == 0 && out.contains("100 %     2.0 MiB  web::insert") && out.contains("flame.svg"), "{out}");
    let (code, out, _) = trace(state.path(), &["web", "--compare"]);
    assert!(code == 0 && out.contains("\nnew ") && out.contains("\ngone ") && !out.contains('\u{1b}'), "{out}");
    let (_, out, _) = trace(state.path(), &["web", "--compare", "--json"]);
    let comparison: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(comparison["stacks"][0]["bytes_per_hour"], json!([0.0, 2097152.0]));
    let (code, _, error) = trace(state.path(), &["--show", "wbe"]);
    assert!(code == 1 && error.contains("did you mean web?") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_service_that_is_not_there_is_one_clear_error() {
    if !live::can_run("a_service_that_is_not_there_is_one_clear_error") {
        return;
    }
    let (state, cgroup) = (scratch(), Cgroup::new(None));
    for (name, want) in [
        ("no-such-service-anywhere", "there is no service"),
        ("/no/such/cgroup", "there is no cgroup"),
        ("/", "no service"),
    ] {
        let (code, out, error) = trace(state.path(), &[name]);
        assert!(code == 1 && out.is_empty() && error.contains(want) && error.lines().count() == 1, "{name}: {error}");
    }
    let near = cgroup.path.trim_start_matches('/');
    let (code, _, error) = trace(state.path(), &[near, "--for", "1s"]);
    assert!(code == 2 && error.contains("10s to 1h"), "{error}");
}

#[test]
fn an_incident_shows_where_memory_grew_and_the_files_are_served() {
    if !live::can_run("an_incident_shows_where_memory_grew_and_the_files_are_served") {
        return;
    }
    let (state, cgroup) = (scratch(), Cgroup::new(Some(32 << 20)));
    let now = jiff::Timestamp::now().to_string();
    keep(state.path(), "leaky", TIME, &now, "aa11", HOSTILE);
    let config = format!(
        "[[service]]\nname = \"leaky\"\ncommand = {{ start = [\"{}\", \"leak\"], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        cgroup.path
    );
    let agent = Agent::start_in(state, &config);
    let victim = Victim::start(Some(&cgroup), &["leak"]);
    victim.wait();
    let incident = eventually("the incident", || {
        agent.incidents("leaky").into_iter().find(|incident| incident["cause"]["kind"] == "oom_kill")
    });
    let id = incident["id"].to_string();
    let state = agent.state.path().to_str().expect("text").to_owned();
    for command in ["show", "report"] {
        let output = run(&["incidents", command, &id, "--state-dir", &state]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            text.contains("2.0 MiB an hour stay") && text.contains("flame.svg") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
    let (status, page) = get(agent.address(), &format!("/incidents/{id}")).expect("answered");
    let link = format!("../api/v1/traces/leaky/{TIME}/flame.svg");
    assert!(
        status == 200 && page.contains(&link) && page.contains("&lt;script&gt;") && !page.contains("<script>"),
        "{page}"
    );
    let (status, text) = get(agent.address(), "/api/v1/traces?service=leaky").expect("answered");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &all[0]["kept"]), (200, &json!(format!("leaky/{TIME}"))));
    let file = |path: &str| get(agent.address(), &format!("/api/v1/traces/{path}")).expect("answered");
    assert_eq!(file(&format!("leaky/{TIME}/flame.svg")), (200, "<svg/>".to_owned()));
    for path in [
        format!("leaky/{TIME}/summary.json"),
        format!("leaky/{TIME}/..%2Fgrowth.json"),
        format!("..%2F..%2Fetc/{TIME}/growth.json"),
        format!("leaky/..%2F{TIME}/growth.json"),
        "leaky/2026-01-02T03-04-06.000Z/flame.svg".to_owned(),
    ] {
        assert_eq!(file(&path).0, 404, "{path}");
    }
}

/// A service that grows from 16 MiB to its limit in a minute.
fn leaky() -> (Cgroup, Victim) {
    let cgroup = Cgroup::new(Some(48 << 20));
    let victim = Victim::start(Some(&cgroup), &["leak-slowly", "16", "569"]);
    (cgroup, victim)
}

/// A day of the forecast takes a quarter of a minute here.
fn suspected(cgroup: &Cgroup) -> String {
    format!(
        "[agent]\nmode = \"observe\"\n[forecast]\nsample = \"10ms\"\n[defaults]\ntrace = \"suspects\"\n\
         [[service]]\nname = \"leaky\"\ncommand = {{ start = [\"/bin/false\"], cgroup = \"{}\" }}\n",
        cgroup.path
    )
}

#[test]
fn a_suspect_is_traced_by_the_agent_once_it_is_said_to_leak() {
    if !live::can_run("a_suspect_is_traced_by_the_agent_once_it_is_said_to_leak") {
        return;
    }
    let (cgroup, victim) = leaky();
    let agent = Agent::start(&suspected(&cgroup));
    eventually("the begin of a trace", || agent.log().contains("to see where it grows").then_some(()));
    eventually("its end", || {
        let log = agent.log();
        assert!(!log.contains("cannot see where its memory grows"), "{log}");
        log.contains("traced for").then_some(())
    });
    let (status, text) = get(agent.address(), "/api/v1/traces?service=leaky").expect("answered");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &all[0]["service"], &all[0]["ended"]), (200, &json!("leaky"), &json!("done")), "{text}");
    let kept = all[0]["kept"].as_str().expect("where");
    let (status, svg) = get(agent.address(), &format!("/api/v1/traces/{kept}/flame.svg")).expect("answered");
    assert!(status == 200 && svg.contains("leaky: memory that stays"), "{svg}");
    assert_eq!(agent.metrics().get("defib_traces_total{result=\"done\"}"), Some(1.0));
    // One incarnation is traced once.
    assert_eq!(agent.log().matches("to see where it grows").count(), 1);
    drop(agent);
    drop(victim);
}

#[test]
fn a_trace_has_few_rights_and_ends_with_its_agent_however_that_ends() {
    if !live::can_run("a_trace_has_few_rights_and_ends_with_its_agent_however_that_ends") {
        return;
    }
    // DAC_READ_SEARCH, SYS_PTRACE, PERFMON and BPF (capability.h).
    let rights = format!("{:016x}", (1_u64 << 2) | (1 << 19) | (1 << 38) | (1 << 39));
    for crash in [false, true] {
        let (cgroup, _victim) = leaky();
        let agent = Agent::start(&suspected(&cgroup));
        let tracer = eventually("the process that traces", || child_that_traces(agent.pid()));
        eventually("its rights", || {
            let status = fs::read_to_string(format!("/proc/{tracer}/status")).expect("it lives");
            let has = |name: &str, value: &str| {
                status.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim() == value))
            };
            (["CapEff:", "CapPrm:", "CapBnd:"].iter().all(|set| has(set, &rights)) && has("NoNewPrivs:", "1"))
                .then_some(())
        });
        if crash {
            drop(agent.crash());
        } else {
            drop(agent);
        }
        eventually("its end", || (!Path::new(&format!("/proc/{tracer}")).exists()).then_some(()));
    }
}

/// The child of an agent that traces.
fn child_that_traces(agent: u32) -> Option<u32> {
    let all = fs::read_dir(format!("/proc/{agent}/task")).ok()?.flatten();
    let of_threads = all.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<u32> = of_threads
        .flat_map(|text| text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.into_iter().find(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).any(|word| word == b"--for-agent")
    })
}
