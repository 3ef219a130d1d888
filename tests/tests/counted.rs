//! Work that is counted, not timed, against `tests/counted.txt`: what the verifier walks, the records for each death, the reads for
//! each scrape and sample. A busy machine changes none of it.

use std::{collections::HashSet, fmt::Write as _, fs, thread::sleep, time::Duration};

use aya::programs::loaded_programs;
use tests::{cgroup::Cgroup, defib::Agent, eventually, live, victim::Victim};

const TABLE: &str = include_str!("../counted.txt");
/// What older verifiers walk is not held against the table.
const VERIFIER_SINCE: (u32, u32) = (6, 12);
const SERVICES: usize = 20;
const SCRAPES: u64 = 30;
/// Each service is sampled once in a second of these.
const SAMPLES: u64 = 5;
const DEATHS: u64 = 20;
/// What is counted for the whole host is counted so often, and the least count is ours.
const ROUNDS: usize = 10;
const READ_ROUNDS: usize = 4;
/// 16 MiB: a victim is killed at once.
const LIMIT: u64 = 16 << 20;

type Counts = Vec<(String, u64)>;

#[test]
fn no_more_is_done_than_the_table_says() {
    if !live::can_run("no_more_is_done_than_the_table_says") {
        return;
    }
    let cgroups: Vec<_> = (0..SERVICES).map(|_| Cgroup::new(None)).collect();
    let limited = Cgroup::new(Some(LIMIT));
    let mut config = "[agent]\nmode = \"observe\"\n[forecast]\nsample = \"1s\"\n".to_owned();
    for (number, cgroup) in cgroups.iter().chain([&limited]).enumerate() {
        let path = &cgroup.path;
        writeln!(
            config,
            "[[service]]\nname = \"s{number}\"\ncommand = {{ start = [\"/bin/false\"], cgroup = \"{path}\" }}"
        )
        .expect("a String takes what is written");
    }
    let agent = Agent::start(&config);
    let mut counts = verified(&agent);
    counts.extend(records(&agent, &cgroups[0], &limited));
    let living: Vec<_> = cgroups.iter().map(|cgroup| Victim::start(Some(cgroup), &["wait"])).collect();
    counts.extend(reads(&agent));
    drop(agent);
    for victim in living {
        victim.wait();
    }
    check(&counts);
}

/// All that was counted, against the table.
fn check(counts: &Counts) {
    let mut more = String::new();
    for (name, count) in counts {
        let words = TABLE.lines().find_map(|line| line.strip_prefix(name.as_str())?.strip_prefix(' '));
        let words: Vec<u64> =
            words.unwrap_or_default().split_ascii_whitespace().map(|word| word.parse().expect("a number")).collect();
        let (most, percent) = (words.first().copied(), words.get(1).copied().unwrap_or(0));
        println!("{name} {count}");
        if name.starts_with("verified/") && kernel() < VERIFIER_SINCE {
            continue;
        }
        if most.is_none_or(|most| *count > most + most * percent / 100) {
            writeln!(more, "{name} {count} {percent}").expect("a String takes what is written");
        }
    }
    assert!(more.is_empty(), "more work than tests/counted.txt allows. If that is meant, write there:\n{more}");
}

/// Version of the kernel.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname();
    let mut numbers =
        release.release().to_str().expect("a release is ASCII").split('.').map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn verified(agent: &Agent) -> Counts {
    let directory = format!("/proc/{}/fdinfo", agent.pid());
    let open = fs::read_dir(&directory).expect("the agent runs");
    let texts = open.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    let ids: HashSet<u32> = texts
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()))
        .collect();
    let programs = loaded_programs().filter_map(Result::ok).filter(|program| ids.contains(&program.id()));
    // Kernels before 5.16 do not tell.
    programs
        .filter_map(|program| {
            let count = program.verified_instruction_count().filter(|&count| count > 0)?;
            Some((format!("verified/{}", program.name_as_str()?), u64::from(count)))
        })
        .collect()
}

/// For each kind of death. Others die on the host meanwhile, so the least of some rounds counts.
fn records(agent: &Agent, service: &Cgroup, limited: &Cgroup) -> Counts {
    let read = || agent.metrics().sum("defib_records_read_total") as u64;
    let for_each = |cgroup: Option<&Cgroup>, words: &[&str]| {
        let round = |_| {
            let before = read();
            for _ in 0..DEATHS {
                Victim::start(cgroup, words).wait();
            }
            // Longer than a reader that is awake looks away.
            sleep(Duration::from_millis(100));
            // To the nearest: that one of others falls into a round changes nothing.
            (read() - before + DEATHS / 2) / DEATHS
        };
        (0..ROUNDS).map(round).min().unwrap_or(0)
    };
    [
        ("clean_exit_of_nobody", None, &["exit", "0"] as &[_]),
        ("failing_exit_of_nobody", None, &["exit", "1"]),
        ("segv_of_nobody", None, &["segv"]),
        ("clean_exit_of_a_service", Some(service), &["exit", "0"]),
        ("failing_exit_of_a_service", Some(service), &["exit", "1"]),
        ("oom_kill_of_a_service", Some(limited), &["leak"]),
    ]
    .map(|(name, cgroup, words)| (format!("records/{name}"), for_each(cgroup, words)))
    .into()
}

/// The kernel counts calls of read(2) and its like (proc_pid_io(5)); sockets are read in another way.
fn reads(agent: &Agent) -> Counts {
    let path = format!("/proc/{}/io", agent.pid());
    let read = || {
        let text = fs::read_to_string(&path).expect("the agent runs");
        let calls = text.lines().find_map(|line| line.strip_prefix("syscr: ")?.parse::<u64>().ok());
        calls.expect("the kernel counts them")
    };
    let up = || (agent.metrics().sum("defib_service_up") == SERVICES as f64).then_some(());
    eventually("the services to be met", up);
    // And sampled once.
    sleep(Duration::from_secs(2));
    let least = |times, work: &dyn Fn()| {
        let round = |_| {
            let before = read();
            work();
            (read() - before) / times
        };
        (0..READ_ROUNDS).map(round).min().unwrap_or(0)
    };
    let sample = least(SAMPLES * SERVICES as u64, &|| sleep(Duration::from_secs(SAMPLES)));
    let scrape = least(SCRAPES, &|| (0..SCRAPES).for_each(|_| drop(agent.metrics())));
    vec![("reads/sample".to_owned(), sample), ("reads/scrape".to_owned(), scrape)]
}
