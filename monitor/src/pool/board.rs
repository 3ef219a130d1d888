//! What load balancers are told, in memory: the steward writes, listeners and the runtime API's tasks read. It decides
//! nothing but this: a server whose name several services share is as good as the worst of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{Cause, Name, State};

/// Where a service stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Standing {
    /// Whether it gets traffic.
    pub(crate) state: State,
    /// Why.
    pub(crate) cause: Cause,
    /// Since when.
    pub(crate) since: Timestamp,
    /// Percent of its usual share.
    pub(crate) weight: u8,
}

/// What a load balancer shall do with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Whether it gets traffic.
    pub(crate) state: State,
    /// Percent of its usual share.
    pub(crate) weight: u8,
}

/// All wishes.
pub(crate) type Wishes = Arc<BTreeMap<Name, Wish>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    inner: RwLock<Inner>,
    wishes: watch::Sender<Wishes>,
    /// That a HAProxy sees something else now.
    views: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    services: HashMap<Arc<str>, Entry>,
    names: BTreeMap<Name, Server>,
    /// What each HAProxy sees, by where it listens.
    views: HashMap<Arc<str>, View>,
}

#[derive(Debug)]
struct Entry {
    name: Option<Name>,
    standing: Option<Standing>,
}

#[derive(Debug, Default)]
struct Server {
    services: BTreeSet<Arc<str>>,
    /// An agent check has asked for it, and has the present answer.
    asked: bool,
    answered: bool,
}

/// What a HAProxy sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    /// Other servers of the same backend that can serve.
    pub(crate) others: BTreeMap<Name, usize>,
    /// Servers that somebody else has taken out there, for longer than a misunderstanding lasts.
    pub(crate) held: BTreeSet<Name>,
    /// Servers whose weight is too small for a share of it.
    pub(crate) indivisible: BTreeSet<Name>,
    /// Requests in hand or waiting, of servers that drain by our wish and get nothing new there any more.
    pub(crate) connections: BTreeMap<Name, u64>,
}

impl Board {
    /// Nobody yet.
    pub(crate) fn new() -> Self {
        Self { inner: RwLock::default(), wishes: watch::channel(Wishes::default()).0, views: watch::channel(()).0 }
    }

    /// A service that is looked after; its standing is not known yet.
    pub(crate) fn add(&self, service: &Arc<str>, name: Option<&Name>) {
        let mut inner = self.write();
        if let Some(name) = name {
            inner.names.entry(name.clone()).or_default().services.insert(Arc::clone(service));
        }
        inner.services.insert(Arc::clone(service), Entry { name: name.cloned(), standing: None });
    }

    /// Forgets a service that is no longer managed.
    pub(crate) fn remove(&self, service: &str) {
        let mut inner = self.write();
        let Some(Entry { name: Some(name), .. }) = inner.services.remove(service) else { return };
        if let Some(server) = inner.names.get_mut(&name) {
            server.services.remove(service);
            if server.services.is_empty() {
                inner.names.remove(&name);
            }
        }
    }

    /// A service stands elsewhere now, or gets another share.
    pub(crate) fn stand(&self, service: &str, standing: Standing) {
        let mut inner = self.write();
        let Some(entry) = inner.services.get_mut(service) else { return };
        entry.standing = Some(standing);
        if let Some(name) = entry.name.clone()
            && let Some(server) = inner.names.get_mut(&name)
        {
            server.answered = false;
        }
        let wishes = Arc::new(inner.wishes());
        drop(inner);
        // Sent also while nobody listens: whoever comes later sees the newest.
        self.wishes.send_if_modified(|last| {
            let differs = **last != *wishes;
            *last = wishes;
            differs
        });
    }

    /// Where a service stands, or a server of that name. `None`: there is none. `Some(None)`: it is not known yet.
    pub(crate) fn find(&self, name: &str) -> Option<Option<Standing>> {
        let inner = self.read();
        match inner.services.get(name) {
            Some(entry) => Some(entry.standing.clone()),
            None => name.parse::<Name>().ok().and_then(|name| inner.names.get(&name)).map(|server| inner.worst(server)),
        }
    }

    /// What an agent check gets: always all that is needed to undo what was said before, since only the agent can. `None`:
    /// nobody knows that server, or where it stands.
    ///
    /// The words are those of HAProxy's configuration manual, section 5.2, `agent-check`.
    pub(crate) fn answer(&self, name: &str) -> Option<String> {
        let name: Name = name.parse().ok()?;
        let mut inner = self.write();
        let held = inner.views.values().any(|view| view.held.contains(&name));
        let mut standing = inner.worst(inner.names.get(&name)?)?;
        if inner.views.values().any(|view| view.indivisible.contains(&name)) {
            standing.weight = 100;
        }
        if let Some(server) = inner.names.get_mut(&name) {
            server.asked = true;
            server.answered = true;
        }
        Some(match standing.state {
            // What an operator has set there is not ours to undo.
            State::In if held => format!("up {}%\n", standing.weight),
            State::In => format!("up ready {}%\n", standing.weight),
            State::Draining => "drain\n".to_owned(),
            State::Out => format!("down #{}\n", standing.cause),
        })
    }

    /// True when no agent check waits for news.
    pub(crate) fn all_answered(&self) -> bool {
        self.read().names.values().all(|server| !server.asked || server.answered)
    }

    /// Wishes, always the newest.
    pub(crate) fn wishes(&self) -> watch::Receiver<Wishes> {
        self.wishes.subscribe()
    }

    /// What a HAProxy sees now; `None`: it cannot be asked.
    pub(crate) fn see(&self, endpoint: &Arc<str>, view: Option<View>) {
        let mut inner = self.write();
        let before = match view.clone() {
            Some(view) => inner.views.insert(Arc::clone(endpoint), view),
            None => inner.views.remove(endpoint),
        };
        drop(inner);
        if before != view {
            self.views.send_replace(());
        }
    }

    /// Tells when a HAProxy sees something else.
    pub(crate) fn views(&self) -> watch::Receiver<()> {
        self.views.subscribe()
    }

    /// How many others could take a service's traffic: as the load balancers see it, the least of them; else as far as they
    /// are looked after here. `None`: that cannot be told.
    pub(crate) fn others(&self, service: &str) -> Option<usize> {
        let inner = self.read();
        let name = inner.services.get(service)?.name.as_ref()?;
        let seen = inner.views.values().filter_map(|view| view.others.get(name)).min();
        if let Some(seen) = seen {
            return Some(*seen);
        }
        let (backend, _) = name.parts()?;
        let beside = |other: &&Name| *other != name && other.parts().is_some_and(|parts| parts.0 == backend);
        let all: Vec<_> = inner.names.keys().filter(beside).collect();
        let serves = |other: &&&Name| {
            let standing = inner.names.get(**other).and_then(|server| inner.worst(server));
            standing.is_some_and(|standing| standing.state == State::In)
        };
        (!all.is_empty()).then(|| all.iter().filter(serves).count())
    }

    /// Connections that load balancers have to a service that drains. `None`: one of them may still send it more, or none can
    /// be asked.
    pub(crate) fn connections(&self, service: &str) -> Option<u64> {
        let inner = self.read();
        let name = inner.services.get(service)?.name.as_ref()?;
        let mut all = inner.views.values().filter(|view| view.others.contains_key(name)).peekable();
        all.peek()?;
        all.map(|view| view.connections.get(name).copied()).sum()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // A panic elsewhere while it was locked leaves entries that are whole.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The standing of a server: that of its worst service; `None` while one of them is not known.
    fn worst(&self, server: &Server) -> Option<Standing> {
        let mut worst: Option<Standing> = None;
        for service in &server.services {
            let standing = self.services.get(service)?.standing.as_ref()?;
            worst = match worst {
                Some(worst) if (worst.state, 100 - worst.weight) >= (standing.state, 100 - standing.weight) => {
                    Some(worst)
                }
                _ => Some(standing.clone()),
            };
        }
        worst
    }

    fn wishes(&self) -> BTreeMap<Name, Wish> {
        let wish = |standing: Standing| Wish { state: standing.state, weight: standing.weight };
        self.names.iter().filter_map(|(name, server)| Some((name.clone(), wish(self.worst(server)?)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(state: State, weight: u8) -> Standing {
        Standing { state, cause: Cause::OomKill, since: Timestamp::UNIX_EPOCH, weight }
    }

    fn board() -> Board {
        let board = Board::new();
        for (service, name) in [("web", "be_web/web1"), ("cache", "be_web/web1"), ("beside", "be_web/web2")] {
            board.add(&service.into(), Some(&name.parse().expect("a name")));
        }
        board.add(&"alone".into(), None);
        board
    }

    #[test]
    fn a_server_is_as_good_as_its_worst_service() {
        let board = board();
        board.stand("web", standing(State::In, 100));
        assert_eq!(board.answer("be_web/web1"), None, "not known yet: no answer that could be wrong");
        board.stand("cache", standing(State::In, 50));
        assert_eq!(board.answer("be_web/web1").as_deref(), Some("up ready 50%\n"));
        board.stand("cache", standing(State::Draining, 100));
        assert_eq!(board.answer("be_web/web1").as_deref(), Some("drain\n"));
        board.stand("web", standing(State::Out, 100));
        let down = board.answer("be_web/web1").expect("known");
        assert!(down.starts_with("down #the kernel chose it") && down.ends_with('\n'), "{down}");
        for unknown in ["be_web/web9", "", "web", "be_web/web1 ", "\u{0}", "be_web/web1/x"] {
            assert_eq!(board.answer(unknown), None, "{unknown:?}");
        }
        assert_eq!(board.find("web").flatten().map(|standing| standing.state), Some(State::Out));
        assert_eq!(board.find("be_web/web1").flatten().map(|standing| standing.state), Some(State::Out));
        assert_eq!((board.find("alone"), board.find("nobody")), (Some(None), None));
    }

    #[test]
    fn whoever_wishes_gets_the_newest() {
        let board = board();
        let wishes = board.wishes();
        board.stand("beside", standing(State::In, 100));
        board.stand("beside", standing(State::Out, 100));
        let seen = wishes.borrow().clone();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen.values().all(|wish| wish.state == State::Out));
    }

    #[test]
    fn the_load_balancer_knows_best_who_else_can_serve() {
        let (board, endpoint) = (board(), Arc::from("/run/a.sock"));
        assert_eq!(board.others("web"), Some(0), "the other is not known to serve");
        board.stand("beside", standing(State::In, 100));
        assert_eq!((board.others("web"), board.others("alone")), (Some(1), None));
        let name: Name = "be_web/web1".parse().expect("a name");
        let view = View { others: [(name.clone(), 0)].into(), held: [name].into(), ..View::default() };
        board.see(&endpoint, Some(view));
        assert_eq!(board.others("web"), Some(0));
        for service in ["web", "cache"] {
            board.stand(service, standing(State::In, 100));
        }
        assert_eq!(board.answer("be_web/web1").as_deref(), Some("up 100%\n"), "an operator holds it");
        board.see(&endpoint, None);
        assert_eq!(board.others("web"), Some(1));
        assert_eq!(board.answer("be_web/web1").as_deref(), Some("up ready 100%\n"));
    }

    #[test]
    fn connections_are_known_when_every_load_balancer_that_has_the_server_has_counted_them() {
        let board = board();
        let (web, other): (Name, Name) = ("be_web/web1".parse().expect("a name"), "be_x/y".parse().expect("a name"));
        assert_eq!(board.connections("web"), None, "nobody can be asked");
        let view = |name: &Name, count: Option<u64>| View {
            others: [(name.clone(), 1)].into(),
            connections: count.map(|count| (name.clone(), count)).into_iter().collect(),
            ..View::default()
        };
        board.see(&"a".into(), Some(view(&web, Some(2))));
        board.see(&"b".into(), Some(view(&web, None)));
        board.see(&"c".into(), Some(view(&other, None)));
        assert_eq!(board.connections("web"), None, "one of them may still send it more");
        board.see(&"b".into(), Some(view(&web, Some(1))));
        assert_eq!((board.connections("web"), board.connections("alone")), (Some(3), None));
    }

    #[test]
    fn news_wait_for_whoever_asks() {
        let board = board();
        board.stand("beside", standing(State::Draining, 100));
        assert!(board.all_answered(), "nobody ever asked");
        board.answer("be_web/web2");
        board.stand("beside", standing(State::In, 100));
        assert!(!board.all_answered());
        board.answer("be_web/web2");
        assert!(board.all_answered());
    }
}
