//! Access to the web server: TLS and passwords, with a real Prometheus and curl as clients; crowds that hold all
//! places; foreign names.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use tests::{
    PATIENCE,
    cgroup::Cgroup,
    defib::{Agent, Metrics, free_address, get, run},
    eventually, live,
    monitoring::{self, Prometheus},
    tls::{self, Authority},
    victim::{Victim, binary},
};

/// Of "swordfish".
const HASH: &str = "$2y$10$V95eDw2CNFa3eoylgyV4veHtLD6iIT.aZ9lo0nVkO1B3x6yn2JSei";
const USER: [&str; 2] = ["--user", "prometheus:swordfish"];

fn can_run(name: &str) -> bool {
    if let Some(missing) = tls::missing().or_else(monitoring::missing) {
        live::skip(name, missing);
        return false;
    }
    live::can_run(name)
}

fn tls_config() -> String {
    "tls_server_config:\n  cert_file: web.crt\n  key_file: web.key\n".to_owned()
}

fn users(all: &[&str]) -> String {
    let lines: String = all.iter().map(|user| format!("  {user}: {HASH}\n")).collect();
    format!("basic_auth_users:\n{lines}")
}

/// Configuration of an agent with `web.yml` of that authority.
fn config(authority: &Authority) -> String {
    format!("[http]\nweb_config = \"{}\"\n", authority.path("web.yml").display())
}

fn agent(authority: &Authority, web: &str) -> Agent {
    authority.write("web.yml", web);
    Agent::start(&config(authority))
}

fn metrics(authority: &Authority, agent: &Agent) -> Metrics {
    let (status, text) = authority.ask(agent.address(), "/metrics", &USER).expect("an answer");
    assert_eq!(status, 200, "{text}");
    Metrics(text)
}

#[test]
fn prometheus_scrapes_over_tls_with_a_password_and_nobody_else_gets_in() {
    if !can_run("prometheus_scrapes_over_tls_with_a_password_and_nobody_else_gets_in") {
        return;
    }
    let authority = Authority::new();
    authority.sign("web", 2100);
    let headers = "http_server_config:\n  headers:\n    Strict-Transport-Security: max-age=60\n";
    let agent = agent(&authority, &(tls_config() + headers + &users(&["prometheus"])));
    // As the configuration that is shipped shows it.
    authority.write("password", "swordfish\n");
    let shipped = fs::read_to_string(monitoring::deploy("prometheus/prometheus.yml")).expect("readable");
    let lines = shipped.lines().filter_map(|line| line.strip_prefix("    #")).filter(|line| !line.starts_with(' '));
    let how: String = lines.map(|line| format!("    {line}\n")).collect();
    let how = how
        .replace("/etc/prometheus/defib.password", &authority.path("password").display().to_string())
        .replace("/etc/prometheus/defib-ca.crt", &authority.path("ca.crt").display().to_string());
    assert!(how.contains("scheme: https") && !how.contains("/etc/"), "{how}");
    let target = format!("localhost:{}", agent.address().port());
    let prometheus = Prometheus::start_with(&target, "host-a", free_address(), &how);
    eventually("scrapes", || {
        let up =
            prometheus.query("min_over_time(up{job=\"defib\"}[5s]) == 1 and on(instance) defib_build_info").ok()?;
        (!up.is_empty()).then_some(())
    });

    let ask = |path: &str, how: &[&str]| authority.ask(agent.address(), path, how).expect("an answer");
    for path in ["/", "/incidents/1", "/assets/pages.css", "/metrics", "/readyz", "/api/v1/services", "/api/v1/events"]
    {
        for how in [
            &[][..],
            &["--user", "prometheus:Swordfish"],
            &["--user", "prometheus:"],
            &["--user", "nobody:swordfish"],
            &["--header", "Authorization: Bearer swordfish"],
            &["--header", "Authorization: Basic !"],
        ] {
            let (status, body) = ask(path, how);
            assert_eq!((status, body.as_str()), (401, "a user and the right password are needed\n"), "{path} {how:?}");
        }
    }
    let (status, page) = ask("/", &[&USER[..], &["--include"]].concat());
    assert!(status == 200 && page.contains("<h1>Services</h1>"), "{page}");
    assert!(page.contains("strict-transport-security: max-age=60\r\n"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    // Load balancers and those who look whether the agent lives need none.
    assert_eq!(ask("/healthz", &[]), (200, "alive\n".to_owned()));
    assert_eq!(ask("/pool/nothing", &[]).0, 404);
    assert_eq!(ask("/pool/../metrics", &["--path-as-is"]).0, 404);
    // Old TLS, no TLS, and a certificate of somebody else.
    let old = authority.ask(agent.address(), "/healthz", &["--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0"]);
    assert!(old.is_err(), "{old:?}");
    assert_eq!(authority.ask(agent.address(), "/healthz", &["--tls-max", "1.2"]).expect("an answer").0, 200);
    let (status, body) = get(agent.address(), "/metrics").expect("an answer");
    assert!(status == 400 && body.contains("https://"), "{body}");
    assert!(Authority::new().ask(agent.address(), "/healthz", &[]).is_err());
    let metrics = metrics(&authority, &agent);
    assert_eq!(metrics.get("defib_http_refused_total{reason=\"password\"}"), Some(42.0));
    assert!(metrics.get("defib_http_refused_total{reason=\"handshake\"}") >= Some(3.0));
    // The operator's own way in is the socket.
    assert!(agent.control(&["status"]).status.success());
}

#[test]
fn certificates_and_users_change_under_load_and_what_is_wrong_changes_nothing() {
    if !can_run("certificates_and_users_change_under_load_and_what_is_wrong_changes_nothing") {
        return;
    }
    let authority = Authority::new();
    // It has expired; whoever looks says so.
    authority.sign("web", 2001);
    let agent = agent(&authority, &(tls_config() + &users(&["prometheus"])));
    let error = authority.ask(agent.address(), "/healthz", &[]).expect_err("expired");
    assert!(error.contains("expired"), "{error}");
    authority.sign("web", 2100);
    eventually("the new certificate", || authority.ask(agent.address(), "/healthz", &[]).ok());

    let serial = || {
        let how = [&USER[..], &["--verbose", "--stderr", "-"]].concat();
        let (_, text) = authority.ask(agent.address(), "/healthz", &how).expect("an answer");
        text.lines().find(|line| line.contains("expire date")).map(str::to_owned).expect("it tells")
    };
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let begin = Instant::now();
                while !stop.load(Ordering::Relaxed) && begin.elapsed() < 3 * PATIENCE {
                    let (status, body) = authority.ask(agent.address(), "/metrics", &USER).expect("an answer");
                    assert!(status == 200 && body.ends_with('\n'), "{status} {body}");
                    asked.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        for until in [2101, 2102, 2103] {
            authority.sign("web", until);
            eventually("the next certificate", || serial().contains(&until.to_string()).then_some(()));
        }
        for (name, text) in [
            ("web.crt", "no certificate\n"),
            ("web.yml", "tls_server_config: [\n"),
            ("web.yml", ""), // It would take away both, as if it were half-written.
            ("web.yml", "tls_server_config:\n  cert_file: web.crt\n  key_file: web.key\n  cipher_suites: []\n"),
        ] {
            let right = fs::read_to_string(authority.path(name)).expect("readable");
            authority.write(name, text);
            let ok = || metrics(&authority, &agent).get("defib_web_config_reload_success");
            eventually("the refusal", || (ok() == Some(0.0)).then_some(()));
            assert!(serial().contains("2103"), "the old one stays");
            authority.write(name, &right);
            eventually("its end", || (ok() == Some(1.0)).then_some(()));
        }
        // Another user; the first is none any more, on connections that stand too.
        let second = tls_config() + &users(&["prometheus", "second"]);
        authority.write("web.yml", &second);
        let in_now =
            || authority.ask(agent.address(), "/metrics", &["--user", "second:swordfish"]).expect("an answer").0;
        eventually("the second user", || (in_now() == 200).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} scrapes over 3 certificates and 4 wrong files, none of which failed", asked.load(Ordering::Relaxed));
    assert!(asked.load(Ordering::Relaxed) > 0);
    authority.write("web.yml", &(tls_config() + &users(&["second"])));
    let out_now = || authority.ask(agent.address(), "/metrics", &USER).expect("an answer").0;
    eventually("the end of the first user", || (out_now() == 401).then_some(()));
    let log = agent.log();
    for want in ["web.crt has no certificate", "TLS would be gone", "key 'cipher_suites': cannot be chosen"] {
        assert_eq!(log.matches(want).count(), 1, "{want:?} once: {log}");
    }
    assert!(!log.contains(HASH), "{log}");
}

#[test]
fn a_flood_of_wrong_passwords_keeps_out_nobody_who_is_known() {
    if !can_run("a_flood_of_wrong_passwords_keeps_out_nobody_who_is_known") {
        return;
    }
    let authority = Authority::new();
    authority.sign("web", 2100);
    let agent = agent(&authority, &(tls_config() + &users(&["prometheus"])));
    // Known from here on.
    drop(metrics(&authority, &agent));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..40 {
            let (stop, authority, agent) = (&stop, &authority, &agent);
            scope.spawn(move || {
                let begin = Instant::now();
                let wrong = format!("user-{number}:guess");
                while !stop.load(Ordering::Relaxed) && begin.elapsed() < 3 * PATIENCE {
                    let (status, _) = authority.ask(agent.address(), "/", &["--user", &wrong]).expect("an answer");
                    assert!(status == 401 || status == 503, "{status}");
                }
            });
        }
        let busy = |metrics: &Metrics| metrics.get("defib_http_refused_total{reason=\"busy\"}") > Some(0.0);
        eventually("the crowd", || busy(&metrics(&authority, &agent)).then_some(()));
        for _ in 0..10 {
            // Each is let in, whatever waits.
            drop(metrics(&authority, &agent));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn clients_show_a_certificate_where_that_is_wanted() {
    if !can_run("clients_show_a_certificate_where_that_is_wanted") {
        return;
    }
    let authority = Authority::new();
    authority.sign("web", 2100);
    authority.sign("scraper", 2100);
    let web = tls_config() + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n";
    let agent = agent(&authority, &web);
    let files = ["scraper.crt", "scraper.key"].map(|name| authority.path(name).display().to_string());
    let shown = ["--cert", &files[0], "--key", &files[1]];
    assert_eq!(authority.ask(agent.address(), "/metrics", &shown).expect("an answer").0, 200);
    assert!(authority.ask(agent.address(), "/metrics", &[]).is_err());
    // It holds for health checks too: TLS comes before all else.
    assert!(authority.ask(agent.address(), "/healthz", &[]).is_err());
    let other = Authority::new();
    other.sign("scraper", 2100);
    let files = ["scraper.crt", "scraper.key"].map(|name| other.path(name).display().to_string());
    assert!(authority.ask(agent.address(), "/metrics", &["--cert", &files[0], "--key", &files[1]]).is_err());
}

#[test]
fn what_is_wrong_is_found_before_a_start_and_by_a_reload_with_one_line() {
    let authority = Authority::new();
    authority.sign("web", 2100);
    authority.write("web.yml", &(tls_config() + &users(&["prometheus"])));
    authority.write("defib.toml", &config(&authority));
    let file = authority.path("defib.toml").display().to_string();
    let check = || run(&["check", &file]);
    let output = check();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("web.yml: valid; over TLS, with passwords"), "{output:?}");
    let refused = |want: &str| {
        for words in [&["check", &file][..], &["run", "--config", &file]] {
            let output = run(words);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.contains(want) && stderr.lines().count() == 1, "{want:?} is missing in: {stderr}");
        }
    };
    authority.write("web.yml", "tls_server_config:\n  certificate: web.crt\n");
    refused("web.yml:2: key 'certificate': ");
    authority.write("web.yml", &tls_config());
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(authority.path("web.key"), open).expect("set");
    refused("web.key can be written by everybody, who could have this agent do anything as root: 'chmod go-w ");
    if !can_run("what_is_wrong_is_found_before_a_start_and_by_a_reload_with_one_line") {
        return;
    }
    authority.sign("web", 2100);
    let agent = agent(&authority, &(tls_config() + &users(&["prometheus"])));
    authority.write("web.yml", "rate_limit: {}\n");
    agent.reload(&config(&authority));
    eventually("the refusal", || {
        agent.log().contains("the configuration is wrong, and the old one stays").then_some(())
    });
    assert_eq!(metrics(&authority, &agent).get("defib_config_reload_success"), Some(0.0));
}

/// Connections of one crowd.
const CROWD: usize = 1000;
/// Rounds of requests during the crowd.
const ROUNDS: usize = 300;

/// Sends the requests of probes, load balancers and Prometheus, and prints how long the answers took.
fn ask_amid(agent: &Agent, what: &str) {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for (path, wanted) in [("/healthz", 200), ("/pool/web", 200)] {
            let begin = Instant::now();
            let (status, body) = agent.try_get(path).unwrap_or_else(|| panic!("{path} is not answered amid {what}"));
            times.push(begin.elapsed());
            assert_eq!(status, wanted, "{path}: {body}");
        }
        if round % 30 == 0 {
            assert_eq!(agent.metrics().get("defib_service_up{service=\"web\"}"), Some(1.0));
        }
    }
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "MEASURED {what}: /healthz and /pool in ms: p50 {:.2}, p99 {:.2}, max {:.2} of {}",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

#[test]
fn no_crowd_keeps_out_probes_load_balancers_and_prometheus() {
    if !live::can_run("no_crowd_keeps_out_probes_load_balancers_and_prometheus") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&format!(
        "[[service]]\nname = \"web\"\nrestart = true\nhealth = \"exec:/bin/true\"\npool = \"be_web/web1\"\n\
         command = {{ start = [\"{}\", \"idle\"], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        cgroup.path
    ));
    eventually("it to serve", || (agent.try_get("/pool/web")?.0 == 200).then_some(()));
    ask_amid(&agent, "peace");
    let (address, count) = (agent.address().to_string(), CROWD.to_string());
    let crowd = Victim::start(None, &["--uid", "65534", "crowd", &address, &count]);
    eventually("the crowd", || {
        let evicted = agent.metrics().get("defib_http_refused_total{reason=\"evicted\"}");
        (evicted > Some(500.0)).then_some(())
    });
    ask_amid(&agent, &format!("{CROWD} connections of another user"));
    crowd.kill();
}

#[test]
fn a_crowd_over_tls_keeps_out_nobody_either() {
    if !can_run("a_crowd_over_tls_keeps_out_nobody_either") {
        return;
    }
    let authority = Authority::new();
    authority.sign("web", 2100);
    let agent = agent(&authority, &tls_config());
    let (address, count) = (agent.address().to_string(), CROWD.to_string());
    let crowd = Victim::start(None, &["--uid", "65534", "crowd", &address, &count, "--tls"]);
    let refused = || metrics(&authority, &agent).get("defib_http_refused_total{reason=\"evicted\"}");
    eventually("the crowd", || (refused() > Some(500.0)).then_some(()));
    for _ in 0..30 {
        assert_eq!(authority.ask(agent.address(), "/healthz", &[]).expect("an answer").0, 200);
    }
    crowd.kill();
}

#[test]
fn a_name_that_points_here_from_elsewhere_reads_nothing() {
    if !live::can_run("a_name_that_points_here_from_elsewhere_reads_nothing") {
        return;
    }
    let agent = Agent::start("[http]\nhosts = [\"defib.example\"]\n");
    let ask = |path: &str, host: &str| {
        let mut stream = TcpStream::connect(agent.address()).expect("connected");
        write!(stream, "GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).expect("a status");
        (status, answer)
    };
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let names = ["127.0.0.1".to_owned(), "localhost:9669".to_owned(), "defib.example".to_owned(), own];
    for path in ["/", "/metrics", "/readyz", "/api/v1/services", "/api/v1/incidents"] {
        let (status, answer) = ask(path, "Host: evil.example:9669\r\n");
        assert_eq!(status, 421, "{path}: {answer}");
        assert!(answer.contains("add it to hosts in [http]") && !answer.contains("defib_build_info"), "{answer}");
        for name in &names {
            assert_eq!(ask(path, &format!("Host: {name}\r\n")).0, 200, "{path} as {name}");
        }
        assert_eq!(ask(path, "").0, 200, "{path}: no browser leaves it out");
    }
    // Answers for load balancers contain no secrets, and load balancers use any host name.
    assert_eq!(ask("/healthz", "Host: evil.example\r\n").0, 200);
    assert_eq!(ask("/pool/nothing", "Host: evil.example\r\n").0, 404);
    assert_eq!(agent.metrics().get("defib_http_refused_total{reason=\"host\"}"), Some(5.0));
}
