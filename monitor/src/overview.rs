//! Services in the order in which they need attention, and what the record says of their past; for pages and terminals.
//! Pure.

use std::collections::HashMap;

use crate::{control::Status, incident::Incident};

/// Whether a service is down.
pub(crate) fn is_down(status: &Status) -> bool {
    status.down_since.is_some()
}

/// Seconds until its memory runs out, if that is foreseen; one that is down has none to run out of.
pub(crate) fn seconds_left(status: &Status) -> Option<f64> {
    if is_down(status) {
        return None;
    }
    let forecast = &status.forecast;
    forecast.exhausted_in_seconds.or(forecast.time_to_oom_seconds)
}

/// Growth in an hour of uptime, bytes, where it is a leak.
pub(crate) fn growth(status: &Status) -> Option<u64> {
    use crate::memory::forecast::Verdict;
    let leaks = matches!(status.forecast.verdict, Verdict::Leak | Verdict::MaskedLeak);
    status.forecast.growth_bytes_per_hour.filter(|growth| leaks && *growth > 0.0).map(|growth| growth as u64)
}

/// Sorts: those that are down first, then those with the least time left, then by name.
pub(crate) fn sort(services: &mut [Status]) {
    let left = |status: &Status| seconds_left(status).unwrap_or(f64::INFINITY);
    services.sort_by(|a, b| {
        is_down(b).cmp(&is_down(a)).then_with(|| left(a).total_cmp(&left(b))).then_with(|| a.service.cmp(&b.service))
    });
}

/// What some incidents say of one service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past<'a> {
    /// The newest.
    pub(crate) last: &'a Incident,
    /// Restarts that were asked for in all of them.
    pub(crate) restarts: u32,
}

/// The past of each service, from incidents of which the newest comes first.
pub(crate) fn pasts(incidents: &[Incident]) -> HashMap<&str, Past<'_>> {
    let mut pasts: HashMap<&str, Past<'_>> = HashMap::new();
    for incident in incidents {
        let past = pasts.entry(&incident.service).or_insert(Past { last: incident, restarts: 0 });
        past.restarts = past.restarts.saturating_add(incident.restarts);
    }
    pasts
}
