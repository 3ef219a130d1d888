//! The results as a table of cases and kernels: for the terminal, and in Markdown.

use anyhow::{Context as _, Result, bail};

use super::{
    Run,
    cells::{Audit, Cell, Outcome},
};

/// The lines of a compact table: ✓ right, ✗ wrong, – impossible there (with the number of its reason), ? no result.
pub(super) fn terminal(cases: &[String], runs: &[Run]) -> Vec<String> {
    let mut notes = Notes::default();
    let head = ["case"].into_iter().chain(runs.iter().map(|run| run.place)).map(str::to_owned).collect();
    let mut rows: Vec<Vec<String>> = vec![head];
    for case in cases {
        let results = runs.iter().map(|run| match result(run, case).map(|cell| &cell.outcome) {
            Some(Outcome::Right) => "✓".to_owned(),
            Some(Outcome::Wrong { .. }) => "✗".to_owned(),
            Some(Outcome::Cannot { reason }) => format!("–{}", notes.mark(reason)),
            None => "?".to_owned(),
        });
        rows.push([case.clone()].into_iter().chain(results).collect());
    }
    let mut lines = aligned(&rows);
    lines.extend((1..).zip(&notes.reasons).map(|(number, reason)| format!("{} {reason}", superscript(number))));
    for Run { place, transcript, .. } in runs {
        let Some(audit) = &transcript.audit else { continue };
        let Audit { kernel, cgroup, kernel_oom_kills, seen_oom_kills, deaths, slowest_verdict_ms, slowest_verdict_on } =
            audit;
        lines.push(format!(
            "{place}: Linux {kernel}, cgroup {cgroup}; {kernel_oom_kills} OOM kills by the kernel's count, \
             {seen_oom_kills} seen; {deaths} deaths, the slowest verdict after {} ms ({})",
            figure(*slowest_verdict_ms),
            slowest_verdict_on.as_deref().unwrap_or("-")
        ));
    }
    lines
}

/// The table, the reasons and the figures. An error when a case has no result in one of the runs.
pub(super) fn markdown(cases: &[String], runs: &[Run]) -> Result<String> {
    let mut notes = Notes::default();
    let places = || runs.iter().map(|run| run.place.to_owned());
    let mut lines = Vec::new();
    lines.push(row(["", "how the process dies", "cause"].map(str::to_owned).into_iter().chain(places())));
    lines.push(row(["---"; 3].into_iter().chain(runs.iter().map(|_| ":---:")).map(str::to_owned)));
    let mut last_group = "";
    for case in cases {
        let Cell { case: _, group, title, expect, outcome: _ } =
            runs.iter().find_map(|run| result(run, case)).with_context(|| format!("{case} has no result"))?;
        let group_once = if group == last_group { "" } else { group };
        let mut cells = vec![escaped(group_once), escaped(title), format!("`{expect}`")];
        for run in runs {
            cells.push(match result(run, case).map(|cell| &cell.outcome) {
                Some(Outcome::Right) => "right".to_owned(),
                Some(Outcome::Wrong { .. }) => "**wrong**".to_owned(),
                Some(Outcome::Cannot { reason }) => format!("cannot{}", notes.mark(reason)),
                None => bail!("{case} has no result on {}", run.place),
            });
        }
        lines.push(row(cells));
        last_group = group;
    }
    if !notes.reasons.is_empty() {
        lines.extend(["", "There is no such death where it says \"cannot\", because:", ""].map(str::to_owned));
        lines.extend((1..).zip(&notes.reasons).map(|(number, reason)| format!("{number}. {}", escaped(reason))));
    }
    lines.push(String::new());
    lines.extend(figures(runs)?);
    Ok(lines.join("\n") + "\n")
}

/// The second table of [`markdown`]: a line for each run.
fn figures(runs: &[Run]) -> Result<Vec<String>> {
    let head = [
        "",
        "kernel",
        "cgroup",
        "right",
        "cannot",
        "OOM kills by the kernel's count",
        "OOM kills seen",
        "deaths seen",
        "slowest verdict, ms",
    ];
    let mut lines = vec![row(head.map(str::to_owned))];
    lines.push(row((0..head.len()).map(|column| if column < 3 { "---" } else { "---:" }.to_owned())));
    for Run { place, transcript, .. } in runs {
        let audit = transcript.audit.as_ref().with_context(|| format!("{place} has no figures"))?;
        let Audit {
            kernel,
            cgroup,
            kernel_oom_kills,
            seen_oom_kills,
            deaths,
            slowest_verdict_ms,
            slowest_verdict_on: _,
        } = audit;
        let right = transcript.cells.iter().filter(|cell| cell.outcome == Outcome::Right).count();
        let cannot = transcript.cells.iter().filter(|cell| matches!(cell.outcome, Outcome::Cannot { .. })).count();
        let cells = [
            (*place).to_owned(),
            escaped(kernel),
            cgroup.clone(),
            right.to_string(),
            cannot.to_string(),
            kernel_oom_kills.to_string(),
            seen_oom_kills.to_string(),
            deaths.to_string(),
            figure(*slowest_verdict_ms),
        ];
        lines.push(row(cells));
    }
    Ok(lines)
}

fn result<'a>(run: &'a Run, case: &str) -> Option<&'a Cell> {
    run.transcript.cells.iter().find(|cell| cell.case == case)
}

/// Reasons in the order in which they came up, each once.
#[derive(Default)]
struct Notes {
    reasons: Vec<String>,
}

impl Notes {
    /// The mark that refers to this reason.
    fn mark(&mut self, reason: &str) -> String {
        let known = self.reasons.iter().position(|known| known == reason);
        let index = known.unwrap_or_else(|| {
            self.reasons.push(reason.to_owned());
            self.reasons.len() - 1
        });
        superscript(index + 1)
    }
}

fn superscript(number: usize) -> String {
    let digit = |digit: char| match digit {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // The others are neighbours, U+2070 to U+2079.
        other => other.to_digit(10).and_then(|value| char::from_u32(0x2070 + value)).unwrap_or(other),
    };
    number.to_string().chars().map(digit).collect()
}

fn figure(milliseconds: Option<f64>) -> String {
    milliseconds.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    format!("| {} |", cells.join(" | "))
}

/// Text that Markdown shows as it is, in a cell of a table too.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\n' => escaped.push(' '),
            '|' | '*' | '<' | '`' | '\\' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Columns as wide as their longest cell.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column).unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::samples::{audit, cannot, cases, right, run, wrong};

    #[test]
    fn the_terminal_shows_every_outcome_and_each_reason_once() {
        let runs = [
            run("host", vec![cannot("a", "no v2"), cannot("b", "no v2")], Some(audit(0, 0))),
            run("5.10", vec![wrong("a", "x")], None),
            run("7.2", vec![right("a"), cannot("b", "not root")], None),
        ];
        let expected = [
            "case  host  5.10  7.2",
            "a     –¹    ✗     ✓",
            "b     –¹    ?     –²",
            "¹ no v2",
            "² not root",
            "host: Linux 6.1.0, cgroup v2; 0 OOM kills by the kernel's count, 0 seen; 3 deaths, the slowest verdict after \
             104.2 ms (victim)",
        ];
        assert_eq!(terminal(&cases(), &runs), expected);
    }

    #[test]
    fn markdown_has_the_table_the_reasons_and_the_figures() {
        let mut last = cannot("b", "the pattern is '|x'");
        last.group = "g|2".to_owned();
        let mut figures = audit(2, 2);
        figures.slowest_verdict_ms = None;
        let runs = [
            run("host", vec![right("a"), last.clone()], Some(audit(41, 41))),
            run("7.2", vec![wrong("a", "x"), last], Some(figures)),
        ];
        let expected = "\
|  | how the process dies | cause | host | 7.2 |
| --- | --- | --- | :---: | :---: |
| group | title of a | `oom_kill` | right | **wrong** |
| g\\|2 | title of b | `oom_kill` | cannot¹ | cannot¹ |

There is no such death where it says \"cannot\", because:

1. the pattern is '\\|x'

|  | kernel | cgroup | right | cannot | OOM kills by the kernel's count | OOM kills seen | deaths seen | slowest verdict, ms |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| host | 6.1.0 | v2 | 1 | 1 | 41 | 41 | 3 | 104.2 |
| 7.2 | 6.1.0 | v2 | 0 | 1 | 2 | 2 | 3 | - |
";
        assert_eq!(markdown(&cases(), &runs).expect("all is there"), expected);
    }

    #[test]
    fn a_group_is_named_once_and_no_reasons_need_no_list() {
        let runs = [run("host", vec![right("a"), right("b")], Some(audit(1, 1)))];
        let text = markdown(&cases(), &runs).expect("all is there");
        assert!(text.contains("\n|  | title of b |"), "{text}");
        assert!(!text.contains("because"), "{text}");
    }

    #[test]
    fn what_is_missing_is_no_table() {
        let half = || vec![right("a")];
        let whole = || vec![right("a"), right("b")];
        for runs in [
            [run("host", half(), Some(audit(1, 1))), run("7.2", half(), Some(audit(1, 1)))],
            [run("host", whole(), Some(audit(1, 1))), run("7.2", half(), Some(audit(1, 1)))],
            [run("host", whole(), Some(audit(1, 1))), run("7.2", whole(), None)],
        ] {
            assert!(markdown(&cases(), &runs).is_err());
        }
    }

    #[test]
    fn marks_of_any_size() {
        assert_eq!([1, 2, 3, 4, 10, 25].map(superscript), ["¹", "²", "³", "⁴", "¹⁰", "²⁵"]);
    }
}
