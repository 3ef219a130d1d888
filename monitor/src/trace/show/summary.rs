//! What lists, incidents and the timeline show of a trace: a few lines of it.

use std::{collections::HashMap, fmt, path::Path};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{alike::alike, culprit::culprit, name};
use crate::{
    figures,
    incident::{
        Incident, Kind,
        report::{cell, is_want_of_memory},
    },
    text::Clean,
    trace::growth::{Ended, Growth, Stack},
};

/// Stacks in it.
const STACKS: usize = 3;
/// Frames of each.
const FRAMES: usize = 8;
/// Callers on one line of a terminal.
const CALLERS: usize = 3;
/// Characters of a name that is kept here.
const NAME: usize = 200;
/// Programs that are named.
const PROGRAMS: usize = 8;

/// See the module. Bounded whatever the trace has: some 10 KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The service.
    pub(crate) service: String,
    /// When the trace began, wall clock.
    pub(crate) began: Timestamp,
    /// How long it took, seconds.
    pub(crate) seconds: f64,
    /// Why it ended.
    pub(crate) ended: Ended,
    /// Build ids of what ran, hexadecimal.
    pub(crate) builds: Vec<String>,
    /// Growth that stays, bytes an hour.
    pub(crate) bytes_per_hour: f64,
    /// Time taken from the service, share of its processor time, 0 to 1.
    pub(crate) cost_share: f64,
    /// The stacks that grow fastest, at most three.
    pub(crate) stacks: Vec<Top>,
    /// Where it is kept, `SERVICE/TIME` below `traces` in the state directory and `/api/v1/traces`; `None` while it is not.
    #[serde(default)]
    pub(crate) kept: Option<String>,
}

/// A stack of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Top {
    /// Share of all growth, 0 to 1.
    pub(crate) share: f64,
    /// Its growth, bytes an hour.
    pub(crate) bytes_per_hour: f64,
    /// The code that asked, as far as names tell.
    pub(crate) function: String,
    /// Its place in the source, `file:line`, if known.
    pub(crate) source: Option<String>,
    /// The frames from there outward, at most eight.
    pub(crate) callers: Vec<String>,
}

impl Growth {
    /// All growth that stays, bytes an hour.
    pub(crate) fn total(&self) -> f64 {
        let growth = self.stacks.iter().map(|stack| stack.bytes_per_hour).chain([self.others_bytes_per_hour]);
        growth.filter(|growth| growth.is_finite() && *growth > 0.0).sum()
    }

    /// The part of that which is `bytes_per_hour`, 0 to 1.
    pub(crate) fn share(&self, bytes_per_hour: f64) -> f64 {
        let total = self.total();
        if total > 0.0 { (bytes_per_hour / total).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl Summary {
    /// The few lines.
    pub(crate) fn of(growth: &Growth) -> Self {
        let builds = growth.programs.iter().filter_map(|program| program.build_id.as_deref());
        Self {
            service: growth.service.clone(),
            began: growth.began,
            seconds: growth.seconds,
            ended: growth.ended,
            builds: builds.take(PROGRAMS).map(|build| name::short(build, NAME)).collect(),
            bytes_per_hour: growth.total(),
            cost_share: growth.cost.share,
            stacks: tops(growth),
            kept: None,
        }
    }
}

/// The fastest; what the code asked through is not shown, and so does not keep two apart.
fn tops(growth: &Growth) -> Vec<Top> {
    let mut tops: Vec<Top> = Vec::new();
    let mut known = HashMap::new();
    for top in alike(growth).iter().map(|stack| Top::of(stack, growth)) {
        let look = (top.function.clone(), top.source.clone(), top.callers.clone());
        let at = *known.entry(look).or_insert(tops.len());
        match tops.get_mut(at) {
            None => tops.push(top),
            Some(same) => {
                same.bytes_per_hour += top.bytes_per_hour;
                same.share += top.share;
            }
        }
    }
    tops.sort_by(|a, b| b.bytes_per_hour.total_cmp(&a.bytes_per_hour));
    tops.truncate(STACKS);
    tops
}

impl Top {
    fn of(stack: &Stack, growth: &Growth) -> Self {
        let at = culprit(stack);
        let place = at.and_then(|at| stack.frames.get(at));
        let callers = stack.frames.iter().skip(at.map_or(0, |at| at + 1)).take(FRAMES);
        Self {
            share: growth.share(stack.bytes_per_hour),
            bytes_per_hour: stack.bytes_per_hour,
            function: place.map_or_else(|| "no frames".to_owned(), |place| name::function(&name::whole(place), NAME)),
            source: place.and_then(name::source),
            callers: callers.map(|place| name::function(&name::whole(place), NAME)).collect(),
        }
    }
}

/// `62 %, 250.1 MiB an hour: web::cache::insert (src/cache.rs:88)`
impl fmt::Display for Top {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let growth = figures::bytes(self.bytes_per_hour as u64);
        write!(out, "{:.0} %, {growth} an hour: {}", self.share * 100.0, Clean(&self.function))?;
        match &self.source {
            Some(source) => write!(out, " ({})", Clean(source)),
            None => Ok(()),
        }
    }
}

/// One line, for the timeline.
impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = figures::span((self.seconds * 1e3) as u64);
        match self.stacks.first() {
            None => write!(out, "traced for {took}: nothing that it asked for and kept grows"),
            Some(top) => {
                let growth = figures::bytes(self.bytes_per_hour as u64);
                write!(out, "traced for {took}: {growth} an hour stay; {top}")
            }
        }
    }
}

/// A leak of last week is the one that killed today; what was traced the day after is that of the next incarnation.
const BEFORE: SignedDuration = SignedDuration::from_hours(7 * 24);
const AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The trace that an incident is shown with, of those kept of its service, the newest first: the last one before it, else the first
/// one after. None for an incident that has nothing to do with memory.
pub(crate) fn for_incident(kept: Vec<Summary>, incident: &Incident) -> Option<Summary> {
    if !is_want_of_memory(incident) && incident.kind != Kind::PlannedRestart {
        return None;
    }
    let after = |one: &Summary| one.began.duration_since(incident.began);
    let (later, mut earlier): (Vec<_>, Vec<_>) = kept.into_iter().partition(|one| after(one) > SignedDuration::ZERO);
    let before = earlier.drain(..).next().filter(|one| after(one) >= -BEFORE);
    before.or_else(|| later.into_iter().next_back().filter(|one| after(one) <= AFTER))
}

/// The same for the report of an incident, in Markdown; `place` is where its files are.
pub(crate) fn markdown(traced: &Summary, place: &Path) -> String {
    let mut out = format!("\n## Where its memory grew\n\nAt {:.0}: {}.\n", traced.began, cell(&traced.to_string()));
    if !traced.stacks.is_empty() {
        out.push_str("\n| Share | Growth an hour | Code that asked | Called by |\n|---|---|---|---|\n");
    }
    for top in &traced.stacks {
        let source = top.source.as_deref().map(|source| format!(" ({})", cell(source))).unwrap_or_default();
        let growth = figures::bytes(top.bytes_per_hour as u64);
        let (function, callers) = (cell(&top.function), top.callers.iter().map(|name| cell(name)).collect::<Vec<_>>());
        let share = top.share * 100.0;
        out.push_str(&format!("| {share:.0} % | {growth} | {function}{source} | {} |\n", callers.join(", ")));
    }
    out.push_str(&format!("\nFlame graph: `{}`\n", place.join("flame.svg").display()));
    out
}

/// And for `defib incidents show`.
pub(crate) fn lines(traced: &Summary, place: &Path) -> Vec<String> {
    let mut lines = vec![format!("traced    {:.0}: {}", traced.began, Clean(&traced.to_string()))];
    lines.extend(traced.stacks.iter().map(|top| {
        let callers: Vec<_> = top.callers.iter().take(CALLERS).map(|name| Clean(name).to_string()).collect();
        format!("          {top} < {}", callers.join(" < "))
    }));
    lines.push(format!("          {}", place.join("flame.svg").display()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    #[test]
    fn the_code_that_asked_is_named_with_its_callers() {
        let summary = Summary::of(&sample::growth());
        assert_eq!(
            summary.to_string(),
            "traced for 300s: 203.0 MiB an hour stay; 99 %, 200.0 MiB an hour: web::cache::insert (src/cache.rs:88)"
        );
        assert_eq!(summary.stacks[0].callers, ["web::serve", "main", "_start"]);
        assert_eq!(summary.builds, ["3f9a0c1d2e4b5a697887"]);
        let text = serde_json::to_string(&summary).expect("JSON");
        let read: Summary = serde_json::from_str(&text).expect("read");
        assert_eq!(read.to_string(), summary.to_string());
    }

    #[test]
    fn what_the_code_asked_through_keeps_no_two_apart() {
        let mut growth = sample::growth();
        growth.stacks = vec![
            sample::stack(3.0, &["malloc", "std::string::reserve(int)", "fill", "main"]),
            sample::stack(2.5, &["malloc", "other", "main"]),
            sample::stack(1.0, &["malloc", "operator new(unsigned long)", "fill", "main"]),
        ];
        growth.others_bytes_per_hour = 0.0;
        let told: Vec<_> = Summary::of(&growth).stacks.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["62 %, 4.0 MiB an hour: fill", "38 %, 2.5 MiB an hour: other"]);
    }

    #[test]
    fn it_is_small_and_clean_whatever_the_trace_has() {
        let summary = Summary::of(&sample::hostile(10_000));
        assert_eq!(summary.stacks.len(), STACKS);
        let text = serde_json::to_string(&Summary { service: String::new(), ..summary.clone() }).expect("JSON");
        assert!(text.len() < 32 << 10, "{}", text.len());
        assert!(!summary.to_string().chars().any(char::is_control));
    }

    #[test]
    fn nothing_that_grows_is_said() {
        let mut growth = sample::growth();
        (growth.stacks, growth.others_bytes_per_hour) = (Vec::new(), -1.0);
        assert_eq!(growth.total(), 0.0);
        assert_eq!(Summary::of(&growth).to_string(), "traced for 300s: nothing that it asked for and kept grows");
    }

    fn incident(cause: &str, at: i64) -> Incident {
        serde_json::from_value(serde_json::json!({
            "id": 1, "service": "web.service", "kind": "outage", "began": Timestamp::from_second(at).expect("a time"),
            "ended": null, "outage_ms": null, "outcome": null, "cause": { "kind": cause }, "cause_text": "", "evidence": null,
            "missing": null, "timeline": [], "moments_dropped": 0, "memory": [], "memory_limit": null, "restarts": 0, "deaths": 1
        }))
        .expect("an incident")
    }

    #[test]
    fn an_incident_has_the_last_trace_before_it_or_the_first_after() {
        const DAY: i64 = 86_400;
        let at = |day: i64| {
            let began = Timestamp::from_second(1_700_000_000 + day * DAY).expect("a time");
            Summary { began, ..Summary::of(&sample::growth()) }
        };
        let kept = || vec![at(21), at(20), at(2), at(1)];
        let of = |day: i64, hours: i64| {
            for_incident(kept(), &incident("oom_kill", 1_700_000_000 + day * DAY + hours * 3600))
        };
        assert_eq!(of(2, 1), Some(at(2)));
        assert_eq!(of(9, -1), Some(at(2)));
        assert_eq!(of(9, 1), None, "too long ago");
        assert_eq!(of(19, 1), Some(at(20)), "the day after");
        assert_eq!(of(0, -1), None);
        assert_eq!(for_incident(kept(), &incident("crash", 1_700_000_000 + 2 * DAY)), None);
    }

    #[test]
    fn reports_and_terminals_have_it_in_a_few_clean_lines() {
        let place = Path::new("/var/lib/defib/traces/web.service/x");
        let text = markdown(&Summary::of(&sample::growth()), place);
        assert!(
            text.contains("| 99 % | 200.0 MiB | web::cache::insert (src/cache.rs:88) | web::serve, main, _start |\n"),
            "{text}"
        );
        assert!(text.ends_with("Flame graph: `/var/lib/defib/traces/web.service/x/flame.svg`\n"), "{text}");
        let hostile = Summary::of(&sample::hostile(100));
        let text = markdown(&hostile, place);
        assert!(!text.contains('<') && text.lines().all(|line| !line.chars().any(char::is_control)), "{text}");
        let lines = lines(&hostile, place);
        assert!(lines.len() == 5 && lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
    }
}
