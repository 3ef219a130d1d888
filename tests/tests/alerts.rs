//! What an operator is told: the agent's own alerts and the rules that are shipped, in a real Alertmanager, of real OOM kills.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address},
    eventually, live,
    monitoring::{self, Alertmanager, Prometheus},
    victim::binary,
};

const MIB: u64 = 1024 * 1024;
/// From the death to when Alertmanager has it. A scrape would take seconds.
const SOON: Duration = Duration::from_millis(200);

/// True when the test can run: as root, and with the programs.
fn can_run(name: &str) -> bool {
    if !live::can_run(name) {
        return false;
    }
    let Some(missing) = monitoring::missing() else { return true };
    live::skip(name, &format!("needs {missing}"));
    false
}

/// A service that runs out of memory when it is told to, once, and lives after that.
struct Leaky {
    cgroup: Cgroup,
    place: tempfile::TempDir,
}

impl Leaky {
    fn new() -> Self {
        Self { cgroup: Cgroup::new(Some(16 * MIB)), place: tempfile::tempdir().expect("a directory") }
    }

    fn config(&self, name: &str, settings: &str) -> String {
        let place = self.place.path().display();
        format!(
            "[[service]]\nname = \"{name}\"\nrestart = true\nhealth = \"exec:/bin/true\"\n{settings}\n\
             command = {{ start = [\"/bin/sh\", \"-c\", \"mkdir {place}/once || exec sleep 1000; \
             until [ -e {place}/go ]; do sleep 0.02; done; exec {} leak\"], cgroup = \"{}\" }}\n",
            binary("victim").display(),
            self.cgroup.path
        )
    }

    fn run_out(&self) {
        std::fs::write(self.place.path().join("go"), "").expect("written");
    }
}

/// `[alertmanager]` for these.
fn told(peers: &[SocketAddr]) -> String {
    let urls: Vec<_> = peers.iter().map(|peer| format!("\"http://{peer}\"")).collect();
    format!("[alertmanager]\nurls = [{}]\nlabels = {{ instance = \"host-a\" }}\n", urls.join(", "))
}

/// Waits until the service lives and no outage is open.
fn healthy(agent: &Agent, name: &str) {
    eventually("health", || {
        let metrics = agent.metrics();
        let get = |metric: &str| metrics.get(&format!("{metric}{{service=\"{name}\"}}"));
        (get("defib_service_up") == Some(1.0) && get("defib_incidents_open") == Some(0.0)).then_some(())
    });
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("a time: {value}"))
}

fn sent(agent: &Agent, peer: SocketAddr, result: &str) -> f64 {
    let series = format!("defib_alerts_sent_total{{peer=\"{peer}\",result=\"{result}\"}}");
    agent.metrics().get(&series).unwrap_or_else(|| panic!("{series} exists from the start"))
}

#[test]
fn the_rules_and_their_tests_pass() {
    const NAME: &str = "the_rules_and_their_tests_pass";
    if let Some(missing) = monitoring::missing() {
        live::skip(NAME, &format!("needs {missing}"));
        return;
    }
    let file = |name: &str| monitoring::deploy(name).to_str().expect("UTF-8").to_owned();
    for (program, words, name) in [
        ("promtool", &["check", "rules"][..], "prometheus/defib.rules.yml"),
        ("promtool", &["test", "rules"], "prometheus/defib.rules.test.yml"),
        ("promtool", &["check", "config"], "prometheus/prometheus.yml"),
        ("amtool", &["check-config"], "prometheus/alertmanager.yml"),
    ] {
        let (success, text) = monitoring::tool(program, &[words, &[&file(name)]].concat(), "");
        assert!(success, "{program} {words:?} {name}: {text}");
    }
    // A rule without a test would be one that nobody has seen fire.
    let read = |name: &str| std::fs::read_to_string(monitoring::deploy(name)).expect("readable");
    let (rules, cases) = (read("prometheus/defib.rules.yml"), read("prometheus/defib.rules.test.yml"));
    let runbook = std::fs::read_to_string(monitoring::deploy("../docs/alerts.md")).expect("the runbook");
    let names: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 10, "{names:?}");
    let tests: Vec<_> = cases.split("eval_time:").collect();
    for name in names {
        let named: Vec<_> = tests.iter().filter(|test| test.contains(&format!("alertname: {name}"))).collect();
        assert!(named.iter().any(|test| test.contains("exp_labels")), "{name} is never seen to fire");
        let heading = format!("## {name}\n");
        assert!(runbook.contains(&heading), "docs/alerts.md has no chapter {name:?}");
        assert!(rules.contains(&format!("runbook: docs/alerts.md#{}\n", name.to_lowercase())), "{name}");
    }
}

#[test]
fn an_oom_kill_is_one_alert_from_both_ways_and_its_outage_ends_with_healing() {
    if !can_run("an_oom_kill_is_one_alert_from_both_ways_and_its_outage_ends_with_healing") {
        return;
    }
    let leaky = Leaky::new();
    let alertmanager = Alertmanager::start(free_address());
    let agent =
        Agent::start(&format!("{}{}", told(&[alertmanager.address()]), leaky.config("leaky", "grace = \"4s\"")));
    let prometheus = Prometheus::start(agent.address(), "host-a", alertmanager.address());
    healthy(&agent, "leaky");
    eventually("the first scrape", || prometheus.query("defib_service_up").ok().filter(|series| !series.is_empty()));
    eventually("the end of the alert of the first start", || {
        alertmanager.alerts("DefibServiceDown", "leaky").is_empty().then_some(())
    });
    leaky.run_out();
    let alert = eventually("the direct alert", || alertmanager.alerts("DefibServiceDown", "leaky").pop());
    let died = agent.incidents("leaky").into_iter().find_map(|incident| {
        let found = incident["cause"]["kind"] == "oom_kill";
        found.then(|| time(&incident["began"]))
    });
    let died = died.unwrap_or_else(|| time(&alert["startsAt"]));
    let took = time(&alert["updatedAt"]).duration_since(died);
    println!("MEASURED death to alert accepted: {:.1} ms", took.as_secs_f64() * 1e3);
    assert!(took.unsigned_abs() <= SOON, "{took:?}: {alert}");
    let early = time(&alert["startsAt"]).duration_since(died).unsigned_abs();
    assert!(early < Duration::from_millis(5), "it began with the death, not {early:?} off");
    let description = alert["annotations"]["description"].as_str().expect("text");
    assert!(description.contains("killed for want of memory"), "{description}");

    // The rule's alert is the same one: Prometheus has told of it, too, and there are not two.
    let labels = eventually("the rule", || {
        let firing = |alert: &Value| alert["state"] == "firing";
        prometheus.alerts("DefibOomKill", "leaky").into_iter().find(firing).map(|alert| alert["labels"].clone())
    });
    let both = eventually("Prometheus to tell of it", || {
        let all = alertmanager.alerts("DefibOomKill", "leaky");
        assert!(all.len() <= 1, "two alerts of one kill: {all:?}");
        all.into_iter().find(|alert| alert["generatorURL"].as_str().is_some_and(|url| url.contains("g0.expr")))
    });
    assert_eq!(both["labels"], labels, "the labels of the rule");
    let began = time(&both["startsAt"]).duration_since(died).unsigned_abs();
    assert!(began < Duration::from_millis(5), "the earlier begin, the agent's own, holds: {both}");
    let groups = alertmanager.groups("leaky");
    let of_kill: Vec<_> = groups.iter().filter(|group| group["labels"]["alertname"] == "DefibOomKill").collect();
    assert_eq!(of_kill.len(), 1, "{groups:?}");

    healthy(&agent, "leaky");
    eventually("the end of the outage's alert", || {
        alertmanager.alerts("DefibServiceDown", "leaky").is_empty().then_some(())
    });
    assert_eq!(alertmanager.alerts("DefibOomKill", "leaky").len(), 1, "that it was killed is still worth knowing");
    assert_eq!(sent(&agent, alertmanager.address(), "refused") + sent(&agent, alertmanager.address(), "failed"), 0.0);
}

#[test]
fn what_happens_while_alertmanager_and_agent_are_away_is_still_told() {
    if !can_run("what_happens_while_alertmanager_and_agent_are_away_is_still_told") {
        return;
    }
    let leaky = Leaky::new();
    let address = free_address();
    let config = format!("{}{}", told(&[address]), leaky.config("leaky", "grace = \"50ms\""));
    let agent = Agent::start(&config);
    healthy(&agent, "leaky");
    leaky.run_out();
    let killed = "defib_oom_kills_total{scope=\"memcg\",service=\"leaky\"}";
    eventually("the kill", || (agent.metrics().get(killed) == Some(1.0)).then_some(()));
    healthy(&agent, "leaky");
    let died = eventually("the record", || {
        let all = agent.incidents("leaky");
        let found = all.iter().find(|incident| incident["cause"]["kind"] == "oom_kill")?;
        found["ended"].is_string().then(|| time(&found["began"]))
    });
    assert!(sent(&agent, address, "failed") > 0.0, "nobody was there");
    let agent = Agent::start_in(agent.crash(), &config);
    let alertmanager = Alertmanager::start(address);
    let alert = eventually("the kill to be told", || alertmanager.alerts("DefibOomKill", "leaky").pop());
    let off = time(&alert["startsAt"]).duration_since(died).unsigned_abs();
    assert!(off < Duration::from_millis(50), "it began with the kill, not {off:?} off: {alert}");
    assert_eq!(alertmanager.alerts("DefibServiceDown", "leaky"), [] as [Value; 0], "it lives");
    assert_eq!(agent.metrics().get("defib_alerts_dropped_total"), Some(0.0));
    assert!(agent.log().contains("takes alerts again"), "{}", agent.log());
}

/// Reads a whole request, so that the answer is not lost with a connection that is reset.
fn swallow(stream: &mut TcpStream) {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    let is_whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        (body.len() >= length.parse().ok()?).then_some(())
    };
    while is_whole(&request).is_none() {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&part[..count]),
        }
    }
}

/// A peer that finds every alert wrong, and counts how often it was asked.
fn refusing() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            swallow(&mut stream);
            count.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\nconnection: close\r\n\r\nwrong").ok();
        }
    });
    (address, asked)
}

#[test]
fn a_peer_that_refuses_is_left_alone_and_holds_up_nobody() {
    if !can_run("a_peer_that_refuses_is_left_alone_and_holds_up_nobody") {
        return;
    }
    let leaky = Leaky::new();
    let alertmanager = Alertmanager::start(free_address());
    let (refusing, asked) = refusing();
    let peers = [refusing, alertmanager.address()];
    let agent = Agent::start(&format!("{}{}", told(&peers), leaky.config("leaky", "grace = \"50ms\"")));
    healthy(&agent, "leaky");
    leaky.run_out();
    eventually("the other peer to hear of it", || alertmanager.alerts("DefibOomKill", "leaky").pop());
    healthy(&agent, "leaky");
    eventually("the end to be told", || alertmanager.alerts("DefibServiceDown", "leaky").is_empty().then_some(()));
    // Two outages begin and end, and one kill: five things to say, of which some went together first, and then alone.
    sleep(Duration::from_secs(1));
    let before = asked.load(Ordering::Relaxed);
    assert!((1..=12).contains(&before), "{before}");
    sleep(Duration::from_secs(5));
    assert_eq!(asked.load(Ordering::Relaxed), before, "it is not asked again");
    assert!(sent(&agent, refusing, "refused") >= 1.0 && sent(&agent, refusing, "accepted") == 0.0);
    assert!(sent(&agent, alertmanager.address(), "accepted") >= 1.0);
    let log = agent.log();
    assert_eq!(log.matches("alerts are not delivered").count(), 1, "said once: {log}");
    assert!(log.contains("400 Bad Request: wrong"), "{log}");
}

#[test]
fn a_paused_service_is_nobody_s_alarm() {
    if !can_run("a_paused_service_is_nobody_s_alarm") {
        return;
    }
    let leaky = Leaky::new();
    let alertmanager = Alertmanager::start(free_address());
    let agent =
        Agent::start(&format!("{}{}", told(&[alertmanager.address()]), leaky.config("leaky", "grace = \"50ms\"")));
    healthy(&agent, "leaky");
    eventually("the end of the first start", || {
        alertmanager.alerts("DefibServiceDown", "leaky").is_empty().then_some(())
    });
    assert!(agent.control(&["pause", "leaky", "--for", "1h"]).status.success());
    assert_eq!(agent.metrics().get("defib_service_paused{service=\"leaky\"}"), Some(1.0));
    leaky.run_out();
    let held = "defib_restart_suppressed_total{reason=\"maintenance\",service=\"leaky\"}";
    eventually("the decision", || (agent.metrics().get(held) == Some(1.0)).then_some(()));
    sleep(Duration::from_secs(1));
    for name in ["DefibServiceDown", "DefibOomKill"] {
        assert_eq!(alertmanager.alerts(name, "leaky"), [] as [Value; 0]);
    }
    assert_eq!(agent.metrics().get("defib_alerts_active"), Some(0.0));
    assert!(agent.control(&["resume", "leaky"]).status.success());
    assert_eq!(agent.metrics().get("defib_service_paused{service=\"leaky\"}"), Some(0.0));
    eventually("what still holds", || alertmanager.alerts("DefibOomKill", "leaky").pop());
}

/// Names of metrics in an expression: words that begin with `defib`, `instance…:defib` or `process_`.
fn names(expression: &str) -> Vec<&str> {
    let word = |byte: char| !(byte.is_ascii_alphanumeric() || byte == '_' || byte == ':');
    let ours = |name: &&str| name.contains("defib_") || name.starts_with("process_");
    expression.split(word).filter(ours).collect()
}

/// All expressions of the dashboard, with what stands for a variable filled in.
fn expressions(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(map) => {
            let mut all: Vec<_> = map.values().flat_map(expressions).collect();
            if let Some(expression) = map.get("expr").and_then(Value::as_str) {
                let filled = expression.replace("$instance", ".*").replace("$service", ".*");
                all.push(filled.replace("$__rate_interval", "1m").replace("$__range", "1m"));
            }
            all
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_scrape_is_clean_and_has_all_that_rules_and_dashboard_ask_for() {
    if !can_run("a_scrape_is_clean_and_has_all_that_rules_and_dashboard_ask_for") {
        return;
    }
    let leaky = Leaky::new();
    let alertmanager = Alertmanager::start(free_address());
    // Nobody answers there; the series exist all the same.
    let fleet = format!("[fleet]\netcd = [\"http://{}\"]\n", free_address());
    let service = leaky.config("leaky", "grace = \"50ms\"");
    let agent = Agent::start(&format!("{}{fleet}{service}", told(&[alertmanager.address()])));
    let prometheus = Prometheus::start(agent.address(), "host-a", alertmanager.address());
    healthy(&agent, "leaky");
    let scrape = agent.metrics().0;
    let (success, text) = monitoring::tool("promtool", &["check", "metrics"], &scrape);
    assert!(success && text.trim().is_empty(), "promtool check metrics: {text}");

    eventually("two scrapes", || {
        let count = prometheus.query("count_over_time(defib_service_up{service=\"leaky\"}[1m]) > 2");
        count.ok().filter(|series| !series.is_empty())
    });
    let rules = std::fs::read_to_string(monitoring::rules()).expect("readable");
    let text = std::fs::read_to_string(monitoring::deploy("grafana/defib.json")).expect("readable");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let expressions = expressions(&dashboard);
    assert!(expressions.len() >= 15, "{expressions:?}");
    for expression in &expressions {
        if let Err(error) = prometheus.query(expression) {
            panic!("{expression}: {error}");
        }
    }
    let recorded: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let rule_lines = rules.lines().filter(|line| !line.trim().starts_with('#'));
    let asked = expressions.iter().map(String::as_str).chain(rule_lines.filter(|line| !line.contains("record:")));
    for name in asked.flat_map(names) {
        // Units are looked at through systemd, which may not be here; what nothing has leaked has no rate.
        if name == "defib_unit_oom_restart_covered" || name == "defib_bpf_run_seconds_total" {
            continue;
        }
        let bare = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let exists = scrape.contains(&format!("# TYPE {bare} ")) || recorded.contains(&name);
        assert!(exists, "nothing is called {name}");
    }
    assert!(Path::new(&monitoring::deploy("grafana/defib.json")).exists());
}
