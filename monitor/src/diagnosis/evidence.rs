//! All that is known of one death, and how it reads.

use std::{fmt, sync::Arc};

use monitor_common::{
    record::{
        EXIT_OOM_VICTIM, EXIT_SENDER, Exit, SENT_BY_NAMESPACE_END, SENT_BY_PARENT_END, SENT_BY_TRACER_END,
        SENT_TO_PROCESS, SENT_WITHOUT_INFO, SI_EVENT, SI_KERNEL, SI_UNKNOWN, Sender,
    },
    status,
};
use serde::Serialize;

use super::{
    cause::{GroupKill, Party, Scope, VictimMemory},
    signal_name,
    site::Site,
};
use crate::{
    attribution::Role,
    host::{kmsg::OomLine, pids::PidsRefused, systemd::Meaning},
    text::{Clean, Comm},
};

/// All that is known of one death.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// The kernel's record of it: wait status, last signals, peak memory, refused requests.
    pub(crate) exit: Exit,
    /// The OOM mark, with the kill that came before it.
    pub(crate) mark: Option<Mark>,
    /// Processes killed by the same decision, when there are several.
    pub(crate) group: Option<GroupKill>,
    /// The mark of another process that the same thread made just before it sent our signal: that one was chosen, and
    /// this one shared its memory.
    pub(crate) twin: Option<Mark>,
    /// When the OOM killer last chose a process of the same service, CLOCK_BOOTTIME nanoseconds.
    pub(crate) service_oom_ns: Option<u64>,
    /// The kernel log's line.
    pub(crate) line: Option<OomLine>,
    /// What is known of the two senders beyond their records.
    pub(crate) senders: Senders,
    /// Where it was.
    pub(crate) site: Option<Site>,
    /// What systemd had in mind.
    pub(crate) systemd: Answer<Meaning>,
    /// The line of its output that says that it ran out of memory; an empty answer when none does.
    pub(crate) last_words: Answer<Option<String>>,
    /// The least memory limit above it, bytes.
    pub(crate) memory_limit: Option<u64>,
    /// Processes and threads that its cgroup refused; `None`: none, or not known.
    pub(crate) pids_refused: Option<PidsRefused>,
    /// Bytes of a page.
    pub(crate) page_size: u64,
    /// Evidence that should have come and had not when the verdict was due.
    pub(crate) missing: Vec<Missing>,
}

/// The text for a question that was not asked.
const REFUSED: &str = "not asked: too many questions";

/// What a question has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    /// Nobody was asked: it would change nothing, or there is nobody.
    #[default]
    NotAsked,
    /// Nothing has come yet.
    Pending,
    /// Not asked: too many questions are under way.
    Refused,
    /// It could not be told.
    Failed(String),
    /// This.
    Told(T),
}

impl<T> Answer<T> {
    /// The answer, when there is one.
    pub(crate) fn told(&self) -> Option<&T> {
        match self {
            Self::Told(answer) => Some(answer),
            _ => None,
        }
    }
}

/// Who the senders of the last two signals are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Senders {
    /// Of the last.
    pub(crate) last: SenderKind,
    /// Of the one before.
    pub(crate) before: SenderKind,
    /// Service of the last sender.
    pub(crate) last_service: Option<Arc<str>>,
    /// Service of the one before.
    pub(crate) before_service: Option<Arc<str>>,
}

/// What a sender is to the process, judged where its cgroup and its name are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SenderKind {
    /// Anybody.
    #[default]
    Other,
    /// PID 1, or the service manager of a user.
    Manager,
    /// What runs the container.
    Engine,
    /// A program that watches over the host's memory.
    MemoryKiller,
}

/// An OOM mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// When.
    pub(crate) kernel_ns: u64,
    /// The marked thread.
    pub(crate) tid: u32,
    /// Its process; 0 when only the thread is known.
    pub(crate) tgid: u32,
    /// The kernel sent SIGKILL with this mark; without it the victim was dying already.
    pub(crate) kill_sent: bool,
    /// Whose allocation failed.
    pub(crate) trigger: Party,
    /// In which thread.
    pub(crate) trigger_tid: u32,
    /// What ran out, where the kernel lets a program see it.
    pub(crate) scope: Option<Scope>,
    /// The cgroup whose limit fired, likewise.
    pub(crate) limit_owner: Option<String>,
    /// That limit.
    pub(crate) limit_bytes: Option<u64>,
    /// The request to the OOM killer that this is part of; 0 where that cannot be told.
    pub(crate) request_ns: u64,
    /// A cgroup between victim and limit asks for all of its processes to be killed (`memory.oom.group`).
    pub(crate) in_group: bool,
    /// What the victim held.
    pub(crate) memory: Option<VictimMemory>,
    /// Main process or worker, while the victim still had the parent that it was born to.
    pub(crate) role: Option<Role>,
    /// The kernel's own counts.
    pub(crate) counts: Counts,
}

/// The kernel's own counts of OOM kills, as they stood when the mark was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Of the host, with the count before.
    pub(crate) host: Option<Count>,
    /// Of the victim's cgroup.
    pub(crate) cgroup: Option<Count>,
    /// Group kills there (v2).
    pub(crate) cgroup_groups: Option<u64>,
}

/// A counter, and what it was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    /// `None`: it had not been looked at before.
    pub(crate) before: Option<u64>,
    /// Now.
    pub(crate) now: u64,
}

/// Evidence that did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Missing {
    /// The mark of an OOM victim.
    OomMark,
    /// The kernel log's line.
    KernelLog,
    /// Who sent the signal.
    Sender,
    /// systemd's view.
    Systemd,
    /// Last words.
    LastWords,
    /// The crash site.
    CrashSite,
}

/// Where a piece of evidence is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// The wait status.
    ExitStatus,
    /// A recorded signal and its sender.
    Signal,
    /// `oom/mark_victim`.
    OomMark,
    /// `signal->oom_mm` at the exit.
    OomMm,
    /// The counters of the cgroup.
    CgroupEvents,
    /// Processor time against its limit.
    CpuTime,
    /// `/proc/vmstat`.
    Vmstat,
    /// The kernel's log.
    KernelLog,
    /// systemd's view of the unit.
    Systemd,
    /// Peak resident set against the limit.
    MaxRss,
    /// Requests for memory that were refused.
    FailedAllocation,
    /// What it wrote last.
    LastWords,
    /// Its user stack.
    CrashSite,
}

/// One piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Item {
    /// Where it is from.
    pub(crate) source: Source,
    /// What it says.
    pub(crate) finding: String,
}

impl Item {
    pub(super) fn new(source: Source, finding: impl fmt::Display) -> Self {
        Self { source, finding: finding.to_string() }
    }
}

impl Evidence {
    /// The signal that ended the process.
    pub(super) fn signal(&self) -> Option<u8> {
        status::signal(self.exit.status).map(|(signal, _)| signal)
    }

    /// The recorded sender of the signal that ended the process.
    pub(super) fn sender(&self) -> Option<&Sender> {
        let signal = self.signal()?;
        self.last().filter(|sender| sender.signal == u32::from(signal))
    }

    /// The last signal that was recorded for the process, fatal or not.
    pub(super) fn last(&self) -> Option<&Sender> {
        (self.exit.header.flags & EXIT_SENDER != 0).then_some(&self.exit.sender)
    }

    /// The signal before that.
    pub(super) fn before(&self) -> Option<&Sender> {
        self.last()?;
        (self.exit.before.signal != 0).then_some(&self.exit.before)
    }

    /// The sender of the last signal, as causes name it; `None` for a signal that names nobody.
    pub(super) fn last_party(&self) -> Option<Party> {
        self.last().filter(|sender| sender.is_named()).map(|sender| party(sender, self.senders.last_service.as_ref()))
    }

    /// Processor time used, nanoseconds; `None` when it could not be read.
    fn cpu_used_ns(&self) -> Option<u64> {
        Some(self.exit.cpu_used_ns.max(self.exit.cpu_timer_ns)).filter(|&used| used > 0)
    }

    /// The hard limit of processor time, seconds, and the time used, nanoseconds.
    fn cpu_limit(&self) -> Option<(u64, u64)> {
        let limit = Some(self.exit.cpu_limit).filter(|&limit| limit != 0 && limit != u64::MAX);
        limit.zip(self.cpu_used_ns())
    }

    /// True when it used all the processor time that its hard limit allows.
    pub(super) fn is_over_cpu_limit(&self) -> bool {
        self.cpu_limit().is_some_and(|(limit, used)| used >= limit.saturating_mul(1_000_000_000))
    }

    /// From the last OOM kill in its service to the last signal that it was sent, nanoseconds; `None` when there was none, or
    /// it came later.
    pub(super) fn oom_before_signal_ns(&self) -> Option<u64> {
        self.last()?.kernel_ns.checked_sub(self.service_oom_ns?)
    }

    /// True when nobody could tell what its manager had in mind: then a stop is no more than likely.
    pub(crate) fn lacks_systemd(&self) -> bool {
        !matches!(self.systemd, Answer::NotAsked | Answer::Told(_))
    }

    /// From the refused request that came last to the death, nanoseconds; `None` when none was refused.
    pub(super) fn refused_before_ns(&self) -> Option<u64> {
        (self.exit.refusals > 0).then(|| self.exit.header.kernel_ns.saturating_sub(self.exit.refused_ns))
    }

    /// Peak resident set, bytes.
    pub(super) fn max_rss(&self) -> Option<u64> {
        (self.exit.max_rss_pages > 0).then(|| self.exit.max_rss_pages.saturating_mul(self.page_size))
    }

    /// All of it, in the order in which people ask.
    pub(crate) fn items(&self) -> Vec<Item> {
        let mut items = vec![Item::new(Source::ExitStatus, Ending(self.exit.status))];
        let at = self.exit.header.kernel_ns;
        for (sender, service) in
            [(self.last(), &self.senders.last_service), (self.before(), &self.senders.before_service)]
        {
            let Some(sender) = sender else { continue };
            items.push(Item::new(
                Source::Signal,
                Signal { sender, party: party(sender, service.as_ref()), at, own: self.exit.process.tgid },
            ));
        }
        if let Some(mark) = &self.mark {
            let kill = if mark.kill_sent { "and killed" } else { "while it was dying already, so nothing was killed" };
            let before = millis(at.saturating_sub(mark.kernel_ns));
            items.push(Item::new(
                Source::OomMark,
                format_args!("marked by the OOM killer {kill}, {before} before its end"),
            ));
        }
        if let Some(twin) = &self.twin {
            let finding =
                format_args!("the same thread had chosen process {} just before, whose memory it shared", twin.tgid);
            items.push(Item::new(Source::OomMark, finding));
        }
        if let (None, Some(age)) = (&self.mark, self.oom_before_signal_ns()) {
            let finding = format_args!("another process of its service was chosen {} before the signal", millis(age));
            items.push(Item::new(Source::OomMark, finding));
        }
        if self.exit.header.flags & EXIT_OOM_VICTIM != 0 {
            items.push(Item::new(Source::OomMm, "an OOM victim by its own state"));
        }
        items.extend(self.mark.as_ref().map(|mark| mark.counts).into_iter().flat_map(Counts::items));
        if let Some(line) = &self.line {
            let owner = line.limit_owner.as_deref().unwrap_or("none");
            items.push(Item::new(Source::KernelLog, format_args!("{:?}, limit of: {owner}", line.constraint)));
        }
        match &self.systemd {
            Answer::Told(meaning) => items.push(Item::new(Source::Systemd, meaning)),
            Answer::Failed(why) => items.push(Item::new(Source::Systemd, format_args!("not told: {why}"))),
            Answer::Refused => items.push(Item::new(Source::Systemd, REFUSED)),
            Answer::NotAsked | Answer::Pending => {}
        }
        items.extend(self.max_rss_item());
        items.extend(self.refusal_item());
        if let Some((limit, used)) = self.cpu_limit() {
            let finding = format_args!("{:.3} s of processor time used, limited to {limit} s", used as f64 / 1e9);
            items.push(Item::new(Source::CpuTime, finding));
        }
        if let Some(PidsRefused { count, within_ns }) = self.pids_refused {
            let finding = format_args!(
                "its cgroup refused {count} processes or threads (pids.max) within {} before its end",
                millis(within_ns)
            );
            items.push(Item::new(Source::CgroupEvents, finding));
        }
        match &self.last_words {
            Answer::Told(Some(words)) => items.push(Item::new(Source::LastWords, words)),
            Answer::Told(None) => items.push(Item::new(Source::LastWords, "nothing about memory")),
            Answer::Refused => items.push(Item::new(Source::LastWords, REFUSED)),
            Answer::Failed(why) => items.push(Item::new(Source::LastWords, format_args!("not told: {why}"))),
            Answer::NotAsked | Answer::Pending => {}
        }
        if let Some(place) = self.site.as_ref().and_then(Site::innermost) {
            items.push(Item::new(Source::CrashSite, place));
        }
        items
    }

    pub(super) fn max_rss_item(&self) -> Option<Item> {
        let peak = self.max_rss()?;
        let item = match self.memory_limit {
            Some(limit) => Item::new(Source::MaxRss, format_args!("{} of its limit of {}", mib(peak), mib(limit))),
            None => Item::new(Source::MaxRss, mib(peak)),
        };
        Some(item)
    }

    pub(super) fn refusal_item(&self) -> Option<Item> {
        let before = self.refused_before_ns()?;
        let limit = match self.exit.address_space_limit {
            0 | u64::MAX => String::new(),
            limit => format!(", address space limited to {}", mib(limit)),
        };
        let finding = format!(
            "{} refused for want of memory, the last for {} {} before its end{limit}",
            if self.exit.refusals == 1 {
                "a request was".to_owned()
            } else {
                format!("{} requests were", self.exit.refusals)
            },
            mib(self.exit.refused_bytes),
            millis(before),
        );
        Some(Item::new(Source::FailedAllocation, finding))
    }
}

/// All of it in one line.
impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<_> = self.items().into_iter().map(|item| Clean(&item.finding).to_string()).collect();
        out.write_str(&items.join("; "))?;
        if self.missing.is_empty() { Ok(()) } else { write!(out, "; had not come: {:?}", self.missing) }
    }
}

impl Counts {
    fn items(self) -> Vec<Item> {
        let mut items = Vec::new();
        let says = |Count { before, now }| match before {
            Some(before) => format!("oom_kill went from {before} to {now}"),
            None => format!("oom_kill stood at {now}"),
        };
        items.extend(self.cgroup.map(|count| Item::new(Source::CgroupEvents, says(count))));
        items.extend(
            self.cgroup_groups
                .filter(|&groups| groups > 0)
                .map(|groups| Item::new(Source::CgroupEvents, format_args!("oom_group_kill stood at {groups}"))),
        );
        items.extend(self.host.map(|count| Item::new(Source::Vmstat, says(count))));
        items
    }
}

fn party(sender: &Sender, service: Option<&Arc<str>>) -> Party {
    Party { tgid: sender.tgid, comm: Comm(sender.comm), uid: sender.uid, service: service.cloned() }
}

/// A wait status.
struct Ending(u32);

impl fmt::Display for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (status::signal(self.0), status::exit_code(self.0)) {
            (Some((signal, core)), _) => {
                write!(out, "ended by SIG{}", signal_name(signal))?;
                if core { out.write_str(", core dumped") } else { Ok(()) }
            }
            (None, code) => write!(out, "exited with code {}", code.unwrap_or(0)),
        }
    }
}

/// A recorded signal.
struct Signal<'a> {
    sender: &'a Sender,
    party: Party,
    /// When the process ended.
    at: u64,
    /// The process.
    own: u32,
}

impl fmt::Display for Signal<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sender { kernel_ns, signal, si_code, tgid, flags, .. } = *self.sender;
        let name = signal_name(u8::try_from(signal).unwrap_or(u8::MAX));
        write!(out, "SIG{name} {} before its end, ", millis(self.at.saturating_sub(kernel_ns)))?;
        match si_code {
            SI_KERNEL => out.write_str("from the kernel (SI_KERNEL)")?,
            SI_UNKNOWN => out.write_str("origin not readable")?,
            code if SI_EVENT.contains(&code) => {
                write!(out, "raised as by a timer, a message queue or I/O (si_code {code})")?
            }
            code if code > 0 => write!(out, "a fault of its own (si_code {code})")?,
            code => write!(out, "si_code {code}")?,
        }
        out.write_str(if flags & SENT_TO_PROCESS != 0 { ", for the process" } else { ", for one thread" })?;
        if tgid == self.own && !SI_EVENT.contains(&si_code) {
            out.write_str(", in its own context")?;
        } else if self.sender.is_named() {
            write!(out, ", from {}", self.party)?;
        }
        for (flag, says) in [
            (SENT_WITHOUT_INFO, ", without a siginfo"),
            (SENT_BY_NAMESPACE_END, ", the ending first process of a pid namespace"),
            (SENT_BY_TRACER_END, ", its ending tracer"),
            (SENT_BY_PARENT_END, ", its ending parent"),
        ] {
            if flags & flag != 0 {
                out.write_str(says)?;
            }
        }
        Ok(())
    }
}

fn millis(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
