//! `defib forecast` as an operator runs it: a recorded file, and a real Prometheus that was given the same history.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tests::{
    defib::{run, scratch},
    eventually, live,
};

const MINUTE: u64 = 60;
const DAY: u64 = 1440 * MINUTE;
/// Longer than the 11,000 minutes that a server answers in one piece.
const DAYS: u64 = 9;
const LIMIT: u64 = 2_000_000_000;

/// A minute of a service that leaks 200 MB a day and is restarted every day: time, start, bytes.
fn history(end: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let begin = end - DAYS * DAY;
    (0..DAYS * DAY / MINUTE).map(move |minute| {
        let time = begin + minute * MINUTE;
        let uptime = minute * MINUTE % DAY;
        (time, time - uptime, 300_000_000 + uptime * 2315 + minute * 7919 % 101 * 20_000)
    })
}

fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn check(report: &Value, end: u64) {
    assert_eq!(report["verdict"], "masked_leak", "{report}");
    let first = report["first_alert_time"].as_f64().expect("it alerted");
    assert!(first < (end - 4 * DAY) as f64, "{report}");
    let growth = report["growth_bytes_per_hour"].as_f64().expect("known") / 3600.0;
    assert!((growth / 2315.0 - 1.0).abs() < 0.1, "{report}");
}

#[test]
fn a_recorded_file_is_replayed() {
    let place = scratch();
    let end = 1_700_000_000;
    let mut text = String::from("time,start,bytes,limit\n");
    for (time, start, bytes) in history(end) {
        writeln!(text, "{time},{start},{bytes},{LIMIT}").expect("a string takes it");
    }
    let (file, picture) = (place.path().join("web.csv"), place.path().join("web.svg"));
    fs::write(&file, text).expect("written");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    check(&report(&run(&["forecast", &path(&file), "--json", "--svg", &path(&picture)])), end);
    assert!(fs::read_to_string(&picture).expect("drawn").starts_with("<svg"));
    let people = String::from_utf8(run(&["forecast", &path(&file)]).stdout).expect("UTF-8");
    assert!(people.contains("only restarts keep it alive") && people.contains("limit"), "{people}");

    fs::write(&file, "time,start,bytes,limit\n1,1,1,1\n2,1,lots,1\n").expect("written");
    let wrong = run(&["forecast", &path(&file)]);
    let stderr = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("line 3, column bytes: 'lots' is no number") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(run(&["forecast"]).status.code(), Some(2), "neither a file nor a server");
}

/// A Prometheus that ends with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_prometheus_is_asked_for_the_same() {
    let name = "a_prometheus_is_asked_for_the_same";
    let version = Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return live::skip(name, "needs prometheus and promtool (Debian package prometheus)");
    }
    let place = scratch();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let mut text = String::new();
    for (metric, value) in [("web_bytes", 2), ("web_start", 1)] {
        writeln!(text, "# TYPE {metric} gauge").expect("a string takes it");
        for (time, start, bytes) in history(now) {
            let value = if value == 1 { start } else { bytes };
            writeln!(text, "{metric}{{job=\"web\"}} {value} {time}").expect("a string takes it");
        }
    }
    let (input, data) = (place.path().join("history"), place.path().join("data"));
    fs::write(&input, text + "# EOF\n").expect("written");
    let filled = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&input, &data])
        .output()
        .expect("promtool runs");
    assert!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
    let config = place.path().join("prometheus.yml");
    fs::write(&config, "").expect("written");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port").local_addr().expect("bound").port();
    let server = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--storage.tsdb.retention.time=60d")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Prometheus(server.expect("prometheus runs"));

    let url = format!("http://127.0.0.1:{port}");
    let limit = LIMIT.to_string();
    let ask = |query: &str, more: &[&str]| {
        let arguments =
            ["forecast", "--json", "--prometheus", &url, "--range", "10d", "--limit", &limit, "--query", query];
        run(&[&arguments, more].concat())
    };
    let answer = eventually("Prometheus", || {
        Some(ask("web_bytes{job=\"web\"}", &["--start-query", "web_start"])).filter(|output| output.status.success())
    });
    check(&report(&answer), now);
    // Starts can be seen in falls of memory too.
    let guessed = report(&ask("web_bytes", &[]));
    assert_eq!(guessed["verdict"], "masked_leak", "{guessed}");

    for (query, want) in [
        ("{job=\"web\"}", "gives 2 series"),
        ("no_such_series", "there is no series for no_such_series"),
        ("web_bytes{", "parse error"),
    ] {
        let output = ask(query, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && stderr.contains(want), "{stderr}");
    }
}
