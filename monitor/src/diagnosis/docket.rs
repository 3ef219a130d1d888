//! Deaths that wait for late evidence.
//!
//! A fast thread can reach its exit before the OOM killer has marked it, and the two rings and the kernel log are read
//! apart. So a SIGKILL death that lacks something waits, at most [`MARK_WAIT_NS`]; all others are decided at once.

use std::collections::{HashMap, HashSet, VecDeque, hash_map::Entry};

use monitor_common::{
    record::{
        EXIT_OOM_VICTIM, EXIT_SENDER, Exit, MARK_KILL_SENT, MARK_THREAD_ONLY, OomMark, SCOPE_CPUSET, SCOPE_GLOBAL,
        SCOPE_MEMCG, SCOPE_SYSRQ, SI_KERNEL,
    },
    status::{self, SIGKILL},
};

use super::{
    cause::{Cause, Party, Scope},
    verdict::{self, Evidence, Mark},
};
use crate::{
    host::{kmsg::OomLine, process::Identity},
    kernel::Event,
    text::Comm,
};

/// How long a SIGKILL death waits for the mark that would explain it: 100 ms. Marks follow the signal within 32 µs on
/// the kernel's side; the rest is for a busy host.
const MARK_WAIT_NS: u64 = 100_000_000;
/// How long an OOM kill waits for the kernel log's line: 20 ms. The line is written before the signal is sent, so one
/// that is not there by then was rate-limited away.
const LINE_WAIT_NS: u64 = 20_000_000;
/// Marks and lines kept for deaths to come; a victim of gigabytes takes a while to die.
const KEPT: usize = 1024;

/// A decided death.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// The kernel's record.
    pub(crate) exit: Exit,
    /// When user space saw it, CLOCK_BOOTTIME nanoseconds.
    pub(crate) seen_ns: u64,
    /// Why.
    pub(crate) cause: Cause,
}

/// Evidence that has come, and deaths that wait for more.
#[derive(Debug, Default)]
pub(crate) struct Docket {
    marks: HashMap<Identity, Mark>,
    /// In order of arrival, for eviction.
    marked: VecDeque<Identity>,
    lines: VecDeque<OomLine>,
    waiting: Vec<Waiting>,
    /// Deaths seen lately: a kernel where programs can be preempted may report one twice.
    seen: HashSet<Identity>,
    /// In order of arrival, for eviction.
    seen_order: VecDeque<Identity>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    exit: Exit,
    seen_ns: u64,
}

impl Docket {
    /// An OOM mark came; `limit_owner` is the path of the cgroup that it names.
    pub(crate) fn mark(&mut self, mark: &OomMark, limit_owner: Option<&str>) {
        let known = Mark {
            kernel_ns: mark.header.kernel_ns,
            tid: mark.victim.tid,
            kill_sent: mark.header.flags & MARK_KILL_SENT != 0,
            trigger: Party { tgid: mark.trigger_tgid, comm: Comm(mark.trigger_comm), uid: mark.trigger_uid },
            scope: match mark.scope {
                SCOPE_MEMCG => Some(Scope::Memcg),
                SCOPE_GLOBAL => Some(Scope::Global),
                SCOPE_CPUSET => Some(Scope::Cpuset),
                SCOPE_SYSRQ => Some(Scope::Sysrq),
                _ => None,
            },
            limit_owner: limit_owner.map(str::to_owned),
        };
        let identity = if mark.header.flags & MARK_THREAD_ONLY != 0 {
            // Only the thread is known; its id is the process's, or a waiting death has it.
            Identity { tgid: mark.victim.tid, start_ns: 0 }
        } else {
            Identity { tgid: mark.victim.tgid, start_ns: mark.victim.start_ns }
        };
        // A victim that cannot die at once is marked again by its own allocations; the first mark is the kill.
        if let Entry::Vacant(vacant) = self.marks.entry(identity) {
            vacant.insert(known);
            self.marked.push_back(identity);
        }
        while self.marked.len() > KEPT {
            if let Some(oldest) = self.marked.pop_front() {
                self.marks.remove(&oldest);
            }
        }
    }

    /// A line of the kernel's log came.
    pub(crate) fn line(&mut self, line: OomLine) {
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    /// A process ended. Decided deaths come from [`Self::decide`].
    pub(crate) fn death(&mut self, exit: Exit, event: &Event) {
        let identity = Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns };
        if !self.seen.insert(identity) {
            return;
        }
        self.seen_order.push_back(identity);
        if self.seen_order.len() > KEPT
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.waiting.push(Waiting { exit, seen_ns: event.seen_ns });
    }

    /// Takes out the deaths that need wait no longer, in order of arrival.
    pub(crate) fn decide(&mut self, now_ns: u64) -> Vec<Finding> {
        let mut decided = Vec::new();
        let waiting = std::mem::take(&mut self.waiting);
        for death in waiting {
            if self.deadline(&death) <= now_ns {
                decided.push(self.find(death));
            } else {
                self.waiting.push(death);
            }
        }
        decided
    }

    /// When [`Self::decide`] has something to do without further evidence; CLOCK_BOOTTIME nanoseconds.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.waiting.iter().map(|death| self.deadline(death)).min()
    }

    /// Zero when all evidence is there.
    fn deadline(&self, death: &Waiting) -> u64 {
        let exit = &death.exit;
        if status::signal(exit.status).map(|(signal, _)| u32::from(signal)) != Some(SIGKILL) {
            return 0;
        }
        let mark = self.mark_of(exit);
        if verdict::is_oom_kill(exit, mark) {
            return match mark {
                // What the line would add is known.
                Some(mark) if mark.scope.is_some() => 0,
                Some(_) if self.line_of(exit, mark).is_some() => 0,
                Some(_) => death.seen_ns + LINE_WAIT_NS,
                None => death.seen_ns + MARK_WAIT_NS,
            };
        }
        // Another process sent it: nothing that comes late changes that.
        let sent_by_user =
            exit.header.flags & EXIT_SENDER != 0 && exit.sender.signal == SIGKILL && exit.sender.si_code != SI_KERNEL;
        if sent_by_user { 0 } else { death.seen_ns + MARK_WAIT_NS }
    }

    fn find(&mut self, death: Waiting) -> Finding {
        let mark = self.mark_of(&death.exit);
        let line = self.line_of(&death.exit, mark);
        let cause = verdict::weigh(&Evidence { exit: &death.exit, mark, line });
        let marked = mark.map(|mark| mark.tid);
        self.forget(&death.exit, marked);
        Finding { exit: death.exit, seen_ns: death.seen_ns, cause }
    }

    fn mark_of(&self, exit: &Exit) -> Option<&Mark> {
        let identity = Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns };
        let thread_only = |tid| self.marks.get(&Identity { tgid: tid, start_ns: 0 });
        self.marks.get(&identity).or_else(|| thread_only(exit.process.tgid)).or_else(|| thread_only(exit.process.tid))
    }

    fn line_of(&self, exit: &Exit, mark: Option<&Mark>) -> Option<&OomLine> {
        let marked = mark.map(|mark| mark.tid);
        self.lines.iter().rev().find(|line| line.tid == exit.process.tgid || Some(line.tid) == marked)
    }

    /// Evidence serves one death; a pid that is used again must not inherit it.
    fn forget(&mut self, exit: &Exit, marked: Option<u32>) {
        if marked.is_none() && exit.header.flags & EXIT_OOM_VICTIM == 0 {
            return;
        }
        let tids = [exit.process.tgid, exit.process.tid, marked.unwrap_or(0)];
        let identity = Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns };
        let mut gone = vec![identity];
        gone.extend(tids.map(|tgid| Identity { tgid, start_ns: 0 }));
        self.marks.retain(|identity, _| !gone.contains(identity));
        self.marked.retain(|identity| !gone.contains(identity));
        self.lines.retain(|line| !tids.contains(&line.tid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::kmsg::Constraint;
    use monitor_common::record::{Header, KIND_EXIT, KIND_OOM_MARK, Process, Record, SCOPE_UNKNOWN, Sender};

    const MS: u64 = 1_000_000;

    fn exit(tgid: u32, flags: u32, sender: Sender) -> Exit {
        Exit {
            header: Header { kind: KIND_EXIT, flags, kernel_ns: 0 },
            process: Process { tgid, tid: tgid, start_ns: 77, ..Process::NONE },
            status: SIGKILL,
            reserved: 0,
            max_rss_pages: 0,
            sender,
        }
    }

    fn by_kernel() -> Sender {
        Sender { signal: SIGKILL, si_code: SI_KERNEL, ..Sender::NONE }
    }

    fn mark(tgid: u32) -> OomMark {
        OomMark {
            header: Header { kind: KIND_OOM_MARK, flags: MARK_KILL_SENT, kernel_ns: 0 },
            victim: Process { tgid, tid: tgid, start_ns: 77, ..Process::NONE },
            trigger_tgid: 1,
            trigger_uid: 0,
            trigger_comm: [0; 16],
            scope: SCOPE_UNKNOWN,
            reserved: 0,
            limit_owner: 0,
        }
    }

    fn line(tid: u32) -> OomLine {
        OomLine { constraint: Constraint::Memcg, limit_owner: None, tid }
    }

    fn arrive(docket: &mut Docket, exit: Exit, at: u64) {
        docket.death(exit, &Event { seen_ns: at, record: Record::Exit(exit) });
    }

    #[test]
    fn a_kill_by_the_kernel_waits_for_its_mark_and_then_for_nothing_more() {
        let mut docket = Docket::default();
        arrive(&mut docket, exit(5, EXIT_SENDER, by_kernel()), 0);
        assert!(docket.decide(99 * MS).is_empty());
        docket.mark(&mark(5), None);
        docket.line(line(5));
        let found = docket.decide(99 * MS);
        assert_eq!(found.first().map(|found| found.cause.kind()), Some("oom_kill"));
        assert_eq!(docket.next_deadline(), None);
    }

    #[test]
    fn without_a_mark_the_wait_ends() {
        let mut docket = Docket::default();
        arrive(&mut docket, exit(5, EXIT_SENDER, by_kernel()), 0);
        assert_eq!(docket.next_deadline(), Some(100 * MS));
        assert_eq!(docket.decide(100 * MS).first().map(|found| found.cause.kind()), Some("killed"));
    }

    #[test]
    fn a_user_s_kill_is_decided_at_once() {
        let mut docket = Docket::default();
        let by_user = Sender { signal: SIGKILL, tgid: 9, ..Sender::NONE };
        arrive(&mut docket, exit(5, EXIT_SENDER, by_user), 0);
        assert_eq!(docket.decide(0).len(), 1);
    }

    #[test]
    fn a_missing_log_line_costs_twenty_milliseconds_and_no_verdict() {
        let mut docket = Docket::default();
        docket.mark(&mark(5), None);
        arrive(&mut docket, exit(5, EXIT_SENDER | EXIT_OOM_VICTIM, by_kernel()), 0);
        assert_eq!(docket.next_deadline(), Some(20 * MS));
        assert_eq!(docket.decide(20 * MS).first().map(|found| found.cause.kind()), Some("oom_kill"));
    }

    #[test]
    fn a_mark_that_names_the_limit_waits_for_no_log_line() {
        let mut docket = Docket::default();
        docket.mark(&OomMark { scope: SCOPE_MEMCG, limit_owner: 7, ..mark(5) }, Some("/shop.slice"));
        arrive(&mut docket, exit(5, EXIT_SENDER | EXIT_OOM_VICTIM, by_kernel()), 0);
        let found = docket.decide(0);
        let Some(Cause::OomKill(oom)) = found.first().map(|found| &found.cause) else { panic!("an OOM kill") };
        assert_eq!((oom.scope, oom.limit_owner.as_deref()), (Some(Scope::Memcg), Some("/shop.slice")));
    }

    #[test]
    fn evidence_serves_one_death_only() {
        let mut docket = Docket::default();
        docket.mark(&mark(5), None);
        docket.line(line(5));
        arrive(&mut docket, exit(5, EXIT_SENDER | EXIT_OOM_VICTIM, by_kernel()), 0);
        assert_eq!(docket.decide(0).len(), 1);
        // The same pid again, killed by the kernel for another reason.
        let mut next = exit(5, EXIT_SENDER, by_kernel());
        next.process.start_ns = 99;
        arrive(&mut docket, next, 0);
        assert!(docket.decide(0).is_empty());
        assert_eq!(docket.decide(100 * MS).first().map(|found| found.cause.kind()), Some("killed"));
    }

    #[test]
    fn a_death_that_is_reported_twice_is_one() {
        let mut docket = Docket::default();
        let by_user = Sender { signal: SIGKILL, tgid: 9, ..Sender::NONE };
        arrive(&mut docket, exit(5, EXIT_SENDER, by_user), 0);
        arrive(&mut docket, exit(5, EXIT_SENDER, by_user), 0);
        assert_eq!(docket.decide(0).len(), 1);
        let mut reused = exit(5, EXIT_SENDER, by_user);
        reused.process.start_ns += 1;
        arrive(&mut docket, reused, 0);
        assert_eq!(docket.decide(0).len(), 1, "the same pid in another life");
    }

    #[test]
    fn marks_of_deaths_that_never_come_are_bounded() {
        let mut docket = Docket::default();
        for tgid in 0..5000 {
            docket.mark(&mark(tgid), None);
            docket.line(line(tgid));
        }
        assert_eq!((docket.marks.len(), docket.marked.len(), docket.lines.len()), (KEPT, KEPT, KEPT));
    }
}
