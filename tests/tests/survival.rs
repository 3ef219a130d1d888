//! The agent is killed, replaced and begun again, and nothing is lost by it and nothing done twice.
//!
//! `DEFIB_KILLS=1000` kills it more often, `DEFIB_SEED` repeats a run's choices.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{PATIENCE, bpffs::BpfFs, defib::Agent, eventually, live, ordered::Ordered};

/// Services that die and are brought back, and what each dies of when it is told to.
const SERVICES: usize = 6;
const ENDS: [&str; 6] = ["leak", "segv", "exit 3", "leak", "abort", "exit 0"];
/// The memory limit of each.
const LIMIT: u64 = 32 << 20;

/// Numbers that look random and are the same for the same seed (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn config(services: &[Ordered], pin_dir: &Path) -> String {
    let all: String = services.iter().map(|service| service.config("")).collect();
    format!(
        "[agent]\npin_dir = '{}'\n[defaults]\ngrace = '0s'\nbackoff = {{ initial = '10ms', max = '20ms' }}\n\
         budget = {{ per_service = '1000/1s', per_host = '1000/1s' }}\n{all}",
        pin_dir.display()
    )
}

fn sum(incidents: &[Value], field: &str) -> u64 {
    incidents.iter().filter_map(|incident| incident[field].as_u64()).sum()
}

/// The OOM kills of a service, of whatever scope: the kernel's log of what happened before an agent is not read.
fn oom_kills(agent: &Agent, service: &Ordered) -> f64 {
    let metrics = agent.metrics();
    let series = |scope: &&str| format!("defib_oom_kills_total{{scope=\"{scope}\",service=\"{}\"}}", service.name);
    ["memcg", "global", "unknown"].iter().filter_map(|scope| metrics.get(&series(scope))).sum()
}

/// What the incidents of a service tell, a line for each moment.
fn shown(service: &str, incidents: &[Value]) -> String {
    let mut text = format!("{service}\n");
    for incident in incidents {
        let figure = |name: &str| &incident[name];
        text += &format!("#{} deaths {} restarts {} ", figure("id"), figure("deaths"), figure("restarts"));
        text += &format!("outcome {} {}\n", figure("outcome"), figure("cause_text"));
        for moment in incident["timeline"].as_array().into_iter().flatten() {
            text += &format!("    {} {} {}\n", moment["at"], moment["what"], moment["text"]);
        }
    }
    text
}

#[test]
fn whenever_it_is_killed_each_death_is_accounted_for_once_and_answered_once() {
    if !live::can_run("whenever_it_is_killed_each_death_is_accounted_for_once_and_answered_once") {
        return;
    }
    let kills = setting("DEFIB_KILLS", 20);
    let seed = setting("DEFIB_SEED", u64::from(std::process::id()) + 1);
    println!("{kills} kills, DEFIB_SEED={seed}");
    // The store keeps 10,000 incidents, and all of these are to be found in it: some ten deaths for each kill, or fewer.
    let pause = 60 * kills.div_ceil(500);
    let (mut random, bpffs) = (Random(seed), BpfFs::mount());
    let services: Vec<_> = (0..SERVICES).map(|number| Ordered::new(format!("dies-{number}"), LIMIT)).collect();
    let config = config(&services, &bpffs.pin_dir());
    let begin = Instant::now();
    let agent = Agent::start(&config);
    // How long it takes to begin, here and now: it is killed before that as well as after.
    let beginning = 2 * begin.elapsed().as_millis() as u64;
    eventually("all services", || services.iter().all(|service| service.started() == 1).then_some(()));
    let state = agent.crash();

    let (mut deaths, mut ooms) = ([0u64; SERVICES], [0u64; SERVICES]);
    let over = AtomicBool::new(false);
    let mut unready = 0;
    let state = scope(|scope| {
        let mut choices = Random(random.below(u64::MAX) | 1);
        let (services, over, deaths, ooms) = (&services, &over, &mut deaths, &mut ooms);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let (which, end) =
                    (choices.below(SERVICES as u64) as usize, ENDS[choices.below(ENDS.len() as u64) as usize]);
                // One that was told to die may still have the pipe open.
                if services[which].started() == deaths[which] + 1 && services[which].order(end) {
                    deaths[which] += 1;
                    ooms[which] += u64::from(end == "leak");
                }
                sleep(Duration::from_millis(choices.below(pause)));
            }
        });
        let mut state = state;
        for kill in 0..kills {
            let agent = Agent::begin_in(state, &config);
            sleep(Duration::from_millis(random.below(beginning + 500)));
            unready += u64::from(agent.try_get("/readyz").is_none_or(|(status, _)| status != 200));
            if kill % 4 == 3 {
                // It begins again in its place, and is killed in the middle of that, or a little later.
                agent.reload(&config);
                sleep(Duration::from_millis(random.below(beginning)));
            }
            state = agent.crash();
            if kill % 5 == 0 {
                sleep(Duration::from_millis(random.below(500)));
            }
        }
        over.store(true, Ordering::Relaxed);
        state
    });
    println!(
        "killed {kills} times, {unready} of them before it was ready; {deaths:?} deaths, {ooms:?} of want of memory"
    );

    let agent = Agent::start_in(state, &config);
    let begin = Instant::now();
    // The last that was told to die may not have died yet. When this is in vain, what comes below says whose death is lost.
    let is_answered = |(number, service): (usize, &Ordered)| service.started() == deaths[number] + 1;
    while begin.elapsed() < PATIENCE && !services.iter().enumerate().all(is_answered) {
        sleep(Duration::from_millis(10));
    }
    eventually("all services to be up and healthy", || {
        let metrics = agent.metrics();
        let is_well = |service: &Ordered| {
            let series = |name| metrics.get(&format!("{name}{{service=\"{}\"}}", service.name));
            (series("defib_service_up"), series("defib_incidents_open")) == (Some(1.0), Some(0.0))
        };
        services.iter().all(is_well).then_some(())
    });
    println!("well after {:?}", begin.elapsed());
    let metrics = agent.metrics();
    for (number, service) in services.iter().enumerate() {
        let incidents = agent.incidents(&service.name);
        let shown = || shown(&service.name, &incidents);
        let killed = oom_kills(&agent, service);
        let starts = service.started();
        println!("{}: {starts} starts, {} deaths, {killed} OOM kills", service.name, sum(&incidents, "deaths"));
        // The first incident tells that it was not running at all.
        assert_eq!(starts, deaths[number] + 1, "starts; {}", shown());
        assert_eq!(sum(&incidents, "deaths"), deaths[number] + 1, "deaths; {}", shown());
        assert_eq!(killed, ooms[number] as f64, "OOM kills; {}", shown());
    }
    assert_eq!(metrics.get("defib_oom_audit_missed_total"), Some(0.0));
}

/// The incidents of a service, once all of its deaths are told and answered.
fn is_answered(agent: &Agent, service: &Ordered, deaths: u64) -> Option<Vec<Value>> {
    let incidents = agent.incidents(&service.name);
    let is_over = incidents.last().is_some_and(|incident| incident["ended"].is_string());
    (is_over && service.started() == deaths + 1 && sum(&incidents, "deaths") == deaths + 1).then_some(incidents)
}

#[test]
fn an_agent_with_other_programs_reads_what_the_earlier_ones_left() {
    if !live::can_run("an_agent_with_other_programs_reads_what_the_earlier_ones_left") {
        return;
    }
    let (bpffs, services) = (BpfFs::mount(), [Ordered::new("upgraded".to_owned(), LIMIT)]);
    let service = &services[0];
    let config = config(&services, &bpffs.pin_dir());
    let agent = Agent::start(&config);
    eventually("the service", || is_answered(&agent, service, 0));
    let state = agent.crash();
    eventually("the order", || service.order("leak").then_some(()));
    eventually("its death", || service.cgroup.members().is_empty().then_some(()));
    // Set up in another way, they are other programs.
    let other = config.replace("[agent]", "[agent]\nfailed_allocations = 'never'");
    let agent = Agent::start_in(state, &other);
    let incidents = eventually("the answer", || is_answered(&agent, service, 1));
    assert_eq!(incidents[1]["cause"]["kind"], "oom_kill", "{}", shown("upgraded", &incidents));
    assert_eq!(oom_kills(&agent, service), 1.0);
    let log = agent.log();
    assert!(log.contains("are replaced") && log.contains("had left is read first"), "{log}");
    // The new ones work, and the old ones are gone: each death comes once.
    eventually("the order", || service.order("segv").then_some(()));
    eventually("the answer", || is_answered(&agent, service, 2));
    let pinned = fs::read_dir(bpffs.pin_dir()).expect("pins").count();
    let attached = agent.metrics().sum("defib_bpf_attached");
    assert_eq!(pinned as f64, 9.0 + 2.0 * attached, "nine maps, and for each program itself and its link");
    assert_eq!(agent.metrics().get("defib_oom_audit_missed_total"), Some(0.0));
}

#[test]
fn what_somebody_has_detached_or_removed_is_mended() {
    if !live::can_run("what_somebody_has_detached_or_removed_is_mended") {
        return;
    }
    let (bpffs, services) = (BpfFs::mount(), [Ordered::new("mended".to_owned(), LIMIT)]);
    let (service, pins) = (&services[0], bpffs.pin_dir());
    let config = config(&services, &pins);
    let agent = Agent::start(&config);
    eventually("the service", || is_answered(&agent, service, 0));
    let listed = || {
        let mut names: Vec<_> = fs::read_dir(&pins).expect("pins").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let all = listed();
    fs::remove_file(pins.join("map-critical")).expect("removed");
    eventually("the pin", || (agent.metrics().get("defib_bpf_unpinned_total") == Some(1.0)).then_some(()));
    assert_eq!(listed(), all);
    // Without an agent, nothing else holds these links: their programs are detached.
    let state = agent.crash();
    for link in ["link-process_exit", "link-process_exec"] {
        fs::remove_file(pins.join(link)).expect("removed");
    }
    let agent = Agent::start_in(state, &config);
    assert!(agent.log().contains("goes on with the kernel programs"), "{}", agent.log());
    assert_eq!(listed(), all);
    eventually("the order", || service.order("segv").then_some(()));
    eventually("the answer", || is_answered(&agent, service, 1));
    drop(agent);
    assert!(!pins.exists(), "a clean end leaves nothing");
}
