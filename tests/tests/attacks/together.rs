//! All attacks at once, while honest services run out of memory, crash and exit. `DEFIB_ATTACK_ONLY=failures,impostor`
//! runs only these, to find the attack that breaks something.

use std::{
    env,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    attacker::{Attacker, Delegated, directory, share},
    cage::Elsewhere,
    cgroup::Cgroup,
    defib::{Metrics, get},
    live,
};

use crate::scene::{ENDS, GRACE, Scene, attacking, is_numbered_unit};

/// Length, unless `DEFIB_ATTACK_SECONDS` says otherwise.
const SECONDS: u64 = 60;
/// Pause between two requests to the agent.
const PAUSE: Duration = Duration::from_millis(100);
/// Cgroups that are made and removed, again and again.
const MANY: &str = "20000";
/// Honest services.
const HONEST: usize = 3;
/// Answers and restarts that take longer are wrong on any machine. `cargo xtask bench --only attacks` has the targets.
const GENEROUS: Duration = Duration::from_secs(10);

fn seconds() -> u64 {
    env::var("DEFIB_ATTACK_SECONDS").map_or(SECONDS, |text| text.parse().expect("a number of seconds"))
}

/// Whether this attack takes part: all do, unless `DEFIB_ATTACK_ONLY` names some.
fn takes_part(words: &[&str]) -> bool {
    env::var("DEFIB_ATTACK_ONLY").map_or(true, |only| only.split(',').any(|way| words.first() == Some(&way)))
}

/// A service that attacks, or idles when its attack takes no part.
fn service(name: &str, cgroup: &str, words: &[&str]) -> String {
    attacking(name, cgroup, "", if takes_part(words) { words } else { &["idle"] })
}

/// What was measured, milliseconds.
#[derive(Default)]
struct Times {
    healthz: Vec<f64>,
    pool: Vec<f64>,
    back: Vec<f64>,
}

#[test]
fn all_attacks_at_once_cost_no_honest_service_its_agent() {
    if !live::can_run("all_attacks_at_once_cost_no_honest_service_its_agent") {
        return;
    }
    let length = Duration::from_secs(seconds());
    let places: Vec<_> = (0..4).map(|_| directory()).collect();
    let place = |number: usize| places[number].path().to_str().expect("UTF-8");
    let attacked: Vec<_> = (0..6).map(|_| Cgroup::new(None)).collect();
    let orphaned = Delegated::new();
    let orphans = orphaned.directory().to_str().expect("UTF-8");
    // Command services whose programs attack.
    let sections = [
        "[forecast]\nsample = '500ms'\n".to_owned(),
        service("mapped", &attacked[0].path, &["mappings", place(0)]),
        service("liar", &attacked[1].path, &["command-line", "64", "--lives", "4000"]),
        service("named", &attacked[2].path, &["long-names", place(1), "--once", "--pause", "1000"]),
        service("crowd-0", &attacked[3].path, &["crowd", "1500", "--lives", "2000"]),
        service("crowd-1", &attacked[4].path, &["crowd", "1500", "--lives", "3000"]),
        service("failing", &attacked[5].path, &["failures", "200"]),
        service("orphaned", orphaned.path(), &["orphans", orphans]),
        "[[service]]\nunit = 'a*.service'\n".to_owned(),
        "[[service]]\nunit = 'x.service'\nrestart = true\ngrace = '0s'\n".to_owned(),
        "[[service]]\ncontainer = '*'\nrestart = true\ngrace = '0s'\n".to_owned(),
    ];
    let mut scene = Scene::new(HONEST, &sections.concat());
    let delegated = Delegated::new();
    let share = share();
    let attacks = attacks(&scene.agent.address().to_string(), &delegated, share.as_ref(), [place(2), place(3)]);
    let mut times = Times::default();
    go_on(&mut scene, length, &mut times);
    drop(attacks);
    drop(delegated);
    for number in 0..HONEST {
        scene.settled(number);
    }
    report(&scene, &mut times, length);
    scene.judge();
    let slowest = [&times.healthz, &times.pool, &times.back].map(|times| times.iter().copied().fold(0.0, f64::max));
    assert!(slowest.iter().all(|&slowest| slowest < GENEROUS.as_secs_f64() * 1e3), "{slowest:?} ms");
    let labels = scene.labels();
    let claims = |name: &&String| is_numbered_unit(name) || **name == "x.service" || name.starts_with("docker:");
    let claimed: Vec<_> = labels.keys().filter(claims).take(5).collect();
    assert!(claimed.is_empty(), "services that no owner confirmed: {claimed:?}");
}

/// Attacks under way, and their cgroups; in the order in which they are dropped.
type Attacks = (Vec<Attacker>, [Delegated; 2]);

/// All attacks that need no service.
fn attacks(agent: &str, delegated: &Delegated, share: Option<&Cgroup>, places: [&str; 2]) -> Attacks {
    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";
    delegated.pass_memory_on();
    let user = Delegated::below(delegated, "user@65534.service");
    user.pass_memory_on();
    let (many, entrance) = (Delegated::below(delegated, "many"), delegated.entrance());
    let [in_many, in_user] = [&many, &user].map(|place| place.directory().to_str().expect("UTF-8"));
    let container = user.at(&format!("docker-{ID}.scope"));
    let inside = delegated.at("lxc.payload.c1/system.slice/x.service");
    let all: [&[&str]; 9] = [
        &["mappings", places[0]],
        &["long-names", places[1]],
        &["failures", "200"],
        &["cgroups", in_many, MANY],
        &["cgroups", in_user, "2000", "--name", "a{}.service", "--keep"],
        &["connections", agent, "600"],
        &["connections", agent, "100", "--unread", "/metrics"],
        &["impostor", &container, "--limit", "32", "--mib", "64", "--again", "500"],
        &["impostor", &inside, "--exit", "1", "--again", "300"],
    ];
    let mut enter = vec![entrance.as_path()];
    enter.extend(share.map(|share| share.directory.as_path()));
    let attacks = all.iter().filter(|words| takes_part(words)).map(|words| Attacker::start(&enter, words)).collect();
    (attacks, [user, many])
}

/// Lets honest services die one after the other, each of every cause in turn, while the agent is asked all the time.
fn go_on(scene: &mut Scene, length: Duration, times: &mut Times) {
    let (begin, address, over) = (Instant::now(), scene.agent.address(), AtomicBool::new(false));
    let elsewhere = Elsewhere::new();
    scope(|scope| {
        let ask = |path: &'static str| {
            let (over, elsewhere) = (&over, &elsewhere);
            scope.spawn(move || {
                elsewhere.enter();
                asked(address, path, over)
            })
        };
        let (healthz, pool) = (ask("/healthz"), ask("/pool/web"));
        // Set also on a panic below; otherwise the scope would wait for ever.
        let end = End(&over);
        for round in 0.. {
            if begin.elapsed() > length {
                break;
            }
            let number = round % HONEST;
            scene.settled(number);
            let back = scene.kill(number, ENDS[round % ENDS.len()]);
            times.back.push(back.as_secs_f64() * 1e3);
            scene.kill_another();
        }
        drop(end);
        times.healthz = healthz.join().expect("it asks to the end");
        times.pool = pool.join().expect("it asks to the end");
    });
}

/// Sets the flag when dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Time of each answer, milliseconds. An answer other than 200 counts as never; `/pool` may say 503 while its server is
/// out.
fn asked(address: SocketAddr, path: &str, over: &AtomicBool) -> Vec<f64> {
    let mut times = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let is_answer = get(address, path).is_some_and(|(status, _)| status == 200 || status == 503);
        times.push(if is_answer { begin.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY });
        sleep(PAUSE);
    }
    times
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// Prints a table for people, and a line for `cargo xtask bench`.
fn report(scene: &Scene, times: &mut Times, length: Duration) {
    let metrics = scene.agent.metrics();
    let mut starts: Vec<_> =
        scene.honest.iter().flat_map(|service| starts(&scene.agent.incidents(&service.name))).collect();
    let mut rows = Vec::new();
    for (name, values) in
        [("/healthz", &mut times.healthz), ("/pool", &mut times.pool), ("a service's return", &mut times.back)]
    {
        rows.push((name, values.len(), quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)));
    }
    rows.push((
        "from death to start",
        starts.len(),
        quantile(&mut starts, 0.5),
        quantile(&mut starts, 0.99),
        quantile(&mut starts, 1.0),
    ));
    rows.push(loop_row(&metrics));
    println!("{:<24}{:>8}{:>10}{:>10}{:>10}", "milliseconds", "count", "p50", "p99", "largest");
    for (name, count, p50, p99, largest) in &rows {
        println!("{name:<24}{count:>8}{p50:>10.1}{p99:>10.1}{largest:>10.1}");
    }
    let line = |(name, count, p50, p99, largest): &(&str, usize, f64, f64, f64)| json!({ "name": name, "count": count, "p50_ms": finite(*p50), "p99_ms": finite(*p99), "largest_ms": finite(*largest) });
    let measured = json!({
        "seconds": length.as_secs(),
        "grace_ms": GRACE.as_millis() as u64,
        "resident_peak_bytes": scene.resident_peak(),
        "rows": rows.iter().map(line).collect::<Vec<_>>(),
    });
    println!("MEASURED {measured}");
}

/// Times from a death to the next start, milliseconds, of outages that have both.
fn starts(incidents: &[Value]) -> Vec<f64> {
    let time = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
    let of = |incident: &Value, what: &str| {
        time(&incident["timeline"].as_array()?.iter().find(|moment| moment["what"] == what)?["at"])
    };
    let between = |incident| Some(of(incident, "started")?.duration_since(of(incident, "died")?).as_secs_f64() * 1e3);
    incidents.iter().filter_map(between).collect()
}

/// JSON has no infinity.
fn finite(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { Value::Null }
}

/// Turns of the agent's own loop: upper bounds of their buckets; NaN where they are not measured.
fn loop_row(metrics: &Metrics) -> (&'static str, usize, f64, f64, f64) {
    const NAME: &str = "defib_controller_loop_seconds";
    let count = metrics.get(&format!("{NAME}_count")).unwrap_or(0.0);
    let prefix = format!("{NAME}_bucket{{le=\"");
    let mut buckets: Vec<(f64, f64)> = metrics
        .0
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "))
        .filter_map(|(bound, count)| Some((bound.replace("+Inf", "inf").parse().ok()?, count.parse().ok()?)))
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bound = |share: f64| {
        let bucket = buckets.iter().find(|(_, below)| *below >= share * count);
        bucket.filter(|_| count > 0.0).map_or(f64::NAN, |(bound, _)| bound * 1e3)
    };
    ("the controller's loop", count as usize, bound(0.5), bound(0.99), bound(1.0))
}
