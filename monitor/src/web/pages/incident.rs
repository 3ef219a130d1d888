//! The page of one incident: what happened, on what evidence, what was done, and whether it was foreseen. Pure.

use maud::{Markup, html};
use serde_json::Value;

use super::{bounded, curve, time};
use crate::{
    figures::{bytes, span},
    incident::{Incident, Kind, picture, report},
};

/// Characters of a name and of a text that are shown; the record itself is bounded.
const NAME: usize = 200;
const TEXT: usize = 1000;

/// All of it.
pub(super) fn body(incident: &Incident) -> Markup {
    let what = match incident.kind {
        Kind::Outage => "was down",
        Kind::NearMiss => "lost a worker",
        Kind::PlannedRestart => "had a planned restart",
    };
    html! {
        h1 { "Incident " (incident.id) ": " (bounded(&incident.service, NAME)) " " (what) }
        (summary(incident))
        (timeline(incident))
        (evidence(incident))
        (memory(incident))
        (pictures(incident))
        @if let Some(foretold) = incident.foretold.as_ref().filter(|_| report::is_want_of_memory(incident)) {
            h2 { "Was it foreseen?" }
            p { (report::foreseen(incident, foretold)) }
        }
        h2 { "What would have prevented it" }
        ul { @for advice in report::advice(incident) { li { (bounded(&advice, TEXT)) } } }
    }
}

fn summary(incident: &Incident) -> Markup {
    html! {
        dl {
            dt { "Cause" }
            dd { @if incident.cause_text.is_empty() { "not known" } @else { (bounded(&incident.cause_text, TEXT)) } }
            dt { "Began" }
            dd { (time(incident.began)) }
            dt { "Resolved" }
            dd {
                @match (incident.kind, incident.ended) {
                    (Kind::NearMiss, _) => "the service lived on",
                    (Kind::Outage | Kind::PlannedRestart, Some(ended)) => (time(ended)),
                    (Kind::Outage | Kind::PlannedRestart, None) => strong { "not yet" },
                }
            }
            dt { "Downtime" }
            dd {
                @match (incident.kind, incident.outage_ms) {
                    (Kind::NearMiss, _) => "none",
                    (Kind::PlannedRestart, None) => "planned, see the timeline",
                    (_, Some(outage_ms)) => (format!("{:.3} s", outage_ms as f64 / 1e3)),
                    _ => "still down",
                }
            }
            dt { "Outcome" }
            dd { (report::outcome(incident)) }
            dt { "Deaths" }
            dd { (incident.deaths) }
            dt { "Restarts asked" }
            dd { (incident.restarts) }
        }
    }
}

fn timeline(incident: &Incident) -> Markup {
    html! {
        h2 { "Timeline" }
        div class="scroll" role="region" tabindex="0" aria-labelledby="timeline" {
            table {
                caption id="timeline" { "What happened and what was decided, in order; times are UTC" }
                thead { tr { th scope="col" { "After the death" } th scope="col" { "What" } th scope="col" { "Time" } } }
                tbody {
                    @for entry in &incident.timeline {
                        tr {
                            th scope="row" { (report::offset(incident.began, entry.at)) }
                            td data-label="What" { (bounded(&entry.text, TEXT)) }
                            td data-label="Time" { (time(entry.at)) }
                        }
                    }
                }
            }
        }
        @if incident.moments_dropped > 0 { p { (incident.moments_dropped) " moments in the middle were not kept." } }
    }
}

fn evidence(incident: &Incident) -> Markup {
    let items = incident.evidence.as_array().map_or(&[][..], Vec::as_slice);
    let missing: Vec<_> = incident.missing.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let text = |item: &Value, name: &str| bounded(item[name].as_str().unwrap_or_default(), TEXT);
    html! {
        h2 { "Evidence" }
        @if items.is_empty() && missing.is_empty() { p { "None was kept." } } @else {
            ul {
                @for item in items { li { strong { (text(item, "source").replace('_', " ")) } ": " (text(item, "finding")) } }
                @if !missing.is_empty() { li { "not there in time: " (bounded(&missing.join(", "), TEXT)) } }
            }
        }
    }
}

fn memory(incident: &Incident) -> Markup {
    let (Some(first), Some(last)) = (incident.memory.first(), incident.memory.last()) else { return html! {} };
    html! {
        h2 { "Memory before the death" }
        figure {
            (curve::plot(&incident.memory, incident.memory_limit))
            figcaption {
                "From " (bytes(first.bytes)) " to " (bytes(last.bytes)) " in "
                (span(u64::try_from(last.at.duration_since(first.at).as_millis()).unwrap_or(0)))
                @match incident.memory_limit {
                    Some(limit) => { "; the dashed line is its limit, " (bytes(limit)) "." }
                    None => "; it had no limit.",
                }
            }
        }
    }
}

fn pictures(incident: &Incident) -> Markup {
    let Some(before) = &incident.before_oom else { return html! {} };
    html! {
        h2 { "What was in memory" }
        @for shown in &before.pictures {
            p { (bounded(&picture::heading(incident, shown), TEXT)) "." }
            @for portrait in &shown.processes {
                div class="scroll" role="region" tabindex="0" aria-label={ "Memory of process " (portrait.tgid) } {
                    table {
                        caption { (bounded(&picture::process(portrait), TEXT)) }
                        thead {
                            tr { th scope="col" { "In memory" } th scope="col" { "In swap" } th scope="col" { "What" } }
                        }
                        tbody {
                            @for (resident, swap, what) in picture::rows(portrait) {
                                tr {
                                    th scope="row" { (bytes(resident)) }
                                    td data-label="In swap" { (bytes(swap)) }
                                    td data-label="What" { (bounded(&what, TEXT)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(ran) = &before.command { p { (bounded(&ran.text, TEXT)) "." } }
    }
}
