use super::*;
use crate::{
    attribution::Table,
    diagnosis::evidence::SenderKind,
    host::{kmsg::Constraint, systemd::Meaning},
};
use monitor_common::record::{EXIT_SENDER, EXIT_WATCHED, Header, KIND_OOM_MARK, Process, Sender};

const MS: u64 = 1_000_000;

fn exit(tgid: u32, flags: u32, sender: Sender) -> Exit {
    Exit {
        header: Header {
            flags: flags | if sender.signal != 0 { EXIT_SENDER } else { 0 },
            ..bytemuck::Zeroable::zeroed()
        },
        process: Process { tgid, tid: tgid, start_ns: 77, ..Process::NONE },
        status: SIGKILL,
        sender,
        ..bytemuck::Zeroable::zeroed()
    }
}

fn by_kernel() -> Sender {
    Sender { signal: SIGKILL, si_code: SI_KERNEL, tgid: 1000, tid: 1001, ..Sender::NONE }
}

fn by_user() -> Sender {
    Sender { signal: SIGKILL, tgid: 9, ..Sender::NONE }
}

fn mark(tgid: u32) -> OomMark {
    OomMark {
        header: Header { kind: KIND_OOM_MARK, flags: MARK_KILL_SENT, kernel_ns: 0 },
        victim: Process { tgid, tid: tgid, start_ns: 77, ..Process::NONE },
        trigger_tgid: 1000,
        trigger_tid: 1001,
        ..bytemuck::Zeroable::zeroed()
    }
}

fn line(tid: u32) -> OomLine {
    OomLine { constraint: Constraint::Memcg, limit_owner: None, tid }
}

fn docket() -> Docket {
    Docket::new(4096)
}

fn arrive(docket: &mut Docket, exit: Exit, at: u64) {
    docket.death(exit, None, at, DeathContext::default());
}

fn kinds(found: &[Finding]) -> Vec<&'static str> {
    found.iter().map(|found| found.cause.kind()).collect()
}

#[test]
fn a_kill_by_the_kernel_waits_for_its_mark_and_then_for_nothing_more() {
    let mut docket = docket();
    arrive(&mut docket, exit(5, 0, by_kernel()), 0);
    assert!(docket.decide(99 * MS).is_empty());
    docket.mark(&mark(5), MarkContext::default());
    docket.line(line(5));
    let found = docket.decide(99 * MS);
    assert_eq!((kinds(&found), &found[0].evidence.missing), (vec!["oom_kill"], &vec![]));
    assert_eq!(docket.next_deadline(), None);
}

#[test]
fn without_a_mark_the_wait_ends() {
    let mut docket = docket();
    arrive(&mut docket, exit(5, 0, by_kernel()), 0);
    assert_eq!(docket.next_deadline(), Some(100 * MS));
    assert_eq!(kinds(&docket.decide(100 * MS)), ["killed"]);
}

#[test]
fn a_mark_that_was_lost_is_said_to_be_missing() {
    let mut docket = docket();
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_kernel()), 0);
    assert!(docket.decide(99 * MS).is_empty());
    let found = docket.decide(100 * MS);
    assert_eq!(kinds(&found), ["oom_kill"]);
    assert_eq!(found[0].evidence.missing, [Missing::OomMark, Missing::KernelLog]);
}

#[test]
fn what_nothing_can_change_is_decided_at_once() {
    let ended = |flags| Sender { flags, ..by_kernel() };
    for (exit, kind) in [
        (exit(5, 0, by_user()), "killed"),
        (exit(5, 0, ended(SENT_BY_NAMESPACE_END)), "container_teardown"),
        (exit(5, 0, ended(SENT_BY_TRACER_END)), "killed"),
        (Exit { status: 0x300, ..exit(5, 0, Sender::NONE) }, "exit"),
        (Exit { status: 11, ..exit(5, 0, Sender { signal: 11, si_code: 1, tgid: 5, ..Sender::NONE }) }, "crash"),
    ] {
        let mut docket = docket();
        arrive(&mut docket, exit, 0);
        assert_eq!(kinds(&docket.decide(0)), [kind]);
    }
}

#[test]
fn a_death_in_an_unknown_cgroup_waits_for_word_of_it() {
    let mut docket = docket();
    let mut exit = exit(5, 0, by_user());
    exit.process.cgroup = 70;
    arrive(&mut docket, exit, 0);
    assert_eq!((kinds(&docket.decide(19 * MS)), docket.next_deadline()), (vec![], Some(20 * MS)));
    assert_eq!(kinds(&docket.decide(20 * MS)), ["killed"]);
    exit.process.tgid = 6;
    let place = Some(Table::default().describe("/batch"));
    docket.death(exit, None, 0, DeathContext { place, ..DeathContext::default() });
    assert_eq!(kinds(&docket.decide(0)), ["killed"]);
}

#[test]
fn a_missing_log_line_costs_twenty_milliseconds_and_no_verdict() {
    let mut docket = docket();
    docket.mark(&mark(5), MarkContext::default());
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_kernel()), 0);
    assert!(docket.decide(19 * MS).is_empty());
    let found = docket.decide(20 * MS);
    assert_eq!((kinds(&found), &found[0].evidence.missing), (vec!["oom_kill"], &vec![Missing::KernelLog]));
}

#[test]
fn a_mark_that_names_the_limit_waits_for_no_log_line() {
    let mut docket = docket();
    let context = MarkContext {
        limit_owner: Some("/shop.slice".to_owned()),
        limit_bytes: Some(1 << 20),
        ..MarkContext::default()
    };
    let memory = OomMark { anon_pages: 2, oom_score_adj: -3, ..mark(5) };
    let header = Header { flags: MARK_KILL_SENT | MARK_MEMORY, ..memory.header };
    docket.mark(&OomMark { header, scope: SCOPE_MEMCG, limit_owner: 7, ..memory }, context);
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_kernel()), 0);
    let found = docket.decide(0);
    let Some(Cause::OomKill(oom)) = found.first().map(|found| &found.cause) else { panic!("an OOM kill") };
    assert_eq!((oom.scope, oom.limit_owner.as_deref()), (Some(Scope::Memcg), Some("/shop.slice")));
    assert_eq!(oom.limit_bytes, Some(1 << 20));
    assert_eq!(oom.memory.map(|memory| (memory.anon_rss_bytes, memory.oom_score_adj)), Some((8192, -3)));
}

#[test]
fn members_of_a_group_are_one_kill_of_many() {
    let mut docket = docket();
    let member = |tgid| OomMark { request_ns: 42, scope: SCOPE_MEMCG, ..mark(tgid) };
    let context = || MarkContext { in_group: true, ..MarkContext::default() };
    docket.mark(&member(5), context());
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_kernel()), 0);
    assert!(docket.decide(0).is_empty(), "the others may still be on their way");
    docket.mark(&member(6), context());
    docket.mark(&member(7), context());
    arrive(&mut docket, exit(6, EXIT_OOM_VICTIM, by_kernel()), 0);
    // A mark of another request, and one that killed nothing.
    docket.mark(&OomMark { request_ns: 43, ..member(8) }, context());
    let dying = Header { flags: 0, ..mark(9).header };
    docket.mark(&OomMark { header: dying, ..member(9) }, context());
    assert_eq!(docket.next_deadline(), Some(100 * MS));
    let found = docket.decide(100 * MS);
    assert_eq!(found.len(), 2);
    for found in found {
        let Cause::OomKill(oom) = found.cause else { panic!("an OOM kill") };
        assert_eq!(oom.group, Some(GroupKill { id: 42, kills: 3 }));
    }
}

#[test]
fn a_process_that_shared_the_victim_s_memory_is_an_oom_kill_that_names_the_victim() {
    let mut docket = docket();
    docket.mark(&mark(5), MarkContext::default());
    let twin = Sender { kernel_ns: 30_000, ..by_kernel() };
    arrive(&mut docket, exit(6, 0, twin), 0);
    // Another thread's mark proves nothing, and neither does a later one.
    arrive(&mut docket, exit(7, 0, Sender { tid: 1002, ..twin }), 0);
    let found = docket.decide(100 * MS);
    assert_eq!(kinds(&found), ["oom_kill", "killed"]);
    let Cause::OomKill(oom) = &found[0].cause else { panic!("an OOM kill") };
    assert_eq!((oom.shared_with, oom.mark_to_exit_us), (Some(5), None));
}

#[test]
fn a_dying_victim_stays_with_the_one_who_killed_it() {
    let mut docket = docket();
    docket.mark(&OomMark { header: Header { flags: 0, ..mark(5).header }, ..mark(5) }, MarkContext::default());
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_user()), 0);
    let found = docket.decide(0);
    let Cause::Killed { by: Some(by), .. } = &found[0].cause else {
        panic!("killed by somebody: {:?}", found[0].cause)
    };
    assert_eq!(by.tgid, 9);
}

#[test]
fn a_thread_s_mark_serves_one_death_only() {
    let mut docket = docket();
    let by_thread =
        OomMark { header: Header { flags: MARK_THREAD_ONLY | MARK_KILL_SENT, ..mark(5).header }, ..mark(5) };
    docket.mark(&by_thread, MarkContext::default());
    docket.line(line(5));
    arrive(&mut docket, exit(5, EXIT_OOM_VICTIM, by_kernel()), 0);
    assert_eq!(docket.decide(0).len(), 1);
    // The same pid again, killed by the kernel for another reason.
    let mut next = exit(5, 0, by_kernel());
    next.process.start_ns = 99;
    next.sender.tid = 0;
    arrive(&mut docket, next, 0);
    assert!(docket.decide(0).is_empty());
    assert_eq!(kinds(&docket.decide(100 * MS)), ["killed"]);
}

#[test]
fn a_death_that_is_reported_twice_is_one() {
    let mut docket = docket();
    arrive(&mut docket, exit(5, 0, by_user()), 0);
    arrive(&mut docket, exit(5, 0, by_user()), 0);
    assert_eq!(docket.decide(0).len(), 1);
    let mut reused = exit(5, 0, by_user());
    reused.process.start_ns += 1;
    arrive(&mut docket, reused, 0);
    assert_eq!(docket.decide(0).len(), 1, "the same pid in another life");
}

#[test]
fn systemd_is_asked_when_it_sent_the_signal_and_waited_for_so_long() {
    let place = Table::default().describe("/system.slice/web.service");
    let by_manager = Sender { signal: 15, tgid: 1, ..Sender::NONE };
    let death = Exit { status: 15, ..exit(5, 0, by_manager) };
    let context = || DeathContext {
        senders: Senders { last: SenderKind::Manager, ..Senders::default() },
        place: Some(place.clone()),
        ..DeathContext::default()
    };
    let mut docket = docket();
    let question = docket.death(death, None, 0, context());
    assert_eq!(question, Some(Question::Systemd { unit: "web.service".to_owned() }));
    assert!(docket.decide(499 * MS).is_empty());
    docket.reply(identity(&death), Reply::Systemd(Ok(Meaning::StartTimeout)));
    assert_eq!(kinds(&docket.decide(499 * MS)), ["killed"]);

    let death = Exit { process: Process { tgid: 6, ..death.process }, ..death };
    docket.death(death, None, 0, context());
    let found = docket.decide(500 * MS);
    assert_eq!((kinds(&found), &found[0].evidence.missing), (vec!["stopped"], &vec![Missing::Systemd]));
}

#[test]
fn last_words_are_asked_for_when_a_watched_service_ends_badly() {
    let place = Table::default().describe("/system.slice/web.service");
    let context = |watched| DeathContext { place: Some(place.clone()), watched, ..DeathContext::default() };
    let failed = Exit { status: 0x300, ..exit(5, EXIT_WATCHED, Sender::NONE) };
    let mut docket = docket();
    assert!(matches!(docket.death(failed, None, 0, context(true)), Some(Question::LastWords { tgid: 5, .. })));
    docket.reply(identity(&failed), Reply::LastWords(Ok(Some("OutOfMemoryError".to_owned()))));
    assert_eq!(kinds(&docket.decide(0)), ["app_oom_probable"]);
    for (tgid, exit, watched) in [(6, failed, false), (7, Exit { status: 0, ..failed }, true)] {
        let exit = Exit { process: Process { tgid, ..exit.process }, ..exit };
        assert_eq!(docket.death(exit, None, 0, context(watched)), None);
    }
}

#[test]
fn workers_last_words_are_asked_for_when_the_rest_points_to_memory() {
    let place = Table::default().describe("/system.slice/web.service");
    let context = |role, memory_limit| DeathContext {
        place: Some(place.clone()),
        watched: true,
        role,
        memory_limit,
        ..DeathContext::default()
    };
    let failed = Exit { status: 0x100, max_rss_pages: 95, ..exit(5, EXIT_WATCHED, Sender::NONE) };
    let refused = Exit { refusals: 1, refused_ns: 0, ..failed };
    let limit = |pages: u64| Some(pages * 4096);
    for (exit, role, memory_limit, is_asked) in [
        (failed, Some(Role::Main), None, true),
        (failed, None, None, true),
        (failed, Some(Role::Worker), None, false),
        (failed, Some(Role::Worker), limit(200), false),
        (failed, Some(Role::Worker), limit(100), true),
        (Exit { status: 0x700, ..failed }, Some(Role::Worker), limit(100), false),
        (refused, Some(Role::Worker), None, true),
    ] {
        let asked = docket().death(exit, None, 0, context(role, memory_limit));
        assert_eq!(asked.is_some(), is_asked, "{exit:?} {role:?} {memory_limit:?}");
    }
}

#[test]
fn a_question_that_was_not_asked_is_part_of_the_evidence() {
    let place = Table::default().describe("/system.slice/web.service");
    let mut docket = docket();
    let failed = Exit { status: 0x300, ..exit(5, EXIT_WATCHED, Sender::NONE) };
    let context = DeathContext { place: Some(place), watched: true, ..DeathContext::default() };
    docket.death(failed, None, 0, context);
    assert!(docket.decide(0).is_empty(), "it waits for the answer");
    docket.reply(identity(&failed), Reply::Refused);
    let found = docket.decide(0);
    assert_eq!((kinds(&found), found[0].evidence.missing.len()), (vec!["exit"], 0));
    assert!(found[0].evidence.to_string().contains("not asked: too many questions"), "{}", found[0].evidence);
}

#[test]
fn marks_of_deaths_that_never_come_are_bounded() {
    let mut docket = docket();
    for tgid in 0..5000 {
        docket.mark(&mark(tgid), MarkContext::default());
        docket.line(line(tgid));
    }
    assert_eq!((docket.marks.iter().count(), docket.lines.len()), (KEPT, KEPT));
    let pushed_out = 5000 - KEPT as u64;
    assert_eq!(docket.losses(), Losses { marks: pushed_out, lines: pushed_out, sites: 0, waits: 0, looks: 0 });
}

#[test]
fn a_mark_whose_death_has_come_is_no_loss() {
    let mut docket = docket();
    docket.mark(&mark(5), MarkContext::default());
    docket.death(exit(5, 0, by_kernel()), None, 0, DeathContext::default());
    for tgid in 10..10 + KEPT as u32 {
        docket.mark(&mark(tgid), MarkContext::default());
    }
    assert_eq!(docket.losses(), Losses::default());
    docket.mark(&mark(9), MarkContext::default());
    assert_eq!(docket.losses().marks, 1);
}

#[test]
fn a_crowd_of_deaths_that_wait_is_bounded_and_none_is_lost() {
    let mut docket = docket();
    let all = WAITING as u32 + 7;
    for tgid in 0..all {
        // The kernel's own signal, for which a mark may yet come.
        docket.death(exit(tgid + 1, 0, by_kernel()), None, 0, DeathContext::default());
    }
    let hurried: Vec<_> = docket.decide(0).iter().map(|death| death.evidence.exit.process.tgid).collect();
    assert_eq!(hurried, (1..=7).collect::<Vec<_>>());
    assert_eq!(docket.losses().waits, 7);
    assert_eq!(docket.decide(EVIDENCE_WAIT_NS).len(), WAITING);
    assert_eq!(docket.losses().waits, 7);
}
