//! What the product is built from: licences, sources and double versions by cargo-deny (`deny.toml`), advisories where their
//! database can be had. Tests hold the tables of docs/dependencies.md and docs/security.md against manifests and sources.

use std::process::Command;

use anyhow::Result;

use crate::{
    needs::{Mend, Need},
    process, say,
    tool::Tool,
    workspace,
};

/// The version whose checks are known to pass.
const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };
/// Checks that need nothing but the crates themselves.
const HELD: [&str; 3] = ["bans", "licenses", "sources"];

/// cargo-deny, when it is not here. Built without optimisation, which halves the time and is fast enough for one run.
pub(crate) fn missing() -> Option<Need> {
    let install = CARGO_DENY.install().and(["--debug"]);
    CARGO_DENY.find().is_none().then(|| Need {
        what: format!("cargo-deny {}", CARGO_DENY.version),
        why: "holds licences, sources and double versions of dependencies against deny.toml",
        mend: Mend::Command(install.with("CARGO_PROFILE_DEV_DEBUG", "0")),
    })
}

/// Runs the checks, or says that it cannot.
///
/// # Errors
/// When one fails. Advisories that cannot be fetched are no failure: the network's, not the product's.
pub(crate) fn check() -> Result<()> {
    let Some(program) = CARGO_DENY.find() else {
        say::line("cargo-deny is not here; build servers run it, by hand: cargo install cargo-deny --locked");
        return Ok(());
    };
    let deny = |checks: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(workspace::root()).arg("check").args(checks);
        command
    };
    process::run(&mut deny(&HELD))?;
    let mut fetch = Command::new(&program);
    match process::output(fetch.current_dir(workspace::root()).args(["fetch", "db"])) {
        Ok(_) => process::run(&mut deny(&["advisories"])),
        Err(error) => {
            say::line(format_args!("advisories are not checked, their database cannot be had: {error:.300}"));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
