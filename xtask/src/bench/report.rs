//! The tables, as Markdown.

use std::{fmt::Write as _, fs};

use super::{detection::Detection, footprint::Footprint, scale::Scale, storm::Storm};

/// The text of `docs/performance.md`.
pub(super) fn write(storm: &Storm, detection: &Detection, footprint: &Footprint, scale: &[Scale]) -> String {
    let mut text = String::from("# Measured cost and speed\n\n");
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // A String takes whatever is written.
        text.write_fmt(arguments).ok();
        text.push('\n');
    };
    line(format_args!(
        "Written by `cargo xtask bench`; no figure is typed by hand. Medians of {} rounds, arms in turn.\n",
        storm.rounds
    ));
    line(format_args!("Machine: {}.\n", machine()));

    line(format_args!("## In the kernel, nanoseconds a run\n"));
    line(format_args!(
        "{} processes that fork and exit one after the other on one processor, for each arm of each round. Run times are \
         the kernel's own (`bpf_stats`), its two clock reads included.\n",
        storm.exits
    ));
    line(format_args!("| program | clean exits, unwatched | failing exits, reported | limit |"));
    line(format_args!("|---|---:|---:|---|"));
    line(format_args!("| Defib, exit | {:.0} | {:.0} | 200 clean, 3000 reported |", storm.clean_ns, storm.reported_ns));
    match storm.peer_ns {
        Some((clean, failing)) => {
            line(format_args!("| libbpf-tools `exitsnoop`, exit | {clean:.0} | {failing:.0} | |"));
            line(format_args!(
                "| ratio, Defib to `exitsnoop` | {:.3} | {:.3} | |",
                storm.clean_ns / clean,
                storm.reported_ns / failing
            ));
        }
        None => line(format_args!("| libbpf-tools `exitsnoop` | not installed | | |")),
    }
    line(format_args!("| Defib, fork | {:.0} | | |", storm.fork_ns));
    line(format_args!("| Defib, signal (SIGCHLD) | {:.0} | | |", storm.signal_ns));
    line(format_args!(
        "\nOf the failing exits {:.0} were reported and {:.0} found no room in the ring; each of those is counted.\n",
        storm.seen, storm.lost
    ));

    line(format_args!("## Kernel hook to user space, microseconds\n"));
    line(format_args!("| | deaths | p50 | p99 | largest |"));
    line(format_args!("|---|---:|---:|---:|---:|"));
    line(format_args!(
        "| idle machine, the reader asleep before each | {} | {:.0} | {:.0} | {:.0} |",
        detection.deaths, detection.p50, detection.p99, detection.max
    ));
    line(format_args!("| limit | | 200 | 5000 | |\n"));

    line(format_args!("## An idle agent\n"));
    line(format_args!("| | measured | limit |"));
    line(format_args!("|---|---:|---:|"));
    line(format_args!("| resident memory | {:.1} MiB | 16 MiB |", footprint.resident_kib as f64 / 1024.0));
    line(format_args!(
        "| its peak, while type information is read at start | {:.1} MiB | |",
        footprint.peak_kib as f64 / 1024.0
    ));
    line(format_args!("| CPU, share of one core | {:.3} % | 0.2 % |", footprint.cpu * 100.0));
    line(format_args!("\n## An agent that looks after services whose memory it follows\n"));
    line(format_args!("| services | resident memory | CPU, share of one core | a scrape | its size |"));
    line(format_args!("|---:|---:|---:|---:|---:|"));
    for Scale { services, resident_kib, cpu, scrape_ms, scrape_bytes } in scale {
        line(format_args!(
            "| {services} | {:.1} MiB | {:.3} % | {scrape_ms:.1} ms | {} KiB |",
            *resident_kib as f64 / 1024.0,
            cpu * 100.0,
            scrape_bytes / 1024
        ));
    }
    text
}

fn machine() -> String {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    format!("{}, {cpus} processors, Linux {release}", model.trim_start_matches([' ', '\t', ':']))
}
