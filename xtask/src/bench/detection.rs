//! Kernel hook to user space on an idle machine: deaths far enough apart that the reader sleeps before each.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{Programs, agent::Running, stats::quantile};
use crate::say;

const DEATHS: usize = 400;
/// Longer than the reader stays awake after a record (20 ms).
const PAUSE: Duration = Duration::from_millis(50);

/// Microseconds.
pub(super) struct Detection {
    pub(super) deaths: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

#[derive(Deserialize)]
struct Death {
    kernel_ns: u64,
    seen_ns: u64,
    exit_code: Option<u8>,
}

pub(super) fn measure(programs: &Programs) -> Result<Detection> {
    say::line(format_args!("bench: detection, {DEATHS} deaths on an idle machine"));
    let mut watch = Command::new(&programs.defib)
        .args(["watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .context("cannot start defib watch")?;
    let out = watch.0.stdout.take().context("the watcher has no output")?;
    let reader = std::thread::spawn(move || {
        let mut latencies = Vec::new();
        for line in BufReader::new(out).lines() {
            let Ok(death) = serde_json::from_str::<Death>(&line.unwrap_or_default()) else { continue };
            if death.exit_code == Some(77) {
                latencies.push(death.seen_ns.saturating_sub(death.kernel_ns) as f64 / 1000.0);
            }
        }
        latencies
    });
    sleep(Duration::from_secs(1));
    for _ in 0..DEATHS {
        sleep(PAUSE);
        let status = Command::new(&programs.victim).args(["exit", "77"]).status().context("cannot start a victim")?;
        anyhow::ensure!(status.code() == Some(77), "a victim ended with {status}");
    }
    sleep(Duration::from_millis(200));
    drop(watch);
    let mut latencies = reader.join().map_err(|_| anyhow::anyhow!("the reader of deaths failed"))?;
    Ok(Detection {
        deaths: latencies.len(),
        p50: quantile(&mut latencies, 0.5),
        p99: quantile(&mut latencies, 0.99),
        max: quantile(&mut latencies, 1.0),
    })
}
