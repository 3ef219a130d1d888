//! Asks a cgroup's owner whether its path's claim is true: systemd names the unit at a path, a container engine names
//! the container's main process. Defib acts on a claim only after that.

use std::sync::Arc;

use super::{Origin, Place};
use crate::host::{
    cgroup::Hierarchy,
    containers::{self, Container},
    process::{self, Identity},
    systemd::{self, Systemd},
};

/// The owner's answer about a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The path is that unit's or container's own cgroup.
    Confirmed {
        /// The name by which the owner knows the service.
        service: Arc<str>,
        /// The main process that the owner names; `None` when it names none that lives.
        main: Option<Identity>,
    },
    /// The path is not that cgroup; the reason.
    Denied(String),
    /// The owner did not answer, or cannot be asked; the reason.
    Silent(String),
}

/// Asks the owner about the cgroup at `place`, which claims to be a unit's or container's own cgroup.
pub(crate) async fn confirm(place: &Place, systemd: &Systemd, hierarchy: &Hierarchy) -> Answer {
    let answer = match &*place.origin {
        Origin::Unit(unit) => systemd.placed(unit, &place.path).await.map(|placed| of_unit(unit, &place.path, placed)),
        Origin::Container { engine, .. } if !containers::ENGINES.contains(engine) => {
            Ok(Answer::Denied(format!("{engine} cannot be asked by name")))
        }
        Origin::Container { engine, id } => containers::known(engine, id).await.map(|found| {
            let pid = found.as_ref().map_or(0, |container| container.pid);
            let lives_in = (pid != 0).then(|| hierarchy.cgroup_of(pid)).flatten();
            of_container(engine, &place.path, found, lives_in.as_deref())
        }),
        Origin::Cgroup => Ok(Answer::Denied("a plain cgroup has no owner".to_owned())),
    };
    answer.unwrap_or_else(|error| Answer::Silent(format!("{error:#}")))
}

fn of_unit(unit: &str, path: &str, placed: systemd::Placed) -> Answer {
    match placed {
        systemd::Placed::Here { main_pid } => Answer::Confirmed { service: unit.into(), main: living(main_pid) },
        systemd::Placed::Elsewhere => Answer::Denied(format!("systemd has no unit {unit} in {path}")),
    }
}

/// `lives_in`: the cgroup of the main process that the engine names.
fn of_container(engine: &str, path: &str, found: Option<Container>, lives_in: Option<&str>) -> Answer {
    let Some(container) = found else { return Answer::Denied(format!("{engine} knows no such container")) };
    if container.name.is_empty() {
        return Answer::Denied(format!("{engine} gives the container no name"));
    }
    let is_within =
        |lives_in: &str| lives_in.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match lives_in {
        // The container is starting, or has just ended: the engine makes the cgroup before the process.
        None => Answer::Confirmed { service: container.name.into(), main: None },
        Some(lives_in) if is_within(lives_in) => {
            Answer::Confirmed { service: container.name.into(), main: living(container.pid) }
        }
        Some(lives_in) => Answer::Denied(format!("{engine} has {} in {lives_in}", container.name)),
    }
}

fn living(pid: u32) -> Option<Identity> {
    process::living(pid).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(pid: u32) -> Option<Container> {
        Some(Container { name: "web".to_owned(), pid, ..Container::default() })
    }

    #[test]
    fn a_container_is_where_its_engine_has_its_process() {
        let confirmed = |lives_in| match of_container("docker", "/docker/abc", web(0), lives_in) {
            Answer::Confirmed { service, .. } => &*service == "web",
            Answer::Denied(_) | Answer::Silent(_) => false,
        };
        for (lives_in, want) in [
            (None, true),
            (Some("/docker/abc"), true),
            (Some("/docker/abc/init.scope"), true),
            (Some("/docker/abcd"), false),
            (Some("/system.slice/docker-abc.scope"), false),
            (Some("/"), false),
        ] {
            assert_eq!(confirmed(lives_in), want, "{lives_in:?}");
        }
        assert!(matches!(of_container("docker", "/docker/abc", None, None), Answer::Denied(_)));
        let unnamed = Some(Container::default());
        assert!(matches!(of_container("docker", "/docker/abc", unnamed, None), Answer::Denied(_)));
    }

    #[test]
    fn a_unit_is_where_systemd_has_it() {
        let own = std::process::id();
        let here = of_unit("a.service", "/system.slice/a.service", systemd::Placed::Here { main_pid: own });
        assert_eq!(here, Answer::Confirmed { service: "a.service".into(), main: living(own) });
        assert!(living(own).is_some() && living(0).is_none());
        let elsewhere = of_unit("a.service", "/x/a.service", systemd::Placed::Elsewhere);
        assert_eq!(elsewhere, Answer::Denied("systemd has no unit a.service in /x/a.service".to_owned()));
    }
}
