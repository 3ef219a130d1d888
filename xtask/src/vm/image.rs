//! The guest's root file system: a small Debian with systemd and dbus, built once for each list of packages.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{cache, disk, logged};
use crate::{privilege, say};

/// Debian release of the guest; binaries of the host run in it as long as its C library is not older than the host's.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
/// systemd as PID 1 with dbus, what the tests call, and what dies in them: containers, and programs in other languages.
/// Most of the size is Docker's (250 MiB), Java's (210) and Node's (90), beside 290 for the rest.
const PACKAGES: [&str; 18] = [
    // Docker asks it for its containers' profile, and starts none without.
    "apparmor",
    "busybox-static",
    "dbus",
    "default-jre-headless",
    "docker.io",
    "earlyoom",
    "iproute2",
    "kmod",
    "libpython3-stdlib",
    "nodejs",
    "procps",
    "python3-minimal",
    "strace",
    "stress-ng",
    "systemd",
    "systemd-oomd",
    "systemd-sysv",
    "udev",
];
/// Daemons of those packages; a test that wants one starts it itself.
const NOT_AT_BOOT: &str = "containerd.service docker.service docker.socket earlyoom.service systemd-oomd.service";
/// Room for what a guest writes, in MiB.
const FREE_MIB: u64 = 2048;

/// Builds the image with `extra` packages if it is not in the cache, and returns its path.
pub(super) fn prepare(cache: &Path, extra: &[String]) -> Result<PathBuf> {
    let packages: BTreeSet<&str> = PACKAGES.into_iter().chain(extra.iter().map(String::as_str)).collect();
    let dir = cache.join(format!("rootfs-{SUITE}-{:016x}", key(&packages)));
    cache::build_once(&dir, |dir| {
        say::line(format_args!(
            "building the root file system, {} packages of {SUITE} (about a minute)",
            packages.len()
        ));
        build(dir, &packages.into_iter().collect::<Vec<_>>().join(","))
    })?;
    Ok(dir.join("root.ext4"))
}

/// Of all that a change of this file may give another value.
fn key(packages: &BTreeSet<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (packages, NOT_AT_BOOT, FREE_MIB).hash(&mut hasher);
    hasher.finish()
}

fn build(dir: &Path, packages: &str) -> Result<()> {
    if !privilege::is_root() {
        bail!("building the root file system needs root, once: run this command with sudo");
    }
    // Outside the cache entry, which disappears when the build fails.
    let log = dir.with_extension("log");
    let tree = dir.join("tree");
    logged::run(
        Command::new("mmdebstrap")
            .args(["--mode=root", "--variant=minbase"])
            .arg(format!("--include={packages}"))
            .arg(format!("--customize-hook=chroot \"$1\" systemctl disable {NOT_AT_BOOT}"))
            .arg(SUITE)
            .arg(&tree)
            .arg(format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {MIRROR} {SUITE} main")),
        &log,
    )?;
    // An empty machine id is filled in at boot; a missing one would count as a first boot.
    fs::write(tree.join("etc/machine-id"), "").context("cannot write etc/machine-id")?;
    fs::write(tree.join("etc/hostname"), "defib-vm\n").context("cannot write etc/hostname")?;
    disk::from_directory(&tree, &dir.join("root.ext4"), FREE_MIB, &log)?;
    fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())
}
