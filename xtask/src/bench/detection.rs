//! Kernel hook to user space, beside a bpftrace script that prints the same deaths: on an idle machine, where the reader sleeps
//! before each, and on one whose processors are all busy with processes that fork and exit.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use super::{Programs, agent::Running, kernel::End, peers, stats::quantile, storms::Storms};
use crate::say;

/// The watchers take turns: so many turns each, and so many deaths in a turn.
const TURNS: usize = 10;
const DEATHS: usize = 40;
/// Longer than the reader stays awake after a record (20 ms).
const PAUSE: Duration = Duration::from_millis(50);
/// How the victims end; nobody else does.
const CODE: u8 = 77;

/// Deaths of the victims and nobody else's, with the time of the hook: CLOCK_MONOTONIC, which stands still while the host sleeps.
const SCRIPT: &str =
    "tracepoint:sched:sched_process_exit /curtask->exit_code == (77 << 8)/ { printf(\"%llu\\n\", nsecs); }";

/// One row of the table, microseconds.
pub(super) struct Detection {
    pub(super) name: &'static str,
    pub(super) deaths: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// A line of `defib watch`; CLOCK_BOOTTIME, nanoseconds.
#[derive(Deserialize)]
struct Death {
    kernel_ns: u64,
    seen_ns: u64,
    exit_code: Option<u8>,
}

/// What the turns brought, microseconds from the hook.
#[derive(Default)]
struct Series {
    /// Until the record was read.
    seen: Vec<f64>,
    /// Until a reader of the watcher's output had the line.
    told: Vec<f64>,
    told_by_peer: Vec<f64>,
}

pub(super) fn measure(programs: &Programs) -> Result<Vec<Detection>> {
    let [mut idle, mut busy] = [Series::default(), Series::default()];
    for turn in 1..=TURNS {
        say::line(format_args!("bench: detection on an idle machine and on a busy one, turn {turn} of {TURNS}"));
        for (series, is_busy) in [(&mut idle, false), (&mut busy, true)] {
            ours(programs, series, is_busy)?;
            peer(programs, series, is_busy)?;
        }
    }
    let all = [
        ("idle: Defib, the record read", &mut idle.seen),
        ("idle: `defib watch`, a line with the cause told", &mut idle.told),
        ("idle: `bpftrace`, a line told", &mut idle.told_by_peer),
        ("busy: Defib, the record read", &mut busy.seen),
        ("busy: `defib watch`, a line with the cause told", &mut busy.told),
        ("busy: `bpftrace`, a line told", &mut busy.told_by_peer),
    ];
    let row = |(name, values): (_, &mut Vec<f64>)| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(values, share));
        Detection { name, deaths: values.len(), p50, p99, max }
    };
    Ok(all.map(row).into())
}

/// A turn of `defib watch`.
fn ours(programs: &Programs, series: &mut Series, is_busy: bool) -> Result<()> {
    let watch = Command::new(&programs.defib)
        .args(["watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .context("cannot start defib watch")?;
    sleep(Duration::from_secs(1));
    let lines = turn(programs, watch, ClockId::Boottime, is_busy, |line| {
        serde_json::from_str::<Death>(line).ok().filter(|death| death.exit_code == Some(CODE))
    })?;
    for (death, told_ns) in lines {
        series.seen.push(micros(death.kernel_ns, death.seen_ns));
        series.told.push(micros(death.kernel_ns, told_ns));
    }
    Ok(())
}

/// A turn of bpftrace, where it is installed.
fn peer(programs: &Programs, series: &mut Series, is_busy: bool) -> Result<()> {
    let Some(bpftrace) = peers::bpftrace(SCRIPT, Stdio::piped())? else { return Ok(()) };
    let lines = turn(programs, bpftrace, ClockId::Monotonic, is_busy, |line| line.parse::<u64>().ok())?;
    series.told_by_peer.extend(lines.into_iter().map(|(kernel_ns, told_ns)| micros(kernel_ns, told_ns)));
    Ok(())
}

/// What the watcher told of the deaths of a turn, each with the time at which its line was here.
fn turn<T: Send + 'static>(
    programs: &Programs,
    mut watcher: Running,
    clock: ClockId,
    is_busy: bool,
    parse: impl Fn(&str) -> Option<T> + Send + 'static,
) -> Result<Vec<(T, u64)>> {
    let out = watcher.0.stdout.take().context("the watcher has no output")?;
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        lines.filter_map(|line| Some((now_ns(clock), line)).and_then(|(at, line)| Some((parse(&line)?, at)))).collect()
    });
    let storms = is_busy.then(|| Storms::start(programs, End::Clean)).transpose()?;
    for _ in 0..DEATHS {
        sleep(PAUSE);
        let status = Command::new(&programs.victim)
            .args(["exit", &CODE.to_string()])
            .status()
            .context("cannot start a victim")?;
        ensure!(status.code() == Some(CODE.into()), "a victim ended with {status}");
    }
    drop(storms);
    sleep(Duration::from_millis(200));
    drop(watcher);
    let lines: Vec<_> = reader.join().map_err(|_| anyhow::anyhow!("the reader of deaths failed"))?;
    ensure!(lines.len() == DEATHS, "of {DEATHS} deaths a watcher told {}", lines.len());
    Ok(lines)
}

fn now_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Both parts are positive: the clock began at boot.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn micros(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1000.0
}
