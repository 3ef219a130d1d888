//! What somebody else may know about a death, and whether it is worth asking.

use std::sync::Arc;

use monitor_common::{
    record::{EXIT_SENDER, Exit},
    status::{self, SIGKILL},
};

use super::evidence::{SenderKind, Senders};
use crate::{
    attribution::{Origin, Place},
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
}

/// The one question whose answer can change the verdict; `None` when none can.
pub(super) fn question(exit: &Exit, senders: &Senders, place: Option<&Place>, watched: bool) -> Option<Question> {
    let place = place?;
    if exit.header.flags & EXIT_SENDER != 0 && senders.last == SenderKind::Manager {
        // Only the host's own manager is asked; one of a user's has a bus of its own.
        let Origin::Unit(unit) = &*place.origin else { return None };
        return (exit.sender.tgid == 1 && !unit.contains('/')).then(|| Question::Systemd { unit: unit.clone() });
    }
    let abnormal = match status::signal(exit.status) {
        Some((signal, _)) => u32::from(signal) != SIGKILL && exit.sender.tgid == exit.process.tgid,
        None => status::exit_code(exit.status).is_some_and(|code| code != 0),
    };
    (watched && abnormal).then(|| Question::LastWords { place: place.clone(), tgid: exit.process.tgid })
}

/// Names of programs that kill for the sake of the host's memory, as a task's name keeps them (15 bytes).
const MEMORY_KILLERS: [&str; 6] = ["systemd-oomd", "earlyoom", "nohang", "oomd", "bustd", "psi-monitor"];
/// Names of programs through which container engines signal their containers.
const ENGINES: [&str; 8] = ["runc", "crun", "youki", "conmon", "containerd-shim", "containerd", "dockerd", "podman"];

/// What the sender of a signal is to the process: by its name, and by living elsewhere.
pub(crate) fn sender_kind(
    comm: &str,
    tgid: u32,
    sender_service: Option<&Arc<str>>,
    place: Option<&Place>,
) -> SenderKind {
    let elsewhere = match (sender_service, place) {
        (Some(sender), Some(place)) => **sender != *place.service,
        _ => true,
    };
    let user_manager = || {
        comm == "systemd"
            && sender_service.is_some_and(|service| service.starts_with("user@") && service.ends_with("/init.scope"))
    };
    if tgid == 1 || user_manager() {
        SenderKind::Manager
    } else if elsewhere && MEMORY_KILLERS.contains(&comm) {
        SenderKind::MemoryKiller
    } else if tgid == std::process::id() {
        // For services without another owner, that is what we are.
        SenderKind::Engine
    } else if elsewhere
        && ENGINES.contains(&comm)
        && place.is_some_and(|place| matches!(*place.origin, Origin::Container { .. }))
    {
        SenderKind::Engine
    } else {
        SenderKind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_end_ourselves_was_meant_to_end() {
        assert_eq!(sender_kind("defib", std::process::id(), None, None), SenderKind::Engine);
        assert_eq!(sender_kind("defib", std::process::id() + 1, None, None), SenderKind::Other);
    }
}
