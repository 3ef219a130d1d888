//! Results for the tests of this module.

use super::{
    Run,
    cells::{Audit, Cell, Outcome, Transcript},
};
use crate::test::harness::Counts;

pub(super) fn cases() -> Vec<String> {
    ["a", "b"].map(str::to_owned).into()
}

fn cell(case: &str, outcome: Outcome) -> Cell {
    let [case, title] = [case.to_owned(), format!("title of {case}")];
    Cell { case, group: "group".to_owned(), title, expect: "oom_kill".to_owned(), outcome }
}

pub(super) fn right(case: &str) -> Cell {
    cell(case, Outcome::Right)
}

pub(super) fn wrong(case: &str, reason: &str) -> Cell {
    cell(case, Outcome::Wrong { reason: reason.to_owned() })
}

pub(super) fn cannot(case: &str, reason: &str) -> Cell {
    cell(case, Outcome::Cannot { reason: reason.to_owned() })
}

pub(super) fn audit(counted: u64, seen: u64) -> Audit {
    Audit {
        kernel: "6.1.0".to_owned(),
        cgroup: "v2".to_owned(),
        kernel_oom_kills: counted,
        seen_oom_kills: seen,
        deaths: 3,
        slowest_verdict_ms: Some(104.25),
        slowest_verdict_on: Some("victim".to_owned()),
    }
}

pub(super) fn run(place: &'static str, cells: Vec<Cell>, audit: Option<Audit>) -> Run {
    let transcript = Transcript { cells, audit, ..Transcript::default() };
    Run { place, transcript, counts: Counts::default(), failure: None }
}
