//! What a HAProxy must be told so that its servers are as we wish, and how all of it is undone. Pure.
//!
//! A server's administrative state (ready, drain, maint) is one word that the runtime API, agent checks and operators all
//! set. So before we change it we note what it was, and that is what it gets back: a server that an operator had in
//! maintenance stays there. What was noted is kept over restarts of the agent; of HAProxy's own restart nothing is left
//! there, and the next look shows that it must be told again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{Name, State, Wish, Wishes, board::View};

/// Bits of `srv_admin_state` (HAProxy management guide, 9.3, `show servers state`): forced into maintenance, and to drain.
const FORCED_MAINT: u32 = 0x01;
const FORCED_DRAIN: u32 = 0x08;
/// Values of `srv_op_state`: warming up, and fully up.
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
/// A bit of `srv_check_state` and `srv_agent_state`: the check is enabled.
const ENABLED: u32 = 0x04;
/// A line of commands; HAProxy takes as many bytes as its buffer has (`tune.bufsize`, 16384), less a reserve.
const LINE_MAX: usize = 8192;
/// What somebody else has set counts as theirs when it has stood for so long, and our last change is as long ago: 10 s,
/// several times what an answer to an agent check can be under way.
const THEIRS_NS: u64 = 10_000_000_000;

/// What an operator, an agent check or we have set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Admin {
    /// Normal.
    Ready,
    /// Nothing new.
    Drain,
    /// Nothing, and no health checks.
    Maint,
}

impl Admin {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// What we have changed, by server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claims(BTreeMap<String, Claim>);

impl Claims {
    /// True when there is nothing to undo.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The servers.
    pub(crate) fn names(&self) -> impl Iterator<Item = Name> {
        self.0.keys().filter_map(|name| name.parse().ok())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Claim {
    /// What it was.
    before: Admin,
    /// Its weight was lowered.
    lighter: bool,
}

/// A server as HAProxy shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    admin: Admin,
    serves: bool,
    weight: u32,
    /// As configured.
    full_weight: u32,
    health_check: bool,
    agent_check: bool,
}

impl Seen {
    /// True when that share of its weight is less than one, which would be to drain it: HAProxy keeps whole weights, and
    /// one without a weight in its configuration has 1.
    fn is_indivisible(&self, percent: u8) -> bool {
        self.full_weight * u32::from(percent) < 100
    }

    fn weighs(&self, percent: u8) -> bool {
        self.is_indivisible(percent) || self.weight == self.full_weight * u32::from(percent) / 100
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    claims: Claims,
    seen: HashMap<Name, Seen>,
    /// When what is wished for a server last changed.
    changed: HashMap<Name, (Wish, u64)>,
    /// Since when it is not ready, without our doing.
    theirs: HashMap<Name, u64>,
}

impl Desk {
    /// Goes on with what an earlier agent has changed.
    pub(crate) fn new(claims: Claims) -> Self {
        Self { claims, ..Self::default() }
    }

    /// What we have changed.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The lines to send, one connection for each: changes first, then a look at every backend. `leaving`: the agent ends,
    /// and hands what is dead over to HAProxy's own health checks.
    pub(crate) fn lines(&mut self, wishes: &Wishes, leaving: bool, now_ns: u64) -> Vec<String> {
        let mut commands = Vec::new();
        let mut backends = BTreeSet::new();
        for (name, &wish) in wishes.iter() {
            let Some((backend, _)) = name.parts() else { continue };
            backends.insert(backend.to_owned());
            if self.changed.get(name).is_none_or(|(last, _)| *last != wish) {
                self.changed.insert(name.clone(), (wish, now_ns));
            }
            self.change(name, wish, leaving, now_ns, &mut commands);
        }
        commands.extend(backends.iter().map(|backend| format!("show servers state {backend}")));
        if wishes.values().any(|wish| wish.state == State::Draining) {
            // Type 4: servers (management guide, 9.3, `show stat`).
            commands.extend(backends.iter().map(|backend| format!("show stat {backend} 4 -1")));
        }
        join(commands)
    }

    fn change(&mut self, name: &Name, wish: Wish, leaving: bool, now_ns: u64, commands: &mut Vec<String>) {
        let seen = self.seen.get(name).copied();
        let touched = wish.state != State::In || wish.weight != 100;
        if touched && !self.claims.0.contains_key(name.as_str()) {
            let before = seen.map_or(Admin::Ready, |seen| match seen.admin {
                // An agent check of ours may have been faster than this look.
                Admin::Drain if seen.agent_check && !self.is_theirs(name, now_ns) => Admin::Ready,
                admin => admin,
            });
            self.claims.0.insert(name.as_str().to_owned(), Claim { before, lighter: false });
        }
        let Some(claim) = self.claims.0.get_mut(name.as_str()) else { return };
        if wish.weight != 100 || claim.lighter {
            claim.lighter = true;
            if seen.is_some_and(|seen| !seen.weighs(wish.weight)) {
                commands.push(format!("set server {name} weight {}%", wish.weight));
            }
        }
        let hand_over = leaving && wish.state == State::Out && seen.is_some_and(|seen| seen.health_check);
        let target = if hand_over { claim.before } else { target(wish.state, claim.before) };
        if seen.is_some_and(|seen| seen.admin == target) {
            return;
        }
        if wish.state == State::In || hand_over {
            // It may remember an older answer of the agent check, and would wait for the next one.
            if seen.is_some_and(|seen| seen.agent_check) {
                commands.push(format!("set server {name} agent up"));
            }
        }
        commands.push(format!("set server {name} state {}", target.as_str()));
        if hand_over {
            // It leaves maintenance as if it were healthy; its own checks shall prove that first.
            commands.push(format!("set server {name} health down"));
        }
    }

    /// Takes the replies to [`Self::lines`]. What is not as it was wished is an error of its own; the next lines will try
    /// again.
    ///
    /// # Errors
    /// When the replies are not whole, or servers are missing or not as wished.
    pub(crate) fn learn(&mut self, wishes: &Wishes, replies: &str, leaving: bool, now_ns: u64) -> Result<View, String> {
        self.seen = parse(replies)?;
        let connections = connections(replies);
        let mut view = View::default();
        let mut faults = Vec::new();
        for (name, wish) in wishes.iter() {
            let Some((backend, _)) = name.parts() else { continue };
            let Some(seen) = self.seen.get(name).copied() else {
                faults.push(format!("there is no server {name}"));
                continue;
            };
            let beside = |other: &&Name| *other != name && other.parts().is_some_and(|parts| parts.0 == backend);
            let others = self.seen.iter().filter(|(other, seen)| beside(other) && seen.serves).count();
            view.others.insert(name.clone(), others);
            // Before it has taken that order, more may come.
            if wish.state == State::Draining
                && seen.admin != Admin::Ready
                && let Some(&count) = connections.get(name)
            {
                view.connections.insert(name.clone(), count);
            }
            if let Some(fault) = self.compare(name, *wish, seen, leaving) {
                faults.push(fault);
            }
            let stands_by_itself = seen.admin != Admin::Ready && !self.claims.0.contains_key(name.as_str());
            if stands_by_itself {
                self.theirs.entry(name.clone()).or_insert(now_ns);
            } else if seen.admin == Admin::Ready {
                self.theirs.remove(name);
            }
            let calm = self.changed.get(name).is_none_or(|&(_, at_ns)| is_long_ago(at_ns, now_ns));
            if calm && stands_by_itself && self.is_theirs(name, now_ns) {
                view.held.insert(name.clone());
            }
            if seen.is_indivisible(wish.weight) {
                view.indivisible.insert(name.clone());
            }
        }
        if faults.is_empty() { Ok(view) } else { Err(faults.join("; ")) }
    }

    /// Holds what is seen against what was wished; forgets what is undone.
    fn compare(&mut self, name: &Name, wish: Wish, seen: Seen, leaving: bool) -> Option<String> {
        let claim = *self.claims.0.get(name.as_str())?;
        let hand_over = leaving && wish.state == State::Out && seen.health_check;
        let target = if hand_over { claim.before } else { target(wish.state, claim.before) };
        let as_heavy = !claim.lighter || seen.weighs(wish.weight);
        if seen.admin != target || !as_heavy {
            let (is, shall) = (seen.admin.as_str(), target.as_str());
            let (weight, full) = (seen.weight, seen.full_weight);
            return Some(format!(
                "{name} is {is} with weight {weight} and shall be {shall} with {} % of {full}",
                wish.weight
            ));
        }
        if wish.state == State::In && wish.weight == 100 || hand_over {
            self.claims.0.remove(name.as_str());
        }
        None
    }

    fn is_theirs(&self, name: &Name, now_ns: u64) -> bool {
        self.theirs.get(name).is_some_and(|&since_ns| is_long_ago(since_ns, now_ns))
    }
}

fn is_long_ago(at_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(at_ns) >= THEIRS_NS
}

/// Never milder than what was there before.
fn target(state: State, before: Admin) -> Admin {
    match state {
        State::In => before,
        State::Draining => before.max(Admin::Drain),
        State::Out => Admin::Maint,
    }
}

/// Commands in lines that HAProxy takes; without its prompt it answers one line and closes.
fn join(commands: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for command in commands {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + command.len() <= LINE_MAX => {
                line.push(';');
                line.push_str(&command);
            }
            _ => lines.push(command),
        }
    }
    lines
}

/// Reads what `show servers state` shows, version 1, among answers to other commands.
fn parse(replies: &str) -> Result<HashMap<Name, Seen>, String> {
    if !replies.is_empty() && !replies.ends_with("\n\n") {
        return Err("an answer that breaks off".to_owned());
    }
    let mut servers = HashMap::new();
    let mut columns: Option<Columns> = None;
    let mut is_other_table = false;
    for line in replies.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            is_other_table = header.starts_with(STAT);
            if is_other_table {
                continue;
            }
            columns = Some(Columns::find(header)?);
        } else if line.is_empty() {
            columns = None;
            is_other_table = false;
        } else if is_other_table {
        } else if let Some(columns) = &columns {
            let (name, seen) = columns.read(line).ok_or_else(|| format!("a line that makes no sense: {line:.200?}"))?;
            if let Some(name) = name {
                servers.insert(name, seen);
            }
        }
    }
    Ok(servers)
}

/// How the table of `show stat` begins.
const STAT: &str = "pxname,";

/// Reads from the answers of `show stat` how many requests each server has in hand, or waiting for it.
fn connections(replies: &str) -> HashMap<Name, u64> {
    let mut found = HashMap::new();
    let mut columns = None;
    for line in replies.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            let place = |want: &str| header.split(',').position(|name| name == want);
            columns = if header.starts_with(STAT) { place("qcur").zip(place("scur")) } else { None };
        } else if line.is_empty() {
            columns = None;
        } else if let Some((queued, serving)) = columns {
            let fields: Vec<_> = line.split(',').collect();
            let number = |column: usize| fields.get(column)?.parse::<u64>().ok();
            // Quoted fields come later in a line; a name that a name of ours cannot name is none.
            let name =
                fields.first().zip(fields.get(1)).and_then(|(proxy, server)| format!("{proxy}/{server}").parse().ok());
            if let (Some(name), Some(serving)) = (name, number(serving)) {
                found.insert(name, serving.saturating_add(number(queued).unwrap_or(0)));
            }
        }
    }
    found
}

/// Where to find what; the order may change from version to version.
struct Columns([usize; 8]);

impl Columns {
    fn find(header: &str) -> Result<Self, String> {
        const NAMES: [&str; 8] = [
            "be_name",
            "srv_name",
            "srv_op_state",
            "srv_admin_state",
            "srv_uweight",
            "srv_iweight",
            "srv_check_state",
            "srv_agent_state",
        ];
        let names: Vec<_> = header.split(' ').collect();
        let mut found = [0; NAMES.len()];
        for (place, want) in found.iter_mut().zip(NAMES) {
            let position = names.iter().position(|name| *name == want);
            *place = position.ok_or_else(|| format!("servers without {want}"))?;
        }
        Ok(Self(found))
    }

    /// A server that a name of ours cannot name has no name.
    fn read(&self, line: &str) -> Option<(Option<Name>, Seen)> {
        let fields: Vec<_> = line.split(' ').collect();
        let text = |column: usize| fields.get(self.0[column]).copied();
        let number = |column: usize| text(column)?.parse::<u32>().ok();
        let (op, mask, weight, initial) = (number(2)?, number(3)?, number(4)?, number(5)?);
        let admin = match mask {
            mask if mask & FORCED_MAINT != 0 => Admin::Maint,
            mask if mask & FORCED_DRAIN != 0 => Admin::Drain,
            _ => Admin::Ready,
        };
        let seen = Seen {
            admin,
            serves: matches!(op, STARTING | RUNNING) && mask == 0 && weight > 0,
            weight,
            // At most 256, says HAProxy; more must not overflow what is computed from it.
            full_weight: initial.min(65_536),
            health_check: number(6)? & ENABLED != 0,
            agent_check: number(7)? & ENABLED != 0,
        };
        Some((format!("{}/{}", text(0)?, text(1)?).parse().ok(), seen))
    }
}

/// Takes any text for a HAProxy's replies, twice, with a server that shall be out and then in again.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let Ok(name) = "be_web/web1".parse::<Name>() else { return };
    let mut desk = Desk::new(Claims::default());
    for (at_ns, state) in [(0, State::Out), (THEIRS_NS, State::Draining), (2 * THEIRS_NS, State::In)] {
        let wishes = Wishes::new([(name.clone(), Wish { state, weight: 50 })].into());
        desk.learn(&wishes, text, false, at_ns).ok();
        let lines = desk.lines(&wishes, false, at_ns);
        assert!(lines.iter().all(|line| line.len() <= LINE_MAX && !line.contains('\n')), "{lines:?}");
    }
}

#[cfg(test)]
mod tests;
