//! What somebody else may know about a death, and whether it is worth asking.

use monitor_common::{
    record::EXIT_SENDER,
    status::{self, SIGKILL},
};

use super::{
    evidence::{Evidence, SenderKind},
    verdict,
};
use crate::{
    attribution::{Origin, Place, Role},
    host::systemd::Meaning,
};

/// A question about one death, to be answered outside of the verdict, which waits for it a bounded time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// What systemd had in mind with this unit.
    Systemd {
        /// Its name.
        unit: String,
    },
    /// What a service wrote last.
    LastWords {
        /// Its place; who keeps its output follows from that.
        place: Place,
        /// The process.
        tgid: u32,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// To [`Question::Systemd`]; an error says why not.
    Systemd(Result<Meaning, String>),
    /// To [`Question::LastWords`]: the line that says that memory ran out, if one does.
    LastWords(Result<Option<String>, String>),
    /// To any question: it was not asked, since too many were.
    Refused,
}

/// The one question whose answer can change the verdict; `None` when none can.
///
/// Asks for the last words of a main process. It asks for those of a worker only when other evidence already points to
/// memory: a service may have any number of failing workers, and their last words alone weigh little.
pub(super) fn question(
    evidence: &Evidence,
    place: Option<&Place>,
    watched: bool,
    role: Option<Role>,
) -> Option<Question> {
    let (place, exit, senders) = (place?, &evidence.exit, &evidence.senders);
    if exit.header.flags & EXIT_SENDER != 0 && senders.last == SenderKind::Manager {
        // Only the host's systemd is asked; a user's manager has its own bus.
        let Origin::Unit(unit) = &*place.origin else { return None };
        return (exit.sender.tgid == 1).then(|| Question::Systemd { unit: unit.clone() });
    }
    let abnormal = match status::signal(exit.status) {
        Some((signal, _)) => u32::from(signal) != SIGKILL && exit.sender.tgid == exit.process.tgid,
        None => status::exit_code(exit.status).is_some_and(|code| code != 0),
    };
    let counts = role != Some(Role::Worker) || verdict::points_to_memory(evidence);
    (watched && abnormal && counts).then(|| Question::LastWords { place: place.clone(), tgid: exit.process.tgid })
}
