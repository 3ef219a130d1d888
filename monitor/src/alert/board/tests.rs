use super::*;

const NOW: u64 = 100_000 * SECOND;
const MINUTE: u64 = 60 * SECOND;

fn wall() -> Timestamp {
    Timestamp::from_second(1_700_000_000).expect("a time")
}

fn down(since: u64) -> Standing<'static> {
    Standing { down_since_ns: Some(since), cause: "killed", ..Standing::default() }
}

/// What fires, as `name/scope/service`.
fn firing(board: &Board) -> Vec<String> {
    board.shown().filter(|(_, alert)| alert.shown == Shown::Firing).map(|(key, _)| key.to_string()).collect()
}

fn forecast(verdict: Verdict, eta: Option<f64>) -> Forecast {
    Forecast {
        verdict,
        advisory: false,
        level: None,
        growth_bytes_per_hour: Some(1e6),
        time_to_oom_seconds: eta,
        time_to_oom_seconds_low: None,
        time_to_oom_seconds_high: None,
        uptime_seconds: 60.0,
        longest_uptime_seconds: 60.0,
        usual_uptime_seconds: None,
        uptime_at_oom_seconds: None,
        severity: None,
        builds: None,
        exhausted_in_seconds: None,
    }
}

/// An agent that dies and one that takes over `later` nanoseconds after.
fn handed_over(board: &mut Board, now: u64, later: u64) -> Board {
    let mut next = Board::default();
    for (name, kept) in board.take_changed(now, wall()) {
        let kept = kept.unwrap_or_else(|| panic!("{name} is on the board"));
        let text = serde_json::to_string(&kept).expect("written");
        let kept = serde_json::from_str(&text).expect("read");
        next.restore(kept, now + later, wall() + Duration::from_nanos(later));
    }
    next
}

#[test]
fn an_outage_fires_at_once_and_ends_with_it() {
    let mut board = Board::default();
    board.stands("web", down(NOW - SECOND), NOW);
    board.advance(NOW);
    assert_eq!(firing(&board), ["DefibServiceDown//web"]);
    let (_, alert) = board.shown().next().expect("one");
    assert_eq!(
        (alert.since_ns, alert.text.as_str()),
        (moment(NOW - SECOND), "it is down and not healthy again; killed")
    );
    let first = alert.version;
    board.stands("web", down(NOW - SECOND), NOW + SECOND);
    board.advance(NOW + SECOND);
    assert_eq!(board.shown().next().map(|(_, alert)| alert.version), Some(first), "nothing new");

    board.stands("web", Standing::default(), NOW + 2 * SECOND);
    board.advance(NOW + 2 * SECOND);
    let (_, alert) = board.shown().next().expect("peers have to hear of the end");
    assert_eq!(alert.shown, Shown::Ended(NOW + 2 * SECOND));
    assert!(alert.version > first);
    assert_eq!(board.deadline(), Some(NOW + 2 * SECOND + TTL));
    board.advance(NOW + 2 * SECOND + TTL);
    assert_eq!((board.shown().count(), board.alerts.len(), board.deadline()), (0, 0, None));
}

#[test]
fn a_circuit_stays_open_through_tries_and_no_longer_than_the_outage() {
    let mut board = Board::default();
    let open = Standing { circuit_open: true, ..down(NOW) };
    for (standing, fires) in [(down(NOW), false), (open, true), (down(NOW), true), (Standing::default(), false)] {
        board.stands("web", standing, NOW);
        board.advance(NOW);
        assert_eq!(firing(&board).contains(&"DefibCircuitOpen//web".to_owned()), fires, "{standing:?}");
    }
}

#[test]
fn a_paused_service_has_no_alerts_until_the_pause_runs_out() {
    let mut board = Board::default();
    board.stands("web", down(NOW), NOW);
    board.oom_kill("web", "memcg", NOW, "leaky was killed", NOW);
    board.foresees("web", &forecast(Verdict::Leak, None), NOW);
    board.advance(NOW);
    assert_eq!(firing(&board).len(), 3);
    let until = NOW + 2 * MINUTE;
    board.stands("web", Standing { paused_until_ns: Some(until), ..down(NOW) }, NOW + SECOND);
    board.advance(NOW + SECOND);
    assert_eq!(firing(&board), Vec::<String>::new());
    assert_eq!(board.shown().count(), 3, "and all are taken back");
    board.foresees("web", &forecast(Verdict::MaskedLeak, None), NOW + 2 * SECOND);
    board.advance(until - 1);
    assert_eq!(firing(&board), Vec::<String>::new());
    assert_eq!(board.deadline(), Some(until));
    board.advance(until);
    assert_eq!(firing(&board), ["DefibServiceDown//web", "DefibOomKill/memcg/web", "DefibHiddenLeak//web"]);
    let (_, alert) = board.shown().next().expect("the outage");
    assert_eq!(alert.since_ns, moment(NOW), "it began when it began");
}

#[test]
fn an_oom_kill_is_shown_for_ten_minutes_from_when_somebody_took_it() {
    let mut board = Board::default();
    board.oom_kill("web", "memcg", NOW, "leaky was killed", NOW);
    let key = Key { kind: Kind::OomKill("memcg"), service: "web".into() };
    let late = NOW + 3600 * SECOND;
    board.advance(late);
    assert_eq!(firing(&board), ["DefibOomKill/memcg/web"], "nobody has heard of it");
    let version = board.alerts[&key].version;
    board.delivered(&key, version, late);
    board.delivered(&key, version, late + MINUTE);
    for (at, fires) in [(late + EVENT - 1, 1), (late + EVENT, 0)] {
        board.advance(at);
        assert_eq!(board.firing(), fires, "the second peer does not make it longer");
    }
    assert_eq!(board.dropped(), 0);
    // Another one, while the end of the first is still told, is a new alert.
    board.oom_kill("web", "memcg", late + EVENT + 1, "leaky was killed", late + EVENT + 1);
    board.advance(late + EVENT + 1);
    assert_eq!((board.firing(), board.alerts[&key].since_ns), (1, moment(late + EVENT + 1)));
}

#[test]
fn an_oom_kill_that_nobody_took_for_a_day_is_dropped_and_counted() {
    let mut board = Board::default();
    board.oom_kill("web", "global", NOW, "leaky was killed", NOW);
    board.advance(NOW);
    assert_eq!(board.deadline(), Some(NOW + UNDELIVERED));
    board.advance(NOW + UNDELIVERED);
    assert_eq!((board.firing(), board.dropped()), (0, 1));
    board.advance(NOW + UNDELIVERED + TTL);
    assert_eq!((board.alerts.len(), board.dropped()), (0, 1));
}

#[test]
fn what_is_foreseen_becomes_the_alert_that_the_rules_make_of_it() {
    use Verdict::{Insufficient, Leak, MaskedLeak, Steady};
    const HOUR: f64 = 3600.0;
    for (verdict, eta, want) in [
        (Steady, None, &[][..]),
        (Insufficient, None, &[]),
        (Leak, None, &["DefibLeak//web"]),
        (Leak, Some(8.0 * 24.0 * HOUR), &["DefibLeak//web"]),
        (Leak, Some(7.0 * 24.0 * HOUR), &["DefibOomWithin7d//web", "DefibLeak//web"]),
        (MaskedLeak, Some(4.1 * HOUR), &["DefibOomWithin7d//web", "DefibHiddenLeak//web"]),
        (MaskedLeak, Some(4.0 * HOUR), &["DefibOomWithin4h//web", "DefibHiddenLeak//web"]),
    ] {
        let mut board = Board::default();
        board.foresees("web", &forecast(verdict, eta), NOW);
        board.advance(NOW);
        assert_eq!(firing(&board), want, "{verdict:?} {eta:?}");
        // Dead, it runs out of nothing; the leak is still there.
        board.stands("web", down(NOW), NOW + SECOND);
        board.advance(NOW + SECOND);
        assert!(!firing(&board).iter().any(|key| key.contains("Within")), "{verdict:?} {eta:?}");
    }
    let mut board = Board::default();
    let fast = Forecast { exhausted_in_seconds: Some(300.0), ..forecast(Steady, None) };
    board.foresees("web", &fast, NOW);
    board.advance(NOW);
    assert_eq!(firing(&board), ["DefibOomWithin4h//web"]);
}

#[test]
fn the_next_agent_goes_on_and_takes_back_what_is_over() {
    let mut board = Board::default();
    board.stands("down", down(NOW - MINUTE), NOW);
    board.stands("healed", down(NOW - MINUTE), NOW);
    board.oom_kill("web", "memcg", NOW, "leaky was killed", NOW);
    board.oom_kill("told", "memcg", NOW, "leaky was killed", NOW);
    board.advance(NOW);
    let told = Key { kind: Kind::OomKill("memcg"), service: "told".into() };
    let version = board.alerts[&told].version;
    board.delivered(&told, version, NOW);

    let later = 20 * MINUTE;
    let mut next = handed_over(&mut board, NOW, later);
    let now = NOW + later;
    next.stands("down", down(NOW - MINUTE), now);
    next.advance(now);
    next.settle(now);
    next.advance(now);
    assert_eq!(firing(&next), ["DefibServiceDown//down", "DefibOomKill/memcg/web"]);
    let ended: Vec<_> = next.shown().filter(|(_, alert)| alert.shown == Shown::Ended(now)).collect();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].0.to_string(), "DefibServiceDown//healed");
    let kept = next.take_changed(now, wall());
    let gone = kept.iter().find(|(name, _)| name == "DefibOomKill/memcg/told").expect("said to the store");
    assert_eq!(gone.1, None, "its time was up");
    let since = next.shown().next().map(|(_, alert)| alert.since_ns);
    assert_eq!(since, Some(moment(NOW - MINUTE)));
}

#[test]
fn an_alert_of_an_earlier_boot_keeps_the_moment_at_which_it_began() {
    let mut board = Board::default();
    board.stands("web", down(NOW - MINUTE), NOW);
    board.advance(NOW);
    let mut kept = board.take_changed(NOW, wall());
    let (_, Some(one)) = kept.remove(0) else { panic!("it fires") };
    // The next agent starts two seconds after a boot.
    let mut next = Board::default();
    next.restore(one.clone(), 2 * SECOND, wall() + Duration::from_nanos(MINUTE));
    next.stands("web", down(SECOND), 2 * SECOND);
    next.advance(2 * SECOND);
    assert_eq!(next.shown().next().map(|(_, alert)| alert.since_ns), Some(2 * moment(SECOND) - 2 * moment(MINUTE)));
    let kept = next.take_changed(2 * SECOND, wall() + Duration::from_nanos(MINUTE));
    assert_eq!(kept[0].1.as_ref().map(|kept| kept.since), Some(one.since));
}

#[test]
fn an_end_that_was_not_told_yet_is_told_by_the_next_agent() {
    let mut board = Board::default();
    board.stands("web", down(NOW), NOW);
    board.advance(NOW);
    board.stands("web", Standing::default(), NOW);
    board.advance(NOW);
    let mut next = handed_over(&mut board, NOW, SECOND);
    next.settle(NOW + SECOND);
    next.advance(NOW + SECOND);
    let shown: Vec<_> = next.shown().map(|(_, alert)| alert.shown).collect();
    assert_eq!(shown, [Shown::Ended(NOW + SECOND)]);
}

#[test]
fn what_a_later_version_left_is_no_obstacle() {
    let mut board = Board::default();
    let kept = r#"{"alert":"DefibMoonrise","scope":null,"service":"web","since":"2026-01-01T00:00:00Z",
        "until":"2026-01-01T00:00:00Z","text":"","holds":true,"delivered":true,"ended":false}"#;
    board.restore(serde_json::from_str(kept).expect("read"), NOW, wall());
    board.advance(NOW);
    assert_eq!(board.alerts.len(), 0);
}

#[test]
fn a_board_without_room_drops_and_counts() {
    let mut board = Board::default();
    for number in 0..MAX_ALERTS + 5 {
        board.stands(&format!("s{number}"), down(NOW), NOW);
    }
    board.advance(NOW);
    assert_eq!((board.firing(), board.dropped()), (MAX_ALERTS, 5));
}
