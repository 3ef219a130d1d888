//! Board and outboxes together, against Alertmanagers that come and go.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    board::{Board, Key, Shown, Standing, TTL},
    outbox::{Answer, Next, Outbox},
};

const SECOND: u64 = 1_000_000_000;
const SERVICES: [&str; 3] = ["a", "b", "c"];

/// What an Alertmanager holds: each alert until when, unless it hears of it again.
#[derive(Debug, Default)]
struct Peer {
    outbox: Outbox,
    holds: BTreeMap<Key, u64>,
    away: bool,
}

impl Peer {
    /// Takes what there is, until there is nothing at this moment.
    fn hear(&mut self, board: &mut Board, now: u64) {
        for _ in 0..100 {
            let Next::Post(batch) = self.outbox.next(board, now) else { return };
            if self.away {
                assert_eq!(self.outbox.answered(&batch, &Answer::Failed(String::new()), now), []);
                continue;
            }
            for posting in &batch {
                let key = Key { kind: posting.kind, service: posting.service.clone() };
                self.holds.insert(key, posting.ended_ns.unwrap_or(now + TTL));
            }
            for (key, version) in self.outbox.answered(&batch, &Answer::Accepted, now) {
                board.delivered(&key, version, now);
            }
        }
        panic!("a hundred posts at one moment");
    }

    fn firing(&self, now: u64) -> Vec<&Key> {
        self.holds.iter().filter(|&(_, until)| *until > now).map(|(key, _)| key).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Down(usize),
    Open(usize),
    Healthy(usize),
    Pause(usize, u64),
    OomKill(usize),
    Away(usize),
    Back(usize),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<(Event, u64)>> {
    let service = 0..SERVICES.len();
    let event = prop_oneof![
        service.clone().prop_map(Event::Down),
        service.clone().prop_map(Event::Open),
        service.clone().prop_map(Event::Healthy),
        (service.clone(), 1..2000u64).prop_map(|(service, seconds)| Event::Pause(service, seconds)),
        service.prop_map(Event::OomKill),
        (0..2usize).prop_map(Event::Away),
        (0..2usize).prop_map(Event::Back),
        Just(Event::Restart),
    ];
    proptest::collection::vec((event, 0..500u64), 1..60)
}

/// How the services stand, as the agent knows it from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
struct Service {
    down: Option<u64>,
    open: bool,
    paused_until: u64,
    /// An OOM kill that no peer could hear of yet.
    unheard: bool,
}

impl Service {
    fn standing(&self) -> Standing<'static> {
        let (down_since_ns, circuit_open) = (self.down, self.open);
        Standing { down_since_ns, cause: "", circuit_open, paused_until_ns: Some(self.paused_until) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn peers_hold_what_the_board_shows_and_nothing_of_what_is_paused(events in events()) {
        let (mut board, mut peers) = (Board::default(), [Peer::default(), Peer::default()]);
        let mut services = [Service::default(); 3];
        let mut kept = BTreeMap::new();
        let mut now = 1_000 * SECOND;
        let wall = |now: u64| jiff::Timestamp::from_nanosecond(1_700_000_000_000_000_000 + i128::from(now)).expect("a time");
        for (event, wait) in events {
            match event {
                Event::Down(at) => services[at].down = services[at].down.or(Some(now)),
                Event::Open(at) => services[at].open = services[at].down.is_some(),
                Event::Healthy(at) => (services[at].down, services[at].open) = (None, false),
                Event::Pause(at, seconds) => services[at].paused_until = now + seconds * SECOND,
                Event::OomKill(at) => {
                    services[at].unheard = true;
                    board.oom_kill(SERVICES[at], "memcg", now, "killed", now);
                }
                Event::Away(at) => peers[at].away = true,
                Event::Back(at) => peers[at].away = false,
                Event::Restart => {
                    board = Board::default();
                    for one in kept.values().cloned() {
                        board.restore(one, now, wall(now));
                    }
                    for peer in &mut peers {
                        peer.outbox = Outbox::default();
                    }
                }
            }
            for (name, service) in SERVICES.into_iter().zip(&services) {
                board.stands(name, service.standing(), now);
            }
            if matches!(event, Event::Restart) {
                board.settle(now);
            }
            // Time goes by in steps of whatever is due.
            for second in 0..=wait {
                let now = now + second * SECOND;
                board.advance(now);
                for peer in &mut peers {
                    peer.hear(&mut board, now);
                }
                board.advance(now);
                for (name, one) in board.take_changed(now, wall(now)) {
                    match one {
                        Some(one) => drop(kept.insert(name, one)),
                        None => drop(kept.remove(&name)),
                    }
                }
                let shown: Vec<_> = board.shown().filter(|(_, alert)| alert.shown == Shown::Firing).map(|(key, _)| key).collect();
                for (name, service) in SERVICES.into_iter().zip(&services) {
                    let paused = service.paused_until > now;
                    let fires = |alert: &str| shown.iter().any(|key| key.kind.name() == alert && &*key.service == name);
                    prop_assert_eq!(fires("DefibServiceDown"), service.down.is_some() && !paused);
                    prop_assert!(!fires("DefibCircuitOpen") || service.down.is_some() && !paused);
                    prop_assert!(!service.open || paused || fires("DefibCircuitOpen"));
                    prop_assert!(!service.unheard || paused || fires("DefibOomKill"), "lost: {:?}", service);
                }
                for peer in &peers {
                    // One that is back is told within its back-off; it forgets by itself what it was not told of.
                    if !peer.away && !matches!(peer.outbox.held_until(), Some(until) if until > now) {
                        prop_assert_eq!(peer.firing(now), shown.clone());
                        for service in &mut services {
                            service.unheard &= service.paused_until > now;
                        }
                    }
                }
            }
            now += wait * SECOND;
        }
        prop_assert_eq!(board.dropped(), 0);
    }
}
