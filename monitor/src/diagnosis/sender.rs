//! Classifies the sender of a signal. A process chooses its own name, so a name counts only together with the user, the
//! cgroup or the file of the process.

use super::evidence::SenderKind;
use crate::attribution::{Origin, Place};

/// Programs that kill to free the host's memory, by their names (of at most 15 bytes, as a task keeps them).
const MEMORY_KILLERS: [&str; 6] = ["systemd-oomd", "earlyoom", "nohang", "oomd", "bustd", "psi-monitor"];
/// Programs through which container engines signal their containers.
const ENGINES: [&str; 8] = ["runc", "crun", "youki", "conmon", "containerd-shim", "containerd", "dockerd", "podman"];
const ROOT: u32 = 0;

/// The sender of a signal, as the kernel saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signaller<'a> {
    /// Its name.
    pub(crate) comm: &'a str,
    /// Its process id.
    pub(crate) tgid: u32,
    /// Its user id.
    pub(crate) uid: u32,
    /// Where it lives; `None` when that is not known.
    pub(crate) place: Option<&'a Place>,
}

/// The sender's relation to the process at `place`. `program` returns the name of the file that the sender runs; it is
/// called only for a name that matters.
pub(crate) fn sender_kind(
    sender: &Signaller<'_>,
    place: Option<&Place>,
    program: impl FnOnce() -> Option<String>,
) -> SenderKind {
    if sender.tgid == 1 || is_user_manager(sender, place) {
        return SenderKind::Manager;
    }
    // For command services, Defib is the supervisor.
    if sender.tgid == std::process::id() {
        return SenderKind::Engine;
    }
    let elsewhere = match (sender.place, place) {
        (Some(sender), Some(place)) => sender.root() != place.root(),
        _ => true,
    };
    if elsewhere && is_memory_killer(sender, program) {
        SenderKind::MemoryKiller
    } else if elsewhere && is_engine(sender, place) {
        SenderKind::Engine
    } else {
        SenderKind::Other
    }
}

/// The service manager of the user whose processes these are.
fn is_user_manager(sender: &Signaller<'_>, place: Option<&Place>) -> bool {
    let (Some(own), Some(place)) = (sender.place, place) else { return false };
    sender.comm == "systemd"
        && own.origin.is_user_manager()
        && own.root() == place.root()
        && own.path.strip_prefix(own.root()) == Some("/init.scope")
}

/// True for one of [`MEMORY_KILLERS`] that runs as the unit of its name, or as root from a file of its name.
fn is_memory_killer(sender: &Signaller<'_>, program: impl FnOnce() -> Option<String>) -> bool {
    if !MEMORY_KILLERS.contains(&sender.comm) {
        return false;
    }
    let is_unit = sender.place.is_some_and(|place| match &*place.origin {
        Origin::Unit(unit) => unit.strip_suffix(".service") == Some(sender.comm),
        Origin::Container { .. } | Origin::Cgroup => false,
    });
    is_unit || sender.uid == ROOT && program().as_deref() == Some(sender.comm)
}

/// True for one of [`ENGINES`] that runs as root, outside of every container and every user's own cgroups. (Most of
/// them live too briefly to read which file they run.)
fn is_engine(sender: &Signaller<'_>, place: Option<&Place>) -> bool {
    let of_container = place.is_some_and(|place| matches!(*place.origin, Origin::Container { .. }));
    let is_inside = sender
        .place
        .is_some_and(|place| matches!(*place.origin, Origin::Container { .. }) || place.origin.is_user_manager());
    of_container && !is_inside && sender.uid == ROOT && ENGINES.contains(&sender.comm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::Table;

    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

    fn at(path: &str) -> Place {
        Table::default().describe(path)
    }

    fn kind(comm: &str, uid: u32, from: &str, to: &str, program: Option<&str>) -> SenderKind {
        let (from, to) = (at(from), at(to));
        let sender = Signaller { comm, tgid: 5000, uid, place: Some(&from) };
        sender_kind(&sender, Some(&to), || program.map(str::to_owned))
    }

    #[test]
    fn what_we_end_ourselves_was_meant_to_end() {
        let ours = Signaller { comm: "defib", tgid: std::process::id(), uid: 0, place: None };
        assert_eq!(sender_kind(&ours, None, || None), SenderKind::Engine);
        let other = Signaller { tgid: std::process::id() + 1, ..ours };
        assert_eq!(sender_kind(&other, None, || None), SenderKind::Other);
    }

    #[test]
    fn an_engine_is_root_and_no_container() {
        let container = format!("/docker/{ID}");
        let other = format!("/docker/{}", "0".repeat(64));
        for (uid, from, want) in [
            (0, "/system.slice/docker.service", SenderKind::Engine),
            (0, "/", SenderKind::Engine),
            (65534, "/system.slice/docker.service", SenderKind::Other),
            (65534, "/batch", SenderKind::Other),
            (0, &container, SenderKind::Other),
            (0, &other, SenderKind::Other),
            (0, "/user.slice/user-0.slice/user@0.service/x.scope", SenderKind::Other),
        ] {
            assert_eq!(kind("runc", uid, from, &container, Some("runc")), want, "{uid} {from}");
        }
        assert_eq!(kind("runc", 0, "/", "/system.slice/a.service", None), SenderKind::Other, "no container");
        assert_eq!(kind("bash", 0, "/", &container, None), SenderKind::Other);
    }

    #[test]
    fn who_kills_for_the_host_s_memory_is_known_by_unit_or_by_file() {
        let victim = "/system.slice/web.service";
        for (comm, uid, from, program, want) in [
            ("systemd-oomd", 998, "/system.slice/systemd-oomd.service", None, SenderKind::MemoryKiller),
            ("nohang", 0, "/system.slice/nohang.service", Some("python3.11"), SenderKind::MemoryKiller),
            ("earlyoom", 0, "/", Some("earlyoom"), SenderKind::MemoryKiller),
            ("earlyoom", 0, "/", Some("perl"), SenderKind::Other),
            ("earlyoom", 0, "/", None, SenderKind::Other),
            ("earlyoom", 65534, "/", Some("earlyoom"), SenderKind::Other),
            ("earlyoom", 65534, "/batch/earlyoom.service", Some("earlyoom"), SenderKind::Other),
            ("earlyoom", 0, victim, Some("earlyoom"), SenderKind::Other),
        ] {
            assert_eq!(kind(comm, uid, from, victim, program), want, "{comm} {uid} {from} {program:?}");
        }
    }

    #[test]
    fn a_user_s_manager_speaks_for_that_user_alone() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let (manager, unit) = (format!("{user}/init.scope"), format!("{user}/app.slice/a.service"));
        assert_eq!(kind("systemd", 1000, &manager, &unit, None), SenderKind::Manager);
        assert_eq!(kind("systemd", 1000, &manager, "/system.slice/a.service", None), SenderKind::Other);
        assert_eq!(kind("systemd", 1000, &unit, &unit, None), SenderKind::Other);
        assert_eq!(kind("bash", 1000, &manager, &unit, None), SenderKind::Other);
    }
}
