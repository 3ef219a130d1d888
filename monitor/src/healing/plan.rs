//! What the owner of a dead service is going to do about it, as it says itself.

use std::time::Duration;

use crate::host::process::Identity;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It lives: somebody has brought it back.
    Alive(Identity),
    /// Its supervisor is at it: it starts it, is about to, or has not finished with its end.
    Restarts {
        /// It needs no longer than this.
        within: Duration,
        /// In its own words.
        why: String,
    },
    /// It stays dead unless somebody acts.
    GivesUp {
        /// In its own words.
        why: String,
    },
    /// Likewise, and it ended well: by itself, or because somebody stopped it. Its supervisor does not know (any more).
    EndedWell {
        /// In its own words.
        why: String,
    },
    /// It may not be started now; that can change.
    Held {
        /// What holds it.
        why: String,
    },
    /// It is meant to be down.
    Intended {
        /// By what sign.
        why: String,
    },
}
