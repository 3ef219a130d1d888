use std::net::TcpListener;

use prometheus::Registry;

use super::*;

fn config(etcd: &str) -> FleetConfig {
    let text = format!("[fleet]\netcd = [{etcd}]\nttl = '5s'\n");
    crate::config::Config::parse(std::path::Path::new("x"), &text).expect("valid").fleet
}

fn value(registry: &Registry, name: &str) -> f64 {
    let family = registry.gather().into_iter().find(|family| family.name() == name).expect("registered");
    let metric = |metric: &prometheus::proto::Metric| metric.get_counter().get_value() + metric.get_gauge().get_value();
    family.get_metric().iter().map(metric).sum()
}

#[tokio::test]
async fn without_etcd_everything_is_granted_for_ever() {
    let permit = Fleet::off().acquire("be_web", "web.service").await.expect("granted");
    assert!(permit.is_valid(u64::MAX) && permit.slot().is_none());
    permit.release().await.expect("nobody to tell");
}

#[tokio::test]
async fn when_nobody_answers_it_is_refused_and_not_asked_again_at_once() {
    // Bound and closed again: nobody listens.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let (config, registry) = (config(&format!("'http://{address}'")), Registry::new());
    let metrics = FleetMetrics::new(&registry, &config.etcd, ["be_web"]).expect("names are free");
    let fleet = Fleet::new(&config, metrics);
    for _ in 0..2 {
        let refused = fleet.acquire("be_web", "web.service").await.expect_err("refused");
        assert_eq!(refused.why.name(), "unreachable");
        assert!(refused.to_string().contains(&address.to_string()), "{refused}");
        assert!(refused.again_in > Duration::ZERO && refused.again_in < Duration::from_secs(8));
    }
    assert!(fleet.list().await.is_err());
    let asked = ["defib_fleet_requests_total", "defib_fleet_refused_total", "defib_fleet_up", "defib_fleet_slots_held"];
    assert_eq!(asked.map(|name| value(&registry, name)), [2.0, 1.0, 0.0, 0.0], "acquire once, list once");
}

#[test]
fn a_service_counts_in_its_backend_or_by_its_own_name() {
    let name = |text: &str| text.parse::<pool::Name>().expect("a name");
    assert_eq!(pool_of(Some(&name("be_web/web1")), "web.service"), "be_web");
    assert_eq!(pool_of(Some(&name("web1")), "web.service"), "web.service");
    assert_eq!(pool_of(None, "web.service"), "web.service");
}

#[test]
fn a_refusal_says_who_is_out() {
    let holder = |host: &str| {
        Some(Holder { host: host.to_owned(), service: "web.service".to_owned(), since: Timestamp::UNIX_EPOCH })
    };
    let full = Why::Full { taken: 4, holders: vec![holder("a"), None, holder("c")] }.to_string();
    assert_eq!(
        full,
        "4 out by plan already, which is as many as may be: web.service on a since 1970-01-01T00:00:00Z, somebody without \
         a name, web.service on c since 1970-01-01T00:00:00Z, …"
    );
}
