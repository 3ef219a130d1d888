//! The recipe for nginx, followed: a server that will run out of memory gets nothing new from an nginx that asks Defib, and
//! its death costs nothing there; an nginx without us loses what that server had in hand.

use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address, get},
    eventually, live,
    load::Load,
    nginx::Nginx,
    victim::binary,
};

/// What a server may use.
const LIMIT: u64 = 96 << 20;

#[test]
fn an_nginx_that_asks_defib_loses_nothing_to_an_oom_kill() {
    const NAME: &str = "an_nginx_that_asks_defib_loses_nothing_to_an_oom_kill";
    if !live::can_run(NAME) {
        return;
    }
    if let Some(what) = Nginx::missing() {
        live::skip(NAME, what);
        return;
    }
    let cgroups = [Cgroup::new(Some(LIMIT)), Cgroup::new(Some(LIMIT))];
    let (servers, fronts) = ([free_address(), free_address()], [free_address(), free_address()]);
    let mut config = "[forecast]\nsample = \"200ms\"\n".to_owned();
    for (number, (address, cgroup)) in (1..).zip(servers.iter().zip(&cgroups)) {
        config += &format!(
            "[[service]]\nname = \"web{number}\"\nrestart = true\ngrace = \"2s\"\npool = \"be_web/web{number}\"\n\
             drain_at = 0.8\nhealth = \"http://{address}/healthz\"\n\
             command = {{ start = [\"{}\", \"serve\", \"{}\"], cgroup = \"{}\" }}\n",
            binary("victim").display(),
            address.port(),
            cgroup.path
        );
    }
    let agent = Agent::start(&config);
    for name in ["web1", "web2"] {
        eventually("it to serve", || (agent.try_get(&format!("/pool/{name}"))?.0 == 200).then_some(()));
    }
    let named = [("be_web/web1", servers[0]), ("be_web/web2", servers[1])];
    let nginx = Nginx::start(fronts, &named, agent.address());
    // Requests that must not be sent twice, and that take a while: nginx cannot mend what it has passed on.
    let loads = fronts.map(|front| Load::of(front, 8, "POST", "/slow/50"));
    eventually("some load", || loads.iter().all(|load| load.counts().0 > 100).then_some(()));
    assert!(loads.iter().all(|load| load.counts().1 == 0), "nothing fails before");
    assert!(!nginx.upstream().contains("down"), "{}", nginx.upstream());

    get(servers[0], "/hold/64");
    get(servers[0], "/leak/3072");
    let down = format!("server {} down;", servers[0]);
    eventually("web1 to be taken out", || nginx.upstream().contains(&down).then_some(()));
    let killed = || agent.incidents("web1").iter().any(|incident| incident["cause"]["kind"] == "oom_kill");
    eventually("its OOM kill", || killed().then_some(()));
    eventually("web1 to be in again", || (!nginx.upstream().contains("down")).then_some(()));
    let before = loads.each_ref().map(Load::counts);
    eventually("more load", || {
        loads.iter().zip(before).all(|(load, before)| load.counts().0 > before.0 + 100).then_some(())
    });
    let [(kept_sent, kept), (plain_sent, plain)] = loads.map(Load::stop);
    println!(
        "MEASURED failed requests: {kept} of {kept_sent} with an nginx that asks, {plain} of {plain_sent} with a plain one"
    );
    assert!(plain > 0 && kept == 0, "{kept} failed with an nginx that asks, {plain} with a plain one");
}
