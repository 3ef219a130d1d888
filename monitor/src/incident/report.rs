//! The root-cause timeline of one incident, in Markdown.

use std::fmt::{self, Write as _};

use jiff::{SpanRound, Timestamp, Unit};
use serde_json::Value;

use super::{
    picture,
    record::{Foretold, Incident, Kind},
};
use crate::{figures::bytes, healing::Outcome, text::Clean};

/// Writes the report.
pub(crate) fn markdown(incident: &Incident) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    write(&mut out, incident).ok();
    out
}

fn write(out: &mut String, incident: &Incident) -> fmt::Result {
    let service = Clean(&incident.service);
    let what = match incident.kind {
        Kind::Outage => "was down",
        Kind::PlannedRestart => "had a planned restart",
        Kind::NearMiss => "lost a worker",
    };
    writeln!(out, "# Incident {}: {service} {what}\n", incident.id)?;
    writeln!(out, "| | |\n|---|---|")?;
    let mut row = |name: &str, text: String| writeln!(out, "| {name} | {} |", cell(&text));
    let cause = if incident.cause_text.is_empty() { "not known" } else { &incident.cause_text };
    row("Cause", cause.to_owned())?;
    row("Began", incident.began.to_string())?;
    row("Detected", after(incident, "verdict"))?;
    row("Acted", after(incident, "restart_asked"))?;
    match (incident.kind, incident.ended) {
        (Kind::NearMiss, _) => row("Resolved", "the service lived on".to_owned())?,
        (Kind::Outage | Kind::PlannedRestart, Some(ended)) => row("Resolved", ended.to_string())?,
        (Kind::Outage | Kind::PlannedRestart, None) => row("Resolved", "not yet".to_owned())?,
    }
    if let Some(outage_ms) = incident.outage_ms {
        row("Downtime", format!("{:.3} s", outage_ms as f64 / 1000.0))?;
    }
    row("Outcome", outcome(incident).to_owned())?;
    row("Deaths, restarts asked", format!("{}, {}", incident.deaths, incident.restarts))?;

    writeln!(out, "\n## Timeline\n\n| Time (UTC) | After the death | What |\n|---|---|---|")?;
    for entry in &incident.timeline {
        writeln!(out, "| {} | {} | {} |", entry.at, offset(incident.began, entry.at), cell(&entry.text))?;
    }
    if incident.moments_dropped > 0 {
        writeln!(out, "\n{} moments in the middle were not kept.", incident.moments_dropped)?;
    }

    if let Some(items) = incident.evidence.as_array().filter(|items| !items.is_empty()) {
        writeln!(out, "\n## Evidence\n")?;
        for item in items {
            let text = |name: &str| item[name].as_str().unwrap_or_default();
            writeln!(out, "- {}: {}", cell(text("source")), cell(text("finding")))?;
        }
        let missing: Vec<_> = incident.missing.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !missing.is_empty() {
            writeln!(out, "- not there in time: {}", missing.join(", "))?;
        }
    }

    if let (Some(first), Some(last)) = (incident.memory.first(), incident.memory.last()) {
        writeln!(out, "\n## Memory before the death\n")?;
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let limit =
            incident.memory_limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {}", mib(limit)));
        writeln!(
            out,
            "From {} to {} in {} ({limit}).\n",
            mib(first.bytes),
            mib(last.bytes),
            offset(first.at, last.at).trim_start_matches('+')
        )?;
        writeln!(out, "| After the death | Memory |\n|---|---|")?;
        for sample in &incident.memory {
            writeln!(out, "| {} | {} |", offset(incident.began, sample.at), mib(sample.bytes))?;
        }
    }

    write_picture(out, incident)?;

    if let Some(foretold) = incident.foretold.as_ref().filter(|_| is_want_of_memory(incident)) {
        writeln!(out, "\n## Was it foreseen?\n")?;
        writeln!(out, "{}", foreseen(incident, foretold))?;
    }

    writeln!(out, "\n## What would have prevented it\n")?;
    for advice in advice(incident) {
        writeln!(out, "- {advice}")?;
    }
    Ok(())
}

fn write_picture(out: &mut String, incident: &Incident) -> fmt::Result {
    let Some(before) = &incident.before_oom else { return Ok(()) };
    writeln!(out, "\n## What was in memory")?;
    for picture in &before.pictures {
        writeln!(out, "\n{}.", cell(&picture::heading(incident, picture)))?;
        for portrait in &picture.processes {
            writeln!(out, "\nOf {}:\n", cell(&picture::process(portrait)))?;
            writeln!(out, "| In memory | In swap | What |\n|---:|---:|---|")?;
            for (resident, swap, what) in picture::rows(portrait) {
                writeln!(out, "| {} | {} | {} |", bytes(resident), bytes(swap), cell(&what))?;
            }
        }
    }
    if let Some(ran) = &before.command {
        writeln!(out, "\n{}.", cell(&ran.text))?;
    }
    Ok(())
}

/// Whether the forecast should have seen it come.
pub(crate) fn is_want_of_memory(incident: &Incident) -> bool {
    matches!(incident.cause["kind"].as_str(), Some("oom_kill" | "userspace_oom_kill" | "app_oom_probable"))
}

/// What the forecast had said of a death for want of memory.
pub(crate) fn foreseen(incident: &Incident, foretold: &Foretold) -> String {
    let Some(since) = foretold.since else {
        return match foretold.verdict.as_str() {
            "insufficient" => "No: too little had been seen of its memory to say anything.".to_owned(),
            _ => "No: its memory had not been seen to grow with uptime.".to_owned(),
        };
    };
    let mut text =
        format!("Yes: since {since:.0}, {} before it died.", offset(since, incident.began).trim_start_matches('+'));
    if let Some(growth) = foretold.growth_bytes_per_hour {
        // Writing to a string does not fail.
        write!(text, " Its memory grew by {:.1} MiB an hour of uptime.", growth / f64::from(1 << 20)).ok();
    }
    if let Some(runs_out) = foretold.runs_out {
        let between = match (foretold.earliest, foretold.latest) {
            (Some(earliest), Some(latest)) => format!(", between {earliest:.0} and {latest:.0}"),
            (Some(earliest), None) => format!(", not before {earliest:.0}"),
            _ => String::new(),
        };
        write!(text, " It was said to run out at {runs_out:.0}{between}, if it was not restarted.").ok();
    }
    text
}

/// Text that cannot leave its cell: what a process chose is among it.
pub(crate) fn cell(text: &str) -> String {
    Clean(text).to_string().replace('|', "\\|").replace(['\n', '<'], " ")
}

/// The first moment of that kind, as a time after the beginning.
fn after(incident: &Incident, what: &str) -> String {
    let entry = incident.timeline.iter().find(|entry| entry.what == what);
    entry.map_or_else(|| "no".to_owned(), |entry| format!("{} ({})", entry.at, offset(incident.began, entry.at)))
}

/// The time between the two, with its sign.
pub(crate) fn offset(began: Timestamp, at: Timestamp) -> String {
    let span = at.duration_since(began);
    let rounded = span.abs();
    // Not of what is shown as nothing.
    let sign = if span.is_negative() && rounded.as_micros() >= 500 { '-' } else { '+' };
    if rounded.as_secs() < 60 {
        return format!("{sign}{:.3} s", rounded.as_secs_f64());
    }
    let round = SpanRound::new().smallest(Unit::Second).largest(Unit::Hour);
    let text = jiff::Span::try_from(rounded).and_then(|span| span.round(round)).map(|span| format!("{span:#}"));
    format!("{sign}{}", text.unwrap_or_default())
}

/// Whether nothing more is to come of it.
pub(crate) fn is_over(incident: &Incident) -> bool {
    incident.kind == Kind::NearMiss || incident.ended.is_some()
}

/// What became of it.
pub(crate) fn outcome(incident: &Incident) -> &'static str {
    match incident.outcome {
        Some(Outcome::Restarted) if !is_over(incident) => "Defib restarted it, and it is not healthy yet",
        Some(Outcome::Restarted) => "Defib restarted it",
        Some(Outcome::Respawned) => "somebody else brought it back",
        Some(Outcome::LeftAlone) if incident.kind == Kind::PlannedRestart => "called off",
        Some(Outcome::LeftAlone) => "left alone, by configuration",
        Some(Outcome::Renewed) => "Defib restarted it ahead of time",
        Some(Outcome::Intended) => "it was meant to be down",
        None if incident.kind == Kind::NearMiss => "nothing was to be done",
        None => "open",
    }
}

/// What follows from the record alone; nothing is guessed.
pub(crate) fn advice(incident: &Incident) -> Vec<String> {
    let mut advice = Vec::new();
    let says = |what: &str| incident.timeline.iter().find(|entry| entry.what == what).map(|entry| entry.text.as_str());
    match incident.cause["kind"].as_str() {
        Some("oom_kill") => {
            let scope = incident.cause["scope"].as_str().unwrap_or("unknown");
            advice.push(match (scope, incident.cause["limit_bytes"].as_u64()) {
                ("memcg", Some(limit)) => format!(
                    "It was killed at a limit of {:.0} MiB{}. Either it leaks, which its growth over its uptime shows, or \
                     the limit is below what it needs.",
                    limit as f64 / f64::from(1 << 20),
                    incident.cause["limit_owner"].as_str().map(|owner| format!(" of {}", cell(owner))).unwrap_or_default()
                ),
                ("global", _) => "The host ran out of memory. A memory limit for whoever grew (MemoryMax=) keeps the \
                                  others alive."
                    .to_owned(),
                _ => "It was killed for want of memory.".to_owned(),
            });
        }
        Some("userspace_oom_kill") => {
            advice.push("A user-space OOM killer chose it; a limit of its own would have hit nobody else.".to_owned());
        }
        Some("app_oom_probable") => {
            advice.push("Its own runtime ran out of memory: raise its heap limit, or find what it holds.".to_owned());
        }
        Some("crash") => advice.push("It crashed; the site is in the timeline and the evidence.".to_owned()),
        Some("watchdog") => advice.push("It gave no sign of life; its supervisor ended it.".to_owned()),
        _ => {}
    }
    if let Some(text) = says("waiting").filter(|text| text.contains("Restart=") || text.contains("restart policy")) {
        let text = cell(text);
        advice.push(format!(
            "Its own supervisor would have left it dead ({text}). `defib audit` shows the setting that changes that."
        ));
    }
    if let Some(text) = says("not_restarted").and_then(|text| text.strip_prefix("not restarted: ")) {
        advice.push(format!("Defib did not restart it at once: {}.", cell(text)));
    }
    if advice.is_empty() {
        advice.push("The record does not show it.".to_owned());
    }
    advice
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        incident::record::{Entry, Sample},
        memory::picture::{BeforeOom, Ended, Mapping, Moment, Picture, Portrait, Ran, Sum},
    };
    use serde_json::json;

    fn before_oom() -> BeforeOom {
        let portrait = Portrait {
            tgid: 12,
            comm: "web|x".to_owned(),
            threads: Some(34),
            open_files: Some(120),
            resident_bytes: 30 << 20,
            swap_bytes: 1 << 20,
            mappings: 22,
            largest: vec![Mapping {
                kind: crate::memory::picture::Kind::File,
                name: "/srv/a|<b>".to_owned(),
                resident_bytes: 28 << 20,
                swap_bytes: 0,
            }],
            rest: vec![Sum {
                kind: crate::memory::picture::Kind::Anonymous,
                mappings: 21,
                resident_bytes: 2 << 20,
                swap_bytes: 1 << 20,
            }],
            cut: None,
        };
        let taken = Timestamp::from_millisecond(1_699_999_940_000).expect("a time");
        let processes = vec![portrait];
        BeforeOom {
            pictures: vec![Picture { taken, took_ms: 0, moment: Moment::Foreseen, missed: None, processes, others: 2 }],
            command: Some(Ran {
                at: taken,
                ended: Ended::Ok,
                text: "/usr/bin/x ran before memory was out: done in 0.1 s".to_owned(),
                directory: None,
            }),
        }
    }

    pub(in crate::incident) fn incident() -> Incident {
        let at = |ms: i64| Timestamp::from_millisecond(1_700_000_000_000 + ms).expect("a time");
        let entry = |ms, what: &str, text: &str| Entry { at: at(ms), what: what.to_owned(), text: text.to_owned() };
        Incident {
            id: 3,
            service: "web.service".to_owned(),
            kind: Kind::Outage,
            began: at(0),
            ended: Some(at(2450)),
            outage_ms: Some(2450),
            outcome: Some(Outcome::Restarted),
            cause: json!({ "kind": "oom_kill", "scope": "memcg", "limit_bytes": 33_554_432u64, "limit_owner": "/a|b" }),
            cause_text: "OOM kill".to_owned(),
            evidence: json!([{ "source": "oom_mark", "finding": "marked <b>" }]),
            missing: json!(["kernel_log"]),
            timeline: vec![
                entry(-2, "oom_mark", "chosen"),
                entry(3, "verdict", "cause: OOM kill"),
                entry(5, "waiting", "grace (Restart=no, result oom-kill)"),
                entry(2004, "restart_asked", "try 1"),
                entry(700_000, "healthy", "again"),
            ],
            moments_dropped: 0,
            memory: vec![Sample { at: at(-10_000), bytes: 10 << 20 }, Sample { at: at(-5_000), bytes: 31 << 20 }],
            memory_limit: Some(32 << 20),
            foretold: Some(Foretold {
                verdict: "masked_leak".to_owned(),
                growth_bytes_per_hour: Some(2_202_009.6),
                since: Some(at(-90_000_000)),
                runs_out: Some(at(3_600_000)),
                earliest: Some(at(-3_600_000)),
                latest: None,
            }),
            before_oom: Some(Box::new(before_oom())),
            restarts: 1,
            deaths: 1,
        }
    }

    #[test]
    fn the_report_tells_what_happened_and_what_would_have_helped() {
        let text = markdown(&incident());
        for line in [
            "# Incident 3: web.service was down",
            "| Detected | 2023-11-14T22:13:20.003Z (+0.003 s) |",
            "| Acted | 2023-11-14T22:13:22.004Z (+2.004 s) |",
            "| Downtime | 2.450 s |",
            "| Outcome | Defib restarted it |",
            "| 2023-11-14T22:13:19.998Z | -0.002 s | chosen |",
            "| 2023-11-14T22:25:00Z | +11m 40s | again |",
            "- oom_mark: marked  b>",
            "- not there in time: kernel_log",
            "From 10.0 MiB to 31.0 MiB in 5.000 s (limit 32.0 MiB).",
            "| -5.000 s | 31.0 MiB |",
            "## What was in memory\n\n-1m, when memory was about to run out; 2 other processes are not shown.",
            "Of pid 12 (web\\|x): 30.0 MiB in memory, 1.0 MiB in swap, 22 mappings, 34 threads, 120 open files:",
            "| 28.0 MiB | 0 B | file: /srv/a\\| b> |",
            "| 2.0 MiB | 1.0 MiB | anonymous: 21 others |",
            "/usr/bin/x ran before memory was out: done in 0.1 s.",
            "Yes: since 2023-11-13T21:13:20Z, 25h before it died. Its memory grew by 2.1 MiB an hour",
            "said to run out at 2023-11-14T23:13:20Z, not before 2023-11-14T21:13:20Z",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.contains("limit of 32 MiB of /a\\|b"), "{text}");
        assert!(text.contains("left it dead (grace (Restart=no"), "{text}");
    }

    #[test]
    fn an_open_incident_without_a_cause_has_a_report_too() {
        let open = Incident {
            ended: None,
            outage_ms: None,
            outcome: None,
            cause: Value::Null,
            cause_text: String::new(),
            evidence: Value::Null,
            timeline: Vec::new(),
            memory: Vec::new(),
            ..incident()
        };
        let text = markdown(&open);
        for line in ["| Cause | not known |", "| Resolved | not yet |", "| Acted | no |", "| Outcome | open |"] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
