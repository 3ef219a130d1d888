//! Limits how many questions go to the journal, systemd, container engines, and the process that reads symbols. Pure,
//! time is an argument.
//!
//! A service decides how many of its processes fail. So each kind of question has its own bounded queue, each service
//! has one question of a kind under way at a time, and a service that asks too often is refused. Refusals are counted
//! by kind and appear in the evidence. A main process has its own share, which its workers cannot use up.

use std::sync::Arc;

use crate::recent::Recent;

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The file in which the agent itself keeps a service's output.
    Output,
    /// systemd's journal; each question starts a program.
    Journal,
    /// systemd.
    Systemd,
    /// A container's engine.
    Engine,
    /// The process that reads symbols.
    Symbols,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 5] = [Self::Output, Self::Journal, Self::Systemd, Self::Engine, Self::Symbols];

    /// The metrics' label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Journal => "journal",
            Self::Systemd => "systemd",
            Self::Engine => "engine",
            Self::Symbols => "symbols",
        }
    }

    /// Questions asked at a time: a journal reader may read gigabytes, a reader of symbols takes a processor for
    /// seconds; systemd and engines take connections.
    pub(crate) fn at_once(self) -> usize {
        match self {
            Self::Symbols => 1,
            Self::Output | Self::Journal => 2,
            Self::Systemd | Self::Engine => 4,
        }
    }

    /// Questions that may wait for their turn: verdicts wait 500 ms, so a longer queue would answer too late.
    fn waiting(self) -> usize {
        match self {
            Self::Symbols | Self::Journal => 16,
            Self::Output | Self::Engine => 64,
            Self::Systemd => 256,
        }
    }
}

/// Questions that one asker may ask at once.
const BURST: u32 = 5;
/// Time after which an asker may ask once more, nanoseconds: 10 s.
const REFILL_NS: u64 = 10_000_000_000;
/// Askers that are remembered.
const REMEMBERED: usize = 4096;

/// Who asks: the key of a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asker {
    /// Who is asked.
    pub(crate) kind: Kind,
    /// The service that it is about.
    pub(crate) service: Arc<str>,
    /// True when it is about the service's main process.
    pub(crate) is_main: bool,
}

/// What one asker may still ask.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Questions that it may ask at once.
    left: u32,
    /// When `left` was last refilled, nanoseconds.
    counted_ns: u64,
    /// True while one of its questions is under way.
    is_asking: bool,
}

/// Questions under way, and the shares of recent askers.
#[derive(Debug)]
pub(crate) struct Questions {
    shares: Recent<Asker, Share>,
    /// Questions let through and not answered, by kind.
    under_way: [usize; Kind::ALL.len()],
    dropped: [u64; Kind::ALL.len()],
}

impl Default for Questions {
    fn default() -> Self {
        Self { shares: Recent::new(REMEMBERED), under_way: Default::default(), dropped: Default::default() }
    }
}

impl Questions {
    /// True when the question may be asked; then [`Self::answered`] must follow. Otherwise it is counted as dropped.
    pub(crate) fn admit(&mut self, asker: &Asker, now_ns: u64) -> bool {
        let kind = asker.kind as usize;
        let mut share =
            self.shares.remove(asker).unwrap_or(Share { left: BURST, counted_ns: now_ns, is_asking: false });
        let grown = now_ns.saturating_sub(share.counted_ns) / REFILL_NS;
        share.left = BURST.min(share.left.saturating_add(u32::try_from(grown).unwrap_or(BURST)));
        share.counted_ns = if share.left == BURST { now_ns } else { share.counted_ns + grown * REFILL_NS };
        let has_room = self.under_way[kind] < asker.kind.at_once() + asker.kind.waiting();
        let is_admitted = share.left > 0 && !share.is_asking && has_room;
        if is_admitted {
            share.left -= 1;
            share.is_asking = true;
            self.under_way[kind] += 1;
        } else {
            self.drop(asker.kind);
        }
        self.shares.insert(asker.clone(), share);
        is_admitted
    }

    /// A question is over, with or without an answer.
    pub(crate) fn answered(&mut self, asker: &Asker) {
        let under_way = &mut self.under_way[asker.kind as usize];
        *under_way = under_way.saturating_sub(1);
        if let Some(mut share) = self.shares.remove(asker) {
            share.is_asking = false;
            self.shares.insert(asker.clone(), share);
        }
    }

    /// Counts a question that was dropped elsewhere.
    pub(crate) fn drop(&mut self, kind: Kind) {
        self.dropped[kind as usize] += 1;
    }

    /// Questions that were dropped since the start.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.dropped[kind as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn asker(kind: Kind, service: &str, is_main: bool) -> Asker {
        Asker { kind, service: service.into(), is_main }
    }

    fn dropped(questions: &Questions, kind: Kind) -> u64 {
        questions.dropped().find(|(of, _)| *of == kind).map_or(0, |(_, count)| count)
    }

    #[test]
    fn one_question_of_a_service_is_under_way_and_no_more_than_its_share_is_asked() {
        let mut questions = Questions::default();
        let (workers, main) = (asker(Kind::Journal, "web", false), asker(Kind::Journal, "web", true));
        assert!(questions.admit(&workers, 0));
        assert!(!questions.admit(&workers, 0), "one is under way");
        let mut admitted = 1;
        for _ in 0..400 {
            questions.answered(&workers);
            admitted += u32::from(questions.admit(&workers, SECOND));
        }
        assert_eq!(admitted, BURST, "whatever comes within a second");
        assert_eq!(dropped(&questions, Kind::Journal), 401 - u64::from(BURST) + 1);
        assert!(questions.admit(&main, SECOND), "its main process has a share of its own");
        questions.answered(&workers);
        assert!(questions.admit(&workers, 11 * SECOND), "one more after a while");
        questions.answered(&workers);
        assert!(!questions.admit(&workers, 12 * SECOND));
        assert!(questions.admit(&asker(Kind::Journal, "db", false), 12 * SECOND), "another service has its own");
        assert!(questions.admit(&workers, 1000 * SECOND));
    }

    #[test]
    fn a_queue_is_bounded_over_all_services_and_each_kind_has_its_own() {
        let mut questions = Questions::default();
        let all: Vec<_> = (0..10_000).map(|number| asker(Kind::Symbols, &format!("s{number}"), true)).collect();
        let admitted: Vec<_> = all.iter().filter(|asker| questions.admit(asker, 0)).collect();
        let room = Kind::Symbols.at_once() + Kind::Symbols.waiting();
        assert_eq!((admitted.len(), dropped(&questions, Kind::Symbols)), (room, 10_000 - room as u64));
        assert!(questions.admit(&asker(Kind::Journal, "web", true), 0));
        for asker in admitted {
            questions.answered(asker);
        }
        assert!(questions.admit(&all[9_999], 0), "there is room again");
        assert_eq!(dropped(&questions, Kind::Journal), 0);
    }
}
