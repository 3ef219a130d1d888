//! What the path of a cgroup says about who runs there.
//!
//! systemd names cgroups after units, container engines after ids, both since cgroup v1. The outermost container wins:
//! what runs inside, a whole systemd perhaps, is that container. Of units the innermost wins, and one of a user's own
//! manager carries the manager's name before its own, so that no user can pass for a unit of the host.

/// The container engines whose cgroups are known, as their cgroup names spell them.
const ENGINES: &[(&str, &str)] =
    &[("docker-", "docker"), ("libpod-", "podman"), ("cri-containerd-", "containerd"), ("crio-", "cri-o")];
/// Parents below which plain 64-digit names are container ids (cgroupfs driver).
const PARENTS: &[(&str, &str)] = &[("docker", "docker"), ("libpod_parent", "podman"), ("kubepods", "containerd")];

/// Who runs in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A systemd unit, by name.
    Unit(String),
    /// A container, by the engine that runs it and its full id.
    Container {
        /// `docker`, `podman`, `containerd` or `cri-o`.
        engine: &'static str,
        /// 64 hexadecimal digits.
        id: String,
    },
    /// Neither: it is called by its path.
    Cgroup,
}

impl Origin {
    /// The part of `path` that is the container's own cgroup; `None` for anything else.
    pub(crate) fn container_root<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Self::Container { id, .. } = self else { return None };
        let end = path.find(id.as_str())? + id.len();
        Some(path[end..].find('/').map_or(path, |slash| &path[..end + slash]))
    }

    /// Reads a path below the root of a hierarchy.
    pub(crate) fn of(path: &str) -> Self {
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        if let Some(container) = (0..names.len()).find_map(|at| container(names[at], &names[..at])) {
            return container;
        }
        let units: Vec<_> = names.iter().filter(|name| is_unit(name)).collect();
        if let Some(unit) = units.last() {
            let manager = units.iter().find(|name| name.starts_with("user@") && name.ends_with(".service"));
            return Self::Unit(match manager {
                Some(manager) if manager != unit => format!("{manager}/{unit}"),
                _ => (**unit).to_owned(),
            });
        }
        Self::Cgroup
    }
}

fn container(name: &str, parents: &[&str]) -> Option<Origin> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, engine) in ENGINES {
        if let Some(id) = bare.strip_prefix(prefix)
            && is_id(id)
        {
            return Some(Origin::Container { engine, id: id.to_owned() });
        }
    }
    let engine = PARENTS.iter().find(|(parent, _)| parents.iter().any(|name| name.starts_with(parent)))?.1;
    is_id(name).then(|| Origin::Container { engine, id: name.to_owned() })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

/// Slices only group others, and a user's manager is no service of its own kind to restart; it is still a unit.
fn is_unit(name: &str) -> bool {
    [".service", ".scope"].iter().any(|kind| name.strip_suffix(kind).is_some_and(|stem| !stem.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

    #[test]
    fn paths_of_known_managers() {
        let unit = |name: &str| Origin::Unit(name.to_owned());
        let container = |engine| Origin::Container { engine, id: ID.to_owned() };
        for (path, want) in [
            ("/system.slice/nginx.service".to_owned(), unit("nginx.service")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service".to_owned(),
                unit("postgresql@15-main.service"),
            ),
            ("/system.slice/app.service/nested/deep".to_owned(), unit("app.service")),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service".to_owned(),
                unit("user@1000.service/editor.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope".to_owned(),
                unit("user@1000.service/init.scope"),
            ),
            (format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service"), container("docker")),
            ("/user.slice/user-0.slice/session-3.scope".to_owned(), unit("session-3.scope")),
            (format!("/system.slice/docker-{ID}.scope"), container("docker")),
            (format!("/system.slice/docker-{ID}.scope/init"), container("docker")),
            (format!("/docker/{ID}"), container("docker")),
            (format!("/machine.slice/libpod-{ID}.scope/container"), container("podman")),
            (format!("/libpod_parent/libpod-{ID}"), container("podman")),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"), container("containerd")),
            (format!("/kubepods/burstable/pod1/{ID}"), container("containerd")),
            ("/batch".to_owned(), Origin::Cgroup),
            ("/".to_owned(), Origin::Cgroup),
            ("".to_owned(), Origin::Cgroup),
        ] {
            assert_eq!(Origin::of(&path), want, "{path}");
        }
    }

    #[test]
    fn a_container_s_root_is_found_in_its_nested_cgroups() {
        for (path, root) in [
            (format!("/system.slice/docker-{ID}.scope/init"), format!("/system.slice/docker-{ID}.scope")),
            (format!("/docker/{ID}"), format!("/docker/{ID}")),
            (format!("/docker/{ID}/a/b"), format!("/docker/{ID}")),
        ] {
            assert_eq!(Origin::of(&path).container_root(&path), Some(root.as_str()));
        }
        assert_eq!(Origin::of("/batch").container_root("/batch"), None);
    }

    #[test]
    fn look_alikes_are_plain_cgroups() {
        for path in ["/docker/short", "/system.slice", "/.service", &format!("/elsewhere/{ID}"), "/docker-xyz.scope2"] {
            assert_eq!(Origin::of(path), Origin::Cgroup, "{path}");
        }
    }
}
