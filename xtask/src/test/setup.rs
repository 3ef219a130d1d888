//! What the test command needs from the machine beyond the cargo that runs it.

use std::{env, path::Path, process::Command};

use anyhow::Result;

use crate::{
    ebpf::toolchain,
    needs::{self, Mend, Need, Step},
    process, say, workspace,
};

/// Brings what is missing, or with `install` off fails with a list.
pub(super) fn provide(install: bool) -> Result<()> {
    let needs = missing()?;
    if needs.is_empty() {
        say::line("nothing is missing");
    }
    needs::provide(&needs, install)
}

fn missing() -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    needs.extend(c_compiler());
    for (component, subcommand, why) in [("rustfmt", "fmt", "the format check"), ("clippy", "clippy", "the lints")] {
        if !process::succeeds(workspace::cargo().args([subcommand, "--version"]))? {
            needs.push(Need { what: format!("cargo {subcommand}"), why, mend: component_mend(component) });
        }
    }
    if workspace::in_ci() {
        // A build server rebuilds the kernel object; a person who has not got the tools only checks its hashes.
        needs.extend(toolchain::missing()?);
        // A person's machine gets no Docker from us: it would begin to run there. Without it that test is skipped.
        needs.extend(docker());
    }
    Ok(needs)
}

/// The Docker engine that a live test starts for itself.
fn docker() -> Option<Need> {
    let present = Path::new("/usr/sbin/dockerd").exists() && Path::new("/bin/busybox").exists();
    (!present).then(|| Need {
        what: "dockerd and a static busybox".to_owned(),
        why: "a live test kills processes in real containers",
        mend: Mend::Packages(vec!["docker.io", "busybox-static"]),
    })
}

/// A C compiler: it links every program, and it compiles SQLite.
pub(crate) fn c_compiler() -> Option<Need> {
    let present = env::var_os("CC").is_some() || process::find("cc").is_some();
    (!present).then(|| Need {
        what: "a C compiler (cc)".to_owned(),
        why: "Rust links programs with it",
        mend: Mend::Packages(vec!["gcc", "libc6-dev"]),
    })
}

/// A part of the Rust toolchain, from where the toolchain itself is from.
fn component_mend(component: &'static str) -> Mend {
    if process::find("rustup").is_some() {
        return Mend::Command(Step::new(["rustup", "component", "add", component]));
    }
    let web = process::succeeds(Command::new("dpkg").args(["-L", "cargo-web"])).unwrap_or(false);
    Mend::Packages(vec![match (component, web) {
        ("rustfmt", true) => "rustfmt-web",
        ("rustfmt", false) => "rustfmt",
        (_, true) => "rust-web-clippy",
        (_, false) => "rust-clippy",
    }])
}
