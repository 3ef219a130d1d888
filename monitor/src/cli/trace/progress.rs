//! What is said before a trace and while it runs, to stderr: results alone go to stdout.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use crate::{cli::output, text::Clean, trace};

/// Between two lines where they cannot be rewritten, as in a log.
const APART: Duration = Duration::from_secs(30);

/// Says what will be done, for how long and at what cost; who does not listen misses it.
pub(super) fn announce(options: &trace::Options) {
    let text = format!(
        "Tracing {} ({}) for {}: now and then, for a moment, its requests for memory and their release are watched by probes.\n\
         That takes at most 3 % of the service's own processor time (of a quarter of a processor, if it uses less) and nothing from other \
         programs. Nothing is changed, and the probes go with this process, however it ends. Ctrl-C ends it early and shows what was found.",
        Clean(&options.service),
        options.cgroup.display(),
        humantime::format_duration(options.duration)
    );
    writeln!(io::stderr(), "{text}").ok();
}

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    duration: Duration,
    how: How,
}

/// How it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Not,
    /// One line, rewritten.
    InPlace,
    /// A line now and then; the next when so much has passed.
    Lines {
        next: Duration,
    },
}

impl Progress {
    /// Of a trace that takes so long.
    pub(super) fn new(duration: Duration, quiet: bool) -> Self {
        let how = match quiet {
            true => How::Not,
            false if io::stderr().is_terminal() => How::InPlace,
            false => How::Lines { next: APART },
        };
        Self { duration, how }
    }

    /// Tells how far it is; who does not listen misses it.
    pub(super) fn look(&mut self, look: trace::Look) {
        match &mut self.how {
            How::Not => {}
            How::InPlace => {
                let mut stderr = io::stderr().lock();
                write!(stderr, "\r\x1b[K{}", line(look, self.duration)).and_then(|()| stderr.flush()).ok();
            }
            How::Lines { next } => {
                if is_due(next, look.elapsed) {
                    writeln!(io::stderr(), "{}", line(look, self.duration)).ok();
                }
            }
        }
    }

    /// Clears the line that was rewritten.
    pub(super) fn end(&self) {
        if self.how == How::InPlace {
            let mut stderr = io::stderr().lock();
            write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush()).ok();
        }
    }
}

/// Whether it is time for the next line; then that is the last one.
fn is_due(next: &mut Duration, elapsed: Duration) -> bool {
    let due = elapsed >= *next;
    if due {
        *next = elapsed + APART;
    }
    due
}

fn line(look: trace::Look, duration: Duration) -> String {
    format!(
        "{} of {}, {} {}, {} calls seen, {} an hour so far, cost {:.1} %",
        output::span(u64::try_from(look.elapsed.as_millis()).unwrap_or(u64::MAX)),
        humantime::format_duration(duration),
        look.processes,
        if look.processes == 1 { "process" } else { "processes" },
        look.calls,
        output::bytes(look.bytes_per_hour.max(0.0) as u64),
        look.cost_share * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_what_it_costs() {
        let look = trace::Look {
            elapsed: Duration::from_secs(80),
            processes: 2,
            calls: 1234,
            bytes_per_hour: 3.0 * 1_048_576.0,
            cost_share: 0.0127,
        };
        let want = "80s of 5m, 2 processes, 1234 calls seen, 3.0 MiB an hour so far, cost 1.3 %";
        assert_eq!(line(look, Duration::from_secs(300)), want);
    }

    #[test]
    fn where_a_line_cannot_be_rewritten_they_are_few() {
        let mut next = APART;
        let said = (0..300).filter(|second| is_due(&mut next, Duration::from_secs(*second))).count();
        assert_eq!(said, 9);
    }
}
