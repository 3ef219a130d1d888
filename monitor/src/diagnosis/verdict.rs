//! The rules: what the evidence on one death amounts to.
//!
//! Status 137 proves nothing: a SIGKILL is an OOM kill only when the kernel marked the process *and* sent the signal.
//! Where the evidence does not suffice the verdict is the weaker one, down to "unknown": people act on it.

use monitor_common::{
    record::{
        EXIT_NEVER_EXECUTED, EXIT_OOM_VICTIM, EXIT_WITHOUT_SIGNAL, SECCOMP_DEAD, SECCOMP_STRICT, SENT_AGAIN,
        SENT_BY_NAMESPACE_END, SENT_BY_PARENT_END, SENT_BY_TRACER_END, SENT_TO_PROCESS, SENT_WITHOUT_INFO, SI_EVENT,
        SI_KERNEL, SI_USER, Sender,
    },
    status::{self, SIGKILL},
};

use super::{
    cause::{Cause, ExitReason, Fault, OomKill, Reason, Scope, Weighed},
    evidence::{Evidence, Item, SenderKind, Source},
};
use crate::host::{kmsg::Constraint, systemd::Meaning};

/// Signals whose default action is to dump a core: a process gets them for what it did itself (signal(7)):
/// QUIT is left out, people send it.
const FAULTS: [u8; 9] = [4, 5, 6, 7, 8, 11, 24, 25, 31];
/// Requests to end: INT, QUIT, TERM. HUP often means to read the configuration again.
const REQUESTS: [u32; 3] = [2, 3, 15];
/// ABRT, the signal of systemd's watchdog.
const ABRT: u32 = 6;
/// Further signals by their numbers (signal(7)).
const HUP: u8 = 1;
const INT: u8 = 2;
const QUIT: u8 = 3;
const BUS: u8 = 7;
const SEGV: u8 = 11;
const PIPE: u8 = 13;
const ALRM: u8 = 14;
const VTALRM: u8 = 26;
const PROF: u8 = 27;
const SYS: u8 = 31;
/// `BUS_MCEERR_AR`, `BUS_MCEERR_AO` (siginfo.h): an error in memory that the process used, or has mapped.
const MEMORY_ERRORS: [i32; 2] = [4, 5];
/// `SYS_SECCOMP` (siginfo.h).
const BY_SECCOMP: i32 = 1;
/// A shell's exit codes for a program that cannot be executed, or is not found (POSIX, Shell Command Language, 2.8.2).
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// `EXIT_EXEC` (systemd.exec(5)): systemd's child could not execute the service's program.
const EXIT_EXEC: u8 = 203;
/// A request for memory that was refused this long before an abnormal end is taken for its reason: 2 s. Python needed
/// 47 ms from the one to the other; programs that log, flush and unwind need longer.
const REFUSAL_COUNTS_NS: u64 = 2_000_000_000;
/// A refused process or thread counts as the reason of an exit with a code at most this long after it: 10 s.
const PIDS_REFUSED_NS: u64 = 10_000_000_000;
/// How likely a piece of evidence alone makes it that the application ran out of memory.
const REFUSAL: f64 = 0.6;
/// Last words of a runtime that ends as it usually does: wrong only when another process wrote them.
const LAST_WORDS: f64 = 0.9;
/// The same words before another kind of end: a client can make a service write them.
const ODD_LAST_WORDS: f64 = 0.3;
/// A typical ending with the memory limit near. Never enough by itself.
const NEAR_LIMIT: f64 = 0.5;
/// From here on it is called probable.
const PROBABLE: f64 = 0.6;
/// Share of the memory limit that counts as near.
const NEAR: f64 = 0.9;
/// How runtimes that run out of memory end: exit 1 (Python, Ruby), 2 (Go), 3 (JVM), 134 (a shell's word for ABRT).
const TYPICAL_CODES: [u8; 4] = [1, 2, 3, 134];
/// TRAP and ILL (V8 stops itself so), ABRT, SEGV (an allocation's result that nobody looked at).
const TYPICAL_SIGNALS: [u8; 4] = [4, 5, 6, 11];

/// True when the process was ended by the kernel's OOM killer, on the evidence so far.
pub(super) fn is_oom_kill(evidence: &Evidence) -> bool {
    if !is_killed(evidence) {
        return false;
    }
    let marked = evidence.exit.header.flags & EXIT_OOM_VICTIM != 0 || evidence.mark.is_some();
    match evidence.sender() {
        // A process that the kernel kills for another reason may be marked while it dies.
        Some(sender) => {
            marked && sender.si_code == SI_KERNEL && sender.flags & (SENT_BY_NAMESPACE_END | SENT_BY_TRACER_END) == 0
        }
        // The sender was not recorded: the mark decides, unless it says itself that it killed nothing.
        None => marked && evidence.mark.as_ref().is_none_or(|mark| mark.kill_sent),
    }
}

/// systemd ends the rest of a unit within this after an OOM kill in it: 5 s. It hears of the kill at once; a host without
/// memory may be slow.
const OOM_POLICY_NS: u64 = 5_000_000_000;

/// True when an unmarked process died because it shared a victim's memory, on the evidence so far.
pub(super) fn is_twin(evidence: &Evidence) -> bool {
    is_killed(evidence)
        && evidence.twin.is_some()
        && evidence.sender().is_some_and(|sender| sender.si_code == SI_KERNEL)
}

fn is_killed(evidence: &Evidence) -> bool {
    evidence.signal().map(u32::from) == Some(SIGKILL)
}

/// Weighs the evidence.
pub(super) fn weigh(evidence: &Evidence) -> Cause {
    if is_oom_kill(evidence) || is_twin(evidence) {
        return Cause::OomKill(oom_kill(evidence));
    }
    match status::signal(evidence.exit.status) {
        Some((signal, core_dumped)) => signalled(evidence, signal, core_dumped),
        None => exited(evidence, status::exit_code(evidence.exit.status).unwrap_or(0)),
    }
}

fn oom_kill(evidence: &Evidence) -> OomKill {
    let mark = evidence.mark.as_ref();
    // What ran out is the same for a process that only shared the victim's memory.
    let decision = mark.or(evidence.twin.as_ref());
    let line = evidence.line.as_ref();
    OomKill {
        scope: decision.and_then(|mark| mark.scope).or_else(|| {
            line.map(|line| match line.constraint {
                Constraint::Memcg => Scope::Memcg,
                Constraint::None => Scope::Global,
                Constraint::Nodes => Scope::Cpuset,
            })
        }),
        limit_owner: decision
            .and_then(|mark| mark.limit_owner.clone())
            .or_else(|| line.and_then(|line| line.limit_owner.clone())),
        limit_bytes: decision.and_then(|mark| mark.limit_bytes),
        triggered_by: decision.map(|mark| mark.trigger.clone()),
        mark_to_exit_us: mark.map(|mark| evidence.exit.header.kernel_ns.saturating_sub(mark.kernel_ns) / 1000),
        memory: mark.and_then(|mark| mark.memory),
        group: evidence.group,
        kernel_count: match (mark, evidence.sender()) {
            (None, _) if evidence.twin.is_some() => 0,
            (_, Some(sender)) if sender.flags & SENT_AGAIN != 0 => 2,
            _ => 1,
        },
        shared_with: if mark.is_none() { evidence.twin.as_ref().map(|twin| twin.tgid) } else { None },
    }
}

fn signalled(evidence: &Evidence, signal: u8, core_dumped: bool) -> Cause {
    let sender = evidence.sender();
    if let Some(cause) = sender.and_then(|sender| by_kernel(evidence, sender, signal)) {
        return cause;
    }
    if let Some(cause) = by_somebody_with_a_role(evidence, Some(signal)) {
        return cause;
    }
    if let Some(reason) = without_signal(evidence, signal) {
        return Cause::Killed { signal, by: None, by_kernel: true, reason: Some(reason) };
    }
    let by_itself = |sender: &Sender| {
        sender.si_code > 0 || sender.tgid == evidence.exit.process.tgid && !SI_EVENT.contains(&sender.si_code)
    };
    if FAULTS.contains(&signal) && sender.is_none_or(by_itself) {
        return crash(evidence, signal, core_dumped);
    }
    let Some(sender) = sender else {
        // An OOM victim is known by its own state even when all records are lost, so this is none; more is not known.
        return Cause::Unknown { signal };
    };
    if let Some(cause) = by_kernel_code(evidence, sender, signal) {
        return cause;
    }
    let by_kernel = sender.si_code == SI_KERNEL;
    // Kernel code that kills in a process's name and one thread at a time: nothing else does that.
    let through_cgroup = u32::from(signal) == SIGKILL
        && !by_kernel
        && sender.flags & SENT_WITHOUT_INFO != 0
        && sender.flags & SENT_TO_PROCESS == 0;
    Cause::Killed {
        signal,
        by: if by_kernel { None } else { evidence.last_party() },
        by_kernel,
        reason: through_cgroup.then_some(Reason::CgroupKill),
    }
}

fn crash(evidence: &Evidence, signal: u8, core_dumped: bool) -> Cause {
    let site = evidence.site.clone();
    let code = evidence.sender().map(|sender| sender.si_code);
    let reason = match (signal, code) {
        (BUS, Some(code)) if MEMORY_ERRORS.contains(&code) => Some(Fault::MemoryError),
        (SYS, Some(BY_SECCOMP)) => Some(Fault::Seccomp),
        // Before 5.16 seccomp ends a thread without a signal.
        (SYS, None) if evidence.exit.header.flags & EXIT_WITHOUT_SIGNAL != 0 && evidence.exit.seccomp_mode != 0 => {
            Some(Fault::Seccomp)
        }
        _ => None,
    };
    let typical = TYPICAL_SIGNALS.contains(&signal) && reason.is_none();
    out_of_memory_by_itself(evidence, typical, site.clone()).unwrap_or(Cause::Crash {
        signal,
        core_dumped,
        reason,
        site,
    })
}

/// Why kernel code ended the last thread: the status names a signal, but none was sent and none was delivered.
fn without_signal(evidence: &Evidence, signal: u8) -> Option<Reason> {
    if evidence.sender().is_some() || evidence.exit.header.flags & EXIT_WITHOUT_SIGNAL == 0 {
        return None;
    }
    match (signal, evidence.exit.seccomp_mode) {
        (9, SECCOMP_STRICT | SECCOMP_DEAD) => Some(Reason::SeccompStrict),
        // The status that an oops leaves (`make_task_dead`): the first for a bad access, the second otherwise.
        (9 | SEGV, _) => Some(Reason::KernelOops),
        _ => None,
    }
}

/// Signals other than SIGKILL that kernel code sends for an event, and signals that claim to be such.
fn by_kernel_code(evidence: &Evidence, sender: &Sender, signal: u8) -> Option<Cause> {
    let own = sender.tgid == evidence.exit.process.tgid;
    // Only the kernel sends a signal without a siginfo; no system call can.
    let bare = sender.si_code == SI_USER && sender.flags & SENT_WITHOUT_INFO != 0;
    let to_process = sender.flags & SENT_TO_PROCESS != 0;
    let kernel = sender.si_code == SI_KERNEL;
    let (by, by_kernel, reason) = match signal {
        _ if sender.flags & SENT_BY_PARENT_END != 0 => (evidence.last_party(), true, Reason::ParentExit),
        PIPE if bare && own => (None, true, Reason::BrokenPipe),
        HUP if kernel => (None, true, Reason::TerminalGone),
        // The last party is the process that closed the other side of a pseudo terminal.
        HUP if bare && to_process && !own => (evidence.last_party(), true, Reason::TerminalGone),
        INT | QUIT if kernel => (None, true, Reason::TerminalKey),
        ALRM | VTALRM | PROF if kernel => (None, true, Reason::Timer),
        _ if SI_EVENT.contains(&sender.si_code) => (None, false, Reason::Event),
        _ => return None,
    };
    Some(Cause::Killed { signal, by, by_kernel, reason: Some(reason) })
}

/// Kills by the kernel for other reasons than memory.
fn by_kernel(evidence: &Evidence, sender: &Sender, signal: u8) -> Option<Cause> {
    if u32::from(signal) != SIGKILL || sender.si_code != SI_KERNEL {
        return None;
    }
    if sender.flags & SENT_BY_TRACER_END != 0 {
        return Some(Cause::Killed {
            signal,
            by: evidence.last_party(),
            by_kernel: true,
            reason: Some(Reason::TracerExit),
        });
    }
    if sender.flags & SENT_BY_NAMESPACE_END != 0 {
        return evidence.last_party().map(|by| Cause::ContainerTeardown { by });
    }
    (sender.tgid == evidence.exit.process.tgid && evidence.is_over_cpu_limit()).then_some(Cause::Killed {
        signal,
        by: None,
        by_kernel: true,
        reason: Some(Reason::CpuLimit),
    })
}

/// Deaths that were ordered by a service manager, a container engine, or a watcher over the host's memory; also when the
/// process took the order and exited by itself (`signal` is `None` then).
fn by_somebody_with_a_role(evidence: &Evidence, signal: Option<u8>) -> Option<Cause> {
    let last = evidence.last()?;
    let by = evidence.last_party()?;
    let fatal = signal.is_some_and(|signal| last.signal == u32::from(signal));
    let asked = REQUESTS.contains(&last.signal);
    if last.si_code == SI_KERNEL || !fatal && (signal.is_some() || !asked) {
        return None;
    }
    match evidence.senders.last {
        SenderKind::MemoryKiller => {
            Some(Cause::UserspaceOomKill { signal: u8::try_from(last.signal).unwrap_or(u8::MAX), by })
        }
        SenderKind::Manager => Some(by_manager(evidence, signal)),
        SenderKind::Engine => Some(Cause::Stopped { signal, by, forced: was_asked_before(evidence) }),
        SenderKind::Other => None,
    }
}

fn by_manager(evidence: &Evidence, signal: Option<u8>) -> Cause {
    let (Some(last), Some(by)) = (evidence.last(), evidence.last_party()) else {
        return Cause::Unknown { signal: signal.unwrap_or(0) };
    };
    let aborted = |sender: &Sender| sender.signal == ABRT;
    let aborted_before = evidence.senders.before == SenderKind::Manager && evidence.before().is_some_and(aborted);
    let meaning = evidence.systemd.told().copied();
    let killed = |reason| match signal {
        Some(signal) => Cause::Killed { signal, by: Some(by.clone()), by_kernel: false, reason: Some(reason) },
        // It took the order and ended by itself; the manager's reason stays in the evidence.
        None => end_by_itself(evidence),
    };
    match meaning {
        Some(Meaning::Watchdog) => Cause::Watchdog { signal: signal.unwrap_or(0), by },
        Some(Meaning::StartTimeout) => killed(Reason::StartTimeout),
        Some(Meaning::RuntimeLimit) => killed(Reason::RuntimeLimit),
        Some(Meaning::OomPolicy) => killed(Reason::OomPolicy),
        // systemd sends this signal for its watchdog only, unless a unit asks for it (KillSignal=).
        Some(Meaning::NotInvolved | Meaning::Forgotten) | None if aborted(last) || aborted_before => {
            Cause::Watchdog { signal: signal.unwrap_or(0), by }
        }
        // What systemd does by default after an OOM kill in a unit, and it has not said otherwise.
        Some(Meaning::Forgotten) | None if evidence.oom_before_signal_ns().is_some_and(|age| age < OOM_POLICY_NS) => {
            killed(Reason::OomPolicy)
        }
        Some(Meaning::StopTimedOut) => Cause::Stopped { signal, by, forced: signal.map(u32::from) == Some(SIGKILL) },
        Some(Meaning::Stop | Meaning::NotInvolved | Meaning::Forgotten) | None => {
            Cause::Stopped { signal, by, forced: was_asked_before(evidence) }
        }
    }
}

/// The last signal was a SIGKILL that followed a request to end from the same kind of sender.
fn was_asked_before(evidence: &Evidence) -> bool {
    evidence.last().is_some_and(|last| last.signal == SIGKILL)
        && evidence.senders.before == evidence.senders.last
        && evidence.before().is_some_and(|before| REQUESTS.contains(&before.signal))
}

fn exited(evidence: &Evidence, code: u8) -> Cause {
    if let Some(cause) = by_somebody_with_a_role(evidence, None) {
        return cause;
    }
    if code != 0
        && let Some(cause) = out_of_memory_by_itself(evidence, TYPICAL_CODES.contains(&code), None)
    {
        return cause;
    }
    end_by_itself(evidence)
}

fn end_by_itself(evidence: &Evidence) -> Cause {
    match status::exit_code(evidence.exit.status) {
        Some(0) | None => Cause::CleanExit,
        Some(code) => Cause::Exit { code, reason: exit_reason(evidence, code) },
    }
}

fn exit_reason(evidence: &Evidence, code: u8) -> Option<ExitReason> {
    let never_executed = evidence.exit.header.flags & EXIT_NEVER_EXECUTED != 0;
    match code {
        NOT_EXECUTABLE | NOT_FOUND => Some(ExitReason::ExecFailed),
        // An executed program may use this code for any other reason.
        EXIT_EXEC if never_executed => Some(ExitReason::ExecFailed),
        _ if evidence.pids_refused.is_some_and(|refused| refused.within_ns <= PIDS_REFUSED_NS) => {
            Some(ExitReason::PidsLimit)
        }
        _ => None,
    }
}

/// True when a process that ended by itself was refused memory, or ended as runtimes do when they run out, with its
/// peak near the limit.
pub(super) fn points_to_memory(evidence: &Evidence) -> bool {
    let typical = match status::signal(evidence.exit.status) {
        Some((signal, _)) => TYPICAL_SIGNALS.contains(&signal),
        None => status::exit_code(evidence.exit.status).is_some_and(|code| TYPICAL_CODES.contains(&code)),
    };
    was_refused(evidence) || typical && is_near_limit(evidence)
}

fn was_refused(evidence: &Evidence) -> bool {
    evidence.refused_before_ns().is_some_and(|ns| ns <= REFUSAL_COUNTS_NS)
}

fn is_near_limit(evidence: &Evidence) -> bool {
    evidence.max_rss().zip(evidence.memory_limit).is_some_and(|(peak, limit)| peak as f64 >= NEAR * limit as f64)
}

/// An abnormal end that was probably for want of memory, though no one killed the process.
fn out_of_memory_by_itself(evidence: &Evidence, typical: bool, site: Option<super::site::Site>) -> Option<Cause> {
    let mut found = Vec::new();
    if was_refused(evidence)
        && let Some(item) = evidence.refusal_item()
    {
        found.push(Weighed { item, weight: REFUSAL });
    }
    if let Some(Some(words)) = evidence.last_words.told() {
        let weight = if typical { LAST_WORDS } else { ODD_LAST_WORDS };
        found.push(Weighed { item: Item::new(Source::LastWords, words), weight });
    }
    if typical
        && is_near_limit(evidence)
        && let Some(item) = evidence.max_rss_item()
    {
        found.push(Weighed { item, weight: NEAR_LIMIT });
    }
    // Independent witnesses: all of them would have to be wrong.
    let wrong: f64 = found.iter().map(|weighed| 1.0 - weighed.weight).product();
    let score = ((1.0 - wrong) * 100.0).round() / 100.0;
    (score >= PROBABLE).then_some(Cause::AppOomProbable { score, evidence: found, site })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnosis::{
            cause::Party,
            evidence::{Answer, Counts, Mark, Senders},
        },
        host::{kmsg::OomLine, pids::PidsRefused},
        text::Comm,
    };
    use monitor_common::record::{EXIT_SENDER, Exit, Header, KIND_EXIT, Process};
    use proptest::prelude::*;

    const OWN: u32 = 100;
    const MIB: u64 = 256; // pages

    fn sent(signal: u32, si_code: i32, tgid: u32) -> Sender {
        Sender { signal, si_code, tgid, uid: 7, flags: SENT_TO_PROCESS, ..Sender::NONE }
    }

    fn evidence(status: u32, flags: u32, sender: Option<Sender>) -> Evidence {
        Evidence {
            exit: Exit {
                header: Header {
                    kind: KIND_EXIT,
                    flags: flags | if sender.is_some() { EXIT_SENDER } else { 0 },
                    kernel_ns: 5_000_000_000,
                },
                process: Process { tgid: OWN, tid: OWN, ..Process::NONE },
                status,
                max_rss_pages: 10 * MIB,
                sender: sender.unwrap_or(Sender::NONE),
                ..bytemuck::Zeroable::zeroed()
            },
            mark: None,
            group: None,
            twin: None,
            service_oom_ns: None,
            line: None,
            senders: Senders::default(),
            site: None,
            systemd: Answer::NotAsked,
            last_words: Answer::NotAsked,
            memory_limit: None,
            pids_refused: None,
            page_size: 4096,
            missing: Vec::new(),
        }
    }

    fn mark(kill_sent: bool) -> Mark {
        Mark {
            kernel_ns: 4_997_000_000,
            tid: OWN,
            tgid: OWN,
            kill_sent,
            trigger: Party { tgid: 50, comm: Comm(*b"asker\0\0\0\0\0\0\0\0\0\0\0"), uid: 0, service: None },
            trigger_tid: 50,
            scope: None,
            limit_owner: None,
            limit_bytes: None,
            request_ns: 0,
            in_group: false,
            memory: None,
            role: None,
            counts: Counts::default(),
        }
    }

    #[test]
    fn sigkill_alone_is_no_oom_kill() {
        let kernel = Some(sent(9, SI_KERNEL, 50));
        let user = Some(sent(9, 0, 1234));
        let teardown = Some(Sender { flags: SENT_BY_NAMESPACE_END, ..sent(9, SI_KERNEL, 50) });
        for (name, status, flags, sender, mark, want) in [
            ("kernel kill, marked", 9, EXIT_OOM_VICTIM, kernel, Some(mark(true)), "oom_kill"),
            ("kernel kill, mark lost, oom_mm set", 9, EXIT_OOM_VICTIM, kernel, None, "oom_kill"),
            ("sender and mark lost, oom_mm set", 9, EXIT_OOM_VICTIM, None, None, "oom_kill"),
            ("kernel kill, left before the mark, mark came late", 9, 0, kernel, Some(mark(true)), "oom_kill"),
            ("kill -9 of a process that was marked while dying", 9, EXIT_OOM_VICTIM, user, Some(mark(false)), "killed"),
            (
                "torn down, and marked while dying",
                9,
                EXIT_OOM_VICTIM,
                teardown,
                Some(mark(false)),
                "container_teardown",
            ),
            ("mark that killed nothing, sender lost", 9, EXIT_OOM_VICTIM, None, Some(mark(false)), "unknown"),
            ("kernel kill without a mark", 9, 0, kernel, None, "killed"),
            ("kill -9", 9, 0, user, None, "killed"),
            ("unknown sender", 9, 0, None, None, "unknown"),
            ("marked, but exited by itself", 0x100, EXIT_OOM_VICTIM, None, Some(mark(true)), "exit"),
            ("137 of a shell is an exit", 137 << 8, 0, None, None, "exit"),
        ] {
            let evidence = Evidence { mark, ..evidence(status, flags, sender) };
            assert_eq!(weigh(&evidence).kind(), want, "{name}");
        }
    }

    #[test]
    fn a_fault_is_a_crash_and_the_same_signal_from_outside_is_not() {
        let kind = |status, sender| weigh(&evidence(status, 0, sender)).kind();
        assert_eq!(kind(0x8b, Some(sent(11, 1, OWN))), "crash");
        assert_eq!(kind(0x0b, Some(sent(11, 0, 4321))), "killed");
        assert_eq!(kind(0x86, Some(sent(6, -6, OWN))), "crash", "abort(3)");
        assert_eq!(kind(0x0f, Some(sent(15, 0, 4321))), "killed");
        assert_eq!(kind(0x8b, None), "crash", "sender not seen");
        assert_eq!(kind(24, Some(sent(24, SI_KERNEL, OWN))), "crash", "processor time");
    }

    #[test]
    fn a_sender_of_another_signal_is_not_blamed() {
        assert_eq!(weigh(&evidence(9, 0, Some(sent(15, 0, 4321)))), Cause::Unknown { signal: 9 });
    }

    #[test]
    fn kills_by_the_kernel_carry_their_reason() {
        let kernel = sent(9, SI_KERNEL, 50);
        let traced = evidence(9, 0, Some(Sender { flags: SENT_BY_TRACER_END, ..kernel }));
        assert!(matches!(weigh(&traced), Cause::Killed { by_kernel: true, reason: Some(Reason::TracerExit), .. }));
        let mut limited = evidence(9, 0, Some(sent(9, SI_KERNEL, OWN)));
        assert!(matches!(weigh(&limited), Cause::Killed { by_kernel: true, reason: None, .. }), "no limit is known");
        limited.exit.cpu_limit = 2;
        let over = |used: u64, timer: u64| {
            let mut evidence = limited.clone();
            (evidence.exit.cpu_used_ns, evidence.exit.cpu_timer_ns) = (used, timer);
            matches!(weigh(&evidence), Cause::Killed { by_kernel: true, reason: Some(Reason::CpuLimit), .. })
        };
        assert!(over(2_000_000_000, 0) && over(1_000, 2_001_000_000), "either account says that it is used up");
        assert!(!over(1_999_999_999, 1_999_999_999), "killed by the kernel for another reason");
        assert!(!over(0, 0), "it cannot be read");
        let through_cgroup = evidence(9, 0, Some(Sender { flags: SENT_WITHOUT_INFO, ..sent(9, 0, 50) }));
        let Cause::Killed { by: Some(by), reason: Some(Reason::CgroupKill), .. } = weigh(&through_cgroup) else {
            panic!("through cgroup.kill: {:?}", weigh(&through_cgroup));
        };
        assert_eq!(by.tgid, 50);
    }

    fn killed_for(evidence: &Evidence) -> Option<(Option<u32>, bool, Reason)> {
        match weigh(evidence) {
            Cause::Killed { by, by_kernel, reason: Some(reason), .. } => {
                Some((by.map(|by| by.tgid), by_kernel, reason))
            }
            _ => None,
        }
    }

    #[test]
    fn what_the_kernel_sends_for_something_that_has_happened_is_said() {
        let bare = SENT_WITHOUT_INFO;
        let whole = SENT_TO_PROCESS;
        for (name, status, sender, want) in [
            ("SIGPIPE", 13, Sender { flags: bare, ..sent(13, 0, OWN) }, (None, true, Reason::BrokenPipe)),
            (
                "PDEATHSIG",
                15,
                Sender { flags: bare | whole | SENT_BY_PARENT_END, ..sent(15, 0, 50) },
                (Some(50), true, Reason::ParentExit),
            ),
            (
                "hung up",
                1,
                Sender { flags: bare | whole, ..sent(1, SI_KERNEL, 50) },
                (None, true, Reason::TerminalGone),
            ),
            ("closed", 1, Sender { flags: bare | whole, ..sent(1, 0, 50) }, (Some(50), true, Reason::TerminalGone)),
            ("Ctrl-C", 2, Sender { flags: bare | whole, ..sent(2, SI_KERNEL, 50) }, (None, true, Reason::TerminalKey)),
            ("alarm(2)", 14, Sender { flags: bare | whole, ..sent(14, SI_KERNEL, 50) }, (None, true, Reason::Timer)),
            ("timer_create(2)", 15, sent(15, -2, 50), (None, false, Reason::Event)),
            ("a timer, in an interrupt of its own", 11, sent(11, -2, OWN), (None, false, Reason::Event)),
            ("sigqueue(3) with a code of a timer", 9, sent(9, -2, 50), (None, false, Reason::Event)),
        ] {
            assert_eq!(killed_for(&evidence(status, 0, Some(sender))), Some(want), "{name}");
        }
        for (name, status, sender) in [
            ("kill -PIPE", 13, sent(13, 0, 50)),
            ("raise(SIGPIPE)", 13, sent(13, -6, OWN)),
            ("kill -HUP", 1, sent(1, 0, 50)),
            ("kill -INT", 2, sent(2, 0, 50)),
        ] {
            assert_eq!(killed_for(&evidence(status, 0, Some(sender))), None, "{name}");
        }
    }

    #[test]
    fn a_death_without_a_signal_is_the_kernel_s_own() {
        let ended = |status, flags, mode| {
            let mut evidence = evidence(status, flags, None);
            evidence.exit.seccomp_mode = mode;
            evidence
        };
        let unsent = EXIT_WITHOUT_SIGNAL;
        for mode in [SECCOMP_STRICT, SECCOMP_DEAD] {
            assert_eq!(killed_for(&ended(9, unsent, mode)), Some((None, true, Reason::SeccompStrict)));
        }
        for (status, mode) in [(9, 0), (11, 0), (11, 2)] {
            assert_eq!(killed_for(&ended(status, unsent, mode)), Some((None, true, Reason::KernelOops)), "{status}");
        }
        assert_eq!(weigh(&ended(9, 0, SECCOMP_STRICT)).kind(), "unknown", "a signal ended it whose sender was lost");
        assert_eq!(weigh(&ended(11, 0, 0)).kind(), "crash");
        // For an OOM kill only the process's own state is left, and a racing thread ended before the signal.
        assert_eq!(weigh(&ended(9, unsent | EXIT_OOM_VICTIM, 0)).kind(), "oom_kill");
    }

    #[test]
    fn crashes_say_what_the_signal_alone_does_not() {
        let reason = |status, flags, mode, sender| {
            let mut evidence = evidence(status, flags, sender);
            evidence.exit.seccomp_mode = mode;
            match weigh(&evidence) {
                Cause::Crash { reason, .. } => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reason(7, 0, 0, Some(sent(7, 4, OWN))), Some(Fault::MemoryError), "it used the memory");
        assert_eq!(
            reason(7, 0, 0, Some(sent(7, 5, 50))),
            Some(Fault::MemoryError),
            "found beside, in another's context"
        );
        assert_eq!(reason(7, 0, 0, Some(sent(7, 2, OWN))), None, "behind the end of a file");
        assert_eq!(reason(0x9f, 0, 2, Some(sent(31, 1, OWN))), Some(Fault::Seccomp));
        assert_eq!(reason(0x9f, EXIT_WITHOUT_SIGNAL, 2, None), Some(Fault::Seccomp), "as kernels before 5.16 do it");
        assert_eq!(reason(31, 0, 0, Some(sent(31, -6, OWN))), None, "raise(SIGSYS)");
    }

    #[test]
    fn exit_codes_of_programs_that_could_not_start_say_so() {
        let reason = |code: u32, flags, refused_ns: Option<u64>| {
            let mut evidence = evidence(code << 8, flags, None);
            evidence.pids_refused = refused_ns.map(|within_ns| PidsRefused { count: 1, within_ns });
            match weigh(&evidence) {
                Cause::Exit { reason, .. } => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reason(127, 0, None), Some(ExitReason::ExecFailed));
        assert_eq!(reason(126, EXIT_NEVER_EXECUTED, None), Some(ExitReason::ExecFailed));
        assert_eq!(reason(203, EXIT_NEVER_EXECUTED, None), Some(ExitReason::ExecFailed));
        assert_eq!(reason(203, 0, None), None, "a code of its own");
        assert_eq!(reason(1, 0, None), None);
        assert_eq!(reason(1, 0, Some(1)), Some(ExitReason::PidsLimit));
        assert_eq!(reason(1, 0, Some(PIDS_REFUSED_NS + 1)), None, "too long ago to be the reason");
    }

    #[test]
    fn a_signal_that_names_nobody_blames_nobody() {
        // PID 1 happened to run when the timer ran out.
        let manager = by(SenderKind::Other, 15, sent(15, -2, 1), None);
        assert!(matches!(weigh(&manager), Cause::Killed { by: None, .. }));
        let items: Vec<_> = manager.items().into_iter().map(|item| item.finding).collect();
        assert!(items.iter().all(|finding| !finding.contains("pid 1")), "{items:?}");
    }

    fn by(kind: SenderKind, status: u32, last: Sender, before: Option<Sender>) -> Evidence {
        let mut evidence = evidence(status, 0, Some(last));
        evidence.senders.last = kind;
        if let Some(before) = before {
            evidence.exit.before = before;
            evidence.senders.before = kind;
        }
        evidence
    }

    #[test]
    fn a_supervisor_s_stop_is_no_outage_however_the_process_takes_it() {
        let (term, kill) = (sent(15, 0, 1), sent(9, 0, 1));
        for kind in [SenderKind::Manager, SenderKind::Engine] {
            for (status, last, before, forced) in [
                (15, term, None, false),
                (0, term, None, false),
                (0x300, term, None, false),
                (9, kill, Some(term), true),
                (9, kill, None, false),
            ] {
                let cause = weigh(&by(kind, status, last, before));
                let Cause::Stopped { forced: was, .. } = cause else { panic!("{kind:?} {status:#x}: {cause:?}") };
                assert_eq!(was, forced, "{kind:?} {status:#x}");
            }
        }
        // To read the configuration again is no request to end.
        assert_eq!(weigh(&by(SenderKind::Manager, 0x100, sent(1, 0, 1), None)).kind(), "exit");
        // A request that anybody sends stops no service on purpose.
        assert_eq!(weigh(&by(SenderKind::Other, 15, term, None)).kind(), "killed");
        assert_eq!(weigh(&by(SenderKind::Other, 0x100, term, None)).kind(), "exit");
    }

    #[test]
    fn systemd_s_view_tells_stops_from_time_outs() {
        let asked = |meaning, status, last, before| {
            weigh(&Evidence { systemd: Answer::Told(meaning), ..by(SenderKind::Manager, status, last, before) })
        };
        let (term, kill, abrt) = (sent(15, 0, 1), sent(9, 0, 1), sent(6, 0, 1));
        assert_eq!(asked(Meaning::Stop, 15, term, None).kind(), "stopped");
        assert!(matches!(asked(Meaning::StopTimedOut, 9, kill, Some(term)), Cause::Stopped { forced: true, .. }));
        assert_eq!(asked(Meaning::Watchdog, 6, abrt, None).kind(), "watchdog");
        assert_eq!(asked(Meaning::Watchdog, 9, kill, Some(abrt)).kind(), "watchdog");
        for (meaning, reason) in [
            (Meaning::StartTimeout, Reason::StartTimeout),
            (Meaning::RuntimeLimit, Reason::RuntimeLimit),
            (Meaning::OomPolicy, Reason::OomPolicy),
        ] {
            let Cause::Killed { reason: Some(found), .. } = asked(meaning, 15, term, None) else {
                panic!("{meaning:?}")
            };
            assert_eq!(found, reason);
            assert_eq!(asked(meaning, 0, term, None).kind(), "clean_exit", "{meaning:?}");
        }
        // Without its view: after an OOM kill in the unit, its rest is ended.
        for (oom_ns, kind) in [(4_000_000_000, "killed"), (5_000_000_001, "stopped"), (0, "stopped")] {
            let term = Sender { kernel_ns: 5_000_000_000, ..term };
            let evidence = Evidence { service_oom_ns: Some(oom_ns), ..by(SenderKind::Manager, 15, term, None) };
            assert_eq!(weigh(&evidence).kind(), kind, "{oom_ns}");
            let forgotten = Evidence { systemd: Answer::Told(Meaning::Forgotten), ..evidence.clone() };
            assert_eq!((weigh(&forgotten).kind(), forgotten.lacks_systemd()), (kind, false), "{oom_ns}");
            let told = Evidence { systemd: Answer::Told(Meaning::Stop), ..evidence };
            assert_eq!(weigh(&told).kind(), "stopped", "its word counts more");
        }
        // The signal of the watchdog is sent for nothing else by default.
        assert_eq!(weigh(&by(SenderKind::Manager, 6, abrt, None)).kind(), "watchdog");
        assert_eq!(weigh(&by(SenderKind::Manager, 9, kill, Some(abrt))).kind(), "watchdog");
    }

    #[test]
    fn a_killer_in_user_space_is_named() {
        for (status, last) in [(15, sent(15, 0, 300)), (9, sent(9, 0, 300)), (0, sent(15, 0, 300))] {
            let cause = weigh(&by(SenderKind::MemoryKiller, status, last, None));
            assert!(matches!(&cause, Cause::UserspaceOomKill { by, .. } if by.tgid == 300), "{cause:?}");
        }
    }

    #[test]
    fn an_application_out_of_memory_needs_a_witness() {
        let scored = |status: u32, change: &dyn Fn(&mut Evidence)| {
            let mut evidence = evidence(status, 0, None);
            change(&mut evidence);
            match weigh(&evidence) {
                Cause::AppOomProbable { score, .. } => Some(score),
                _ => None,
            }
        };
        let refused = |evidence: &mut Evidence, age: u64| {
            evidence.exit.refusals = 1;
            evidence.exit.refused_ns = evidence.exit.header.kernel_ns - age;
        };
        let near = |evidence: &mut Evidence| evidence.memory_limit = Some(11 * 1024 * 1024);
        let words = |evidence: &mut Evidence| evidence.last_words = Answer::Told(Some("MemoryError".to_owned()));
        assert_eq!(scored(0x100, &|_| {}), None);
        assert_eq!(scored(0x100, &|evidence| refused(evidence, 47_000_000)), Some(0.6));
        assert_eq!(scored(0x100, &|evidence| refused(evidence, 2_000_000_001)), None, "too long ago");
        assert_eq!(scored(0, &|evidence| refused(evidence, 1)), None, "it ended well");
        assert_eq!(scored(0x300, &|evidence| near(evidence)), None, "a peak near the limit alone is a guess");
        assert_eq!(scored(0x300, &|evidence| words(evidence)), Some(0.9));
        assert_eq!(scored(0x86, &|evidence| words(evidence)), Some(0.9), "aborted, core dumped");
        assert_eq!(
            scored(0x4500, &|evidence| words(evidence)),
            None,
            "no runtime ends so: others may have written that"
        );
        let all = |evidence: &mut Evidence| {
            refused(evidence, 1);
            near(evidence);
            words(evidence);
        };
        assert_eq!(scored(0x300, &all), Some(0.98));
        // What somebody else did is not the application's want of memory.
        let mut killed = evidence(15, 0, Some(sent(15, 0, 4321)));
        all(&mut killed);
        assert_eq!(weigh(&killed).kind(), "killed");
    }

    #[test]
    fn the_log_line_adds_scope_and_owner() {
        let line = OomLine { constraint: Constraint::Memcg, limit_owner: Some("/a".to_owned()), tid: OWN };
        let evidence = Evidence {
            mark: Some(mark(true)),
            line: Some(line),
            ..evidence(9, EXIT_OOM_VICTIM, Some(sent(9, SI_KERNEL, 50)))
        };
        let Cause::OomKill(oom) = weigh(&evidence) else { panic!("an OOM kill") };
        assert_eq!((oom.scope, oom.limit_owner.as_deref()), (Some(Scope::Memcg), Some("/a")));
        assert_eq!(oom.mark_to_exit_us, Some(3000));
        assert_eq!(oom.triggered_by.map(|by| by.tgid), Some(50));
    }

    proptest! {
        /// Whatever the evidence: the verdict fits the way in which the process ended, and an OOM kill never comes
        /// without SIGKILL and a mark of the kernel's.
        #[test]
        fn no_evidence_makes_a_verdict_that_the_status_denies(
            status in 0u32..0x1_0000,
            flags in 0u32..32,
            seccomp_mode in 0u32..4,
            signal in 0u32..65,
            si_code in prop::sample::select(vec![0, SI_KERNEL, 1, 4, -1, -2, -6, -60, i32::MIN]),
            tgid in prop::sample::select(vec![1u32, OWN, 4321]),
            sent_flags in 0u32..64,
            before in 0u32..32,
            kinds in prop::sample::select(vec![SenderKind::Other, SenderKind::Manager, SenderKind::Engine, SenderKind::MemoryKiller]),
            marked in prop::option::of(any::<bool>()),
            twin in any::<bool>(),
            refusals in 0u32..2,
        ) {
            let mut evidence = by(kinds, status, Sender { flags: sent_flags, ..sent(signal, si_code, tgid) }, Some(sent(before, 0, tgid)));
            evidence.exit.header.flags = flags;
            evidence.exit.seccomp_mode = seccomp_mode;
            evidence.exit.refusals = refusals;
            evidence.mark = marked.map(mark);
            evidence.twin = twin.then(|| mark(true));
            let cause = weigh(&evidence);
            let ended_by = status::signal(status).map(|(signal, _)| signal);
            match &cause {
                Cause::OomKill(_) => {
                    prop_assert_eq!(ended_by, Some(9));
                    prop_assert!(evidence.mark.is_some() || evidence.twin.is_some() || flags & EXIT_OOM_VICTIM != 0);
                }
                Cause::Exit { code, .. } => prop_assert!(ended_by.is_none() && *code != 0),
                Cause::CleanExit => prop_assert!(ended_by.is_none()),
                Cause::Crash { signal, .. } | Cause::Killed { signal, .. } | Cause::Unknown { signal } => {
                    prop_assert_eq!(ended_by, Some(*signal));
                }
                Cause::ContainerTeardown { .. } => prop_assert_eq!(ended_by, Some(9)),
                Cause::Stopped { signal, .. } => prop_assert_eq!(ended_by, *signal),
                Cause::AppOomProbable { score, .. } => prop_assert!((PROBABLE..=1.0).contains(score)),
                Cause::UserspaceOomKill { .. } | Cause::Watchdog { .. } => {}
            }
            // Whatever it is, it can be said.
            prop_assert!(!cause.to_string().is_empty() && !evidence.items().is_empty());
            prop_assert!(Cause::KINDS.contains(&cause.kind()));
        }
    }
}
