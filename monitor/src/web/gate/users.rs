//! Who may come in by a password. A check is meant to be slow (bcrypt), so there is one at a time, beside everything else;
//! few may wait for it, and a password that was right is known again without one. Nobody learns from the time that an answer
//! takes whether a user exists.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, anyhow};
use bcrypt::HashParts;
use ring::{hmac, rand::SystemRandom};
use tokio::sync::Semaphore;

/// Requests that may wait for a check; the next is told to come again. At cost 10 they take a second together.
const WAITING: usize = 16;

/// Users and the hashes of their passwords.
#[derive(Debug)]
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// Checked for a user who does not exist.
    decoy: String,
}

impl Users {
    /// All hashes are valid ones.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Self {
        // As dear as the dearest: with one cost for all, as is usual, all answers take the same time.
        let costs = hashes.values().filter_map(|hash| Some(HashParts::from_str(hash).ok()?.get_cost()));
        let cost = costs.max().unwrap_or(10);
        // Any salt and any hash that no password has: the last 31 characters encode 23 bytes.
        let decoy = format!("$2b${cost:02}${}{}", ".".repeat(22), ".".repeat(31));
        Self { hashes, decoy }
    }

    /// Nobody is asked.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// That is a user, with the right password.
    Right,
    /// It is not.
    Wrong,
    /// Too many wait already.
    Busy,
}

/// What outlives a change of the users.
#[derive(Debug)]
pub(super) struct Checks {
    /// Of this process alone: what is kept of a password is of no use elsewhere.
    secret: hmac::Key,
    /// For each user the password that was right last, with the hash that it was held against.
    right: Mutex<HashMap<String, hmac::Tag>>,
    waiting: Semaphore,
    turn: Arc<Semaphore>,
}

impl Checks {
    /// # Errors
    /// When the system gives no random numbers.
    pub(super) fn new() -> Result<Self> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Self {
            secret: secret.map_err(|_| anyhow!("the system gives no random numbers"))?,
            right: Mutex::default(),
            waiting: Semaphore::new(WAITING),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Is that a user, and the password right?
    pub(super) async fn check(&self, users: &Users, user: &str, password: &str) -> Verdict {
        let exists = users.hashes.get(user);
        let hash = exists.unwrap_or(&users.decoy).clone();
        // With lengths between, so that no two questions are the same bytes.
        let question = format!("{} {} {user}{hash}{password}", user.len(), hash.len());
        if exists.is_some() && self.was_right(user, &question) {
            return Verdict::Right;
        }
        let Ok(_waits) = self.waiting.try_acquire() else { return Verdict::Busy };
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return Verdict::Busy };
        // Another request with the same password may have been first.
        if exists.is_some() && self.was_right(user, &question) {
            return Verdict::Right;
        }
        let password = password.to_owned();
        let checked = tokio::task::spawn_blocking(move || {
            // Held to its end, also when the one who asked has gone.
            let _turn = turn;
            bcrypt::verify(password, &hash).unwrap_or(false)
        });
        let right = checked.await.unwrap_or(false) && exists.is_some();
        if right {
            let tag = hmac::sign(&self.secret, question.as_bytes());
            self.right.lock().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned(), tag);
        }
        if right { Verdict::Right } else { Verdict::Wrong }
    }

    /// Users who are none any more are not kept.
    pub(super) fn forget_all_but(&self, users: &Users) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.retain(|user, _| users.hashes.contains_key(user));
    }

    fn was_right(&self, user: &str, question: &str) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tag) = right.get(user) else { return false };
        hmac::verify(&self.secret, question.as_bytes(), tag.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(password: &str) -> String {
        bcrypt::hash_with_salt(password, 4, *b"0123456789abcdef")
            .expect("hashed")
            .format_for_version(bcrypt::Version::TwoY)
    }

    fn users(all: &[(&str, &str)]) -> Users {
        Users::new(all.iter().map(|(user, password)| ((*user).to_owned(), hash(password))).collect())
    }

    #[tokio::test]
    async fn the_right_password_of_a_user_and_no_other_opens() {
        let users = users(&[("alice", "sword"), ("bob", "")]);
        let checks = Checks::new().expect("random numbers");
        for (user, password, verdict) in [
            ("alice", "sword", Verdict::Right),
            ("alice", "sword", Verdict::Right),
            ("alice", "Sword", Verdict::Wrong),
            ("alice", "sword2", Verdict::Wrong),
            ("alice", "", Verdict::Wrong),
            ("bob", "", Verdict::Right),
            ("carol", "sword", Verdict::Wrong),
            ("", "", Verdict::Wrong),
            ("alic", "esword", Verdict::Wrong),
        ] {
            assert_eq!(checks.check(&users, user, password).await, verdict, "{user} {password}");
        }
        assert_eq!(checks.right.lock().expect("sound").len(), 2, "only what was right is kept");
    }

    #[tokio::test]
    async fn a_changed_password_and_a_removed_user_are_not_known_again() {
        let checks = Checks::new().expect("random numbers");
        let before = users(&[("alice", "old"), ("bob", "b")]);
        assert_eq!(checks.check(&before, "alice", "old").await, Verdict::Right);
        assert_eq!(checks.check(&before, "bob", "b").await, Verdict::Right);
        let after = users(&[("alice", "new")]);
        checks.forget_all_but(&after);
        assert_eq!(checks.check(&after, "alice", "old").await, Verdict::Wrong);
        assert_eq!(checks.check(&after, "bob", "b").await, Verdict::Wrong);
        assert_eq!(checks.check(&after, "alice", "new").await, Verdict::Right);
        assert_eq!(checks.right.lock().expect("sound").len(), 1);
    }

    #[tokio::test]
    async fn a_crowd_is_turned_away_and_whoever_is_known_is_not() {
        let users = users(&[("alice", "sword")]);
        let checks = Checks::new().expect("random numbers");
        assert_eq!(checks.check(&users, "alice", "sword").await, Verdict::Right);
        // Somebody's check takes very long.
        let turn = Arc::clone(&checks.turn).acquire_owned().await.expect("free");
        let crowd: Vec<_> = (0..WAITING).map(|_| checks.waiting.try_acquire().expect("room")).collect();
        assert_eq!(checks.check(&users, "mallory", "guess").await, Verdict::Busy);
        assert_eq!(checks.check(&users, "alice", "guess").await, Verdict::Busy);
        assert_eq!(checks.check(&users, "alice", "sword").await, Verdict::Right);
        drop((crowd, turn));
        assert_eq!(checks.check(&users, "alice", "guess").await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_user_who_does_not_exist_costs_as_much_as_one_who_does() {
        let dear = bcrypt::hash_with_salt("x", 6, *b"0123456789abcdef").expect("hashed").to_string();
        let users = Users::new(BTreeMap::from([("a".to_owned(), hash("x")), ("b".to_owned(), dear)]));
        let parts = HashParts::from_str(&users.decoy).expect("a hash that can be checked");
        assert_eq!(parts.get_cost(), 6);
        assert!(matches!(bcrypt::verify("", &users.decoy), Ok(false)));
    }
}
