//! Deaths that wait for late evidence.
//!
//! A fast thread can reach its exit before the OOM killer has marked it, the two rings and the kernel log are read apart,
//! and systemd and a service's output are asked beside. So a death that lacks something that can change its verdict waits,
//! at most [`EVIDENCE_WAIT_NS`], for an answer at most [`ANSWER_WAIT_NS`]; all others are decided at once.

use std::collections::VecDeque;

use monitor_common::{
    record::{
        EXIT_OOM_VICTIM, Exit, MARK_KILL_SENT, MARK_MEMORY, MARK_THREAD_ONLY, OomMark, SCOPE_CPUSET, SCOPE_GLOBAL,
        SCOPE_MEMCG, SCOPE_SYSRQ, SENT_BY_NAMESPACE_END, SENT_BY_TRACER_END, SI_KERNEL,
    },
    status::SIGKILL,
};

use super::{
    cause::{Cause, GroupKill, Party, Scope, VictimMemory},
    evidence::{Answer, Counts, Evidence, Mark, Missing, Senders},
    question::{self, Question, Reply},
    site::Site,
    verdict,
};
use crate::{
    attribution::{Place, Role},
    host::{kmsg::OomLine, pids::PidsRefused, process::Identity},
    kernel::Span,
    recent::Recent,
    text::Comm,
};

/// How long a death waits for evidence that could change its verdict: 100 ms. Marks follow the signal within 32 µs on
/// the kernel's side; the rest is for a busy host.
const EVIDENCE_WAIT_NS: u64 = 100_000_000;
/// How long a death waits for an answer of others that could change its verdict: 500 ms. systemd, a journal or a file answers within
/// milliseconds, except on a host with no processor time to spare, where a wrong cause would be worse than a late one.
const ANSWER_WAIT_NS: u64 = 500_000_000;
/// How long an OOM kill waits for the kernel log's line, which only adds to it: 20 ms. It is written before the signal is
/// sent, so one that is not there by then was rate-limited away.
const ADDITION_WAIT_NS: u64 = 20_000_000;
/// How long a death waits in whose cgroup nobody is known to live: 20 ms. Word that the cgroup was made came on the other
/// ring, which is read apart.
const PLACE_WAIT_NS: u64 = 20_000_000;
/// The thread that chose a victim kills those that share its memory right after; in between it may have to wait for a
/// slow console. It can do nothing else meanwhile.
const TWIN_NS: u64 = 1_000_000_000;
/// Marks, lines, sites and deaths kept for what is to come; a victim of gigabytes takes a while to die.
const KEPT: usize = 1024;
/// Deaths that wait at a time: those of 40,000 kills a second within the longest wait. Beyond, the oldest are decided with what
/// is there.
const WAITING: usize = 4096;

/// A decided death.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// Where its record lies in the critical ring, if somebody waits for that.
    pub(crate) span: Option<Span>,
    /// When user space saw the record, CLOCK_BOOTTIME nanoseconds.
    pub(crate) seen_ns: u64,
    /// Why.
    pub(crate) cause: Cause,
    /// What the verdict rests on, with the kernel's record.
    pub(crate) evidence: Evidence,
}

/// Evidence that has come, and deaths that wait for more.
#[derive(Debug)]
pub(crate) struct Docket {
    marks: Recent<Identity, Mark>,
    sites: Recent<Identity, Site>,
    lines: VecDeque<OomLine>,
    waiting: Vec<Waiting>,
    /// Deaths seen lately: a kernel where programs can be preempted may report one twice.
    seen: Recent<Identity, ()>,
    page_size: u64,
    losses: Losses,
}

/// What a crowd has cost, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// OOM marks, crash sites and lines of the kernel's log that newer ones pushed out. Some may have been of no use any more.
    pub(crate) marks: u64,
    /// Likewise.
    pub(crate) sites: u64,
    /// Likewise.
    pub(crate) lines: u64,
    /// Deaths that were decided before all was there that could change the verdict.
    pub(crate) waits: u64,
    /// Crashing processes that were not looked at, because too many crashed at once.
    pub(crate) looks: u64,
}

#[derive(Clone, Debug)]
struct Waiting {
    evidence: Evidence,
    span: Option<Span>,
    seen_ns: u64,
    /// Its cgroup was not known when it came.
    unplaced: bool,
}

/// What is known of a mark beyond its record.
#[derive(Clone, Debug, Default)]
pub(crate) struct MarkContext {
    /// Service of the allocating process.
    pub(crate) trigger_service: Option<std::sync::Arc<str>>,
    /// Path of the cgroup whose limit fired.
    pub(crate) limit_owner: Option<String>,
    /// That limit, bytes.
    pub(crate) limit_bytes: Option<u64>,
    /// A cgroup between victim and limit asks for all of its processes to be killed.
    pub(crate) in_group: bool,
    /// Main process or worker, as the victim's parent said at the mark.
    pub(crate) role: Option<Role>,
    /// The kernel's own counts.
    pub(crate) counts: Counts,
}

/// What is known of a death beyond its record.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeathContext {
    /// Who sent the last two signals.
    pub(crate) senders: Senders,
    /// Where it lived.
    pub(crate) place: Option<Place>,
    /// Its service is looked after, so it is worth asking others about it.
    pub(crate) watched: bool,
    /// The least memory limit above it, bytes.
    pub(crate) memory_limit: Option<u64>,
    /// Processes and threads that its cgroup refused.
    pub(crate) pids_refused: Option<PidsRefused>,
    /// When the OOM killer last chose a process of its service, CLOCK_BOOTTIME nanoseconds.
    pub(crate) service_oom_ns: Option<u64>,
    /// Main process or worker, if that can be told.
    pub(crate) role: Option<Role>,
}

impl Docket {
    /// An empty docket; `page_size` in bytes.
    pub(crate) fn new(page_size: u64) -> Self {
        Self {
            marks: Recent::new(KEPT),
            sites: Recent::new(KEPT),
            lines: VecDeque::new(),
            waiting: Vec::new(),
            seen: Recent::new(KEPT),
            page_size,
            losses: Losses::default(),
        }
    }

    /// See [`Losses`].
    pub(crate) fn losses(&self) -> Losses {
        self.losses
    }

    /// An OOM mark came. False for one that is known.
    pub(crate) fn mark(&mut self, mark: &OomMark, context: MarkContext) -> bool {
        let thread_only = mark.header.flags & MARK_THREAD_ONLY != 0;
        let bytes = |pages: u64| pages.saturating_mul(self.page_size);
        let known = Mark {
            kernel_ns: mark.header.kernel_ns,
            tid: mark.victim.tid,
            tgid: if thread_only { 0 } else { mark.victim.tgid },
            kill_sent: mark.header.flags & MARK_KILL_SENT != 0,
            trigger: Party {
                tgid: mark.trigger_tgid,
                comm: Comm(mark.trigger_comm),
                uid: mark.trigger_uid,
                service: context.trigger_service,
            },
            trigger_tid: mark.trigger_tid,
            scope: match mark.scope {
                SCOPE_MEMCG => Some(Scope::Memcg),
                SCOPE_GLOBAL => Some(Scope::Global),
                SCOPE_CPUSET => Some(Scope::Cpuset),
                SCOPE_SYSRQ => Some(Scope::Sysrq),
                _ => None,
            },
            limit_owner: context.limit_owner,
            limit_bytes: context.limit_bytes,
            request_ns: mark.request_ns,
            in_group: context.in_group,
            memory: (mark.header.flags & MARK_MEMORY != 0).then(|| VictimMemory {
                total_vm_bytes: bytes(mark.total_vm_pages),
                anon_rss_bytes: bytes(mark.anon_pages),
                file_rss_bytes: bytes(mark.file_pages),
                shmem_rss_bytes: bytes(mark.shmem_pages),
                page_tables_bytes: mark.page_tables_bytes,
                oom_score_adj: mark.oom_score_adj,
            }),
            role: context.role,
            counts: context.counts,
        };
        let identity = if thread_only {
            // Only the thread is known; its id is the process's, or a waiting death has it.
            Identity { tgid: mark.victim.tid, start_ns: 0 }
        } else {
            Identity { tgid: mark.victim.tgid, start_ns: mark.victim.start_ns }
        };
        // Those of deaths that came are kept for members of a group and twins, and age out.
        if self.marks.is_full()
            && self.marks.get(&identity).is_none()
            && let Some((oldest, _)) = self.marks.oldest()
            && self.seen.get(oldest).is_none()
        {
            self.losses.marks += 1;
        }
        // A victim that cannot die at once is marked again by its own allocations; the first mark is the kill.
        self.marks.insert(identity, known)
    }

    /// A line of the kernel's log came.
    pub(crate) fn line(&mut self, line: OomLine) {
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
            self.losses.lines += 1;
        }
    }

    /// A process is about to crash.
    pub(crate) fn site(&mut self, process: Identity, site: Site) {
        if self.sites.is_full() && self.sites.get(&process).is_none() {
            self.losses.sites += 1;
        }
        self.sites.insert(process, site);
    }

    /// A process ended. Decided deaths come from [`Self::decide`]; what is returned is worth asking meanwhile.
    pub(crate) fn death(
        &mut self,
        exit: Exit,
        span: Option<Span>,
        seen_ns: u64,
        context: DeathContext,
    ) -> Option<Question> {
        let identity = identity(&exit);
        if !self.seen.insert(identity, ()) {
            return None;
        }
        let DeathContext { senders, place, watched, memory_limit, pids_refused, service_oom_ns, role } = context;
        let unplaced = place.is_none() && exit.process.cgroup != 0;
        let mut evidence = Evidence {
            mark: None,
            group: None,
            twin: None,
            service_oom_ns,
            line: None,
            senders,
            site: self.sites.remove(&identity),
            systemd: Answer::NotAsked,
            last_words: Answer::NotAsked,
            memory_limit,
            pids_refused,
            page_size: self.page_size,
            missing: Vec::new(),
            exit,
        };
        let question = question::question(&evidence, place.as_ref(), watched, role);
        match question {
            Some(Question::Systemd { .. }) => evidence.systemd = Answer::Pending,
            Some(Question::LastWords { .. }) => evidence.last_words = Answer::Pending,
            None => {}
        }
        self.waiting.push(Waiting { evidence, span, seen_ns, unplaced });
        question
    }

    /// Whether the record that came last, and lies there, is that of a death that was not known.
    pub(crate) fn has_taken(&self, span: Span) -> bool {
        self.waiting.last().is_some_and(|death| death.span == Some(span))
    }

    /// Somebody has answered a question about a death. An answer that comes too late changes nothing.
    pub(crate) fn reply(&mut self, process: Identity, reply: Reply) {
        let Some(death) = self.waiting.iter_mut().find(|death| identity(&death.evidence.exit) == process) else {
            return;
        };
        match reply {
            Reply::Systemd(reply) => death.evidence.systemd = reply.map_or_else(Answer::Failed, Answer::Told),
            Reply::LastWords(reply) => death.evidence.last_words = reply.map_or_else(Answer::Failed, Answer::Told),
            Reply::Refused if death.evidence.systemd == Answer::Pending => death.evidence.systemd = Answer::Refused,
            Reply::Refused if death.evidence.last_words == Answer::Pending => {
                death.evidence.last_words = Answer::Refused;
            }
            Reply::Refused => {}
        }
    }

    /// Takes out the deaths that need wait no longer, in order of arrival.
    pub(crate) fn decide(&mut self, now_ns: u64) -> Vec<Finding> {
        let mut decided = Vec::new();
        let crowd = self.waiting.len().saturating_sub(WAITING);
        for (number, mut death) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            self.gather(&mut death.evidence);
            if self.deadline(&death) <= now_ns {
                decided.push(self.find(death));
            } else if number < crowd {
                self.losses.waits += 1;
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

    /// Puts what has come to the death that it belongs to.
    fn gather(&self, evidence: &mut Evidence) {
        if evidence.signal().map(u32::from) != Some(SIGKILL) {
            return;
        }
        if evidence.mark.is_none() {
            evidence.mark = self.mark_of(&evidence.exit).cloned();
        }
        if evidence.line.is_none() {
            evidence.line = self.line_of(&evidence.exit, evidence.mark.as_ref()).cloned();
        }
        if evidence.mark.is_none() && evidence.exit.header.flags & EXIT_OOM_VICTIM == 0 && evidence.twin.is_none() {
            evidence.twin = self.twin_of(evidence);
        }
        if let Some(mark) = &evidence.mark {
            evidence.group = self.group_of(mark);
        }
    }

    /// Zero when all that it waits for is there.
    fn deadline(&self, death: &Waiting) -> u64 {
        let place = if death.unplaced { death.seen_ns + PLACE_WAIT_NS } else { 0 };
        self.evidence_deadline(death).max(place)
    }

    /// Zero when all evidence is there.
    fn evidence_deadline(&self, death: &Waiting) -> u64 {
        let evidence = &death.evidence;
        let whole = death.seen_ns + EVIDENCE_WAIT_NS;
        if evidence.systemd == Answer::Pending || evidence.last_words == Answer::Pending {
            return death.seen_ns + ANSWER_WAIT_NS;
        }
        if evidence.signal().map(u32::from) != Some(SIGKILL) {
            return 0;
        }
        if verdict::is_oom_kill(evidence) {
            return match &evidence.mark {
                None => whole,
                // The others of a group are marked one after another, with a line on the console for each.
                Some(mark) if mark.in_group => whole,
                // What the line would add is known.
                Some(mark) if mark.scope.is_some() || evidence.line.is_some() => 0,
                Some(_) => death.seen_ns + ADDITION_WAIT_NS,
            };
        }
        match evidence.sender() {
            // The kernel's reason is known, or another process sent it: nothing that comes late changes that.
            Some(sender) if sender.flags & (SENT_BY_NAMESPACE_END | SENT_BY_TRACER_END) != 0 => 0,
            Some(sender) if sender.si_code != SI_KERNEL => 0,
            _ => whole,
        }
    }

    fn find(&mut self, death: Waiting) -> Finding {
        let Waiting { mut evidence, span, seen_ns, unplaced: _ } = death;
        evidence.missing = missing(&evidence);
        let cause = verdict::weigh(&evidence);
        self.forget(&evidence);
        Finding { span, seen_ns, cause, evidence }
    }

    /// The mark that chose the process of this record.
    pub(crate) fn mark_of(&self, exit: &Exit) -> Option<&Mark> {
        let thread_only = |tid| self.marks.get(&Identity { tgid: tid, start_ns: 0 });
        self.marks
            .get(&identity(exit))
            .or_else(|| thread_only(exit.process.tgid))
            .or_else(|| thread_only(exit.process.tid))
    }

    fn line_of(&self, exit: &Exit, mark: Option<&Mark>) -> Option<&OomLine> {
        let marked = mark.map(|mark| mark.tid);
        self.lines.iter().rev().find(|line| line.tid == exit.process.tgid || Some(line.tid) == marked)
    }

    /// The mark that the sender's thread made just before it killed this process too.
    fn twin_of(&self, evidence: &Evidence) -> Option<Mark> {
        let sender = evidence.sender().filter(|sender| {
            sender.si_code == SI_KERNEL && sender.flags & (SENT_BY_NAMESPACE_END | SENT_BY_TRACER_END) == 0
        })?;
        let just_before = |mark: &&Mark| {
            mark.trigger_tid == sender.tid
                && mark.kill_sent
                && sender.kernel_ns.checked_sub(mark.kernel_ns).is_some_and(|age| age < TWIN_NS)
        };
        self.marks.iter().map(|(_, mark)| mark).filter(just_before).max_by_key(|mark| mark.kernel_ns).cloned()
    }

    /// The marks of one decision.
    fn group_marks<'a>(&'a self, mark: &'a Mark) -> impl Iterator<Item = &'a Mark> {
        let same = |other: &&Mark| {
            other.kill_sent
                && other.trigger_tid == mark.trigger_tid
                && if mark.request_ns != 0 {
                    other.request_ns == mark.request_ns
                } else {
                    mark.in_group && other.in_group && other.kernel_ns.abs_diff(mark.kernel_ns) < TWIN_NS
                }
        };
        self.marks.iter().map(|(_, mark)| mark).filter(same)
    }

    /// The processes that were killed by the same decision, when there are several.
    fn group_of(&self, mark: &Mark) -> Option<GroupKill> {
        let kills = self.group_marks(mark).count();
        let first = self.group_marks(mark).map(|mark| mark.kernel_ns).min();
        let id = if mark.request_ns != 0 { mark.request_ns } else { first? };
        (kills > 1).then_some(GroupKill { id, kills })
    }

    /// A pid that is used again must not inherit evidence. Marks that know their process are left to age out: members of
    /// a group and twins still need them.
    fn forget(&mut self, evidence: &Evidence) {
        let exit = &evidence.exit;
        let marked = evidence.mark.as_ref().map(|mark| mark.tid);
        if marked.is_none() && exit.header.flags & EXIT_OOM_VICTIM == 0 {
            return;
        }
        let tids = [exit.process.tgid, exit.process.tid, marked.unwrap_or(0)];
        for tid in tids {
            self.marks.remove(&Identity { tgid: tid, start_ns: 0 });
        }
        self.lines.retain(|line| !tids.contains(&line.tid));
    }
}

/// Signals whose site the kernel programs send: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const SITED: [u32; 7] = [4, 5, 6, 7, 8, 11, 31];

/// What should have come and has not.
fn missing(evidence: &Evidence) -> Vec<Missing> {
    let oom = verdict::is_oom_kill(evidence);
    let crashed = evidence
        .sender()
        .is_some_and(|sender| sender.tgid == evidence.exit.process.tgid && SITED.contains(&sender.signal));
    let scope_known = evidence.mark.as_ref().is_some_and(|mark| mark.scope.is_some());
    [
        (oom && evidence.mark.is_none(), Missing::OomMark),
        (oom && evidence.line.is_none() && !scope_known, Missing::KernelLog),
        (evidence.signal().is_some() && evidence.sender().is_none(), Missing::Sender),
        (evidence.systemd == Answer::Pending, Missing::Systemd),
        (evidence.last_words == Answer::Pending, Missing::LastWords),
        (crashed && evidence.site.is_none(), Missing::CrashSite),
    ]
    .into_iter()
    .filter_map(|(is_missing, what)| is_missing.then_some(what))
    .collect()
}

fn identity(exit: &Exit) -> Identity {
    Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns }
}

#[cfg(test)]
mod tests;
