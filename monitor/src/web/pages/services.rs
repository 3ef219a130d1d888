//! The first page: services in the order in which they need attention, then what happened last. Pure.

use jiff::Timestamp;
use maud::{Markup, html};

use super::{bounded, curve, time};
use crate::{
    control::Status,
    figures::{bytes, since, span},
    incident::{Incident, Sample, report},
    overview::{self, Past},
    pool::State,
};

/// Incidents in the list.
pub(super) const RECENT: usize = 20;
/// Characters of a name, and of a text, that are shown.
const NAME: usize = 80;
const TEXT: usize = 160;

/// How many there are, and which of them are on this page.
pub(super) struct Counts {
    /// Services.
    pub(super) all: usize,
    /// Of these down.
    pub(super) down: usize,
    /// This page.
    pub(super) page: usize,
    /// Pages.
    pub(super) pages: usize,
}

/// `incidents`: the newest first; `None`: they cannot be read.
pub(super) fn body(
    counts: &Counts,
    services: &[Status],
    curves: &[Vec<Sample>],
    incidents: Option<&[Incident]>,
    now: Timestamp,
) -> Markup {
    let pasts = overview::pasts(incidents.unwrap_or_default());
    let (page, pages) = (counts.page, counts.pages);
    html! {
        h1 { "Services" }
        p { (counts.all) " looked after, " strong { (counts.down) " down" } ". As of " (time(now)) "." }
        (live())
        @if services.is_empty() {
            p { "The agent looks after no service; [[service]] in its configuration names them." }
        } @else {
            div class="scroll" role="region" tabindex="0" aria-labelledby="services" {
                table {
                    caption id="services" { "Services: those that are down first, then those with the least time left" }
                    thead { tr {
                        @for name in ["Service", "State", "Memory, last minutes", "Memory of limit", "Forecast", "Pool", "Last incident"] {
                            th scope="col" { (name) }
                        }
                    } }
                    tbody {
                        @for (number, status) in services.iter().enumerate() {
                            (row(status, curves.get(number).map_or(&[], Vec::as_slice), pasts.get(status.service.as_str()), now))
                        }
                    }
                }
            }
        }
        @if pages > 1 {
            nav aria-label="Pages of services" {
                p {
                    "Page " (page) " of " (pages) ". "
                    @if page > 1 { a href={ "./?page=" (page - 1) } rel="prev" { "Previous page" } " " }
                    @if page < pages { a href={ "./?page=" (page + 1) } rel="next" { "Next page" } }
                }
            }
        }
        (recent(incidents))
    }
}

/// Empty and hidden until the script has something to say.
fn live() -> Markup {
    html! {
        section id="live" data-events="api/v1/events" aria-labelledby="live-title" hidden {
            h2 id="live-title" { "As it happens" }
            ol aria-live="polite" {}
        }
    }
}

fn row(status: &Status, samples: &[Sample], past: Option<&Past<'_>>, now: Timestamp) -> Markup {
    let down = overview::is_down(status);
    html! {
        tr class=[down.then_some("down")] {
            th scope="row" { (bounded(&status.service, NAME)) }
            td data-label="State" {
                @if down { strong { "▼ down: " } }
                (status.state.replace('_', " "))
                @if let Some(at) = status.down_since.or(status.started) { " for " (since(at, now)) }
                @if let Some(id) = status.incident { br; a href={ "incidents/" (id) } { "open incident " (id) } }
                @if let Some(until) = status.paused_until { br; "paused until " (time(until)) }
            }
            td data-label="Last minutes" { (curve::spark(samples, status.memory_limit_bytes)) }
            td data-label="Memory" { (memory(status)) }
            td data-label="Forecast" {
                @if let Some(left) = overview::seconds_left(status) {
                    strong { "full in " (span((left * 1e3) as u64)) } br;
                }
                @if down { "–" } @else { (bounded(&status.forecast_text, TEXT)) }
            }
            td data-label="Pool" { (status.pool.map_or("–", |pool| match pool {
                State::In => "in",
                State::Draining => "draining",
                State::Out => "out",
            })) }
            td data-label="Last incident" {
                @if let Some(Past { last, .. }) = past {
                    a href={ "incidents/" (last.id) } { (last.id) } ": " (cause(last)) ", " (since(last.began, now)) " ago"
                } @else { "–" }
            }
        }
    }
}

fn memory(status: &Status) -> Markup {
    let Some(used) = status.memory_bytes else { return html! { "–" } };
    html! {
        (bytes(used))
        @match status.memory_limit_bytes {
            Some(limit) => { " of " (bytes(limit)) ", " (100 * u128::from(used) / u128::from(limit.max(1))) " %" }
            None => ", no limit",
        }
    }
}

fn cause(incident: &Incident) -> String {
    if incident.cause_text.is_empty() { "cause not known".to_owned() } else { bounded(&incident.cause_text, TEXT) }
}

fn recent(incidents: Option<&[Incident]>) -> Markup {
    let Some(incidents) = incidents else {
        return html! { h2 { "Incidents" } p { "They cannot be read just now; the agent's log says why." } };
    };
    let mut shown: Vec<_> = incidents.iter().collect();
    // The order is stable: among each the newest stay first.
    shown.sort_by_key(|incident| report::is_over(incident));
    shown.truncate(RECENT);
    html! {
        h2 { "Incidents" }
        @if shown.is_empty() { p { "None so far." } } @else {
            div class="scroll" role="region" tabindex="0" aria-labelledby="incidents" {
                table {
                    caption id="incidents" { "Open incidents, then the newest; times are UTC" }
                    thead { tr {
                        @for name in ["Incident", "Service", "Began", "Cause", "Outcome", "Downtime"] { th scope="col" { (name) } }
                    } }
                    tbody {
                        @for incident in shown {
                            tr class=[(!report::is_over(incident)).then_some("down")] {
                                th scope="row" { a href={ "incidents/" (incident.id) } { (incident.id) } }
                                td data-label="Service" { (bounded(&incident.service, NAME)) }
                                td data-label="Began" { (time(incident.began)) }
                                td data-label="Cause" { (cause(incident)) }
                                td data-label="Outcome" { (report::outcome(incident)) }
                                td data-label="Downtime" { (incident.outage_ms.map_or_else(|| "–".to_owned(), span)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
