//! `cargo xtask dist`: the Debian package, from the optimised program and the files of `deploy/` and `docs/`.
//!
//! ```text
//! defib ──▶ manual pages, completions ─┐
//! deploy/, docs/, licences ────────────┼─▶ tree ─▶ dpkg-deb ─▶ target/dist/defib_VERSION_ARCH.deb
//! fields, conffiles, scripts ──────────┘
//! ```
//! Not cargo-deb: compiling it takes minutes, which the build server would spend for a tree of some thirty files.

mod control;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    artifacts,
    needs::{self, Mend, Need},
    process, say,
    test::setup,
    workspace,
};

/// Build the Debian package into target/dist
///
/// With manual pages, completions for bash, zsh and fish, the systemd unit, rules for Prometheus and a dashboard.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Revision of the package, the part of its version after the program's
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    revision: u32,
    /// Install nothing; where something is missing, list it with the commands that bring it, and fail
    #[arg(long)]
    no_install: bool,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    let needs: Vec<_> = setup::c_compiler().into_iter().chain(dpkg_deb()).collect();
    needs::provide(&needs, !args.no_install)?;
    let package = package(&artifacts::packaged()?, args.revision)?;
    say::line(format_args!("{}", package.display()));
    Ok(ExitCode::SUCCESS)
}

/// Two packages of the same program, so that one can be upgraded to the other.
pub(crate) fn for_upgrade(defib: &Path) -> Result<Vec<PathBuf>> {
    [1, 2].into_iter().map(|revision| package(defib, revision)).collect()
}

/// Makes the package and returns its path.
fn package(defib: &Path, revision: u32) -> Result<PathBuf> {
    let version = format!("{}-{revision}", env!("CARGO_PKG_VERSION"));
    let architecture = process::output(Command::new("dpkg").arg("--print-architecture"))?;
    let dist = workspace::target().join("dist");
    let root = dist.join("tree");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    tree::write(&root, defib)?;
    control::write(&root, &version, &architecture)?;
    let file = dist.join(format!("defib_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    process::output(build.args(["--root-owner-group", "-Zxz", "-z6", "--build"]).arg(&root).arg(&file))?;
    fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    Ok(file)
}

fn dpkg_deb() -> Option<Need> {
    process::find("dpkg-deb").is_none().then(|| Need {
        what: "dpkg-deb".to_owned(),
        why: "it makes the package",
        mend: Mend::Packages(vec!["dpkg"]),
    })
}
