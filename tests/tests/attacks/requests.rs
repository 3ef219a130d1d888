//! Attacks with very many connections, and with a foreign host name.

use std::time::{Duration, Instant};

use tests::{
    attacker::{Attacker, attack},
    defib::get,
    eventually, live,
};

use crate::scene::Scene;

/// Usual timeout of probes by load balancers, Kubernetes and Prometheus.
const PROBE: Duration = Duration::from_secs(2);

#[test]
fn half_sent_requests_keep_no_check_waiting() {
    if !live::can_run("half_sent_requests_keep_no_check_waiting") {
        return;
    }
    let mut scene = Scene::new(1, "");
    let address = scene.agent.address();
    let at = address.to_string();
    eventually("it to be in its pool", || get(address, "/pool/web").filter(|(status, _)| *status == 200));
    let _half = Attacker::start(&[], &["connections", &at, "1000"]);
    let _slow = Attacker::start(&[], &["connections", &at, "100", "--unread", "/metrics"]);
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        for path in ["/healthz", "/pool/web", "/metrics"] {
            let begin = Instant::now();
            let status = get_within(address, path, PROBE).map(|(status, _)| status);
            worst = worst.max(begin.elapsed());
            assert_eq!(status, Some(200), "{path} within {PROBE:?}");
        }
    }
    println!("the slowest of 30 answers took {} ms", worst.as_millis());
    scene.go_through_all();
}

/// Asks from another thread, and waits no longer than `patience`.
fn get_within(address: std::net::SocketAddr, path: &str, patience: Duration) -> Option<(u16, String)> {
    let (send, answer) = std::sync::mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || send.send(get(address, &path)).ok());
    answer.recv_timeout(patience).ok().flatten()
}

#[test]
fn a_foreign_host_name_is_not_served() {
    if !live::can_run("a_foreign_host_name_is_not_served") {
        return;
    }
    let scene = Scene::new(1, "");
    let at = scene.agent.address().to_string();
    let status = |host: &str, path: &str| {
        let output = attack(&[], &["foreign-host", &at, host, path]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    for path in ["/", "/metrics", "/api/v1/services", "/api/v1/incidents", "/api/v1/events"] {
        let refused = status("evil.example", path);
        assert!(refused.starts_with('4'), "{path} as evil.example: {refused}");
    }
    let port = scene.agent.address().port();
    for own in [&at, &format!("localhost:{port}"), "127.0.0.1"] {
        assert_eq!(status(own, "/api/v1/services"), "200", "as {own}");
    }
}
