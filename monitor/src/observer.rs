//! From kernel events to deaths with a cause, a service and a role: what `watch` shows and the agent acts on.
//!
//! Owns the table of cgroups and the docket of undecided deaths. Looks up the path of a cgroup that is not in the table
//! by its id. Never acts.

use std::sync::Arc;

use anyhow::Result;
use monitor_common::{
    record::{
        CGROUP_CREATED, CGROUP_EMPTY, CGROUP_POPULATED, CGROUP_RENAMED, Cgroup, CrashSite, EXIT_WATCHED, Exit,
        LIFE_EXEC, Life, MARK_KILL_SENT, MARK_THREAD_ONLY, OomMark, PATH_LEN, Process, Record, SITE_WATCHED, Sender,
    },
    status,
};

use crate::{
    attribution::{Place, Role, Table},
    diagnosis::{
        Cause, Count, Counts, DeathContext, Docket, Evidence, Finding, Losses, Mark, MarkContext, Question, Reply,
        SenderKind, Senders, Signaller, Site, sender_kind,
    },
    host::{
        cgroup::Hierarchy,
        cgroup_handle::Handles,
        kmsg::OomLine,
        pids::PidsLimits,
        process::{self, Identity},
        vmstat,
    },
    kernel::{Event, Span},
    recent::Recent,
    symbols::{self, Lookers},
    text::Comm,
};

/// Cgroups whose count of OOM kills is remembered, and services whose main process failed.
const COUNTED: usize = 4096;
/// How long the workers of a failed main process are taken for what they are: 10 s. A supervisor ends what is left within
/// seconds; what lives on is on its own.
const ORPHANS_LIVE_NS: u64 = 10_000_000_000;
/// How long a memory limit is used before it is read again, nanoseconds: 1 s.
const LIMIT_HOLDS_NS: u64 = 1_000_000_000;
/// The process that becomes the parent of processes whose own parent has ended.
pub(crate) const INIT: u32 = 1;
/// A limit of this many bytes is none (PAGE_COUNTER_MAX, linux/page_counter.h).
const UNLIMITED_BYTES: u64 = i64::MAX.cast_unsigned();

/// A decided death.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// Where its record lies in the critical ring, if somebody waits for that.
    pub(crate) span: Option<Span>,
    /// The hook, CLOCK_BOOTTIME nanoseconds.
    pub(crate) kernel_ns: u64,
    /// User space saw the record, likewise.
    pub(crate) seen_ns: u64,
    /// Who.
    pub(crate) process: Identity,
    /// Its name.
    pub(crate) comm: Comm,
    /// Its user.
    pub(crate) uid: u32,
    /// Where it lived; `None` when its cgroup cannot be told.
    pub(crate) place: Option<Place>,
    /// Main process or worker; `None` when its parent cannot be told.
    pub(crate) role: Option<Role>,
    /// Peak resident set in bytes; `None` when the kernel did not say.
    pub(crate) max_rss_bytes: Option<u64>,
    /// Wait status.
    pub(crate) status: u32,
    /// Why.
    pub(crate) cause: Cause,
    /// What that rests on.
    pub(crate) evidence: Evidence,
    /// When that was decided, CLOCK_BOOTTIME nanoseconds.
    pub(crate) decided_ns: u64,
}

impl Death {
    /// How long it lived, milliseconds.
    pub(crate) fn lived_ms(&self) -> u64 {
        self.kernel_ns.saturating_sub(self.process.start_ns) / 1_000_000
    }

    /// Names the frames of a crash, in a process of its own; takes some milliseconds.
    pub(crate) async fn name_site(&mut self) {
        let Some(site) = self.cause.site_mut() else { return };
        if site.stack.frames.is_empty() {
            return;
        }
        match symbols::name(site.stack.clone(), &site.looked).await {
            Ok(located) => site.locate(located),
            Err(error) => tracing::warn!("a crash site has no names: {error:#}"),
        }
        // The evidence tells of the same place.
        self.evidence.site = Some(site.clone());
    }

    /// Exit code, when it ended by itself.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        status::exit_code(self.status)
    }

    /// Signal that ended it, and whether a core was written.
    pub(crate) fn signal(&self) -> Option<(u8, bool)> {
        status::signal(self.status)
    }
}

/// The OOM killer chose a process; its death follows.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    /// The hook, CLOCK_BOOTTIME nanoseconds.
    pub(crate) kernel_ns: u64,
    /// User space saw the record, likewise.
    pub(crate) seen_ns: u64,
    /// Where the victim lives.
    pub(crate) place: Option<Place>,
    /// Who it is.
    pub(crate) process: Identity,
    /// The kernel sent SIGKILL with it, and that was not known; without, the victim was dying already and nothing was killed.
    pub(crate) kill_sent: bool,
}

/// What the observer has seen, deaths apart: those come when they are decided.
#[derive(Clone, Debug)]
pub(crate) enum Sight {
    /// The OOM killer chose.
    Marked(Marked),
    /// A process began in a watched service.
    Alive {
        /// Where.
        place: Place,
        /// Who.
        process: Identity,
        /// Main process or worker; `None` when its parent cannot be told.
        role: Option<Role>,
        /// It executed a program, the usual first word of a new incarnation.
        exec: bool,
        /// True when its parent is init, as after the end of its own parent.
        orphan: bool,
        /// The hook, CLOCK_BOOTTIME nanoseconds.
        kernel_ns: u64,
    },
    /// A process ended, and somebody may know more; the verdict waits for [`Observer::reply`], not for long.
    Asked {
        /// Whose death.
        process: Identity,
        /// What to ask.
        question: Question,
    },
    /// A cgroup was made.
    Created {
        /// Its id.
        id: u64,
        /// Where.
        place: Place,
    },
    /// A watched cgroup (v2) has lost its last process.
    Emptied {
        /// Where.
        place: Place,
        /// The hook, CLOCK_BOOTTIME nanoseconds.
        kernel_ns: u64,
    },
}

/// Which crashing processes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crashes {
    /// Those of watched services.
    Watched,
    /// All.
    All,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Observer {
    /// The threads that look at crashing processes, and which ones they look at.
    lookers: Option<(Lookers, Crashes)>,
    hierarchy: Option<Hierarchy>,
    table: Table,
    docket: Docket,
    /// Finds the paths of cgroups that are not in the table.
    handles: Option<Handles>,
    discovered: Vec<(u64, Place)>,
    page_size: u64,
    /// The kernel's own counts of OOM kills at the last look: of the host, and of cgroups by id.
    host_kills: Option<u64>,
    cgroup_kills: Recent<u64, u64>,
    /// The lowest memory limit at or above a cgroup, and when it was read.
    limits: Recent<u64, (u64, Option<u64>)>,
    /// Refusals by the cgroups' limits of processes and threads.
    pids: PidsLimits,
    /// When the main process of a service last ended badly, by the service's own cgroup.
    failed_ns: Recent<Arc<str>, u64>,
    /// When the OOM killer last chose a process of a service, by the service's own cgroup.
    oom_ns: Recent<Arc<str>, u64>,
}

impl Observer {
    /// An observer that knows no cgroup yet: attach the programs first, then [`Self::scan`], so that nothing falls between.
    pub(crate) fn new(hierarchy: Option<Hierarchy>) -> Self {
        let page_size = rustix::param::page_size() as u64;
        Self {
            handles: hierarchy.as_ref().map(|hierarchy| Handles::new(&hierarchy.mount)),
            lookers: None,
            hierarchy,
            table: Table::default(),
            docket: Docket::new(page_size),
            discovered: Vec::new(),
            page_size,
            host_kills: vmstat::oom_kills().ok(),
            cgroup_kills: Recent::new(COUNTED),
            limits: Recent::new(COUNTED),
            pids: PidsLimits::new(),
            failed_ns: Recent::new(COUNTED),
            oom_ns: Recent::new(COUNTED),
        }
    }

    /// From now on, crashing processes are looked at.
    pub(crate) fn look_by(&mut self, lookers: Lookers, which: Crashes) {
        self.lookers = Some((lookers, which));
    }

    /// Names the cgroup of a command service, and everything below it. Call it before [`Self::scan`].
    pub(crate) fn name_command(&mut self, cgroup: &str, service: &Arc<str>) {
        self.table.name_command(cgroup, service);
    }

    /// Names a container's cgroup and everything below it; returns the known cgroups there.
    pub(crate) fn name_container(&mut self, root: &Arc<str>, service: &Arc<str>) -> Vec<(u64, Place)> {
        self.table.name_container(root, service)
    }

    /// Adds the existing cgroups, by one walk, and returns them.
    pub(crate) fn scan(&mut self) -> Result<Vec<(u64, Place)>> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let walked = hierarchy.walk(|id, path| {
            if self.table.get(id).is_none() {
                found.push((id, self.table.insert(id, path)));
            }
        })?;
        if walked.is_cut() {
            tracing::warn!(
                "there are too many cgroups to read all at start; the others are added when something happens in them"
            );
        }
        Ok(found)
    }

    /// Some of the known cgroups, in turn, to check whether they still exist: removal records can be lost.
    pub(crate) fn turn(&mut self, most: usize) -> Vec<(u64, Arc<str>)> {
        self.table.turn(most)
    }

    /// Removes a cgroup that has gone without a removal record.
    pub(crate) fn vanished(&mut self, id: u64) {
        self.table.remove(id);
    }

    /// Cgroups that a look-up has met by the way since this was called last.
    pub(crate) fn take_discovered(&mut self) -> Vec<(u64, Place)> {
        std::mem::take(&mut self.discovered)
    }

    /// Number of known cgroups.
    pub(crate) fn cgroups(&self) -> usize {
        self.table.len()
    }

    /// The kernel log named an OOM kill.
    pub(crate) fn line(&mut self, line: OomLine) {
        self.docket.line(line);
    }

    /// Takes one event; deaths come from [`Self::deaths`] once they are decided.
    pub(crate) fn event(&mut self, event: &Event) -> Option<Sight> {
        match &event.record {
            Record::OomMark(mark) => Some(Sight::Marked(self.marked(mark, event.seen_ns))),
            Record::Exit(exit) => self.ended(exit, event.span, event.seen_ns),
            Record::CrashSite(site) => {
                self.crashes(site);
                None
            }
            Record::Life(life) => self.alive(life, event.seen_ns),
            Record::Cgroup(cgroup) => self.cgroup(cgroup),
        }
    }

    /// Deaths that are decided by `now_ns`.
    pub(crate) fn deaths(&mut self, now_ns: u64) -> Vec<Death> {
        let found = self.docket.decide(now_ns);
        found.into_iter().map(|finding| self.death(finding, now_ns)).collect()
    }

    /// When [`Self::deaths`] will have something without a further event.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.docket.next_deadline()
    }

    /// Somebody has answered what [`Sight::Asked`] wanted to know.
    pub(crate) fn reply(&mut self, process: Identity, reply: Reply) {
        self.docket.reply(process, reply);
    }

    /// Whether the record that came last, and lies there, is that of a death that is to be decided.
    pub(crate) fn has_taken(&self, span: Span) -> bool {
        self.docket.has_taken(span)
    }

    /// Where a cgroup is, when that is known.
    pub(crate) fn known_place(&self, id: u64) -> Option<&Place> {
        self.table.get(id)
    }

    /// Evidence that found no room.
    pub(crate) fn losses(&self) -> Losses {
        let looks = self.lookers.as_ref().map_or(0, |(lookers, _)| lookers.dropped());
        Losses { looks, ..self.docket.losses() }
    }

    /// An earlier agent watched this cgroup. Should it be gone, its deaths may still be in the rings.
    pub(crate) fn recall(&mut self, id: u64, path: &str, service: &Arc<str>) {
        self.table.recall(id, path, service);
    }

    fn marked(&mut self, mark: &OomMark, seen_ns: u64) -> Marked {
        let place = self.place(mark.victim.cgroup, seen_ns);
        let limit_owner = self.place(mark.limit_owner, seen_ns);
        let trigger_service = self.table.get(mark.trigger_cgroup).map(|place| Arc::clone(&place.service));
        let victim_known = mark.header.flags & MARK_THREAD_ONLY == 0;
        let mut context = MarkContext {
            role: victim_known.then(|| self.role(&mark.victim, mark.header.kernel_ns, place.as_ref())).flatten(),
            trigger_service,
            limit_owner: limit_owner.as_ref().map(|place| place.path.to_string()),
            ..MarkContext::default()
        };
        context.counts.host = vmstat::oom_kills().ok().map(|now| Count { before: self.host_kills.replace(now), now });
        if let Some(place) = &place
            && mark.header.flags & MARK_KILL_SENT != 0
        {
            note_latest(&mut self.oom_ns, place, mark.header.kernel_ns);
        }
        if let Some(hierarchy) = &self.hierarchy {
            // The cgroups may be gone with the last process, so this is looked up now.
            context.limit_bytes = match mark.limit_pages {
                0 => limit_owner.as_ref().and_then(|owner| hierarchy.memory_limit(&owner.path)),
                pages => (pages < UNLIMITED_BYTES / self.page_size).then(|| pages * self.page_size),
            };
            if let Some(place) = &place {
                let owner = limit_owner.as_ref().map(|owner| &*owner.path);
                context.in_group = hierarchy.kills_groups(&place.path, owner);
                self.count_kills(mark.victim.cgroup, &place.path, &mut context.counts);
            }
        }
        let is_new = self.docket.mark(mark, context);
        Marked {
            kernel_ns: mark.header.kernel_ns,
            seen_ns,
            place,
            process: identity(&mark.victim),
            kill_sent: is_new && mark.header.flags & MARK_KILL_SENT != 0,
        }
    }

    /// Reads a cgroup's own count of OOM kills, and remembers it for the next time.
    fn count_kills(&mut self, id: u64, path: &str, counts: &mut Counts) {
        let Some((now, groups)) = self.hierarchy.as_ref().and_then(|hierarchy| hierarchy.oom_kills(path)) else {
            return;
        };
        let before = self.cgroup_kills.remove(&id);
        self.cgroup_kills.insert(id, now);
        counts.cgroup = Some(Count { before, now });
        counts.cgroup_groups = groups;
    }

    fn ended(&mut self, exit: &Exit, span: Option<Span>, seen_ns: u64) -> Option<Sight> {
        let place = self.place(exit.process.cgroup, seen_ns);
        let watched = exit.header.flags & EXIT_WATCHED != 0;
        let abnormal = exit.status != 0;
        let memory_limit = match (&place, &self.hierarchy) {
            (Some(place), Some(hierarchy)) if watched && abnormal => {
                let (id, now) = (exit.process.cgroup, exit.header.kernel_ns);
                // Many deaths in one cgroup read its limit once a second.
                match self.limits.get(&id) {
                    Some(&(at, limit)) if now.saturating_sub(at) < LIMIT_HOLDS_NS => limit,
                    _ => {
                        let limit = hierarchy.least_memory_limit(&place.path);
                        self.limits.remove(&id);
                        self.limits.insert(id, (now, limit));
                        limit
                    }
                }
            }
            _ => None,
        };
        let role = self.role_at_exit(exit, self.docket.mark_of(exit), place.as_ref());
        if abnormal && role == Some(Role::Main) {
            // The other processes of this service have lost their parent.
            if let Some(place) = &place {
                note_latest(&mut self.failed_ns, place, exit.header.kernel_ns);
            }
        }
        let senders = self.senders(exit, place.as_ref());
        let pids_refused = match &place {
            Some(place) if watched && abnormal => {
                self.pids.look(exit.process.cgroup, &place.path, exit.header.kernel_ns)
            }
            _ => None,
        };
        let service_oom_ns = place.as_ref().and_then(|place| self.oom_ns.get(place.root())).copied();
        let context = DeathContext { senders, place, watched, memory_limit, pids_refused, service_oom_ns, role };
        let question = self.docket.death(*exit, span, seen_ns, context)?;
        Some(Sight::Asked { process: identity(&exit.process), question })
    }

    fn senders(&self, exit: &Exit, place: Option<&Place>) -> Senders {
        // The task that ran when an interrupt raised the signal is not its sender.
        let origin = |sender: &Sender| self.table.get(sender.cgroup).filter(|_| sender.is_named());
        let kind = |sender: &Sender| {
            if !sender.is_named() {
                return SenderKind::Other;
            }
            let comm = Comm(sender.comm).to_string();
            let program = || process::program(sender.tgid);
            sender_kind(
                &Signaller { comm: &comm, tgid: sender.tgid, uid: sender.uid, place: origin(sender) },
                place,
                program,
            )
        };
        let service = |sender: &Sender| origin(sender).map(|place| Arc::clone(&place.service));
        Senders {
            last: kind(&exit.sender),
            before: kind(&exit.before),
            last_service: service(&exit.sender),
            before_service: service(&exit.before),
        }
    }

    fn crashes(&mut self, site: &CrashSite) {
        let process = Identity { tgid: site.tgid, start_ns: site.start_ns };
        let mut new = Site::new(site);
        if let Some((lookers, which)) = &mut self.lookers
            && (*which == Crashes::All || site.header.flags & SITE_WATCHED != 0)
        {
            // Now: the process is about to end.
            new.looked = lookers.look(site, &new.stack);
        }
        self.docket.site(process, new);
    }

    fn alive(&mut self, life: &Life, seen_ns: u64) -> Option<Sight> {
        let place = self.place(life.process.cgroup, seen_ns)?;
        let role = self.role(&life.process, life.header.kernel_ns, Some(&place));
        Some(Sight::Alive {
            place,
            role,
            process: identity(&life.process),
            exec: life.header.flags & LIFE_EXEC != 0,
            orphan: life.process.parent_tgid == INIT,
            kernel_ns: life.header.kernel_ns,
        })
    }

    fn cgroup(&mut self, cgroup: &Cgroup) -> Option<Sight> {
        let kernel_ns = cgroup.header.kernel_ns;
        match cgroup.event {
            CGROUP_CREATED => {
                let place = self.created(cgroup, kernel_ns)?;
                if place.is_root() {
                    self.cgroup_kills.insert(cgroup.id, 0);
                    self.pids.made(cgroup.id, kernel_ns);
                }
                Some(Sight::Created { id: cgroup.id, place })
            }
            CGROUP_RENAMED => {
                let path = match whole_path(cgroup) {
                    Some(path) => path,
                    None => self.handles.as_mut()?.path_of(cgroup.id, kernel_ns)?,
                };
                let renamed = self.table.rename(cgroup.id, &path);
                self.discovered.extend(renamed);
                None
            }
            CGROUP_EMPTY => Some(Sight::Emptied { place: self.place(cgroup.id, kernel_ns)?, kernel_ns }),
            CGROUP_POPULATED => None,
            _ => {
                self.table.remove(cgroup.id);
                None
            }
        }
    }

    /// The place of a new cgroup; `None` when its record has no path (lockdown) and it has gone.
    ///
    /// A path that fills the record may be cut. Then the file system is asked. If the cgroup has gone already, its
    /// parent stands for it, which has the same owner.
    fn created(&mut self, cgroup: &Cgroup, kernel_ns: u64) -> Option<Place> {
        if let Some(path) = whole_path(cgroup) {
            return Some(self.table.insert(cgroup.id, &path));
        }
        if let Some(place) = self.look_up(cgroup.id, kernel_ns) {
            return Some(place);
        }
        let cut = String::from_utf8_lossy(cgroup.path_bytes());
        let above = cut.rfind('/').and_then(|slash| cut.get(..slash)).filter(|above| !above.is_empty())?;
        Some(self.table.insert(cgroup.id, above))
    }

    fn death(&mut self, Finding { span, seen_ns, mut cause, evidence }: Finding, now_ns: u64) -> Death {
        let exit = &evidence.exit;
        let place = self.place(exit.process.cgroup, now_ns);
        let role = self.role_at_exit(exit, evidence.mark.as_ref(), place.as_ref());
        // Where only the kernel's log names the limit's owner, its limit is read now.
        if let (Cause::OomKill(oom), Some(hierarchy)) = (&mut cause, &self.hierarchy)
            && let (Some(owner), None) = (&oom.limit_owner, oom.limit_bytes)
        {
            oom.limit_bytes = hierarchy.memory_limit(owner);
        }
        Death {
            span,
            kernel_ns: exit.header.kernel_ns,
            seen_ns,
            decided_ns: now_ns,
            process: identity(&exit.process),
            comm: Comm(exit.process.comm),
            uid: exit.process.uid,
            place,
            role,
            max_rss_bytes: (exit.max_rss_pages != 0).then(|| exit.max_rss_pages.saturating_mul(self.page_size)),
            status: exit.status,
            cause,
            evidence,
        }
    }

    /// A victim's mark knows better than its exit: a manager that ends the rest of the unit meanwhile may be faster than
    /// the victim's own death, which then finds init for a parent.
    fn role_at_exit(&self, exit: &Exit, mark: Option<&Mark>, place: Option<&Place>) -> Option<Role> {
        let at_mark = mark.and_then(|mark| mark.role);
        at_mark.or_else(|| self.role(&exit.process, exit.header.kernel_ns, place))
    }

    /// Main process or worker, by where the parent lives at `kernel_ns`.
    ///
    /// The workers of a main process that died get init for a parent, as many a main process has; they began before that
    /// death. A main process that ended well proves nothing: daemons that fork leave their parent so.
    fn role(&self, process: &Process, kernel_ns: u64, place: Option<&Place>) -> Option<Role> {
        let own = place?;
        if process.parent_cgroup == 0 {
            return None;
        }
        let lived_through = |failed_ns: &u64| {
            process.start_ns < *failed_ns && *failed_ns < kernel_ns && kernel_ns - failed_ns < ORPHANS_LIVE_NS
        };
        if process.parent_tgid == INIT && self.failed_ns.get(own.root()).is_some_and(lived_through) {
            return Some(Role::Worker);
        }
        if process.parent_cgroup == process.cgroup {
            return Some(Role::Worker);
        }
        // A parent in an unknown cgroup is not in this service, whose cgroups are known by now.
        let same = self.table.get(process.parent_cgroup).is_some_and(|parent| parent.service == own.service);
        Some(if same { Role::Worker } else { Role::Main })
    }

    fn place(&mut self, id: u64, now_ns: u64) -> Option<Place> {
        if id == 0 {
            return None;
        }
        if let Some(place) = self.table.get(id) {
            return Some(place.clone());
        }
        let place = self.look_up(id, now_ns)?;
        self.discovered.push((id, place.clone()));
        Some(place)
    }

    /// Looks up an unknown cgroup in the file system; `None` when it has gone.
    fn look_up(&mut self, id: u64, now_ns: u64) -> Option<Place> {
        let path = self.handles.as_mut()?.path_of(id, now_ns)?;
        Some(self.table.insert(id, &path))
    }
}

/// The path in a record; `None` when it is missing (lockdown) or may be cut.
fn whole_path(cgroup: &Cgroup) -> Option<String> {
    let path = cgroup.path_bytes();
    let is_whole = !path.is_empty() && path.len() + 1 < PATH_LEN;
    is_whole.then(|| String::from_utf8_lossy(path).into_owned())
}

/// Stores the time of an event by the service's own cgroup: users can make any number of cgroups below it.
fn note_latest(times: &mut Recent<Arc<str>, u64>, place: &Place, kernel_ns: u64) {
    times.remove(place.root());
    let root = if place.is_root() { Arc::clone(&place.path) } else { place.root().into() };
    times.insert(root, kernel_ns);
}

fn identity(process: &Process) -> Identity {
    Identity { tgid: process.tgid, start_ns: process.start_ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;
    use monitor_common::{
        record::{EXIT_OOM_VICTIM, EXIT_SENDER, Header},
        status::SIGKILL,
    };

    const UNIT: u64 = 70;
    const MAIN: u32 = 500;

    /// A worker of a unit, born to this parent.
    fn worker(parent_tgid: u32, parent_cgroup: u64) -> Process {
        Process { tgid: 501, tid: 501, parent_tgid, parent_cgroup, start_ns: 9, cgroup: UNIT, ..Process::NONE }
    }

    fn see(observer: &mut Observer, record: Record) -> Option<Sight> {
        observer.event(&Event { seen_ns: 100, span: None, record })
    }

    fn observer() -> Observer {
        let mut observer = Observer::new(None);
        for (id, path) in [(1, "/init.scope"), (UNIT, "/system.slice/web.service")] {
            let mut cgroup = Cgroup::zeroed();
            (cgroup.id, cgroup.event, cgroup.path_len) = (id, CGROUP_CREATED, path.len() as u32);
            cgroup.path[..path.len()].copy_from_slice(path.as_bytes());
            see(&mut observer, Record::Cgroup(cgroup));
        }
        observer
    }

    fn killed(process: Process) -> Record {
        let mut exit = Exit { process, status: SIGKILL, ..Exit::zeroed() };
        exit.header = Header { flags: EXIT_OOM_VICTIM, kernel_ns: 50, ..Header::zeroed() };
        Record::Exit(exit)
    }

    #[test]
    fn a_victim_whose_parent_was_faster_to_die_stays_the_worker_that_it_was_when_it_was_chosen() {
        let mut observer = observer();
        let mut mark = OomMark { victim: worker(MAIN, UNIT), ..OomMark::zeroed() };
        mark.header = Header { flags: MARK_KILL_SENT, kernel_ns: 40, ..Header::zeroed() };
        see(&mut observer, Record::OomMark(mark));
        see(&mut observer, killed(worker(INIT, 1)));
        let deaths = observer.deaths(u64::MAX);
        assert_eq!((deaths.len(), deaths[0].role), (1, Some(Role::Worker)));
        assert_eq!(observer.failed_ns.get("/system.slice/web.service"), None, "no main process has failed");
    }

    fn event_of_cgroup(id: u64, event: u32, path: &str) -> Record {
        let mut cgroup = Cgroup::zeroed();
        (cgroup.id, cgroup.event, cgroup.path_len) = (id, event, path.len() as u32);
        cgroup.path[..path.len()].copy_from_slice(path.as_bytes());
        Record::Cgroup(cgroup)
    }

    #[test]
    fn a_cgroup_whose_path_was_cut_and_that_is_gone_stands_for_the_one_above() {
        let mut observer = observer();
        let whole = format!("/system.slice/web.service/{}/", "a".repeat(200));
        let cut = format!("{whole}{}", "b".repeat(PATH_LEN - 1 - whole.len()));
        see(&mut observer, event_of_cgroup(9, CGROUP_CREATED, &cut));
        let place = observer.known_place(9).expect("it has a place at once");
        assert_eq!((&*place.service, &*place.path), ("web.service", whole.trim_end_matches('/')));
    }

    #[test]
    fn a_renamed_cgroup_is_met_again_under_its_new_path() {
        let mut observer = observer();
        see(&mut observer, event_of_cgroup(9, CGROUP_CREATED, "/system.slice/web.service/old"));
        see(&mut observer, event_of_cgroup(9, CGROUP_RENAMED, "/system.slice/web.service/new"));
        let met = observer.take_discovered();
        assert_eq!(
            met.iter().map(|(id, place)| (*id, &*place.path)).collect::<Vec<_>>(),
            [(9, "/system.slice/web.service/new")]
        );
    }

    #[test]
    fn who_happened_to_run_when_a_timer_ran_out_is_no_sender() {
        let mut observer = observer();
        let mut exit = Exit { process: worker(MAIN, UNIT), status: 15, ..Exit::zeroed() };
        exit.header = Header { flags: EXIT_SENDER, kernel_ns: 50, ..Header::zeroed() };
        // If PID 1 counted as the sender, this would be a stop.
        exit.sender = Sender { signal: 15, si_code: -2, tgid: INIT, cgroup: 1, ..Sender::NONE };
        assert!(see(&mut observer, Record::Exit(exit)).is_none(), "systemd is not asked about it");
        let deaths = observer.deaths(u64::MAX);
        assert_eq!(deaths[0].cause.kind(), "killed");
        assert_eq!(deaths[0].evidence.senders, Senders::default());
    }

    #[test]
    fn a_process_of_init_s_is_a_main_process() {
        let mut observer = observer();
        see(&mut observer, killed(worker(INIT, 1)));
        assert_eq!(observer.deaths(u64::MAX)[0].role, Some(Role::Main));
        assert_eq!(observer.failed_ns.get("/system.slice/web.service"), Some(&50));
    }
}
