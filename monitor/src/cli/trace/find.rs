//! Where a service lives: asked from the agent when one runs, else looked for on this host.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::near;
use crate::{
    attribution::Origin,
    config::{Config, Target},
    control::{self, Status},
    host::{cgroup::Hierarchy, containers},
    text::Clean,
};

/// Engines name their containers within this, or these have no names here.
const PATIENCE: Duration = Duration::from_secs(3);
/// Digits of a container's id that stand for all of it, as its engine shows them.
const SHORT_ID: usize = 12;

/// The service's own name, and the directory of its cgroup.
///
/// # Errors
/// When there is no such service, with names that come near.
pub(super) async fn service(name: &str, socket: &Path, config: &Config) -> Result<(String, PathBuf)> {
    let hierarchy = Hierarchy::detect()?;
    if name.starts_with('/') {
        return by_path(name, &hierarchy);
    }
    let mut places = asked(socket).await;
    if let Some((service, path)) = pick(name, &places) {
        return Ok((service.to_owned(), hierarchy.directory(path)));
    }
    let (found, containers) = on_host(&hierarchy)?;
    // What the agent says counts first.
    for (service, path) in found.into_iter().chain(configured(config)).chain(named(&containers).await) {
        places.entry(service).or_insert(path);
    }
    if let Some((service, path)) = pick(name, &places) {
        return Ok((service.to_owned(), hierarchy.directory(path)));
    }
    let is_id = name.len() >= SHORT_ID && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some((_, id, path)) = containers.iter().find(|(_, id, _)| is_id && id.starts_with(name)) {
        let service = places.iter().find(|(_, place)| *place == path).map_or(id, |(service, _)| service);
        return Ok((service.clone(), hierarchy.directory(path)));
    }
    let known: Vec<_> = places.into_keys().collect();
    bail!(
        "there is no service {} on this host that runs{}; allowed are names as 'defib status' has them, systemd units, containers, and \
         cgroups by their path",
        Clean(name),
        near::words(name, &known)
    )
}

/// A path below the root of the hierarchy, or below the root of the host's file system.
fn by_path(path: &str, hierarchy: &Hierarchy) -> Result<(String, PathBuf)> {
    let below =
        hierarchy.mount.to_str().and_then(|mount| path.strip_prefix(mount)).filter(|rest| rest.starts_with('/'));
    let path = below.unwrap_or(path).trim_end_matches('/');
    ensure!(!path.is_empty(), "the root of the cgroups is no service; name one below it");
    ensure!(path.split('/').all(|name| name != ".."), "a cgroup's path has no ..");
    let directory = hierarchy.directory(path);
    ensure!(directory.is_dir(), "there is no cgroup {} below {}", Clean(path), hierarchy.mount.display());
    Ok((name_of(path), directory))
}

/// A unit's own cgroup is called as the unit; everything else by its path.
fn name_of(path: &str) -> String {
    match Origin::claim(path) {
        (Origin::Unit(unit), root) if root == path => unit,
        _ => path.to_owned(),
    }
}

/// Service and cgroup, as the agent has them; none when no agent answers.
async fn asked(socket: &Path) -> BTreeMap<String, String> {
    let all: Result<Vec<Status>> = control::request(socket, "/status", None::<()>).await;
    let all = all.unwrap_or_default().into_iter();
    all.filter_map(|status| Some((status.service, status.cgroup.filter(|path| !path.is_empty())?))).collect()
}

/// Of that name, or a unit without its ending.
fn pick<'a>(name: &str, places: &'a BTreeMap<String, String>) -> Option<(&'a str, &'a str)> {
    let found = places.get_key_value(name).or_else(|| places.get_key_value(format!("{name}.service").as_str()));
    found.map(|(service, path)| (service.as_str(), path.as_str()))
}

/// Engine, id, and path of the cgroup.
type Container = (&'static str, String, String);

/// Name, and path of the cgroup.
type Named = (String, String);

/// Units with their cgroups, and containers.
fn on_host(hierarchy: &Hierarchy) -> Result<(Vec<Named>, Vec<Container>)> {
    let (mut units, mut containers) = (Vec::new(), Vec::new());
    hierarchy
        .walk(|_, path| match Origin::claim(path) {
            (Origin::Unit(unit), root) if root == path => units.push((unit, path.to_owned())),
            (Origin::Container { engine, id }, root) if root == path => containers.push((engine, id, path.to_owned())),
            _ => {}
        })
        .context("cannot look for the service")?
        // A service beyond that bound is not found, and the command says so.
        .beginning();
    Ok((units, containers))
}

/// Services that the configuration names and that are neither unit nor container.
fn configured(config: &Config) -> Vec<Named> {
    let command = |target| match target {
        Target::Command { name, command } => Some((name, command.cgroup.to_string())),
        Target::Unit(_) | Target::Container(_) => None,
    };
    config.services().into_iter().filter_map(|service| command(service.target)).collect()
}

/// Names of containers; those whose engine does not answer have none.
async fn named(all: &[Container]) -> Vec<Named> {
    let ask = async |(engine, id, path): &Container| {
        let name = timeout(PATIENCE, containers::name(engine, id)).await;
        Some((name.ok()?.ok()??, path.clone()))
    };
    join_all(all.iter().filter(|(engine, ..)| containers::is_here(engine)).map(ask))
        .await
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::Version;

    #[test]
    fn a_path_is_taken_as_the_kernel_or_as_the_file_system_has_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mount = directory.path().to_owned();
        std::fs::create_dir_all(mount.join("system.slice/web.service/inner")).expect("made");
        let hierarchy = Hierarchy { version: Version::V2, id: 0, mount: mount.clone(), cpu: None };
        let web = ("web.service".to_owned(), mount.join("system.slice/web.service"));
        for path in [
            "/system.slice/web.service",
            "/system.slice/web.service/",
            &format!("{}/system.slice/web.service", mount.display()),
        ] {
            assert_eq!(by_path(path, &hierarchy).expect("found"), web, "{path}");
        }
        let inner = "/system.slice/web.service/inner";
        assert_eq!(by_path(inner, &hierarchy).expect("found").0, inner);
        for (path, want) in [("/", "is no service"), ("/none", "no cgroup /none"), ("/system.slice/../x", "has no ..")]
        {
            let error = by_path(path, &hierarchy).expect_err("refused").to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn units_need_no_ending_and_inner_cgroups_are_no_units() {
        let places: BTreeMap<_, _> = [("web.service", "/a"), ("web", "/b"), ("db.service", "/c")]
            .map(|(service, path)| (service.to_owned(), path.to_owned()))
            .into();
        assert_eq!(pick("web", &places), Some(("web", "/b")));
        assert_eq!(pick("db", &places), Some(("db.service", "/c")));
        assert_eq!(pick("d", &places), None);
        assert_eq!(name_of("/system.slice/web.service"), "web.service");
        for inner in ["/system.slice/web.service/inner", "/user.slice/user@1.service/app.slice/x.service"] {
            assert_eq!(name_of(inner), inner);
        }
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_an_error_that_offers_others() {
        if Hierarchy::detect().is_err() {
            return;
        }
        let nobody = Path::new("/nonexistent/control.sock");
        let error = service("no-such-thing", nobody, &Config::default()).await.expect_err("not there").to_string();
        assert!(error.contains("there is no service no-such-thing on this host") && !error.contains('\n'), "{error}");
    }
}
