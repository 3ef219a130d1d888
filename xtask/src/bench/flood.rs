//! A minute of failing exits as fast as the machine makes them, with deaths in it that must not be lost: OOM kills, and
//! deaths in a cgroup that is looked after.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    Programs,
    agent::{Agent, Metrics},
    kernel::End,
    limited::Limited,
    sleepers::Sleepers,
    stats::{self, quantile},
    storms::Storms,
};
use crate::say;

const LENGTH: Duration = Duration::from_secs(60);
/// Between two deaths that must not be lost.
const PAUSE: Duration = Duration::from_millis(100);
/// Each of these is an OOM kill, the others exits with a code.
const OOM_EVERY: u32 = 10;
const CODE: &str = "77";

/// See the module.
pub(super) struct Flood {
    pub(super) seconds: f64,
    /// Exits of the whole host, as the kernel program counted them.
    pub(super) exits: f64,
    /// Records of them that came, and that found no room, and were counted.
    pub(super) seen: f64,
    pub(super) dropped: f64,
    /// Deaths caused, and those of them that were recorded.
    pub(super) oom_kills: (u32, f64),
    pub(super) watched: (u32, f64),
    /// The most resident memory in the first half, in which the agent's text and buffers come in, and in the second.
    pub(super) resident_kib: [u64; 2],
    /// Share of one core.
    pub(super) cpu: f64,
    /// HTTP answers meanwhile, milliseconds.
    pub(super) answer_p50: f64,
    pub(super) answer_max: f64,
    /// Kernel hook to user space under this load, as the agent's own histogram has it: the least bound, in milliseconds, below
    /// which 99 of 100 were.
    pub(super) detection_p99_ms: f64,
}

pub(super) fn measure(programs: &Programs) -> Result<Flood> {
    say::line(format_args!("bench: a flood of exits, {} s", LENGTH.as_secs()));
    let sleepers = Sleepers::start(1)?;
    let limited = Limited::new()?;
    let config = format!("{}{}", sleepers.config(), limited.config("victims"));
    let agent = Agent::start(programs, &config.replace("max_services = 1\n", "max_services = 10\n"))?;
    sleep(Duration::from_secs(1));
    let before = agent.metrics()?;
    let (begin, cpu) = (Instant::now(), stats::cpu_ns(agent.pid())?);
    let storms = Storms::start(programs, End::Failing)?;
    let (mut resident_kib, mut answers) = ([0; 2], Vec::new());
    let (mut oom_kills, mut watched) = (0, 0);
    while begin.elapsed() < LENGTH {
        if (oom_kills + watched) % OOM_EVERY == 0 {
            limited.run_out(programs)?;
            oom_kills += 1;
        } else {
            let status = programs.victim_in(&sleepers.directory(0)).args(["exit", CODE]).status()?;
            ensure!(status.code().is_some_and(|code| code.to_string() == CODE), "a victim ended with {status}");
            watched += 1;
        }
        let asked = Instant::now();
        agent.get("/healthz")?;
        answers.push(asked.elapsed().as_secs_f64() * 1e3);
        let most = &mut resident_kib[usize::from(begin.elapsed() > LENGTH / 2)];
        *most = stats::status_kib(agent.pid(), "VmRSS")?.max(*most);
        sleep(PAUSE);
    }
    let cpu = (stats::cpu_ns(agent.pid())? - cpu) as f64 / begin.elapsed().as_nanos() as f64;
    let seconds = begin.elapsed().as_secs_f64();
    drop(storms);
    // The last of them.
    sleep(Duration::from_secs(1));
    let after = agent.metrics()?;
    let grown = |filter: &dyn Fn(&str) -> bool| sum(&after, filter) - sum(&before, filter);
    Ok(Flood {
        seconds,
        exits: grown(&|name| name.starts_with("defib_process_exits_total") && !name.contains("\"clean\"")),
        // OOM marks are timed too, and are no exits.
        seen: grown(&|name| name == "defib_detection_seconds_count")
            - grown(&|name| name.starts_with("defib_oom_kills_total")),
        dropped: grown(&|name| name.starts_with("defib_events_lost_total{ring=\"bulk\"")),
        oom_kills: (
            oom_kills,
            grown(&|name| name.starts_with("defib_oom_kills_total") && name.contains("\"victims\"")),
        ),
        watched: (
            watched,
            grown(&|name| {
                name.starts_with("defib_deaths_total") && name.contains("\"s0\"") && name.contains("\"exit\"")
            }),
        ),
        resident_kib,
        cpu,
        answer_p50: quantile(&mut answers, 0.5),
        answer_max: quantile(&mut answers, 1.0),
        detection_p99_ms: p99(&before, &after) * 1e3,
    })
}

fn sum(metrics: &Metrics, filter: &dyn Fn(&str) -> bool) -> f64 {
    metrics.iter().filter(|(name, _)| filter(name)).map(|(_, value)| value).sum()
}

/// The least bound of the detection histogram with 99 of 100 of the new observations below it, seconds.
fn p99(before: &Metrics, after: &Metrics) -> f64 {
    let grown = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let all = grown("defib_detection_seconds_count");
    let bounds = after.keys().filter_map(|name| {
        let bound = name.strip_prefix("defib_detection_seconds_bucket{le=\"")?.strip_suffix("\"}")?;
        Some((bound.parse::<f64>().unwrap_or(f64::INFINITY), grown(name)))
    });
    let enough = bounds.filter(|&(_, count)| count >= 0.99 * all).map(|(bound, _)| bound);
    enough.min_by(f64::total_cmp).unwrap_or(f64::NAN)
}
