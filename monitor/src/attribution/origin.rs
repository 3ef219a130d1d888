//! What a cgroup's path claims about the service that runs there. The owner confirms the claim before Defib acts on it
//! ([`confirm`](super::confirm)).
//!
//! systemd puts units and slices into slices, so only slices stand above a unit of the host. Container engines name
//! cgroups after container ids, below a slice or below the engine's own cgroup. Everything further down belongs to that
//! unit or container, whatever its name: users make cgroups of any name below their own manager (v2 delegation), and
//! containers below their own cgroup. Any other cgroup is a plain one.

/// The container engines whose cgroups are known, as their cgroup names spell them.
const ENGINES: &[(&str, &str)] =
    &[("docker-", "docker"), ("libpod-", "podman"), ("cri-containerd-", "containerd"), ("crio-", "cri-o")];
/// Top-level cgroups that an engine makes itself (cgroupfs driver). Below one, 64-digit names are container ids.
const PARENTS: &[(&str, &str)] = &[("docker", "docker"), ("libpod_parent", "podman"), ("kubepods", "containerd")];

/// Who runs in a cgroup, as its path claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A unit of the host's systemd, by name.
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
    /// Reads a path below the root of a hierarchy.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(path: &str) -> Self {
        Self::claim(path).0
    }

    /// Reads a path below the root of a hierarchy. Returns the claim and the path of the unit's or container's own
    /// cgroup. For a plain cgroup that path ends after the first name that is not a slice: only root makes cgroups
    /// there.
    pub(crate) fn claim(path: &str) -> (Self, &str) {
        let mut engine = None;
        for (name, upto) in names(path) {
            if let Some(container) = container(name, engine) {
                return (container, upto);
            }
            if engine.is_some() || is_slice(name) {
                continue;
            }
            if is_unit(name) {
                return (Self::Unit(name.to_owned()), upto);
            }
            match PARENTS.iter().find(|(parent, _)| *parent == name) {
                Some(&(_, parent)) => engine = Some(parent),
                None => return (Self::Cgroup, upto),
            }
        }
        (Self::Cgroup, path)
    }

    /// True for a user's service manager, which contains everything that the user runs.
    pub(crate) fn is_user_manager(&self) -> bool {
        matches!(self, Self::Unit(name) if name.starts_with("user@") && name.ends_with(".service"))
    }
}

/// Each name of a path, and the path up to its end.
fn names(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut end = 0;
    path.split('/').filter_map(move |name| {
        end += name.len();
        let upto = &path[..end];
        end += 1;
        (!name.is_empty()).then_some((name, upto))
    })
}

/// `engine`: the engine whose own cgroup stands above, if there is one.
fn container(name: &str, engine: Option<&'static str>) -> Option<Origin> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, engine) in ENGINES {
        if let Some(id) = bare.strip_prefix(prefix)
            && is_id(id)
        {
            return Some(Origin::Container { engine, id: id.to_owned() });
        }
    }
    engine.filter(|_| is_id(name)).map(|engine| Origin::Container { engine, id: name.to_owned() })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

fn is_slice(name: &str) -> bool {
    name.strip_suffix(".slice").is_some_and(|stem| !stem.is_empty())
}

/// Slices are not services: they only group units.
fn is_unit(name: &str) -> bool {
    [".service", ".scope"].iter().any(|kind| name.strip_suffix(kind).is_some_and(|stem| !stem.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

    fn unit(name: &str) -> Origin {
        Origin::Unit(name.to_owned())
    }

    fn container(engine: &'static str) -> Origin {
        Origin::Container { engine, id: ID.to_owned() }
    }

    #[test]
    fn paths_of_known_managers() {
        for (path, want) in [
            ("/system.slice/nginx.service".to_owned(), unit("nginx.service")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service".to_owned(),
                unit("postgresql@15-main.service"),
            ),
            ("/system.slice/app.service/nested/deep".to_owned(), unit("app.service")),
            ("/init.scope".to_owned(), unit("init.scope")),
            ("/user.slice/user-0.slice/session-3.scope".to_owned(), unit("session-3.scope")),
            (format!("/system.slice/docker-{ID}.scope"), container("docker")),
            (format!("/system.slice/docker-{ID}.scope/init"), container("docker")),
            (format!("/docker/{ID}"), container("docker")),
            (format!("/machine.slice/libpod-{ID}.scope/container"), container("podman")),
            (format!("/libpod_parent/libpod-{ID}"), container("podman")),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"), container("containerd")),
            (format!("/kubepods/burstable/pod1/{ID}"), container("containerd")),
            ("/batch".to_owned(), Origin::Cgroup),
            ("/system.slice".to_owned(), Origin::Cgroup),
            ("/".to_owned(), Origin::Cgroup),
            ("".to_owned(), Origin::Cgroup),
        ] {
            assert_eq!(Origin::of(&path), want, "{path}");
        }
    }

    #[test]
    fn below_a_unit_or_a_container_no_name_is_a_claim() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        for (path, want) in [
            (format!("{user}/app.slice/editor.service"), unit("user@1000.service")),
            (format!("{user}/docker-{ID}.scope"), unit("user@1000.service")),
            (format!("{user}/user.slice/libpod-{ID}.scope"), unit("user@1000.service")),
            (format!("/system.slice/app.service/docker-{ID}.scope"), unit("app.service")),
            ("/system.slice/app.service/system.slice/nginx.service".to_owned(), unit("app.service")),
            (format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service"), container("docker")),
            (format!("/docker/{ID}/docker/{}", "0".repeat(64)), container("docker")),
        ] {
            assert_eq!(Origin::of(&path), want, "{path}");
        }
    }

    #[test]
    fn below_a_plain_cgroup_no_name_is_a_claim() {
        for path in [
            "/lxc.payload.c1/system.slice/x.service".to_owned(),
            format!("/lxc.payload.c1/docker/{ID}"),
            format!("/batch/docker-{ID}.scope"),
            "/batch/user@65534.service/a.service".to_owned(),
        ] {
            let (origin, root) = Origin::claim(&path);
            assert_eq!(origin, Origin::Cgroup, "{path}");
            assert_eq!(root, &path[..path[1..].find('/').expect("two names") + 1], "{path}");
        }
    }

    #[test]
    fn a_claim_names_the_cgroup_that_it_is_about() {
        for (path, root) in [
            (format!("/system.slice/docker-{ID}.scope/init"), format!("/system.slice/docker-{ID}.scope")),
            (format!("/docker/{ID}"), format!("/docker/{ID}")),
            (format!("/docker/{ID}/a/b"), format!("/docker/{ID}")),
            ("/system.slice/app.service/a/b".to_owned(), "/system.slice/app.service".to_owned()),
            ("/system.slice/sub.slice".to_owned(), "/system.slice/sub.slice".to_owned()),
            ("/kubepods/burstable".to_owned(), "/kubepods/burstable".to_owned()),
            ("/batch/x".to_owned(), "/batch".to_owned()),
            ("batch/x".to_owned(), "batch".to_owned()),
            ("/".to_owned(), "/".to_owned()),
        ] {
            assert_eq!(Origin::claim(&path).1, root, "{path}");
        }
    }

    #[test]
    fn look_alikes_are_plain_cgroups() {
        for path in [
            "/docker/short",
            "/.service",
            "/.slice/web.service",
            "/docker2/x",
            &format!("/elsewhere/{ID}"),
            "/docker-xyz.scope2",
        ] {
            assert_eq!(Origin::of(path), Origin::Cgroup, "{path}");
        }
    }
}
