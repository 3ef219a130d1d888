//! Reads what the corpus says of itself: a line `CELL {…}` for each case, a line `AUDIT {…}` at the end.

use serde::{Deserialize, de::DeserializeOwned};

use crate::test::{harness, skips::Skip};

/// One case on one kernel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Cell {
    /// The name of the case, which is the name of its test.
    pub(super) case: String,
    pub(super) group: String,
    /// How the process dies, for people.
    pub(super) title: String,
    /// The cause that must be given for it.
    pub(super) expect: String,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

impl Cell {
    pub(super) fn is_right(&self) -> bool {
        self.outcome == Outcome::Right
    }

    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.outcome, Outcome::Wrong { .. })
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Outcome {
    Right,
    Wrong {
        /// How.
        #[serde(default = "no_reason")]
        reason: String,
    },
    /// There is no such death here.
    Cannot {
        /// Why not.
        reason: String,
    },
}

fn no_reason() -> String {
    "no reason given".to_owned()
}

/// The figures at the end of a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Audit {
    /// Release of the kernel.
    pub(super) kernel: String,
    /// `v1` or `v2`.
    pub(super) cgroup: String,
    /// OOM kills by the kernel's own count.
    pub(super) kernel_oom_kills: u64,
    /// OOM kills that were reported.
    pub(super) seen_oom_kills: u64,
    /// All deaths that were reported.
    pub(super) deaths: u64,
    /// The longest time from a death to its verdict, in milliseconds.
    pub(super) slowest_verdict_ms: Option<f64>,
    /// The name of the process that it was about.
    pub(super) slowest_verdict_on: Option<String>,
}

/// All that one run of the corpus said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Transcript {
    pub(super) cells: Vec<Cell>,
    pub(super) audit: Option<Audit>,
    /// Cases that did not happen, as the harness of tests has it.
    pub(super) skips: Vec<Skip>,
    /// The last test that began, if it never said its end.
    pub(super) unfinished: Option<String>,
    /// Lines with a marker of ours and something else behind it.
    pub(super) unreadable: Vec<String>,
}

impl Transcript {
    /// The cases that were wrong.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.cells.iter().filter(|cell| cell.is_wrong()).map(|cell| cell.case.clone()).collect()
    }
}

/// Reads the standard output of a run, whole or broken off.
pub(super) fn read(output: &[u8]) -> Transcript {
    let mut transcript = Transcript::default();
    let mut begun = None;
    for line in output.split(|&byte| byte == b'\n').map(harness::plain) {
        if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, end)) = rest.split_once(" ... ")
        {
            begun = end.is_empty().then(|| name.trim().to_owned());
        } else if line == "ok" || line == "FAILED" {
            begun = None;
        }
        if let Some(json) = behind(&line, "CELL ") {
            match object(json) {
                Some(cell) => transcript.cells.push(cell),
                None => transcript.unreadable.push(line),
            }
        } else if let Some(json) = behind(&line, "AUDIT ") {
            match object(json) {
                Some(audit) => transcript.audit = Some(audit),
                None => transcript.unreadable.push(line),
            }
        } else {
            transcript.skips.extend(Skip::find(&line));
        }
    }
    transcript.unfinished = begun;
    transcript
}

/// The object behind a marker, with what may follow it. The harness may have begun the line.
fn behind<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    let rest = &line[line.find(&format!("{marker}{{"))?..];
    rest.strip_prefix(marker)
}

fn object<T: DeserializeOwned>(json: &str) -> Option<T> {
    serde_json::Deserializer::from_str(json).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str =
        r#"{"case":"a","group":"g","title":"t","expect":"oom_kill","outcome":"right","slowest_ms":1.5}"#;
    const AUDIT: &str = r#"{"kernel":"6.1.0","cgroup":"v2","kernel_oom_kills":4,"seen_oom_kills":3,"deaths":9}"#;

    fn outcomes(output: &str) -> Vec<Outcome> {
        read(output.as_bytes()).cells.into_iter().map(|cell| cell.outcome).collect()
    }

    #[test]
    fn a_cell_is_found_wherever_it_stands_in_its_line() {
        let alone = format!("test a ... \nCELL {RIGHT}\nok\n");
        let joined = format!("test a ... CELL {RIGHT}ok\n");
        for output in [alone, joined] {
            assert_eq!(outcomes(&output), [Outcome::Right], "{output}");
        }
        assert!(read(b"test CELL ... a word\nCELLAR {}\n").cells.is_empty());
    }

    #[test]
    fn each_outcome_has_its_reason() {
        let with = |outcome: &str, rest: &str| {
            format!("CELL {}\n", RIGHT.replace("\"right\"", outcome).replace("\"slowest_ms\":1.5", rest))
        };
        let output = with("\"wrong\"", r#""reason":"kind is exit""#)
            + &with("\"wrong\"", r#""x":1"#)
            + &with("\"cannot\"", r#""reason":"v1""#);
        let [wrong, silent, cannot] = ["kind is exit", "no reason given", "v1"].map(str::to_owned);
        let expected =
            [Outcome::Wrong { reason: wrong }, Outcome::Wrong { reason: silent }, Outcome::Cannot { reason: cannot }];
        assert_eq!(outcomes(&output), expected);
    }

    #[test]
    fn what_cannot_be_read_is_kept_and_not_dropped() {
        let transcript = read(b"test a ... CELL {\"case\":\"a\"}\nCELL {\"case\nAUDIT {}\n");
        assert_eq!(transcript.unreadable.len(), 3);
        assert!(transcript.cells.is_empty() && transcript.audit.is_none());
        let maybe = format!("CELL {}\n", RIGHT.replace("\"right\"", "\"maybe\""));
        assert_eq!(read(maybe.as_bytes()).unreadable.len(), 1);
    }

    #[test]
    fn the_audit_may_lack_a_slowest_verdict() {
        let output = format!("test audit ... \nAUDIT {AUDIT}\nok\n");
        let audit = read(output.as_bytes()).audit.expect("an audit");
        assert_eq!((audit.kernel_oom_kills, audit.seen_oom_kills, audit.slowest_verdict_ms), (4, 3, None));
        let output = output.replace("\"deaths\":9", "\"deaths\":9,\"slowest_verdict_ms\":104.25");
        assert_eq!(read(output.as_bytes()).audit.and_then(|audit| audit.slowest_verdict_ms), Some(104.25));
    }

    #[test]
    fn skips_are_read_from_the_output() {
        let transcript = read(b"test a ... \nSKIP-OK a: no cgroup v1\nok\n");
        assert_eq!(transcript.skips, Skip::find("SKIP-OK a: no cgroup v1").into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_run_that_is_broken_off_names_the_test_that_it_was_in() {
        let whole = format!("test a         ... \nCELL {RIGHT}\nok\ntest bb ... \u{1b}[32mok\u{1b}[m\n");
        assert_eq!(read(whole.as_bytes()).unfinished, None);
        for rest in ["test hanging   ... ", "test hanging   ... \nCELL {\"ca", "test hanging ... \n"] {
            let output = whole.clone() + rest;
            assert_eq!(read(output.as_bytes()).unfinished.as_deref(), Some("hanging"), "{rest}");
        }
    }
}
