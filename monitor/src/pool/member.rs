//! One service in a pool. Pure: no I/O, no clock. Its owner tells it what happens and does what it orders.
//!
//! ```text
//!            memory at its mark, or out within minutes, and others can serve
//!      ┌────────────────────────────────────────────▶ draining ──┐
//!      │ ◀── reasons gone for a settling time, and healthy ──────┤
//!      in                                                        │ OOM mark, fatal signal, death, failing health
//!      │ ◀── some good probes in a row, for a settling time ──┐  ▼
//!      └─────────────────────────────────────────────────────▶ out
//!                 OOM mark, fatal signal, death, failing health
//! ```
//!
//! Out comes from facts and knows no floor: a dead server serves nobody. Draining is a decision, and never takes the last
//! one that can serve. The way back is slower each time that it was taken too early: the settling time doubles with every
//! return that did not last.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Cause, State};
use crate::host::process::Identity;

/// Good probes in a row before it is in again.
const GOOD: u32 = 3;
/// Bad probes in a row before one that was healthy is out: one lost answer is no outage.
const BAD: u32 = 3;
/// Between probes of one that shall come back: 50 ms, growing by a quarter to 1 s. 100 ms while it settles.
const SOON_NS: u64 = 50_000_000;
const SOON_MAX_NS: u64 = 1_000_000_000;
const SETTLING_NS: u64 = 100_000_000;
/// Between probes of one that is in: 1 s. With [`BAD`] that finds in 3 s what nobody else has noticed.
const CALM_NS: u64 = 1_000_000_000;
/// A probe that has not come back by then will not: 10 s, longer than its own time-out.
const PROBE_LOST_NS: u64 = 10_000_000_000;
/// How long a process may outlive a certain end: 10 s. The death of a process with terabytes takes less; one that still
/// writes a core fails its probes.
const DOOM_NS: u64 = 10_000_000_000;
/// A service that nobody has found by then is not running: 2 s.
const UNSEEN_NS: u64 = 2_000_000_000;
/// A reason for draining is gone below this share of the mark, so that it does not come and go with every sample.
const RELIEF: f64 = 0.9;
/// From this share of the mark on it gets half of its traffic.
const PRESSURE: f64 = 0.95;
/// Percent of its weight under pressure.
const HALF: u8 = 50;
/// Doubling of the settling time stops here.
const MAX_DOUBLINGS: u32 = 16;

/// The rules for one service, or for many.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// Share of its memory limit at which it drains; `None`: memory does not make it drain.
    pub(crate) drain_at: Option<f64>,
    /// The agent may act; otherwise only facts count.
    pub(crate) may_drain: bool,
    /// Its health can be asked for while it runs; otherwise it is healthy as long as it lives.
    pub(crate) has_check: bool,
    /// It must be healthy for so long before it is in again, at first.
    pub(crate) settle: Duration,
    /// And never for longer than this.
    pub(crate) settle_max: Duration,
    /// A return that lasted for so long was none too early.
    pub(crate) lasting: Duration,
}

/// What a member is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Input {
    /// It was looked for, and does not run.
    Absent,
    /// Its main process lives.
    Alive(Identity),
    /// The kernel sent SIGKILL to a process for want of memory.
    Marked(Identity),
    /// A process got a fatal signal for its own fault.
    Crashing(Identity),
    /// A main process died.
    Died(Identity),
    /// Somebody else has found it healthy.
    Proven(Identity),
    /// The answer to [`Order::Probe`].
    Probed {
        /// The order that this answers; answers may come late.
        ticket: u32,
        /// What it was.
        healthy: bool,
    },
    /// Its memory was measured.
    Measured {
        /// Of its limit, 0 to 1.
        share: f64,
        /// It runs out within minutes.
        runs_out: bool,
        /// Other servers that can take its traffic, as far as that can be told.
        others: Option<usize>,
    },
    /// Who else can serve may have changed.
    Others(Option<usize>),
    /// It is about to be restarted.
    Retire {
        /// Other servers that can take its traffic, as far as that can be told.
        others: Option<usize>,
    },
    /// It is not, or was.
    Stay,
    /// The agent ends.
    AgentStops,
    /// A deadline has come.
    Tick,
}

/// What the owner of a member shall do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// It stands elsewhere now, with its full weight: tell the load balancers. From the state that was told last to
    /// another one.
    Move {
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Why.
        cause: Cause,
    },
    /// It gets another share of traffic, percent of its weight.
    Weigh(u8),
    /// Find out whether this incarnation is healthy now; one at a time.
    Probe {
        /// Comes back with the answer.
        ticket: u32,
        /// Who.
        process: Identity,
    },
    /// It should drain, and is the last that can serve.
    Keep(Cause),
}

/// What outlives the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Where it stood.
    pub(crate) state: State,
    /// Why.
    pub(crate) cause: Cause,
    /// Its main process.
    pub(crate) process: Option<Identity>,
    /// Returns in a row that did not last.
    pub(crate) flaps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Nothing is known; if nobody is found by then, it is not running.
    Unseen {
        until_ns: u64,
    },
    In,
    Draining {
        relieved_ns: Option<u64>,
    },
    /// Out, and not healthy.
    Out,
    /// Out, and healthy since then.
    Settling {
        since_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Probe {
    ticket: u32,
    lost_ns: u64,
}

/// A process whose end is certain.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Doom {
    process: Identity,
    /// OOM mark or fatal signal.
    cause: Cause,
    /// If it still lives then, its health is probed again.
    until_ns: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    policy: Arc<Policy>,
    phase: Phase,
    cause: Cause,
    /// What was told last; `None`: nothing yet.
    told: Option<State>,
    weight: u8,
    process: Option<Identity>,
    /// The one that died last: word of its life may come later than that of its death.
    gone: Option<Identity>,
    /// The main process, when its end is certain.
    doomed: Option<Doom>,
    good: u32,
    bad: u32,
    ticket: u32,
    probe: Option<Probe>,
    next_probe_ns: Option<u64>,
    pause_ns: u64,
    flaps: u32,
    was_in: bool,
    returned_ns: Option<u64>,
    /// That it is the last one was said, and is said once.
    kept: bool,
    /// It drains to be restarted.
    retires: bool,
    left: Option<Memory>,
}

impl Member {
    /// A service of which only that is known what an earlier agent left.
    pub(crate) fn new(policy: impl Into<Arc<Policy>>, left: Option<Memory>, now_ns: u64) -> Self {
        Self {
            policy: policy.into(),
            phase: Phase::Unseen { until_ns: now_ns.saturating_add(UNSEEN_NS) },
            cause: Cause::NotRunning,
            told: None,
            weight: 100,
            process: None,
            gone: None,
            doomed: None,
            good: 0,
            bad: 0,
            ticket: 0,
            probe: None,
            next_probe_ns: None,
            pause_ns: SOON_NS,
            flaps: left.as_ref().map_or(0, |left| left.flaps),
            was_in: left.is_some(),
            returned_ns: None,
            kept: false,
            retires: false,
            left,
        }
    }

    /// What the next agent must know.
    pub(crate) fn memory(&self) -> Option<Memory> {
        Some(Memory { state: self.told?, cause: self.cause, process: self.process, flaps: self.flaps })
    }

    /// The main process that is believed to live.
    pub(crate) fn process(&self) -> Option<Identity> {
        self.process
    }

    /// When a [`Input::Tick`] is due, CLOCK_BOOTTIME nanoseconds.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let unseen = match self.phase {
            Phase::Unseen { until_ns } => Some(until_ns),
            _ => None,
        };
        let doomed = self.doomed.map(|doom| doom.until_ns);
        let probe = self.probe.map_or(self.next_probe_ns, |probe| Some(probe.lost_ns));
        [unseen, doomed, probe].into_iter().flatten().min()
    }

    /// Takes an input, and returns what shall be done.
    pub(crate) fn step(&mut self, input: Input, now_ns: u64) -> Vec<Order> {
        let mut orders = Vec::new();
        match input {
            Input::Absent => self.absent(),
            Input::Alive(process) => self.alive(process, now_ns),
            Input::Marked(process) => self.doom(process, Cause::OomKill, now_ns),
            Input::Crashing(process) => self.doom(process, Cause::Crashing, now_ns),
            Input::Died(process) => self.died(process),
            Input::Proven(process) => {
                if self.process.is_some_and(|own| own.matches(process)) {
                    self.good(now_ns);
                }
            }
            Input::Probed { ticket, healthy } => self.probed(ticket, healthy, now_ns),
            Input::Measured { share, runs_out, others } => self.measured(share, runs_out, others, now_ns, &mut orders),
            Input::Others(others) => self.look_around(others, &mut orders),
            Input::Retire { others } => self.retire(others, &mut orders),
            Input::Stay => self.stay(now_ns),
            Input::AgentStops => self.stops(&mut orders),
            Input::Tick => self.tick(now_ns),
        }
        self.tell(now_ns, &mut orders);
        self.ask(now_ns, &mut orders);
        orders
    }

    fn absent(&mut self) {
        if let Phase::Unseen { .. } = self.phase {
            let known = self.left.take().filter(|left| left.state == State::Out);
            self.go(Phase::Out, known.map_or(Cause::NotRunning, |left| left.cause));
        }
    }

    fn alive(&mut self, process: Identity, now_ns: u64) {
        let is_same = |other: Option<Identity>| other.is_some_and(|other| other.matches(process));
        if is_same(self.process) || is_same(self.gone) || self.is_doomed(process) {
            return;
        }
        let before = self.process.replace(process);
        self.retires = false;
        self.doomed = None;
        self.good = 0;
        self.bad = 0;
        self.probe = None;
        self.pause_ns = SOON_NS;
        self.next_probe_ns = Some(now_ns);
        match (self.phase, self.left.take()) {
            // What an earlier agent took out comes back by proof only, and so does what died while none was there. What it
            // drained still drains, until a measurement says that it need not.
            (Phase::Unseen { .. }, Some(left)) => {
                let same = left.process.is_some_and(|own| own.matches(process));
                match left.state {
                    State::In if same => self.go(Phase::In, left.cause),
                    State::Draining if same && self.policy.may_drain => {
                        self.go(Phase::Draining { relieved_ns: None }, left.cause);
                    }
                    State::Draining if same => self.go(Phase::In, Cause::FoundRunning),
                    State::Out => self.go(Phase::Out, left.cause),
                    State::In | State::Draining => self.go(Phase::Out, Cause::Died),
                }
            }
            // The load balancers know better than we do; the first probes will tell.
            (Phase::Unseen { .. }, None) => self.go(Phase::In, Cause::FoundRunning),
            (Phase::In | Phase::Draining { .. }, _) if before.is_some() => self.go(Phase::Out, Cause::Replaced),
            (Phase::Settling { .. }, _) => self.phase = Phase::Out,
            _ => {}
        }
    }

    fn doom(&mut self, process: Identity, cause: Cause, now_ns: u64) {
        if self.process.is_some_and(|own| own.matches(process)) {
            self.doomed = Some(Doom { process, cause, until_ns: now_ns.saturating_add(DOOM_NS) });
            self.fall(cause);
        }
    }

    fn died(&mut self, process: Identity) {
        // Word of an older one's death may come after that of the next one's life.
        if self.process.is_some_and(|own| !own.matches(process)) {
            return;
        }
        let doom = self.doomed.filter(|doom| doom.process.matches(process));
        let cause = if std::mem::take(&mut self.retires) { Cause::PlannedRestart } else { Cause::Died };
        self.gone = Some(process);
        self.process = None;
        self.left = None;
        self.fall(doom.map_or(cause, |doom| doom.cause));
    }

    fn is_doomed(&self, process: Identity) -> bool {
        self.doomed.is_some_and(|doom| doom.process.matches(process))
    }

    /// Out, by a fact.
    fn fall(&mut self, cause: Cause) {
        self.good = 0;
        self.probe = None;
        self.next_probe_ns = None;
        self.pause_ns = SOON_NS;
        match self.phase {
            Phase::Out if self.told == Some(State::Out) => {}
            _ => self.go(Phase::Out, cause),
        }
    }

    fn probed(&mut self, ticket: u32, healthy: bool, now_ns: u64) {
        if self.probe.is_none_or(|probe| probe.ticket != ticket) {
            return;
        }
        self.probe = None;
        if healthy { self.good(now_ns) } else { self.bad(now_ns) }
    }

    fn good(&mut self, now_ns: u64) {
        let Some(process) = self.process else { return };
        if self.is_doomed(process) {
            return;
        }
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        match self.phase {
            Phase::Out => {
                self.phase = Phase::Settling { since_ns: now_ns };
                self.good = 1;
            }
            Phase::Settling { since_ns }
                if self.good >= GOOD && now_ns >= since_ns.saturating_add(self.settle_ns()) =>
            {
                self.go(Phase::In, Cause::Healthy);
            }
            Phase::Draining { relieved_ns: Some(since_ns) } if now_ns >= since_ns.saturating_add(self.settle_ns()) => {
                self.go(Phase::In, Cause::Healthy);
            }
            _ => {}
        }
        self.pause_ns = SOON_NS;
        let pause_ns = match self.phase {
            Phase::Settling { .. } | Phase::Draining { .. } => SETTLING_NS,
            _ => CALM_NS,
        };
        self.next_probe_ns = Some(now_ns.saturating_add(pause_ns));
    }

    fn bad(&mut self, now_ns: u64) {
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        match self.phase {
            Phase::Settling { .. } => self.phase = Phase::Out,
            Phase::In | Phase::Draining { .. } if self.bad >= BAD => self.go(Phase::Out, Cause::Unhealthy),
            _ => {}
        }
        let calm = matches!(self.phase, Phase::In | Phase::Draining { .. });
        self.next_probe_ns = Some(now_ns.saturating_add(if calm { CALM_NS } else { self.pause_ns }));
        self.pause_ns = (self.pause_ns + self.pause_ns / 4).min(SOON_MAX_NS);
    }

    fn measured(&mut self, share: f64, runs_out: bool, others: Option<usize>, now_ns: u64, orders: &mut Vec<Order>) {
        let mark = self.policy.drain_at.unwrap_or(f64::INFINITY);
        let cause = if share >= mark { Cause::Memory } else { Cause::Forecast };
        let presses = share >= mark || runs_out;
        let relieved = share < mark * RELIEF && !runs_out && !self.retires;
        if !self.policy.may_drain {
            return;
        }
        match self.phase {
            Phase::In if presses && others == Some(0) => {
                let news = (!std::mem::replace(&mut self.kept, true)).then_some(Order::Keep(cause));
                orders.extend(news);
            }
            Phase::In if presses => self.go(Phase::Draining { relieved_ns: None }, cause),
            Phase::Draining { relieved_ns: None } if relieved => {
                self.phase = Phase::Draining { relieved_ns: Some(now_ns) };
                self.next_probe_ns = Some(now_ns);
            }
            Phase::Draining { relieved_ns: Some(_) } if !relieved => {
                self.phase = Phase::Draining { relieved_ns: None };
            }
            _ => {}
        }
        if relieved {
            self.kept = false;
        }
        let weight = match self.phase {
            Phase::In if share >= mark * PRESSURE || presses => HALF,
            // Between the two it keeps what it has.
            Phase::In if !relieved => self.weight,
            _ => 100,
        };
        if self.weight != weight {
            self.weight = weight;
            orders.push(Order::Weigh(weight));
        }
    }

    fn retire(&mut self, others: Option<usize>, orders: &mut Vec<Order>) {
        if !self.policy.may_drain {
            return;
        }
        match self.phase {
            Phase::In if others == Some(0) => orders.push(Order::Keep(Cause::PlannedRestart)),
            Phase::In => {
                self.go(Phase::Draining { relieved_ns: None }, Cause::PlannedRestart);
                self.retires = true;
            }
            Phase::Draining { .. } => {
                self.phase = Phase::Draining { relieved_ns: None };
                self.retires = true;
            }
            Phase::Unseen { .. } | Phase::Out | Phase::Settling { .. } => {}
        }
    }

    /// It comes back by the usual proof; other reasons for draining hold it, once its memory is measured again.
    fn stay(&mut self, now_ns: u64) {
        if std::mem::take(&mut self.retires)
            && let Phase::Draining { relieved_ns: None } = self.phase
        {
            self.phase = Phase::Draining { relieved_ns: Some(now_ns) };
            self.next_probe_ns = Some(now_ns);
        }
    }

    /// Whoever drains while nobody else is left serves again: it may have been decided on what was seen a moment too early,
    /// and others may die meanwhile.
    fn look_around(&mut self, others: Option<usize>, orders: &mut Vec<Order>) {
        if let Phase::Draining { .. } = self.phase
            && others == Some(0)
            && self.bad == 0
        {
            orders.push(Order::Keep(self.cause));
            self.go(Phase::In, Cause::LastOne);
            self.kept = true;
        }
    }

    /// What was only a decision is taken back; a fact stays one.
    fn stops(&mut self, orders: &mut Vec<Order>) {
        if let Phase::Draining { .. } = self.phase
            && self.bad == 0
        {
            self.go(Phase::In, Cause::AgentStops);
        }
        if self.weight != 100 {
            self.weight = 100;
            orders.push(Order::Weigh(100));
        }
    }

    fn tick(&mut self, now_ns: u64) {
        if let Phase::Unseen { until_ns } = self.phase
            && until_ns <= now_ns
        {
            self.absent();
        }
        if self.doomed.is_some_and(|doom| doom.until_ns <= now_ns) {
            self.doomed = None;
            self.next_probe_ns = Some(now_ns);
        }
        if self.probe.is_some_and(|probe| probe.lost_ns <= now_ns) {
            self.probe = None;
            self.bad(now_ns);
        }
    }

    fn go(&mut self, phase: Phase, cause: Cause) {
        self.phase = phase;
        self.cause = cause;
        self.weight = 100;
        self.kept = false;
        self.retires = false;
    }

    fn state(&self) -> Option<State> {
        match self.phase {
            Phase::Unseen { .. } => None,
            Phase::In => Some(State::In),
            Phase::Draining { .. } => Some(State::Draining),
            Phase::Out | Phase::Settling { .. } => Some(State::Out),
        }
    }

    /// Orders a move when it stands elsewhere than was told.
    fn tell(&mut self, now_ns: u64, orders: &mut Vec<Order>) {
        let Some(to) = self.state() else { return };
        let from = self.told.replace(to);
        if from == Some(to) {
            return;
        }
        if to == State::In {
            // The first time is no return.
            let was_in = std::mem::replace(&mut self.was_in, true);
            self.returned_ns = (was_in && self.cause == Cause::Healthy).then_some(now_ns);
        } else if from == Some(State::In) {
            let lasting = nanoseconds(self.policy.lasting);
            let early = self.returned_ns.is_some_and(|at_ns| now_ns < at_ns.saturating_add(lasting));
            self.flaps = if early { self.flaps.saturating_add(1) } else { 0 };
        }
        // Nothing was told before: whatever it is, it begins.
        let from = from.unwrap_or(if to == State::In { State::Out } else { State::In });
        orders.push(Order::Move { from, to, cause: self.cause });
    }

    /// Orders the next probe when it is due and none is under way.
    fn ask(&mut self, now_ns: u64, orders: &mut Vec<Order>) {
        let calm = matches!(self.phase, Phase::In | Phase::Draining { relieved_ns: None });
        let Some(process) = self.process.filter(|&process| !self.is_doomed(process)) else {
            self.next_probe_ns = None;
            return;
        };
        if calm && !self.policy.has_check {
            self.next_probe_ns = None;
            return;
        }
        let due_ns = *self.next_probe_ns.get_or_insert(now_ns);
        if self.probe.is_none() && due_ns <= now_ns {
            self.ticket = self.ticket.wrapping_add(1);
            self.probe = Some(Probe { ticket: self.ticket, lost_ns: now_ns.saturating_add(PROBE_LOST_NS) });
            orders.push(Order::Probe { ticket: self.ticket, process });
        }
    }

    fn settle_ns(&self) -> u64 {
        let time = self.policy.settle.saturating_mul(1 << self.flaps.min(MAX_DOUBLINGS));
        nanoseconds(time.min(self.policy.settle_max))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
