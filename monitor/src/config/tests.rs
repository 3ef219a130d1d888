use super::*;

/// The documented sample.
const SAMPLE: &str = include_str!("../../../deploy/defib.toml");

fn error(text: &str) -> String {
    Config::parse(Path::new("x.toml"), text).expect_err("must be refused").to_string()
}

#[test]
fn the_sample_that_is_shipped_is_valid() {
    let config = Config::parse(Path::new("defib.toml"), SAMPLE).expect("valid");
    assert_eq!(config.http.listen, HttpConfig::default().listen);
}

#[test]
fn nothing_configured_means_nothing_restarted() {
    let config = Config::parse(Path::new("x"), "").expect("valid");
    assert!(config.services().is_empty());
    let config = Config::parse(Path::new("x"), "[[service]]\nunit = 'a.service'\n").expect("valid");
    assert!(!config.services()[0].restart);
}

#[test]
fn defaults_reach_every_service_and_each_may_override() {
    let text = "[defaults]\nrestart = true\ngrace = '7s'\nbackoff = { max = '9s' }\n\
        [[service]]\nname = 'a'\ncommand = { start = ['/bin/true'], cgroup = '/a' }\n\
        [[service]]\nunit = 'b-*.service'\nbackoff = { initial = '3s' }\nrestart = false\ngrace = '0s'\nhealth = 'tcp://127.0.0.1:80'\n";
    let services = Config::parse(Path::new("x"), text).expect("valid").services();
    assert_eq!((services[0].restart, services[0].grace), (true, Duration::from_secs(7)));
    assert_eq!((services[1].restart, services[1].grace), (false, Duration::ZERO));
    let backoff = services[1].backoff;
    assert_eq!((backoff.initial, backoff.max), (Duration::from_secs(3), Duration::from_secs(9)), "key by key");
    let Target::Unit(pattern) = &services[1].target else { panic!("a unit") };
    assert!(pattern.matches("b-1.service") && !pattern.matches("a.service"));
}

#[test]
fn errors_name_file_line_key_and_what_is_allowed() {
    for (text, wants) in [
        ("[agent]\nmode = 'fight'\n", &["x.toml:2: key 'mode'", "observe", "dry-run", "act"][..]),
        ("[agent]\nmodus = 'act'\n", &["x.toml:2: key 'modus'", "unknown field", "state_dir"]),
        ("\n[http]\nlisten = 'here'\n", &["x.toml:3: key 'listen'"]),
        ("[http]\nhosts = ['defib.example:9669']\n", &["x.toml:2: key 'hosts'", "without a port"]),
        ("[http]\nhosts = ['*.example']\n", &["x.toml:2: key 'hosts'", "\"*.example\" is not a host name"]),
        ("[http]\nhosts = ['']\n", &["x.toml:2: key 'hosts'"]),
        ("[defaults]\ngrace = '5 parsecs'\n", &["x.toml:2: key 'grace'", "500ms, 2s, 10m"]),
        ("[defaults]\nbudget = { per_service = 'many' }\n", &["x.toml:2: key 'budget'", "5/10m"]),
        ("[[service]]\nunit = 'a'\nhealth = 'ftp://x'\n", &["x.toml:3: key 'health'", "tcp://"]),
        ("[[service]]\nrestart = true\n", &["x.toml:1", "exactly one of unit, container or command"]),
        ("[[service]]\nunit='a'\ncontainer='b'\n", &["x.toml:1", "exactly one"]),
        ("[[service]]\nname='a'\ncommand={start=['true'],cgroup='/a'}\n", &["x.toml:3", "absolute path"]),
        ("[[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/a/../b'}\n", &["x.toml:3", "without . or .."]),
        ("[[service]]\nname='a b'\ncommand={start=['/bin/true'],cgroup='/a'}\n", &["x.toml:1", "allowed are"]),
        (
            "[[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/system.slice'}\n",
            &["x.toml:3", "for this service alone"],
        ),
        (
            "[[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/a'}\n\
             [[service]]\nname='b'\ncommand={start=['/bin/true'],cgroup='/a/b'}\n",
            &["x.toml:4", "share the cgroup"],
        ),
        (
            "[[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/a'}\n\
             [[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/b'}\n",
            &["x.toml:4", "two services of the name"],
        ),
        ("[[service]]\nunit='a'\nbudget={per_host='1/1m'}\n", &["x.toml:3: key 'budget'", "per_service"]),
        ("[alertmanager]\nurls = ['https://am:9093']\n", &["x.toml:2: key 'urls'", "no TLS", "proxy on this host"]),
        ("[alertmanager]\nurls = ['am:9093']\n", &["x.toml:2: key 'urls'", "http://HOST:PORT"]),
        ("[alertmanager]\nurls = ['http://me:secret@am:9093']\n", &["x.toml:2: key 'urls'", "no place in a URL"]),
        ("[alertmanager]\nurls = ['http://am:1', 'http://am:1']\n", &["x.toml:2: key 'urls'", "twice"]),
        ("[alertmanager]\nurls = ['http://am:1']\nlabels = { severity = 'x' }\n", &["x.toml:3: key 'labels'", "own"]),
        ("[alertmanager]\nlabels = { 'a-b' = 'x' }\n", &["x.toml:2: key 'labels'", "letters, digits and _"]),
        ("[alertmanager]\nlabels = { site = '' }\n", &["x.toml:2: key 'labels'", "1 to 256 bytes"]),
        ("[alertmanager]\nurl = 'http://am:1'\n", &["x.toml:2: key 'url'", "urls"]),
        ("[fleet]\netcd = ['https://e:2379']\n", &["x.toml:2: key 'etcd'", "no TLS", "proxy on this host"]),
        ("[fleet]\netcd = ['e:2379']\n", &["x.toml:2: key 'etcd'", "http://HOST:PORT"]),
        ("[fleet]\netcd = ['http://e:2379/v3']\n", &["x.toml:2: key 'etcd'", "has a path"]),
        ("[fleet]\netcd = ['http://root:secret@e:2379']\n", &["x.toml:2: key 'etcd'", "no place in a URL"]),
        ("[fleet]\netcd = ['http://e:2379', 'http://e:2379/']\n", &["x.toml:2: key 'etcd'", "e:2379 is there twice"]),
        ("[fleet]\nmax_unavailable = 0\n", &["x.toml:2: key 'max_unavailable'", "1 to 1000"]),
        ("[fleet]\nprefix = 'defib'\n", &["x.toml:2: key 'prefix'", "/defib/"]),
        ("[fleet]\nttl = '2s'\n", &["x.toml:2: key 'ttl'", "5s to 10m"]),
        ("[fleet]\nttl = '5500ms'\n", &["x.toml:2: key 'ttl'", "whole seconds"]),
        ("[[service]]\nunit='a'\npool='web; shutdown'\n", &["x.toml:3: key 'pool'", "BACKEND/SERVER"]),
        ("[[service]]\nunit='a'\ndrain_at=1.5\n", &["x.toml:3: key 'drain_at'", "0 to 1"]),
        ("[pool]\nhaproxy=['admin.sock']\n", &["x.toml:2: key 'haproxy'", "tcp://ADDRESS:PORT"]),
        ("[pool]\nagent_check='here'\n", &["x.toml:2: key 'agent_check'"]),
        ("[pool]\nhaproxy=['/run/a.sock']\n[[service]]\nunit='a'\npool='web1'\n", &["x.toml:3", "be_web/web1"]),
        (
            "[[service]]\nunit='a'\nrestart=true\nplanned_restart={window='2-5'}\n",
            &["x.toml:4: key 'planned_restart'", "in UTC: 02:00-05:00"],
        ),
        ("[[service]]\nunit='a'\nrestart=true\nplanned_restart={when='soon'}\n", &["x.toml:4", "10m"]),
        ("[[service]]\nunit='a'\nrestart=true\nplanned_restart={drain='-1s'}\n", &["x.toml:4", "is no duration"]),
        ("[[service]]\nunit='a'\nrestart=true\nplanned_restart={min_uptime='9d'}\n", &["x.toml:4", "up to 7d"]),
        ("[[service]]\nunit='a'\nrestart=true\nplanned_restart={windows=''}\n", &["x.toml:4", "window"]),
        ("[[service]]\nunit='a'\nrestart=true\nplanned_restart=true\n", &["x.toml:4: key 'planned_restart'"]),
        ("[[service]]\nunit='a'\nplanned_restart={}\n", &["x.toml:1", "needs restart = true"]),
        (
            "[[service]]\nname='a'\ncommand={start=['/bin/true'],cgroup='/a',stop_timeout='3m'}\n",
            &["x.toml:3: key 'command'", "up to 2m"],
        ),
        ("[defaults]\nbefore_oom={command=['jcmd']}\n", &["x.toml:2: key 'before_oom'", "absolute path"]),
        ("[[service]]\nunit='a'\nbefore_oom={command=['/{pid}']}\n", &["x.toml:3", "absolute path"]),
        (
            "[[service]]\nunit='a'\nbefore_oom={command=['/bin/x','{ppid}']}\n",
            &["x.toml:3: key 'before_oom'", "unknown placeholder", "{pid}, {dir}, {service}"],
        ),
        ("[[service]]\nunit='a'\nbefore_oom={timeout='11m'}\n", &["x.toml:3", "1s to 10m"]),
        ("[[service]]\nunit='a'\nbefore_oom={within='0s'}\n", &["x.toml:3", "1s to 1d"]),
        ("[[service]]\nunit='a'\nbefore_oom={keep='1GB'}\n", &["x.toml:3", "512MiB, 1GiB"]),
        ("[[service]]\nunit='a'\nbefore_oom={keep='1KiB'}\n", &["x.toml:3", "64KiB to 1TiB"]),
        ("[[service]]\nunit='a'\nbefore_oom={keeps='1GiB'}\n", &["x.toml:3", "keep"]),
        ("[defaults]\nplanned_restart={}\n", &["x.toml:2: key 'planned_restart'", "unknown field"]),
        ("[[service]\n", &["x.toml:1"]),
    ] {
        let message = error(text);
        for want in wants {
            assert!(message.contains(want), "{text:?} gives {message:?}, which lacks {want:?}");
        }
        assert!(!message.contains('\n'), "one line: {message:?}");
    }
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
    let message = Config::load(Some(Path::new("/nonexistent/defib.toml"))).expect_err("asked for").to_string();
    assert!(message.contains("/nonexistent/defib.toml") && message.contains("cannot read"), "{message}");
}

#[test]
fn alertmanagers_are_told_by_name_address_and_path() {
    let text = "[alertmanager]\nurls = ['http://am:9093', 'http://[::1]:9094/', 'http://10.0.0.1/am/']\n\
        labels = { instance = 'web1:9669', site = 'nord' }\n";
    let config = Config::parse(Path::new("x"), text).expect("valid");
    let urls: Vec<_> = config.alertmanager.urls.iter().map(|peer| format!("{peer}{}", peer.path())).collect();
    assert_eq!(urls, ["am:9093/api/v2/alerts", "[::1]:9094/api/v2/alerts", "10.0.0.1:80/am/api/v2/alerts"]);
    assert_eq!(config.alertmanager.labels["site"], "nord");
    assert!(Config::parse(Path::new("x"), "").expect("valid").alertmanager.urls.is_empty(), "nobody is told unasked");
}

#[test]
fn a_pool_is_read_with_its_services() {
    let text = "[pool]\nagent_check = '127.0.0.1:9670'\nhaproxy = ['/run/haproxy/admin.sock', 'tcp://127.0.0.1:9999']\n\
        settle = '1s'\n[defaults]\ndrain_at = 0.9\n[[service]]\nunit = 'a.service'\npool = 'be_web/web1'\n";
    let config = Config::parse(Path::new("x"), text).expect("valid");
    let shown: Vec<_> = config.pool.haproxy.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["/run/haproxy/admin.sock", "tcp://127.0.0.1:9999"]);
    assert_eq!((config.pool.settle, config.pool.settle_max), (Duration::from_secs(1), Duration::from_secs(300)));
    let service = &config.services()[0];
    assert_eq!((service.pool.as_ref().map(Name::as_str), service.drain_at), (Some("be_web/web1"), Some(0.9)));
}

#[test]
fn the_configuration_that_the_guide_to_pools_shows_is_valid() {
    let guide = include_str!("../../../docs/pool.md");
    let text = guide.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::parse(Path::new("pool.md"), text).expect("valid");
    assert!(config.pool.agent_check.is_some() && config.pool.haproxy.len() == 1 && config.services().len() == 1);
}

#[test]
fn a_fleet_agrees_through_the_members_that_are_named() {
    let text =
        "[fleet]\netcd = ['http://e1:2379', 'http://[::1]:2379/']\nmax_unavailable = 3\nprefix = '/ops'\nttl = '1m'\n";
    let fleet = Config::parse(Path::new("x"), text).expect("valid").fleet;
    let members: Vec<_> = fleet.etcd.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["e1:2379", "[::1]:2379"]);
    assert_eq!((fleet.max_unavailable, fleet.prefix.as_str(), fleet.ttl), (3, "/ops/", Duration::from_secs(60)));
    assert!(Config::parse(Path::new("x"), "").expect("valid").fleet.etcd.is_empty(), "nobody is asked unasked");
}

#[test]
fn the_configuration_that_the_guide_to_fleets_shows_is_valid() {
    let guide = include_str!("../../../docs/fleet.md");
    let text = guide.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::parse(Path::new("fleet.md"), text).expect("valid");
    assert_eq!((config.fleet.etcd.len(), config.fleet.max_unavailable), (3, 1));
}

#[test]
fn nobody_is_traced_unasked_and_a_service_may_differ() {
    let text = "[[service]]\nunit = 'a'\n[[service]]\nunit = 'b'\ntrace = 'suspects'\n";
    let traces = |text: &str| {
        let services = Config::parse(Path::new("x"), text).expect("valid").services();
        services.iter().map(|service| service.trace).collect::<Vec<_>>()
    };
    assert_eq!(traces(text), [Trace::Off, Trace::Suspects]);
    let text = "[defaults]\ntrace = 'suspects'\n[[service]]\nunit = 'a'\ntrace = 'off'\n[[service]]\nunit = 'b'\n";
    assert_eq!(traces(text), [Trace::Off, Trace::Suspects]);
    let error = Config::parse(Path::new("x"), "[defaults]\ntrace = 'all'\n").expect_err("refused").to_string();
    assert!(error.contains("off") && error.contains("suspects"), "{error}");
}

#[test]
fn planned_restarts_are_off_unless_a_service_has_them() {
    let text = "[defaults]\nrestart = true\n[[service]]\nunit = 'a.service'\n\
        [[service]]\nunit = 'b.service'\nplanned_restart = {}\n\
        [[service]]\nunit = 'c.service'\nplanned_restart = { window = '22:00-04:30', when = '1h', drain = '5s' }\n";
    let services = Config::parse(Path::new("x"), text).expect("valid").services();
    let planned: Vec<_> = services.iter().map(|service| service.planned_restart).collect();
    assert_eq!((planned[0], planned[1]), (None, Some(PlannedRestart::default())));
    let last = planned[2].expect("configured");
    assert_eq!((last.when, last.drain), (Duration::from_secs(3600), Duration::from_secs(5)));
    assert!(last.window.is_some_and(|window| window.contains(0) && !window.contains(12 * 60)));
}

#[test]
fn the_configuration_that_the_guide_to_planned_restarts_shows_is_valid() {
    let guide = include_str!("../../../docs/healing.md");
    let text = guide.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::parse(Path::new("healing.md"), text).expect("valid");
    let planned = config.services()[0].planned_restart.expect("it has one");
    assert_eq!(PlannedRestart { window: None, ..planned }, PlannedRestart::default(), "but for the window");
    // The sample that is shipped shows it too, commented out.
    let line = SAMPLE.lines().find_map(|line| line.strip_prefix("# planned_restart")).expect("shown");
    let text = format!("[[service]]\nunit = 'a'\nrestart = true\nplanned_restart{line}");
    assert_eq!(Config::parse(Path::new("x"), &text).expect("valid").services()[0].planned_restart, Some(planned));
}

#[test]
fn what_is_looked_at_before_memory_is_out_is_said_key_by_key() {
    let text = "[defaults]\nbefore_oom = { command = ['/usr/bin/py-spy', 'dump', '--pid', '{pid}'], keep = '512MiB' }\n\
        [[service]]\nunit = 'a.service'\n\
        [[service]]\nunit = 'b.service'\nbefore_oom = { command = [], within = '1h' }\n\
        [[service]]\nunit = 'c.service'\nbefore_oom = { picture = false, timeout = '5s', keep = '64KiB' }\n";
    let services = Config::parse(Path::new("x"), text).expect("valid").services();
    let all: Vec<_> = services.into_iter().map(|service| service.before_oom).collect();
    let default = BeforeOom::default();
    assert_eq!((all[0].command.len(), all[0].keep, all[0].within), (4, 512 << 20, default.within));
    assert_eq!((all[1].command.len(), all[1].keep, all[1].within), (0, 512 << 20, Duration::from_secs(3600)));
    assert_eq!((all[2].picture, all[2].timeout, all[2].keep), (false, Duration::from_secs(5), 64 << 10));
    let none = Config::parse(Path::new("x"), "[[service]]\nunit = 'a'\n").expect("valid").services();
    assert_eq!(none[0].before_oom, default, "pictures, and nothing is run");
}

#[test]
fn the_configuration_that_the_page_on_pictures_shows_is_valid() {
    let guide = include_str!("../../../docs/memory-picture.md");
    let text = guide.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::parse(Path::new("memory-picture.md"), text).expect("valid");
    assert!(config.services().iter().all(|service| !service.before_oom.command.is_empty()));
    // The sample that is shipped shows it too, commented out.
    let line = SAMPLE.lines().find_map(|line| line.strip_prefix("# before_oom")).expect("shown");
    let text = format!("[[service]]\nunit = 'a'\nbefore_oom{line}");
    let shown = &Config::parse(Path::new("x"), &text).expect("valid").services()[0].before_oom;
    assert_eq!(BeforeOom { command: Vec::new(), ..shown.clone() }, BeforeOom::default(), "but for the command");
}
