//! What a task needs from the machine, and the commands that bring it.
//!
//! Nothing is installed unsaid: [`provide`] first prints what is missing and why, then either installs it or, where
//! that is not wanted or not possible, prints the commands for a person to run.

use std::{fmt, process::Command, slice};

use anyhow::{Result, bail};

use crate::{privilege, process, say};

/// Something that is missing here.
#[derive(Debug)]
pub(crate) struct Need {
    /// What, as a person would call it.
    pub(crate) what: String,
    /// What for.
    pub(crate) why: &'static str,
    /// What brings it.
    pub(crate) mend: Mend,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, why, mend: _ } = self;
        write!(f, "{what} is missing ({why})")?;
        match steps(slice::from_ref(self)).last() {
            Some(step) => write!(f, ": run `{step}`"),
            None => Ok(()),
        }
    }
}

/// What brings a missing thing.
#[derive(Debug)]
pub(crate) enum Mend {
    /// Debian packages; installed together, with root's rights, before any command.
    Packages(Vec<&'static str>),
    /// A Debian package in an older version than the one that is here; installed together with the others.
    Downgrade {
        /// Its name.
        package: &'static str,
        /// The version that it shall have.
        version: String,
    },
    /// A command of the user's own.
    Command(Step),
}

/// A command with its environment; shown as it can be typed.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    variables: Vec<(&'static str, String)>,
    words: Vec<String>,
}

impl Step {
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> Self {
        Self { variables: Vec::new(), words: words.map(str::to_owned).into() }
    }

    pub(crate) fn and<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.words.extend(words.into_iter().map(str::to_owned));
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    pub(crate) fn run(&self) -> Result<()> {
        say::line(format_args!("+ {self}"));
        let Some((program, args)) = self.words.split_first() else { return Ok(()) };
        process::run(Command::new(program).args(args).envs(self.variables.iter().map(|(name, value)| (name, value))))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            write!(f, "{name}={} ", quoted(value))?;
        }
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        f.write_str(&words.join(" "))
    }
}

/// Brings all that is missing, after having said so. With `install` off, or where packages are needed and this user
/// cannot install them, prints the list with the commands and fails.
pub(crate) fn provide(needs: &[Need], install: bool) -> Result<()> {
    if needs.is_empty() {
        return Ok(());
    }
    say::line("missing on this machine:");
    for need in needs {
        say::line(format_args!("  {}: {}", need.what, need.why));
    }
    let steps = steps(needs);
    let packages = needs.iter().any(|need| !matches!(need.mend, Mend::Command(_)));
    let obstacle = if !install {
        Some("installing was switched off")
    } else if packages && process::find("apt-get").is_none() {
        Some("there is no apt-get here (the commands are for Debian)")
    } else if packages && !privilege::is_root() {
        Some("only root can install packages")
    } else {
        None
    };
    if let Some(obstacle) = obstacle {
        say::line("these commands bring it (apt-get as root):");
        for step in &steps {
            say::line(format_args!("  {step}"));
        }
        bail!("something that is needed is missing, and {obstacle}");
    }
    say::line("installing it now:");
    steps.iter().try_for_each(Step::run)
}

/// The commands in the order in which they work: packages first, all at once.
fn steps(needs: &[Need]) -> Vec<Step> {
    let mut packages: Vec<String> = Vec::new();
    let mut downgrade = false;
    let mut commands = Vec::new();
    for need in needs {
        match &need.mend {
            Mend::Packages(names) => packages.extend(names.iter().copied().map(str::to_owned)),
            Mend::Downgrade { package, version } => {
                packages.push(format!("{package}={version}"));
                downgrade = true;
            }
            Mend::Command(step) => commands.push(step.clone()),
        }
    }
    packages.sort_unstable();
    packages.dedup();
    let mut steps = Vec::new();
    if !packages.is_empty() {
        steps.push(Step::new(["apt-get", "update", "--quiet"]));
        // What is there stays there: a package that would push another one out is for a person to decide.
        let install = Step::new(["apt-get", "install", "--yes", "--no-install-recommends", "--no-remove"])
            .and(downgrade.then_some("--allow-downgrades"))
            .and(packages.iter().map(String::as_str));
        steps.push(install.with("DEBIAN_FRONTEND", "noninteractive"));
    }
    steps.extend(commands);
    steps
}

/// A word as a shell would have to read it.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_come_first_and_together() {
        let needs = [
            Need { what: "tool".into(), why: "", mend: Mend::Command(Step::new(["make", "a tool"]).with("P", "it's")) },
            Need { what: "b".into(), why: "", mend: Mend::Packages(vec!["b", "a"]) },
            Need { what: "c".into(), why: "", mend: Mend::Packages(vec!["b", "c"]) },
        ];
        let shown: Vec<_> = steps(&needs).iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 3);
        assert_eq!(shown[0], "apt-get update --quiet");
        assert!(shown[1].ends_with(" a b c"), "{}", shown[1]);
        assert_eq!(shown[2], r"P='it'\''s' make 'a tool'");
    }

    #[test]
    fn a_downgrade_is_part_of_the_one_install_and_allowed_only_there() {
        let plain = Need { what: "q".into(), why: "", mend: Mend::Packages(vec!["qemu-system-x86"]) };
        let older = Need {
            what: "u".into(),
            why: "",
            mend: Mend::Downgrade { package: "qemu-utils", version: "1:7.2+dfsg-7".into() },
        };
        let shown: Vec<_> = steps(&[older, plain]).iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2);
        let end = " --no-remove --allow-downgrades qemu-system-x86 qemu-utils=1:7.2+dfsg-7";
        assert!(shown[1].ends_with(end), "{}", shown[1]);
    }

    #[test]
    fn one_need_fits_a_line() {
        let need = Need { what: "cc".into(), why: "links", mend: Mend::Packages(vec!["gcc"]) };
        let line = need.to_string();
        assert!(line.starts_with("cc is missing (links): run `") && line.ends_with(" gcc`"), "{line}");
    }

    #[test]
    fn nothing_missing_is_no_work() {
        assert!(provide(&[], false).is_ok());
    }
}
