//! What a trace found, for people: a table of the stacks that grow fastest, then what to think of it.

use std::fmt::{self, Write as _};

use super::{alike::alike, culprit::culprit, name};
use crate::{
    figures::{bytes, span},
    text::Clean,
    trace::growth::{Ended, Growth, Stack},
};

/// Stacks that are shown.
const STACKS: usize = 10;
/// Frames of each.
const FRAMES: usize = 32;
/// Programs, and notes, that are shown.
const LINES: usize = 16;
/// Characters of a note or a path.
const TEXT: usize = 300;

/// Writes it.
pub(crate) fn text(growth: &Growth) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    write(&mut out, growth).ok();
    out
}

fn write(out: &mut String, growth: &Growth) -> fmt::Result {
    let took = span((growth.seconds * 1e3) as u64);
    let service = name::short(&growth.service, TEXT);
    writeln!(
        out,
        "{service}: {} an hour that stay; seen in {took} from {:.0} ({})",
        bytes(growth.total() as u64),
        growth.began,
        ended(growth.ended)
    )?;
    for program in growth.programs.iter().take(LINES) {
        let build = program
            .build_id
            .as_deref()
            .map_or_else(|| "no build id".to_owned(), |build| format!("build {}", name::build(build)));
        let watched: Vec<_> = program.watched.iter().take(LINES).map(|watched| name::short(watched, TEXT)).collect();
        let processes = if program.processes == 1 { "process" } else { "processes" };
        let path = name::short(&program.path, TEXT);
        writeln!(out, "  {path} ({build}, {} {processes}), watched: {}", program.processes, watched.join(", "))?;
    }
    table(out, growth)?;
    after(out, growth)
}

fn table(out: &mut String, growth: &Growth) -> fmt::Result {
    let growing = alike(growth);
    if growing.is_empty() {
        return writeln!(out, "\nNothing that it asked for in this time and kept grows.");
    }
    writeln!(out, "\n{:>6}  {:>10}  CODE THAT ASKED", "SHARE", "GROWTH/H")?;
    for stack in growing.iter().take(STACKS) {
        one(out, growth, stack)?;
    }
    let shown: f64 = growing.iter().take(STACKS).map(|stack| stack.bytes_per_hour).sum();
    let rest = growth.total() - shown;
    if rest >= 1.0 {
        let name =
            format!("all other stacks{}", if growing.len() > STACKS { "; more of them are in the files" } else { "" });
        writeln!(out, "{:>4.0} %  {:>10}  {name}", growth.share(rest) * 100.0, bytes(rest as u64))?;
    }
    Ok(())
}

fn one(out: &mut String, growth: &Growth, stack: &Stack) -> fmt::Result {
    let at = culprit(stack);
    let place = at.and_then(|at| stack.frames.get(at));
    write!(
        out,
        "{:>4.0} %  {:>10}  {}",
        growth.share(stack.bytes_per_hour) * 100.0,
        bytes(stack.bytes_per_hour as u64),
        place.map_or_else(|| "no frames".to_owned(), name::for_people)
    )?;
    match place.and_then(name::source) {
        Some(source) => writeln!(out, "  {source}")?,
        None => writeln!(out)?,
    }
    for (index, place) in stack.frames.iter().take(FRAMES).enumerate() {
        let mark = if Some(index) == at { '>' } else { ' ' };
        write!(out, "{:>21} {}", mark, name::for_people(place))?;
        // Without a function it is called by its module already.
        if let (Some(module), Some(_)) = (place.module.as_deref(), place.function.as_deref()) {
            write!(out, "  [{}]", name::short(name::base(module), TEXT))?;
        }
        if let Some(source) = name::source(place) {
            write!(out, "  {source}")?;
        }
        writeln!(out, "{}", if place.inlined { "  (inlined)" } else { "" })?;
    }
    let left = stack.frames.len().saturating_sub(FRAMES);
    if left > 0 {
        writeln!(out, "{:>22}{left} more frames outward", "")?;
    } else if !stack.whole {
        writeln!(out, "{:>22}(could not be followed further)", "")?;
    }
    Ok(())
}

fn after(out: &mut String, growth: &Growth) -> fmt::Result {
    let [first, last] = growth.anonymous_bytes;
    writeln!(out, "\nmemory  {} anonymous at the first look, {} at the last", bytes(first), bytes(last))?;
    if growth.cut_share > 0.0 {
        let share = growth.cut_share * 100.0;
        writeln!(out, "cut     {share:.1} % of the growth has a stack that could not be followed to its beginning")?;
    }
    let cost = &growth.cost;
    writeln!(
        out,
        "cost    {:.1} % of its processor time, by estimate: {} calls in {} watches of {:.1} s together; the tracer took \
         {:.1} s of processor time and up to {}",
        cost.share * 100.0,
        cost.calls,
        cost.watches,
        cost.watched_seconds,
        cost.processor_seconds,
        bytes(cost.memory_bytes)
    )?;
    if cost.lost > 0 {
        writeln!(out, "lost    {} calls found no room: growth may be larger than it looks", cost.lost)?;
    }
    for note in growth.notes.iter().take(LINES) {
        writeln!(out, "note    {}", name::short(note, TEXT))?;
    }
    let left = growth.notes.len().saturating_sub(LINES);
    if left > 0 {
        writeln!(out, "note    {left} more notes are in the files")?;
    }
    Ok(())
}

/// Why it ended.
pub(crate) fn ended(ended: Ended) -> &'static str {
    match ended {
        Ended::Done => "its time was up",
        Ended::Asked => "ended early, as asked",
        Ended::ServiceGone => "ended early: the service has gone",
        Ended::TooDear => "ended early: it cost the service too much even at the rarest watching",
    }
}

/// What a list of kept traces shows of one.
pub(crate) fn row(summary: &super::summary::Summary) -> String {
    let top = summary.stacks.first();
    format!(
        "{:<20} {:<28} {:<12} {:>8} {:>10}  {}",
        summary.began.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        crate::figures::tail(&Clean(&summary.service).to_string(), 28),
        summary.builds.first().map_or_else(|| "-".to_owned(), |build| name::build(build)),
        span((summary.seconds * 1e3) as u64),
        bytes(summary.bytes_per_hour as u64),
        top.map_or_else(|| "-".to_owned(), |top| name::function(&top.function, 120)),
    )
}

/// What stands above these.
pub(crate) fn head() -> String {
    format!("{:<20} {:<28} {:<12} {:>8} {:>10}  CODE THAT ASKED", "BEGAN (UTC)", "SERVICE", "BUILD", "TOOK", "GROWTH/H")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::{sample, summary::Summary};

    #[test]
    fn the_code_that_asked_stands_first_and_its_stack_below() {
        let text = text(&sample::growth());
        for line in [
            "web.service: 203.0 MiB an hour that stay; seen in 300s from 2023-11-14T22:13:20Z (its time was up)",
            "  /usr/bin/web (build 3f9a0c1d2e4b, 2 processes), watched: libc.so.6",
            "  99 %   200.0 MiB  web::cache::insert  src/cache.rs:88\n                      malloc  [libc.so.6]",
            "                    > web::cache::insert  [web]  src/cache.rs:88  (inlined)",
            "   0 %     1.0 MiB  vec_grow",
            "(could not be followed further)",
            "   1 %     2.0 MiB  all other stacks\n",
            "memory  100.0 MiB anonymous at the first look, 117.0 MiB at the last",
            "cut     0.5 % of the growth",
            "cost    1.3 % of its processor time, by estimate: 123456 calls in 50 watches of 12.5 s together",
            "lost    7 calls found no room",
            "note    perf maps are not there",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_hostile_trace_stays_on_its_lines_and_is_bounded() {
        let mut growth = sample::hostile(10_000);
        growth.service = "\x1b]0;x\x07".to_owned();
        growth.stacks[0].frames = vec![sample::place("deep"); 5000];
        let text = text(&growth);
        assert!(text.len() < 64 << 10, "{}", text.len());
        assert!(!text.chars().any(|character| character.is_control() && character != '\n'));
        assert!(text.contains("4968 more frames outward") && text.contains("more of them are in the files"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() < 800));
        assert!(!row(&Summary::of(&growth)).chars().any(char::is_control));
    }

    #[test]
    fn nothing_found_is_said_plainly() {
        let mut growth = sample::growth();
        (growth.stacks, growth.others_bytes_per_hour, growth.cost.lost) = (Vec::new(), 0.0, 0);
        let text = text(&growth);
        assert!(
            text.contains("Nothing that it asked for in this time and kept grows.") && !text.contains("lost "),
            "{text}"
        );
    }
}
