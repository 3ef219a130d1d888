//! The tables, as Markdown.

use std::{
    fmt::{self, Write as _},
    fs,
};

use super::{
    attacks::Attacks,
    beside_kmsg::Beside,
    detection::Detection,
    flood::Flood,
    footprint::Footprint,
    kernel::{self, Kernel, Row},
    out_of_pool::OutOfPool,
    peers::EXITSNOOP,
    recovery::Recovery,
    scale::Scale,
    traced::Traced,
    workload::{self, Workload},
    year::Year,
};

/// All that was measured in this run.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) kernel: Option<Kernel>,
    pub(super) workload: Option<Workload>,
    pub(super) detection: Option<Seen>,
    pub(super) recovery: Option<Vec<Recovery>>,
    pub(super) footprint: Option<(Footprint, Vec<Scale>)>,
    pub(super) year: Option<Year>,
    pub(super) traced: Option<Traced>,
    pub(super) attacks: Option<Attacks>,
}

/// How fast deaths are seen, told and acted on.
pub(super) struct Seen {
    pub(super) told: Vec<Detection>,
    pub(super) beside: Beside,
    pub(super) out: OutOfPool,
    pub(super) flood: Flood,
}

impl Tables {
    /// The text of `docs/performance.md`; what was not measured is as it was `before`.
    pub(super) fn text(&self, before: &str) -> Result<String, fmt::Error> {
        let mut text = format!(
            "# Measured cost and speed\n\nWritten by `cargo xtask bench`; no figure is typed by hand. Arms take turns.\n\n\
             Machine: {}.\n\n",
            machine()
        );
        let out = &mut text;
        match &self.kernel {
            Some(kernel) => kernel_table(out, kernel)?,
            None => keep(out, before, &[KERNEL]),
        }
        match &self.workload {
            Some(workload) => workload_table(out, workload)?,
            None => keep(out, before, &[WORKLOAD]),
        }
        match &self.detection {
            Some(seen) => {
                detection_table(out, seen)?;
                flood_table(out, &seen.flood)?;
            }
            None => keep(out, before, &[DETECTION, FLOOD]),
        }
        match &self.recovery {
            Some(recovery) => recovery_table(out, recovery)?,
            None => keep(out, before, &[RECOVERY]),
        }
        match &self.footprint {
            Some((footprint, scale)) => footprint_table(out, footprint, scale)?,
            None => keep(out, before, &[IDLE, SCALE]),
        }
        match &self.year {
            Some(year) => year_table(out, year)?,
            None => keep(out, before, &[YEAR]),
        }
        match &self.traced {
            Some(traced) => traced_table(out, traced)?,
            None => keep(out, before, &[TRACED]),
        }
        match &self.attacks {
            Some(attacks) => attacks_table(out, attacks)?,
            None => keep(out, before, &[ATTACKS]),
        }
        Ok(format!("{}\n", text.trim_end()))
    }
}

const KERNEL: &str = "In the kernel, nanoseconds a run";
const WORKLOAD: &str = "What it costs the workload";
const DETECTION: &str = "Kernel hook to user space, microseconds";
const FLOOD: &str = "A flood of exits";
const RECOVERY: &str = "From death to serving again, milliseconds";
const IDLE: &str = "An idle agent";
const SCALE: &str = "An agent that looks after services whose memory it follows";

const YEAR: &str = "A year of incidents on disk";
const TRACED: &str = "What a trace takes from a service";
const ATTACKS: &str = "Under all attacks at once";

/// Takes over sections of the text as it was, each from its heading to the next.
fn keep(out: &mut String, before: &str, headings: &[&str]) {
    for section in before.split("\n## ").skip(1) {
        if headings.iter().any(|heading| section.starts_with(&format!("{heading}\n"))) {
            out.push_str("## ");
            out.push_str(section.trim_end());
            out.push_str("\n\n");
        }
    }
}

fn kernel_table(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(out, "## {KERNEL}\n")?;
    writeln!(
        out,
        "{} processes that fork and exit one after the other on one processor, for each cell of each round; medians of {} \
         rounds. Run times are the kernel's own (`bpf_stats`), its two clock reads included, which is most of what the empty \
         program takes. Clean exits that belong to nobody are only counted; failing and signalled ones, and all of a \
         service's, are reported. `forkstat` has no program: see the next table.\n",
        kernel::EXITS,
        kernel.rounds
    )?;
    writeln!(out, "| program at the exit | clean | failing | signalled |")?;
    writeln!(out, "|---|---:|---:|---:|")?;
    let mut row = |row: &Row| match row.ns {
        [clean, ..] if clean.is_nan() => writeln!(out, "| {} | not installed | | |", row.name),
        [clean, failing, signalled] => {
            writeln!(out, "| {} | {clean:.0} | {failing:.0} | {signalled:.0} |", row.name)
        }
    };
    kernel.rows.iter().try_for_each(&mut row)?;
    row(&kernel.empty)?;
    kernel.peers.iter().try_for_each(&mut row)?;
    let few = &kernel.rows[0];
    writeln!(out, "\n| Defib, few services, nobody's exits | wanted | clean | failing | signalled |")?;
    writeln!(out, "|---|---|---:|---:|---:|")?;
    let mut ratio = |name: &str, wanted: &str, to: &Row| {
        let ratio = |at: usize| few.ns[at] / to.ns[at];
        writeln!(out, "| against {name} | {wanted} | {:.3} | {:.3} | {:.3} |", ratio(0), ratio(1), ratio(2))
    };
    ratio("the empty program", "at most 1.5, clean", &kernel.empty)?;
    for peer in kernel.peers.iter().filter(|peer| !peer.ns[0].is_nan()) {
        ratio(&peer.name, if peer.name == EXITSNOOP.0 { "at most 0.020, clean" } else { "" }, peer)?;
    }
    writeln!(
        out,
        "\nThe fork program takes {:.0} ns, the signal program {:.0} ns for a SIGCHLD. Of nobody's failing and signalled exits \
         {:.0} were reported and {:.0} found no room in the ring; each of those is counted.\n",
        kernel.fork_ns, kernel.signal_ns, kernel.seen, kernel.lost
    )
}

fn workload_table(out: &mut String, workload: &Workload) -> fmt::Result {
    writeln!(out, "## {WORKLOAD}\n")?;
    writeln!(
        out,
        "{} processes that fork and exit on one processor, {:.0} a second with nothing attached. Time against that of the same \
         round with nothing attached; median of {} rounds, and between what it lies in 95 of 100 cases (peers: of {} rounds). Wanted \
         for Defib: within 1 %.\n",
        workload::EXITS,
        workload.exits_per_second,
        workload.rounds,
        workload.rounds.div_ceil(workload::PEERS_EACH)
    )?;
    writeln!(out, "| with | time | 95 % interval |")?;
    writeln!(out, "|---|---:|---:|")?;
    for arm in &workload.arms {
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        let ratio = arm.ratio;
        if ratio.middle.is_nan() {
            writeln!(out, "| {} | not installed | |", arm.name)?;
            continue;
        }
        writeln!(
            out,
            "| {} | {:+.2} % | {:+.2} % to {:+.2} % |",
            arm.name,
            percent(ratio.middle),
            percent(ratio.low),
            percent(ratio.high)
        )?;
    }
    writeln!(out)
}

fn traced_table(out: &mut String, traced: &Traced) -> fmt::Result {
    let percent = |ratio: f64| (ratio - 1.0) * 100.0;
    let Traced { rounds, served, ratio, told, memory, processor, calls } = traced;
    writeln!(out, "## {TRACED}\n")?;
    writeln!(
        out,
        "A server that serves {served:.0} requests a second without a pause, {calls:.0} calls for memory a second, traced and not in \
         each round; time for a request against that without a trace, mean of {rounds} rounds and its 95 % interval.\n"
    )?;
    writeln!(out, "| | measured | wanted |")?;
    writeln!(out, "|---|---:|---:|")?;
    writeln!(
        out,
        "| time for a request | {:+.2} % ({:+.2} % to {:+.2} %) | at most 3 % |",
        percent(ratio.middle),
        percent(ratio.low),
        percent(ratio.high)
    )?;
    writeln!(out, "| what the traces say that they take | {:.2} % | |", told * 100.0)?;
    writeln!(out, "| most private memory of the tracing process | {:.1} MiB | 8 MiB |", memory / 1_048_576.0)?;
    writeln!(out, "| its own processor time, share of one | {:.1} % | |", processor * 100.0)?;
    writeln!(out)
}

fn detection_table(out: &mut String, Seen { told, beside, out: out_of_pool, flood }: &Seen) -> fmt::Result {
    writeln!(out, "## {DETECTION}\n")?;
    writeln!(
        out,
        "Idle: each death finds its readers asleep. Busy: processes fork and exit on all processors without a pause. A line is told \
         when a reader of the watcher's output has it; bpftrace prints a time stamp, Defib all that it knows of the death. The watchers \
         take turns.\n"
    )?;
    writeln!(out, "| | deaths | p50 | p99 | largest |")?;
    writeln!(out, "|---|---:|---:|---:|---:|")?;
    for Detection { name, deaths, p50, p99, max } in told {
        match deaths {
            0 => writeln!(out, "| {name} | not installed | | | |")?,
            _ => writeln!(out, "| {name} | {deaths} | {p50:.0} | {p99:.0} | {max:.0} |")?,
        }
    }
    writeln!(out, "| wanted, idle, the record read | | | 1000 | |")?;
    writeln!(
        out,
        "| in the flood below, by the agent's own histogram | {:.0} | | at most {:.0} | |",
        flood.seen,
        flood.detection_p99_ms * 1e3
    )?;
    writeln!(out, "| wanted, in a storm | | | 10000 | |\n")?;
    let Beside { kills, by_events, by_kmsg, ahead_us: (median, least) } = beside;
    writeln!(
        out,
        "Of {kills} OOM kills, a reader of Defib's events heard of {by_events} and a reader of the kernel's log (`/dev/kmsg`) of \
         {by_kmsg}, in the same process. Defib's reader was ahead by {median:.0} µs in the median, and by {least:.0} µs at least \
         (below nothing: behind).\n"
    )?;
    let OutOfPool { kills, p50, max } = out_of_pool;
    writeln!(
        out,
        "From the kernel's OOM mark on a server until a load balancer that asks without a pause has the answer `down`: {p50:.1} ms, at \
         most {max:.1} ms ({kills} kills).\n"
    )
}

fn flood_table(out: &mut String, flood: &Flood) -> fmt::Result {
    writeln!(out, "## {FLOOD}\n")?;
    writeln!(
        out,
        "Failing exits on all processors at once, as fast as the machine makes them, for {:.0} s; between them, deaths that must \
         not be lost.\n",
        flood.seconds
    )?;
    writeln!(out, "| | measured | wanted |")?;
    writeln!(out, "|---|---:|---|")?;
    writeln!(out, "| exits a second | {:.0} | 20000, or what the machine gives |", flood.exits / flood.seconds)?;
    let (caused, recorded) = flood.oom_kills;
    writeln!(out, "| OOM kills caused, recorded | {caused}, {recorded:.0} | all |")?;
    let (caused, recorded) = flood.watched;
    writeln!(out, "| deaths in a service caused, recorded | {caused}, {recorded:.0} | all |")?;
    writeln!(
        out,
        "| other exits seen + dropped, against the kernel's count | {:.0} + {:.0} of {:.0} | the same |",
        flood.seen, flood.dropped, flood.exits
    )?;
    writeln!(
        out,
        "| most resident memory in the first half, in the second | {:.1}, {:.1} MiB | flat |",
        flood.resident_kib[0] as f64 / 1024.0,
        flood.resident_kib[1] as f64 / 1024.0
    )?;
    writeln!(out, "| CPU of the agent, share of one core | {:.1} % | under 10 % |", flood.cpu * 100.0)?;
    writeln!(out, "| HTTP answers, p50, largest | {:.1}, {:.1} ms | 50 ms |\n", flood.answer_p50, flood.answer_max)
}

fn recovery_table(out: &mut String, recovery: &[Recovery]) -> fmt::Result {
    writeln!(out, "## {RECOVERY}\n")?;
    writeln!(
        out,
        "The same small web server, killed with SIGKILL, until it accepts connections again. Systemd as a service manager of a \
         user, on a bus of its own; Defib with `grace = \"0s\"`.\n"
    )?;
    writeln!(out, "| under | deaths | median | largest |")?;
    writeln!(out, "|---|---:|---:|---:|")?;
    for arm in recovery {
        match (&arm.missing, arm.back_ms.as_slice()) {
            (Some(missing), _) => writeln!(out, "| {} | not measured: needs {missing} | | |", arm.name)?,
            (None, []) => writeln!(out, "| {} | 1 | never | never |", arm.name)?,
            (None, [.., last]) => {
                let median = arm.back_ms[arm.back_ms.len() / 2];
                writeln!(out, "| {} | {} | {median:.1} | {last:.1} |", arm.name, arm.back_ms.len())?;
            }
        }
    }
    for arm in recovery {
        if let [.., last] = arm.called_ms.as_slice() {
            let median = arm.called_ms[arm.called_ms.len() / 2];
            writeln!(
                out,
                "\n{}: from the verdict that it stays dead to the call of `StartUnit`, as a witness on the bus saw it, \
                 {median:.2} ms, at most {last:.2} ms (wanted: 5 ms).",
                arm.name
            )?;
        }
    }
    writeln!(out)
}

fn footprint_table(out: &mut String, footprint: &Footprint, scale: &[Scale]) -> fmt::Result {
    writeln!(out, "## {IDLE}\n")?;
    writeln!(out, "| | measured | limit |")?;
    writeln!(out, "|---|---:|---:|")?;
    writeln!(out, "| resident memory | {:.1} MiB | 16 MiB |", footprint.resident_kib as f64 / 1024.0)?;
    writeln!(
        out,
        "| its peak, while type information is read at start | {:.1} MiB | |",
        footprint.peak_kib as f64 / 1024.0
    )?;
    writeln!(out, "| CPU, share of one core | {:.3} % | 0.2 % |", footprint.cpu * 100.0)?;
    writeln!(out, "\n## {SCALE}\n")?;
    writeln!(
        out,
        "Wanted: 12 MiB at 100 services and 40 MiB at 10,000; 0.5 % of a core at 1,000; a scrape within 20 ms at 1,000 and \
         100 ms at 10,000; attached within 300 ms.\n"
    )?;
    writeln!(
        out,
        "| services | attached after | ready after | resident memory | CPU, share of one core | a scrape | its size |"
    )?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|")?;
    for Scale { services, attached_ms, ready_ms, resident_kib, cpu, scrape_ms, scrape_bytes } in scale {
        writeln!(
            out,
            "| {services} | {attached_ms:.0} ms | {ready_ms:.0} ms | {:.1} MiB | {:.3} % | {scrape_ms:.1} ms | {} KiB |",
            *resident_kib as f64 / 1024.0,
            cpu * 100.0,
            scrape_bytes / 1024
        )?;
    }
    writeln!(out)
}

fn attacks_table(out: &mut String, attacks: &Attacks) -> fmt::Result {
    writeln!(out, "## {ATTACKS}\n")?;
    writeln!(
        out,
        "An agent with the packaged unit's limits for {} s, attacked in every way of `tests/src/bin/attacker`, while honest services \
         run out of memory, crash and exit; each of their deaths was reported once, with its cause. A service's return counts from the order \
         to die, so it includes dying. Largest value of the loop: the upper bound of its bucket.\n",
        attacks.seconds
    )?;
    writeln!(out, "| | count | p50 | p99 | largest | wanted |")?;
    writeln!(out, "|---|---:|---:|---:|---:|---|")?;
    let ms = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.1} ms"));
    for row in &attacks.rows {
        let wanted = match attacks.wanted(row) {
            (None, None) => String::new(),
            (None, Some(largest)) => format!("at most {largest:.0} ms"),
            (Some(p99), Some(largest)) => format!("p99 at most {p99:.0} ms, never above {largest:.0} ms"),
            (Some(p99), None) => format!("p99 at most {p99:.0} ms"),
        };
        let [p50, p99, largest] = [row.p50_ms, row.p99_ms, row.largest_ms].map(ms);
        writeln!(out, "| {} | {} | {p50} | {p99} | {largest} | {wanted} |", row.name, row.count)?;
    }
    let peak = attacks.resident_peak_bytes as f64 / 1_048_576.0;
    writeln!(out, "| resident memory | | | | {peak:.1} MiB | at most 48 MiB |\n")
}

/// Incidents in a year at one an hour.
const HOURLY: f64 = 24.0 * 365.0;

fn year_table(out: &mut String, Year { incidents, bytes }: &Year) -> fmt::Result {
    let each = *bytes as f64 / *incidents as f64;
    writeln!(out, "## {YEAR}\n")?;
    writeln!(
        out,
        "{incidents} real outages of services whose flight recorders were full, each with its timeline, evidence and memory \
         history.\n"
    )?;
    writeln!(out, "| | |")?;
    writeln!(out, "|---|---:|")?;
    writeln!(out, "| an incident | {:.1} KiB |", each / 1024.0)?;
    writeln!(out, "| a year at one an hour, {HOURLY:.0} of them | {:.0} MiB |", each * HOURLY / 1_048_576.0)?;
    writeln!(out, "| as many as are ever kept, 10,000 | {:.0} MiB |\n", each * 1e4 / 1_048_576.0)
}

fn machine() -> String {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    format!("{}, {cpus} processors, Linux {release}", model.trim_start_matches([' ', '\t', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_stays_as_it_was() {
        let before =
            format!("# Measured\n\nMachine: old.\n\n## {KERNEL}\n\na\n\n## {FLOOD}\n\nb\nc\n\n## {IDLE}\n\nd\n");
        let text = Tables::default().text(&before).expect("text");
        let sections: Vec<_> = text.split("\n## ").skip(1).collect();
        assert_eq!(sections, [format!("{KERNEL}\n\na\n"), format!("{FLOOD}\n\nb\nc\n"), format!("{IDLE}\n\nd\n")]);
        assert!(!text.contains("old"));
    }
}
