use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(30);
const SECOND: u64 = 1_000_000_000;

/// What etcd does with leases, keys and transactions; time is the true one.
#[derive(Default)]
struct Etcd {
    last: Lease,
    leases: BTreeMap<Lease, u64>,
    slots: BTreeMap<u32, Lease>,
}

impl Etcd {
    fn apply(&mut self, ask: Ask, now: u64) -> Answer {
        self.leases.retain(|_, until| *until > now);
        let leases = &self.leases;
        self.slots.retain(|_, lease| leases.contains_key(lease));
        match ask {
            Ask::Look => Answer::Slots(self.seen(1)),
            Ask::Grant => {
                self.last += 1;
                self.leases.insert(self.last, now + nanos(TTL));
                Answer::Lease { lease: self.last, ttl: TTL }
            }
            Ask::Take { slot, .. } if self.slots.contains_key(&slot) => Answer::Slots(self.seen(usize::MAX)),
            Ask::Take { lease, .. } if !self.leases.contains_key(&lease) => Answer::Gone,
            Ask::Take { slot, lease } => {
                self.slots.insert(slot, lease);
                Answer::Taken
            }
            Ask::Renew { lease } => match self.leases.get_mut(&lease) {
                Some(until) => {
                    *until = now + nanos(TTL);
                    Answer::Lease { lease, ttl: TTL }
                }
                None => Answer::Gone,
            },
        }
    }

    fn seen(&self, most: usize) -> Seen {
        let slot = |(&index, &lease): (&u32, &Lease)| Slot { index: Some(index), lease, holder: None };
        Seen { taken: self.slots.len(), slots: self.slots.iter().take(most).map(slot).collect() }
    }
}

/// What may happen to an agent.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// It goes on: asks, has its question reach etcd, or gets its answer.
    Go,
    /// Its question is lost, or the answer to it, and it knows that.
    Lose { reached: bool },
    /// Its question is sent through two members; the first one's answer is lost.
    Twice,
    /// It is told that its question failed, which reaches etcd later.
    Late,
    /// A late question of anybody reaches etcd.
    Arrive,
    /// It is killed; the next one knows nothing.
    Crash,
    /// It gives back what it has.
    Release,
}

enum Flight {
    None,
    Out(Ask),
    Back(Answer),
}

struct Agent {
    claim: Claim,
    flight: Flight,
    /// Its clock is this much fast, in parts of a thousand: far more than the kernel's clocks are.
    fast: i64,
}

impl Agent {
    fn clock(&self, now: u64) -> u64 {
        (now as i64 + now as i64 * self.fast / 1000) as u64
    }
}

struct World {
    limit: u32,
    now: u64,
    etcd: Etcd,
    agents: Vec<Agent>,
    late: Vec<Ask>,
    claims: u64,
}

impl World {
    fn new(limit: u32, agents: usize) -> Self {
        let agent = |index: usize| Agent {
            claim: Claim::new(limit, index as u64),
            flight: Flight::None,
            fast: [-20, 0, 20][index % 3],
        };
        let agents = (0..agents).map(agent).collect();
        Self { limit, now: 1000 * SECOND, etcd: Etcd::default(), agents, late: Vec::new(), claims: 0 }
    }

    fn step(&mut self, index: usize, act: Act, wait_ns: u64) {
        self.now += wait_ns;
        if matches!(act, Act::Arrive) {
            if let Some(ask) = self.late.pop() {
                self.etcd.apply(ask, self.now);
            }
            return;
        }
        let agent = &mut self.agents[index];
        let local = agent.clock(self.now);
        let failed = || Answer::Failed("lost".to_owned());
        if let Act::Crash | Act::Release = act {
            if let (Act::Release, Some(lease)) = (act, agent.claim.lease()) {
                self.etcd.leases.remove(&lease);
            }
            self.claims += 1;
            (agent.claim, agent.flight) = (Claim::new(self.limit, self.claims), Flight::None);
            return;
        }
        agent.flight = match std::mem::replace(&mut agent.flight, Flight::None) {
            Flight::None => match agent.claim.next(local) {
                Next::Ask(ask) => Flight::Out(ask),
                Next::Held { .. } => Flight::None,
                Next::Over(_) => {
                    self.claims += 1;
                    agent.claim = Claim::new(self.limit, self.claims);
                    Flight::None
                }
            },
            Flight::Out(ask) => match act {
                Act::Lose { reached } => {
                    if reached {
                        self.etcd.apply(ask, self.now);
                    }
                    Flight::Back(failed())
                }
                Act::Late => {
                    self.late.push(ask);
                    Flight::Back(failed())
                }
                Act::Twice => {
                    self.etcd.apply(ask, self.now);
                    Flight::Back(self.etcd.apply(ask, self.now))
                }
                _ => Flight::Back(self.etcd.apply(ask, self.now)),
            },
            Flight::Back(answer) => {
                agent.claim.answered(answer, local);
                Flight::None
            }
        };
    }

    /// How many believe that they hold a slot: now, and if they had not looked at the clock.
    fn believers(&self) -> (usize, usize) {
        let holds = |agent: &&Agent| agent.claim.holds().is_some();
        let valid =
            |agent: &&Agent| agent.claim.holds().is_some_and(|held| agent.clock(self.now) < held.valid_until_ns);
        (self.agents.iter().filter(valid).count(), self.agents.iter().filter(holds).count())
    }

    /// Nobody believes in a slot that etcd has given to somebody else.
    fn is_sound(&mut self) -> bool {
        self.etcd.apply(Ask::Look, self.now);
        let own = |agent: &Agent| match agent.claim.holds() {
            Some(held) if agent.clock(self.now) < held.valid_until_ns => {
                self.etcd.slots.get(&held.slot) == Some(&held.lease)
            }
            _ => true,
        };
        self.believers().0 <= self.limit as usize && self.agents.iter().all(own)
    }
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => Just(Act::Go),
        1 => any::<bool>().prop_map(|reached| Act::Lose { reached }),
        1 => Just(Act::Twice),
        1 => Just(Act::Late),
        1 => Just(Act::Arrive),
        1 => Just(Act::Crash),
        1 => Just(Act::Release),
    ]
}

/// Mostly no time at all, sometimes as long as a suspend.
fn waits() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0), 3 => 0..2 * SECOND, 1 => 0..40 * SECOND]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn never_do_more_believe_to_hold_a_slot_than_there_are(
        limit in 1..4u32,
        steps in prop::collection::vec((0..5usize, acts(), waits()), 1..400),
    ) {
        let mut world = World::new(limit, 5);
        for (agent, act, wait) in steps {
            world.step(agent, act, wait);
            prop_assert!(world.is_sound(), "{:?} of {limit} believe", world.believers());
        }
    }
}

#[test]
fn the_interleavings_are_such_that_without_the_clock_there_would_be_two() {
    let mut random = fastrand::Rng::with_seed(6);
    let (mut without_clock, mut held) = (0, 0);
    for _ in 0..600 {
        let mut world = World::new(1, 4);
        for _ in 0..400 {
            let wait = if random.u8(..8) == 0 { random.u64(..40 * SECOND) } else { 0 };
            world.step(random.usize(..4), Act::Go, wait);
            assert!(world.is_sound());
            let (valid, naive) = world.believers();
            held += usize::from(valid == 1);
            without_clock += usize::from(naive > 1);
        }
    }
    assert!(held > 3000, "slots are held: {held}");
    assert!(without_clock > 30, "two would have believed it: {without_clock}");
}

/// Goes on until it has a slot.
fn hold(etcd: &mut Etcd, limit: u32, now: u64) -> Claim {
    let mut claim = Claim::new(limit, 0);
    loop {
        match claim.next(now) {
            Next::Ask(ask) => {
                let answer = etcd.apply(ask, now);
                claim.answered(answer, now);
            }
            Next::Held { .. } => return claim,
            Next::Over(end) => panic!("{end:?}"),
        }
    }
}

#[test]
fn a_slot_is_renewed_at_a_third_of_its_ttl_and_over_a_tenth_before_its_end() {
    let mut etcd = Etcd::default();
    let mut claim = hold(&mut etcd, 1, 0);
    assert_eq!(claim.holds(), Some(Held { slot: 0, lease: 1, valid_until_ns: 27 * SECOND }));
    assert_eq!(claim.next(0), Next::Held { until_ns: 10 * SECOND });
    let Next::Ask(renew @ Ask::Renew { .. }) = claim.next(10 * SECOND) else { panic!("it is time") };
    let answer = etcd.apply(renew, 11 * SECOND);
    claim.answered(answer, 12 * SECOND);
    assert_eq!(claim.holds().map(|held| held.valid_until_ns), Some(37 * SECOND), "counted from when it was sent");
    // Nobody answers any more.
    let mut tries = 0;
    let mut now = 20 * SECOND;
    loop {
        match claim.next(now) {
            Next::Ask(_) => {
                tries += 1;
                claim.answered(Answer::Failed("away".to_owned()), now);
            }
            Next::Held { until_ns } => now = until_ns,
            Next::Over(end) => {
                assert!(matches!(end, End::Lost(why) if why.contains("in time")));
                break;
            }
        }
    }
    assert_eq!((now, claim.holds()), (37 * SECOND, None));
    assert_eq!(tries, 12, "each twentieth of a TTL");
}

#[test]
fn an_answer_that_comes_too_late_brings_nothing_back() {
    let mut etcd = Etcd::default();
    let mut claim = hold(&mut etcd, 1, 0);
    let Next::Ask(renew) = claim.next(10 * SECOND) else { panic!("it is time") };
    let answer = etcd.apply(renew, 10 * SECOND);
    // The process was stopped between the question and its answer.
    claim.answered(answer, 28 * SECOND);
    assert!(matches!(claim.next(28 * SECOND), Next::Over(End::Lost(_))));
}

#[test]
fn it_is_refused_when_all_slots_are_taken_also_by_those_who_know_of_more() {
    let mut etcd = Etcd::default();
    let (one, two) = (hold(&mut etcd, 2, 0), hold(&mut etcd, 2, 0));
    assert_eq!((one.holds().map(|held| held.slot), two.holds().map(|held| held.slot)), (Some(0), Some(1)));
    etcd.leases.remove(&one.lease().expect("granted"));
    let mut late = Claim::new(1, 0);
    let Next::Ask(look) = late.next(0) else { panic!("it looks") };
    let answer = etcd.apply(look, 0);
    late.answered(answer, 0);
    assert!(matches!(late.next(0), Next::Over(End::Full(seen)) if seen.taken == 1), "slot 0 is free, and 1 is not");
    assert_eq!(late.lease(), None, "nothing to give back");
}

#[test]
fn a_slot_whose_answer_was_lost_is_known_by_its_lease() {
    let mut etcd = Etcd::default();
    let mut claim = Claim::new(3, 1);
    for _ in 0..2 {
        let Next::Ask(ask) = claim.next(0) else { panic!("it asks") };
        let answer = etcd.apply(ask, 0);
        claim.answered(answer, 0);
    }
    let Next::Ask(take) = claim.next(0) else { panic!("it takes") };
    etcd.apply(take, 0);
    let answer = etcd.apply(take, 0);
    assert!(matches!(answer, Answer::Slots(_)));
    claim.answered(answer, 0);
    assert_eq!(claim.holds().map(|held| held.slot), Some(1));
}

#[test]
fn who_is_too_slow_in_taking_does_not_begin() {
    let mut etcd = Etcd::default();
    let mut claim = Claim::new(1, 0);
    for now in [0, 0] {
        let Next::Ask(ask) = claim.next(now) else { panic!("it asks") };
        let answer = etcd.apply(ask, now);
        claim.answered(answer, now);
    }
    let Next::Ask(take) = claim.next(SECOND) else { panic!("it takes") };
    let answer = etcd.apply(take, SECOND);
    claim.answered(answer, 27 * SECOND);
    assert!(matches!(claim.next(27 * SECOND), Next::Over(End::Lost(_))));
}
