//! The rules: what the evidence on one death amounts to.
//!
//! Status 137 proves nothing: a SIGKILL is an OOM kill only when the kernel marked the process *and* sent the signal.

use monitor_common::{
    record::{EXIT_OOM_VICTIM, EXIT_SENDER, Exit, SI_KERNEL, Sender},
    status::{self, SIGKILL},
};

use super::cause::{Cause, OomKill, Party, Scope};
use crate::{
    host::kmsg::{Constraint, OomLine},
    text::Comm,
};

/// Signals whose default action is to dump a core: a process gets them for what it did itself (signal(7)):
/// QUIT is left out, people send it.
const FAULTS: [u8; 9] = [4, 5, 6, 7, 8, 11, 24, 25, 31];

/// All that is known of one death.
pub(super) struct Evidence<'a> {
    pub(super) exit: &'a Exit,
    /// The OOM mark, with the kill that came before it.
    pub(super) mark: Option<&'a Mark>,
    /// The kernel log's line.
    pub(super) line: Option<&'a OomLine>,
}

/// An OOM mark, as far as the verdict needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) kernel_ns: u64,
    pub(super) tid: u32,
    /// The kernel sent SIGKILL with this mark; without it the victim was dying already.
    pub(super) kill_sent: bool,
    pub(super) trigger: Party,
    /// What ran out, where the kernel lets a program see it.
    pub(super) scope: Option<Scope>,
    /// The cgroup whose limit fired, likewise.
    pub(super) limit_owner: Option<String>,
}

/// The recorded sender of the signal that ended the process.
fn sender(exit: &Exit, signal: u8) -> Option<&Sender> {
    (exit.header.flags & EXIT_SENDER != 0 && exit.sender.signal == u32::from(signal)).then_some(&exit.sender)
}

/// True when the process was ended by the kernel's OOM killer, on the evidence so far.
pub(super) fn is_oom_kill(exit: &Exit, mark: Option<&Mark>) -> bool {
    let Some((signal, _)) = status::signal(exit.status) else { return false };
    if u32::from(signal) != SIGKILL {
        return false;
    }
    let by_kernel = sender(exit, signal).map(|sender| sender.si_code == SI_KERNEL);
    let marked = exit.header.flags & EXIT_OOM_VICTIM != 0 || mark.is_some();
    match by_kernel {
        Some(by_kernel) => marked && by_kernel,
        // The sender was not recorded: the mark decides, unless it says itself that it killed nothing.
        None => marked && mark.is_none_or(|mark| mark.kill_sent),
    }
}

/// Weighs the evidence.
pub(super) fn weigh(evidence: &Evidence<'_>) -> Cause {
    let exit = evidence.exit;
    let Some((signal, core_dumped)) = status::signal(exit.status) else {
        return match status::exit_code(exit.status) {
            Some(0) | None => Cause::CleanExit,
            Some(code) => Cause::Exit { code },
        };
    };
    if is_oom_kill(exit, evidence.mark) {
        return Cause::OomKill(OomKill {
            scope: evidence.mark.and_then(|mark| mark.scope).or_else(|| {
                evidence.line.map(|line| match line.constraint {
                    Constraint::Memcg => Scope::Memcg,
                    Constraint::None => Scope::Global,
                    Constraint::Nodes => Scope::Cpuset,
                })
            }),
            limit_owner: evidence
                .mark
                .and_then(|mark| mark.limit_owner.clone())
                .or_else(|| evidence.line.and_then(|line| line.limit_owner.clone())),
            triggered_by: evidence.mark.map(|mark| mark.trigger),
            mark_to_exit_us: evidence.mark.map(|mark| exit.header.kernel_ns.saturating_sub(mark.kernel_ns) / 1000),
        });
    }
    let sender = sender(exit, signal);
    let own = sender.is_none_or(|sender| sender.tgid == exit.process.tgid || sender.si_code > 0);
    if FAULTS.contains(&signal) && own {
        return Cause::Crash { signal, core_dumped };
    }
    let by_kernel = sender.is_some_and(|sender| sender.si_code == SI_KERNEL);
    let by = sender.filter(|_| !by_kernel).map(|sender| Party {
        tgid: sender.tgid,
        comm: Comm(sender.comm),
        uid: sender.uid,
    });
    Cause::Killed { signal, by, by_kernel }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::record::{COMM_LEN, Header, KIND_EXIT, Process};

    fn comm(name: &str) -> [u8; COMM_LEN] {
        let mut comm = [0; COMM_LEN];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        comm
    }

    fn exit(status: u32, flags: u32, sender: Option<(u32, i32, u32)>) -> Exit {
        let sent = sender.map_or(Sender::NONE, |(signal, si_code, tgid)| Sender {
            signal,
            si_code,
            tgid,
            uid: 7,
            comm: comm("sender"),
            ..Sender::NONE
        });
        let flags = flags | if sender.is_some() { EXIT_SENDER } else { 0 };
        Exit {
            header: Header { kind: KIND_EXIT, flags, kernel_ns: 5_000_000 },
            process: Process { tgid: 100, tid: 100, ..Process::NONE },
            status,
            reserved: 0,
            max_rss_pages: 10,
            sender: sent,
        }
    }

    fn mark(kill_sent: bool) -> Mark {
        let trigger = Party { tgid: 50, comm: Comm(comm("asker")), uid: 0 };
        Mark { kernel_ns: 2_000_000, tid: 100, kill_sent, trigger, scope: None, limit_owner: None }
    }

    fn kind(exit: &Exit, mark: Option<&Mark>) -> &'static str {
        weigh(&Evidence { exit, mark, line: None }).kind()
    }

    #[test]
    fn sigkill_alone_is_no_oom_kill() {
        let kernel = Some((9, SI_KERNEL, 50));
        let user = Some((9, 0, 1234));
        for (name, exit, mark, want) in [
            ("kernel kill, marked", exit(9, EXIT_OOM_VICTIM, kernel), Some(mark(true)), "oom_kill"),
            ("kernel kill, mark lost, oom_mm set", exit(9, EXIT_OOM_VICTIM, kernel), None, "oom_kill"),
            ("sender and mark lost, oom_mm set", exit(9, EXIT_OOM_VICTIM, None), None, "oom_kill"),
            ("kernel kill, left before the mark, mark came late", exit(9, 0, kernel), Some(mark(true)), "oom_kill"),
            (
                "kill -9 of a process that was marked while dying",
                exit(9, EXIT_OOM_VICTIM, user),
                Some(mark(false)),
                "killed",
            ),
            ("mark that killed nothing, sender lost", exit(9, EXIT_OOM_VICTIM, None), Some(mark(false)), "killed"),
            ("kernel kill without a mark: pid namespace ends", exit(9, 0, kernel), None, "killed"),
            ("kill -9", exit(9, 0, user), None, "killed"),
            ("unknown sender", exit(9, 0, None), None, "killed"),
            ("marked, but exited by itself", exit(0x100, EXIT_OOM_VICTIM, None), Some(mark(true)), "exit"),
        ] {
            assert_eq!(kind(&exit, mark.as_ref()), want, "{name}");
        }
    }

    #[test]
    fn a_fault_is_a_crash_and_the_same_signal_from_outside_is_not() {
        assert_eq!(kind(&exit(0x8b, 0, Some((11, 1, 100))), None), "crash");
        assert_eq!(kind(&exit(0x0b, 0, Some((11, 0, 4321))), None), "killed");
        assert_eq!(kind(&exit(0x86, 0, Some((6, -6, 100))), None), "crash", "abort(3)");
        assert_eq!(kind(&exit(0x0f, 0, Some((15, 0, 1))), None), "killed");
        assert_eq!(kind(&exit(0x8b, 0, None), None), "crash", "sender not seen");
    }

    #[test]
    fn a_sender_of_another_signal_is_not_blamed() {
        let cause = weigh(&Evidence { exit: &exit(9, 0, Some((15, 0, 1))), mark: None, line: None });
        assert_eq!(cause, Cause::Killed { signal: 9, by: None, by_kernel: false });
    }

    #[test]
    fn the_log_line_adds_scope_and_owner() {
        let line = OomLine { constraint: Constraint::Memcg, limit_owner: Some("/a".to_owned()), tid: 100 };
        let exit = exit(9, EXIT_OOM_VICTIM, Some((9, SI_KERNEL, 50)));
        let Cause::OomKill(oom) = weigh(&Evidence { exit: &exit, mark: Some(&mark(true)), line: Some(&line) }) else {
            panic!("an OOM kill");
        };
        assert_eq!((oom.scope, oom.limit_owner.as_deref()), (Some(Scope::Memcg), Some("/a")));
        assert_eq!(oom.mark_to_exit_us, Some(3000));
        assert_eq!(oom.triggered_by.map(|by| by.tgid), Some(50));
    }
}
