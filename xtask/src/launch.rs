//! Builds the agent as the invoking user and becomes it, with raised rights only when it needs them.
//!
//! The agent replaces this process, so that signals and the exit status are its own.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{artifacts, privilege::Privilege, process, say, test::setup};

/// Runs `defib SUBCOMMAND ARGS`. Returns only when that could not be started.
pub(crate) fn launch(subcommand: &str, args: &[OsString]) -> Result<ExitCode> {
    if let Some(need) = setup::c_compiler() {
        bail!("{need}");
    }
    let defib = artifacts::defib()?;
    let privilege = sufficient(&defib, subcommand, args)?;
    if privilege == Privilege::Sudo {
        say::line(format_args!(
            "`defib {subcommand}` needs root: running {} through sudo, which may ask for your password",
            defib.display()
        ));
    }
    let mut command = privilege.command(defib.as_os_str(), &[]);
    let error = command.arg(subcommand).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", process::shown(&command)))
}

/// The least privilege that will do. The agent itself says whether this user's rights are enough as they are; one that
/// does not understand the question needs root.
fn sufficient(defib: &Path, subcommand: &str, args: &[OsString]) -> Result<Privilege> {
    if args.iter().any(|arg| asks_only(arg)) {
        return Ok(Privilege::Unprivileged);
    }
    match Privilege::available()? {
        Privilege::Root => Ok(Privilege::Root),
        _ if process::succeeds(Command::new(defib).args(["doctor", "--can", subcommand]))? => {
            Ok(Privilege::Unprivileged)
        }
        Privilege::Sudo => Ok(Privilege::Sudo),
        Privilege::Unprivileged => bail!("`defib {subcommand}` needs root: run as root or install sudo"),
    }
}

/// Whether the argument makes any command print something about itself and do nothing else.
fn asks_only(arg: &OsStr) -> bool {
    ["-h", "--help", "-V", "--version"].iter().any(|option| arg == *option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_needs_no_rights() {
        let args = [OsString::from("--listen"), OsString::from("--help")];
        let privilege = sufficient(Path::new("/nonexistent"), "run", &args);
        assert_eq!(privilege.ok(), Some(Privilege::Unprivileged));
    }
}
