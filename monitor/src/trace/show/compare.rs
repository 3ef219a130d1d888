//! Two traces of a service side by side, of two builds: by stack, each reduced to the names of its functions, since addresses
//! and lines move with every build. Pure.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    culprit::culprit,
    name::{self, across_builds},
};
use crate::{
    figures::{bytes, span},
    trace::growth::{Growth, Program},
};

/// Stacks that are told; the rest is in `rest_bytes_per_hour`.
const CHANGES: usize = 256;
/// Stacks, and callers of each, that people are shown.
const SHOWN: usize = 20;
const CALLERS: usize = 6;
/// A stack that grows by less than this share more, or less, than before has not changed: both figures are estimates.
const ALIKE: f64 = 0.25;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The service.
    pub(crate) service: String,
    /// The older build.
    pub(crate) before: Side,
    /// The newer one.
    pub(crate) after: Side,
    /// The stacks, those first that changed most; at most 256.
    pub(crate) stacks: Vec<Change>,
    /// Growth of all other stacks before and after, bytes an hour.
    pub(crate) rest_bytes_per_hour: [f64; 2],
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// Build ids of its programs, hexadecimal.
    pub(crate) builds: Vec<String>,
    /// When it was traced.
    pub(crate) began: Timestamp,
    /// For how long, seconds.
    pub(crate) seconds: f64,
    /// Growth that stays, bytes an hour.
    pub(crate) bytes_per_hour: f64,
}

/// A stack in both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// What became of it.
    pub(crate) what: What,
    /// Its growth before and after, bytes an hour.
    pub(crate) bytes_per_hour: [f64; 2],
    /// The code that asked, as far as names tell.
    pub(crate) function: String,
    /// Its functions, the innermost first.
    pub(crate) functions: Vec<String>,
}

/// What became of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// The older build has none of it.
    New,
    /// It grows faster.
    Grew,
    /// About as fast as before.
    Alike,
    /// Slower.
    Fell,
    /// The newer build has none of it.
    Gone,
}

/// Whether two traces are of different builds: a program of the same path, or at least of the same file name, has another
/// build id. Helpers that ran in one of them only decide nothing.
pub(crate) fn are_different_builds(a: &Growth, b: &Growth) -> bool {
    let pairs = |same: fn(&Program, &Program) -> bool| {
        let mut known = a.programs.iter().flat_map(|a| b.programs.iter().map(move |b| (a, b)));
        let mut found = None;
        for (a, b) in known.by_ref().filter(|(a, b)| same(a, b)) {
            if let (Some(a), Some(b)) = (&a.build_id, &b.build_id) {
                found = Some(found.unwrap_or(false) || a != b);
            }
        }
        found
    };
    let by_path = pairs(|a, b| a.path == b.path);
    by_path.or_else(|| pairs(|a, b| name::base(&a.path) == name::base(&b.path))).unwrap_or(false)
}

/// Compares; `before` is the older build.
pub(crate) fn compare(before: &Growth, after: &Growth) -> Comparison {
    let mut stacks: BTreeMap<Vec<String>, (String, [f64; 2])> = BTreeMap::new();
    for (side, growth) in [before, after].into_iter().enumerate() {
        for stack in growth.stacks.iter().filter(|stack| stack.bytes_per_hour > 0.0) {
            let functions: Vec<_> = stack.frames.iter().map(across_builds).collect();
            let asked = culprit(stack).and_then(|at| functions.get(at)).cloned();
            let (_, growth) = stacks.entry(functions).or_insert_with(|| (asked.unwrap_or_default(), [0.0; 2]));
            growth[side] += stack.bytes_per_hour;
        }
    }
    let mut stacks: Vec<_> = stacks
        .into_iter()
        .map(|(functions, (function, bytes_per_hour))| Change {
            what: What::of(bytes_per_hour),
            bytes_per_hour,
            function,
            functions,
        })
        .collect();
    // Whole bytes are exact enough to sort by, and are ordered.
    stacks.sort_by_key(|change| {
        Reverse(((change.bytes_per_hour[1] - change.bytes_per_hour[0]).abs() as u64, change.what.is_worse()))
    });
    let rest = stacks.split_off(stacks.len().min(CHANGES));
    let positive = |growth: f64| if growth > 0.0 { growth } else { 0.0 };
    let rest_bytes_per_hour = [(0, before), (1, after)].map(|(side, growth)| {
        positive(growth.others_bytes_per_hour) + rest.iter().map(|change| change.bytes_per_hour[side]).sum::<f64>()
    });
    Comparison {
        service: after.service.clone(),
        before: Side::of(before),
        after: Side::of(after),
        stacks,
        rest_bytes_per_hour,
    }
}

impl What {
    fn of([before, after]: [f64; 2]) -> Self {
        match (before > 0.0, after > 0.0) {
            (false, _) => Self::New,
            (_, false) => Self::Gone,
            _ if after > before * (1.0 + ALIKE) => Self::Grew,
            _ if before > after * (1.0 + ALIKE) => Self::Fell,
            _ => Self::Alike,
        }
    }

    fn is_worse(self) -> bool {
        matches!(self, Self::New | Self::Grew)
    }

    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Grew => "grew",
            Self::Alike => "alike",
            Self::Fell => "fell",
            Self::Gone => "gone",
        }
    }
}

impl Side {
    fn of(growth: &Growth) -> Self {
        let builds = growth.programs.iter().filter_map(|program| program.build_id.clone());
        Self { builds: builds.collect(), began: growth.began, seconds: growth.seconds, bytes_per_hour: growth.total() }
    }
}

/// Writes it for people.
pub(crate) fn text(comparison: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    write(&mut out, comparison).ok();
    out
}

fn write(out: &mut String, comparison: &Comparison) -> fmt::Result {
    writeln!(out, "{}: growth that stays, an hour, in two builds", name::short(&comparison.service, 300))?;
    for (word, side) in [("before", &comparison.before), ("after", &comparison.after)] {
        writeln!(
            out,
            "  {word:<6}  {:>10}  build {}, traced for {} from {:.0}",
            bytes(side.bytes_per_hour as u64),
            side.builds.first().map_or_else(|| "unknown".to_owned(), |build| name::build(build)),
            span((side.seconds * 1e3) as u64),
            side.began
        )?;
    }
    writeln!(out, "\n{:<5}  {:>10}  {:>10}  CODE THAT ASKED, AND ITS CALLERS", "", "BEFORE", "AFTER")?;
    for change in comparison.stacks.iter().take(SHOWN) {
        let [before, after] = change.bytes_per_hour.map(|growth| bytes(growth as u64));
        let at = change.functions.iter().position(|function| *function == change.function).unwrap_or(0);
        let callers: Vec<_> =
            change.functions.iter().skip(at).take(CALLERS).map(|name| name::function(name, 100)).collect();
        writeln!(out, "{:<5}  {before:>10}  {after:>10}  {}", change.what.as_str(), callers.join(" < "))?;
    }
    let left = comparison.stacks.iter().skip(SHOWN);
    let rest = left.fold(comparison.rest_bytes_per_hour, |[before, after], change| {
        [before + change.bytes_per_hour[0], after + change.bytes_per_hour[1]]
    });
    if rest.iter().any(|growth| *growth >= 1.0) {
        let [before, after] = rest.map(|growth| bytes(growth as u64));
        writeln!(out, "{:<5}  {before:>10}  {after:>10}  all other stacks", "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    const MIB: f64 = 1_048_576.0;

    fn of_build(build: &str, stacks: &[(f64, &[&str])]) -> Growth {
        let mut growth = sample::growth();
        growth.programs[0].build_id = Some(build.to_owned());
        growth.stacks = stacks.iter().map(|(mib, frames)| sample::stack(*mib, frames)).collect();
        growth
    }

    #[test]
    fn what_grew_is_new_or_gone_is_told_by_names_alone() {
        let before = of_build(
            "aa",
            &[
                (100.0, &["malloc", "web::insert::h0123456789abcdef", "main"]),
                (10.0, &["malloc", "web::tick", "main"]),
                (8.0, &["malloc", "web::old", "main"]),
                (6.0, &["malloc", "web::less", "main"]),
            ],
        );
        let mut after = of_build(
            "bb",
            &[
                (200.0, &["malloc", "web::insert::hfedcba9876543210", "main"]),
                (50.0, &["malloc", "web::session", "main"]),
                (7.0, &["malloc", "web::tick", "main"]),
                (4.0, &["malloc", "web::tick", "main"]),
                (3.0, &["malloc", "web::less", "main"]),
                (-3.0, &["malloc", "web::shrinks", "main"]),
            ],
        );
        after.stacks[0].frames[1].offset = 0x9999;
        let comparison = compare(&before, &after);
        let told: Vec<_> = comparison
            .stacks
            .iter()
            .map(|change| (change.what, &*change.function, change.bytes_per_hour.map(|growth| growth / MIB)))
            .collect();
        assert_eq!(
            told,
            [
                (What::Grew, "web::insert", [100.0, 200.0]),
                (What::New, "web::session", [0.0, 50.0]),
                (What::Gone, "web::old", [8.0, 0.0]),
                (What::Fell, "web::less", [6.0, 3.0]),
                (What::Alike, "web::tick", [10.0, 11.0]),
            ]
        );
        let text = text(&comparison);
        for line in [
            "  before   126.0 MiB  build aa, traced for 300s",
            "grew    100.0 MiB   200.0 MiB  web::insert < main",
            "new           0 B    50.0 MiB  web::session < main",
            "         2.0 MiB     2.0 MiB  all other stacks",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn another_build_is_told_by_the_program_and_not_by_its_helpers() {
        let (a, b) = (of_build("aa", &[]), of_build("bb", &[]));
        assert!(are_different_builds(&a, &b) && !are_different_builds(&a, &a.clone()));
        let mut with_helper = a.clone();
        with_helper.programs.push(Program { path: "/bin/sh".to_owned(), ..b.programs[0].clone() });
        assert!(!are_different_builds(&a, &with_helper));
        let mut elsewhere = b.clone();
        elsewhere.programs[0].path = "/srv/web-1.3/web".to_owned();
        assert!(are_different_builds(&a, &elsewhere), "deployed into a directory of its own");
        elsewhere.programs[0].build_id = None;
        assert!(!are_different_builds(&a, &elsewhere), "nothing tells");
    }

    #[test]
    fn ten_thousand_hostile_stacks_are_bounded_and_nothing_is_left_out_of_the_sum() {
        let comparison = compare(&sample::growth(), &sample::hostile(10_000));
        assert_eq!(comparison.stacks.len(), CHANGES);
        let after: f64 = comparison.stacks.iter().map(|change| change.bytes_per_hour[1]).sum();
        let all = comparison.rest_bytes_per_hour[1] + after;
        assert!((all - comparison.after.bytes_per_hour).abs() < 1e-6 * all);
        let text = text(&comparison);
        assert!(text.len() < 64 << 10 && !text.chars().any(|character| character.is_control() && character != '\n'));
    }
}
