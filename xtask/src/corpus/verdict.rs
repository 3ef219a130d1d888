//! Whether the runs of the corpus are what they must be.

use super::{
    Run,
    cells::{Audit, Cell, Outcome},
};

/// All that is wrong with the runs, one line each, the place first. `cases` are those that must be in every run.
pub(super) fn faults(cases: &[String], runs: &[Run]) -> Vec<String> {
    runs.iter().flat_map(|run| of_run(cases, run).into_iter().map(|fault| format!("{}: {fault}", run.place))).collect()
}

fn of_run(cases: &[String], run: &Run) -> Vec<String> {
    let transcript = &run.transcript;
    let mut faults = Vec::new();
    if let Some(failure) = &run.failure {
        faults.push(match &transcript.unfinished {
            Some(test) => format!("{failure} (the last test that it had begun: {test})"),
            None => failure.clone(),
        });
    }
    for Cell { case, outcome, .. } in &transcript.cells {
        if let Outcome::Wrong { reason } = outcome {
            faults.push(format!("{case} is wrong: {reason}"));
        }
        if !cases.contains(case) {
            faults.push(format!("{case} is no test of the corpus"));
        }
    }
    for case in cases {
        match transcript.cells.iter().filter(|cell| cell.case == *case).count() {
            0 => faults.push(format!("{case} is missing")),
            1 => {}
            count => faults.push(format!("{case} has {count} results")),
        }
    }
    faults.extend(transcript.unreadable.iter().map(|line| format!("not to be read: {line}")));
    match &transcript.audit {
        Some(Audit { kernel_oom_kills, seen_oom_kills, .. }) if kernel_oom_kills != seen_oom_kills => {
            faults.push(format!("the kernel counted {kernel_oom_kills} OOM kills, seen were {seen_oom_kills}"));
        }
        Some(_) => {}
        // Where nobody could die there is nothing to compare.
        None if transcript.cells.iter().all(|cell| matches!(cell.outcome, Outcome::Cannot { .. })) => {}
        None => faults.push("the kernel's count of OOM kills was not compared".to_owned()),
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::samples::{audit, cannot, cases, right, run, wrong};

    #[test]
    fn runs_with_all_cases_right_or_impossible_have_no_fault() {
        let runs = [
            run("host", vec![right("a"), cannot("b", "no v1")], Some(audit(2, 2))),
            run("5.10", vec![cannot("a", "needs root"), cannot("b", "needs root")], None),
        ];
        assert_eq!(faults(&cases(), &runs), Vec::<String>::new());
    }

    #[test]
    fn wrong_missing_double_and_unknown_cases_are_faults() {
        let cells = vec![wrong("a", "kind is exit"), right("c"), right("a")];
        let expected = [
            "host: a is wrong: kind is exit",
            "host: c is no test of the corpus",
            "host: a has 2 results",
            "host: b is missing",
        ];
        assert_eq!(faults(&cases(), &[run("host", cells, Some(audit(0, 0)))]), expected);
    }

    #[test]
    fn a_count_that_differs_or_was_not_taken_is_a_fault() {
        let with = |audit| faults(&cases(), &[run("7.2", vec![right("a"), right("b")], audit)]);
        assert_eq!(with(Some(audit(41, 40))), ["7.2: the kernel counted 41 OOM kills, seen were 40"]);
        assert_eq!(with(None), ["7.2: the kernel's count of OOM kills was not compared"]);
    }

    #[test]
    fn a_run_that_was_broken_off_says_where() {
        let mut broken = run("5.10", vec![right("a"), cannot("b", "x")], Some(audit(1, 1)));
        broken.failure = Some("ended by its deadline".to_owned());
        assert_eq!(faults(&cases(), &[broken]), ["5.10: ended by its deadline"]);
        let mut broken = run("5.10", vec![right("a"), right("b")], Some(audit(1, 1)));
        broken.failure = Some("ended by its deadline".to_owned());
        broken.transcript.unfinished = Some("b".to_owned());
        broken.transcript.unreadable.push("CELL {".to_owned());
        let expected =
            ["5.10: ended by its deadline (the last test that it had begun: b)", "5.10: not to be read: CELL {"];
        assert_eq!(faults(&cases(), &[broken]), expected);
    }
}
