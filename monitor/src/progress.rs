//! Which records of the critical ring are settled: what came of them is written down, and nobody has to read them again.
//!
//! Records are settled in another order than they came: a death waits for its verdict, and a mark for the death that it is
//! evidence of. Their room is given back in order, so everything from the first one that is open stays in the ring. An agent that
//! is killed leaves an [`Account`] in the store, written in one transaction with what came of the records; the next one reads
//! the ring from where its room begins, and passes over what the account says is settled.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{audit, host::process::Identity, kernel::Span};

/// A mark waits for so long for the death of its victim, which may have gigabytes to give back: 60 s.
const MARK_WAITS_NS: u64 = 60_000_000_000;
/// A crash site is followed by its death at once: 1 s.
const SITE_WAITS_NS: u64 = 1_000_000_000;
/// Of these, so many at a time; beyond, the oldest are settled.
const HELD: usize = 1024;

/// What the store has of this, and of the audit, which counts what is settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// The boot of the host in which the ring was made.
    pub(crate) boot_id: String,
    /// Names the ring in it.
    pub(crate) ring: u32,
    /// All before this position are settled.
    low: u64,
    /// And those that begin here.
    above: BTreeSet<u64>,
    /// The audit of OOM kills.
    pub(crate) audit: audit::Kept,
}

impl Account {
    /// Whether it is about this ring.
    pub(crate) fn is_of(&self, boot_id: &str, ring: u32) -> bool {
        !boot_id.is_empty() && self.boot_id == boot_id && self.ring == ring
    }

    /// Whether the record that begins there is settled.
    pub(crate) fn has(&self, begin: u64) -> bool {
        begin < self.low || self.above.contains(&begin)
    }
}

/// Evidence that waits for a death.
#[derive(Clone, Copy, Debug)]
struct Held {
    process: Identity,
    begin: u64,
    kills: bool,
    until_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Progress {
    account: Account,
    /// Begins of records that were read and are not settled.
    open: BTreeSet<u64>,
    held: VecDeque<Held>,
    /// Behind the last record that was read.
    end: u64,
}

impl Progress {
    /// Goes on with an account of this ring, or begins one.
    pub(crate) fn new(boot_id: &str, ring: u32, left: Option<Account>) -> Self {
        let begun = || Account { boot_id: boot_id.to_owned(), ring, ..Account::default() };
        let account = left.filter(|account| account.is_of(boot_id, ring)).unwrap_or_else(begun);
        Self { end: account.low, account, open: BTreeSet::new(), held: VecDeque::new() }
    }

    /// A record was read. False when it is settled, by an earlier agent.
    pub(crate) fn take(&mut self, span: Span) -> bool {
        self.end = self.end.max(span.end);
        if self.account.has(span.begin) {
            self.advance();
            return false;
        }
        self.open.insert(span.begin);
        true
    }

    /// What came of it is noted, to be written down next.
    pub(crate) fn settle(&mut self, span: Span) {
        self.close(span.begin);
    }

    /// It is an OOM mark of this process; `kills` when a kill was counted for it. Settled with [`Self::died`].
    pub(crate) fn hold_mark(&mut self, span: Span, process: Identity, kills: bool, now_ns: u64) {
        self.hold(Held { process, begin: span.begin, kills, until_ns: now_ns.saturating_add(MARK_WAITS_NS) });
    }

    /// It is where this process crashed, likewise.
    pub(crate) fn hold_site(&mut self, span: Span, process: Identity, now_ns: u64) {
        self.hold(Held { process, begin: span.begin, kills: false, until_ns: now_ns.saturating_add(SITE_WAITS_NS) });
    }

    fn hold(&mut self, held: Held) {
        self.held.push_back(held);
        if self.held.len() > HELD
            && let Some(oldest) = self.held.pop_front()
        {
            self.close(oldest.begin);
        }
    }

    /// A death is settled, and so is its evidence; `tid` is the thread that its mark named, where that names no more.
    pub(crate) fn died(&mut self, span: Option<Span>, process: Identity, tid: Option<u32>) {
        if let Some(span) = span {
            self.close(span.begin);
        }
        self.let_go(|held| {
            held.process == process
                || held.process.start_ns == 0 && (held.process.tgid == process.tgid || Some(held.process.tgid) == tid)
        });
    }

    /// Settles evidence whose death did not come.
    pub(crate) fn tick(&mut self, now_ns: u64) {
        self.let_go(|held| held.until_ns <= now_ns);
    }

    fn let_go(&mut self, goes: impl Fn(&Held) -> bool) {
        let (gone, stay) = std::mem::take(&mut self.held).into_iter().partition(goes);
        self.held = stay;
        let gone: VecDeque<Held> = gone;
        for held in gone {
            self.close(held.begin);
        }
    }

    fn close(&mut self, begin: u64) {
        if self.open.remove(&begin) {
            self.account.above.insert(begin);
        }
        self.advance();
    }

    fn advance(&mut self) {
        let low = self.open.first().copied().unwrap_or(self.end);
        if low > self.account.low {
            self.account.low = low;
            self.account.above = self.account.above.split_off(&low);
        }
    }

    /// The account as it is now. A kill whose mark is still held is counted again by whoever reads that again.
    pub(crate) fn account(&self, audit: audit::Kept) -> Account {
        let held = self.held.iter().filter(|held| held.kills).count() as u64;
        Account { audit: audit.without(held), ..self.account.clone() }
    }

    /// All before this position are settled.
    pub(crate) fn low(&self) -> u64 {
        self.account.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(number: u64) -> Span {
        Span { begin: number * 8, end: number * 8 + 8 }
    }

    fn process(tgid: u32) -> Identity {
        Identity { tgid, start_ns: 5 }
    }

    fn progress() -> Progress {
        Progress::new("boot", 3, None)
    }

    fn next(progress: &Progress) -> Progress {
        let text = serde_json::to_string(&progress.account(audit::Kept::default())).expect("JSON");
        Progress::new("boot", 3, Some(serde_json::from_str(&text).expect("an account")))
    }

    #[test]
    fn room_is_given_back_up_to_the_first_record_that_is_open() {
        let mut progress = progress();
        (0..3).for_each(|number| assert!(progress.take(span(number))));
        progress.settle(span(2));
        assert_eq!(progress.low(), 0);
        progress.settle(span(0));
        assert_eq!(progress.low(), 8);
        let mut next = next(&progress);
        assert_eq!([0, 1, 2].map(|number| next.take(span(number))), [false, true, false]);
        next.settle(span(1));
        assert_eq!(next.low(), 24);
    }

    #[test]
    fn evidence_waits_for_its_death_and_not_for_ever() {
        let mut progress = progress();
        (0..5).for_each(|number| assert!(progress.take(span(number))));
        progress.hold_mark(span(0), process(1), true, 0);
        progress.hold_site(span(1), process(2), 0);
        progress.hold_mark(span(2), Identity { tgid: 77, start_ns: 0 }, true, 0);
        progress.died(Some(span(3)), process(1), None);
        assert_eq!(progress.low(), 8);
        let kept = audit::Kept { base: Some(10), seen: 2, reported: 0 };
        assert_eq!(progress.account(kept).audit.seen, 1, "one mark is still held");
        progress.died(Some(span(4)), process(70), Some(77));
        assert_eq!(progress.low(), 8);
        progress.tick(SITE_WAITS_NS);
        assert_eq!((progress.low(), progress.account(kept).audit.seen), (40, 2));
    }

    #[test]
    fn an_account_of_another_ring_or_boot_says_nothing() {
        let mut progress = progress();
        assert!(progress.take(span(0)));
        progress.settle(span(0));
        let account = progress.account(audit::Kept::default());
        assert!(!account.is_of("boot", 4) && !account.is_of("", 3) && account.is_of("boot", 3));
        assert!(Progress::new("other", 3, Some(account)).take(span(0)));
    }

    proptest! {
        /// Killed at any moment: each record is settled once, by whichever agent, and none is passed over.
        #[test]
        fn each_record_is_settled_exactly_once(steps in prop::collection::vec((0u8..4, 0usize..6), 1..200)) {
            let (mut progress, mut kept) = (progress(), None);
            let (mut begin, mut read, mut settled) = (0u64, 0u64, Vec::new());
            let mut pending: Vec<u64> = Vec::new();
            for (step, which) in steps {
                match step {
                    // The next record of the ring.
                    0 | 1 => {
                        if progress.take(span(read)) {
                            pending.push(read);
                        }
                        read += 1;
                    }
                    // One is settled, and that is committed.
                    2 if !pending.is_empty() => {
                        let number = pending.remove(which % pending.len());
                        progress.settle(span(number));
                        settled.push(number);
                        begin = progress.low() / 8;
                        kept = Some(progress.account(audit::Kept::default()));
                    }
                    3 => {
                        progress = Progress::new("boot", 3, kept.clone());
                        // The ring's own position may be behind what is settled.
                        read = begin.saturating_sub(which as u64);
                        pending.clear();
                    }
                    _ => {}
                }
            }
            settled.sort_unstable();
            prop_assert!(settled.windows(2).all(|pair| pair[0] < pair[1]), "twice: {:?}", settled);
            prop_assert!((0..begin).all(|number| settled.contains(&number)), "given back before: {:?}", settled);
        }
    }
}
