//! The kernel counts OOM kills by itself: the yardstick for all that was seen.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use serde_json::{Value, json};
use tests::cgroup::memory_hierarchy;

use crate::{
    case,
    scene::kernel_count,
    stage::{Stage, kernel},
};

/// How long the last verdicts may take.
const LAST: Duration = Duration::from_secs(5);

/// Compares the counts and prints them. Nothing to compare when no case ran.
pub(crate) fn judge(stage: &mut Stage) -> Result<(), Failed> {
    stage.end_engine();
    if stage.seen().is_none() {
        return Ok(());
    }
    let begin = Instant::now();
    let (counted, seen) = loop {
        // Asked first: what comes later is not counted.
        let counted = stage.kernel_oom_kills();
        stage.watch().find(Duration::from_millis(300), |_| false);
        let seen = kills_seen(stage);
        if counted == seen || begin.elapsed() > LAST {
            break (counted, seen);
        }
    };
    let (deaths, _) = stage.seen().expect("the watcher runs");
    let took_ms =
        |death: &Value| Some(death["decided_ns"].as_u64()?.saturating_sub(death["kernel_ns"].as_u64()?) as f64 / 1e6);
    let timed = deaths.iter().filter_map(|death| Some((took_ms(death)?, &death["comm"])));
    let slowest = timed.max_by(|(a, _), (b, _)| a.total_cmp(b));
    let (_, v2) = memory_hierarchy();
    let mut line = json!({
        "kernel": kernel(), "cgroup": if v2 { "v2" } else { "v1" },
        "kernel_oom_kills": counted, "seen_oom_kills": seen, "deaths": deaths.len(),
    });
    if let Some((slowest_ms, comm)) = slowest {
        line["slowest_verdict_ms"] = slowest_ms.into();
        line["slowest_verdict_on"] = comm.clone();
    }
    case::line("AUDIT", &line);

    let mut wrong = Vec::new();
    if counted != seen {
        wrong.push(format!("the kernel counted {counted} OOM kills, seen were {seen}"));
    }
    let (counted, seen) = stage.in_cgroups;
    if counted != seen {
        wrong.push(format!("the cases' cgroups counted {counted} OOM kills, seen were {seen}"));
    }
    let mut records: BTreeMap<(Option<u64>, Option<u64>), usize> = BTreeMap::new();
    for death in deaths {
        *records.entry((death["tgid"].as_u64(), death["start_ns"].as_u64())).or_default() += 1;
    }
    for ((tgid, _), count) in records.into_iter().filter(|(_, count)| *count > 1) {
        wrong.push(format!("process {tgid:?} was reported {count} times"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

fn kills_seen(stage: &Stage) -> u64 {
    let (deaths, begin_ns) = stage.seen().expect("the watcher runs");
    let ours = |death: &&Value| death["kernel_ns"].as_u64() >= Some(begin_ns);
    deaths.iter().filter(ours).map(kernel_count).sum()
}
