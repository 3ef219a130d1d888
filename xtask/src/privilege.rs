//! How far this user's rights go: root already, root through sudo, or neither.
//!
//! Nothing is built with raised rights, so that no file of root's turns up in the user's checkout; only a finished
//! program is started through [`Privilege::command`].

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _},
    process::Command,
};

use anyhow::Result;

use crate::process;

/// The way to root from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// We are root.
    Root,
    /// `sudo` works without a question, or somebody is at the terminal to answer it.
    Sudo,
    /// No way.
    Unprivileged,
}

impl Privilege {
    /// Looks at the user, then at sudo. Never asks a question.
    pub(crate) fn available() -> Result<Self> {
        Ok(if is_root() {
            Self::Root
        } else if process::find("sudo").is_none() {
            Self::Unprivileged
        } else if io::stdin().is_terminal() || process::succeeds(Command::new("sudo").args(["-n", "true"]))? {
            Self::Sudo
        } else {
            Self::Unprivileged
        })
    }

    /// A command that runs `program` with these rights and these variables (sudo drops the others).
    pub(crate) fn command(self, program: &OsStr, variables: &[(&str, &OsStr)]) -> Command {
        match self {
            Self::Root | Self::Unprivileged => {
                let mut command = Command::new(program);
                command.envs(variables.iter().copied());
                command
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["--", "env"]);
                for (name, value) in variables {
                    command.arg([OsStr::new(name), value].join(OsStr::new("=")));
                }
                command.arg(program);
                command
            }
        }
    }
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_gets_the_variables_as_words() {
        let command = Privilege::Sudo.command(OsStr::new("/x/defib"), &[("A", OsStr::new("b c"))]);
        assert_eq!(process::shown(&command), "sudo -- env A=b c /x/defib");
    }
}
