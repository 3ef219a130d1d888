//! Our own programs for the guest: the agent, the victims and, for a test, its harness.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    artifacts::{self, Executable},
    foreign, needs, say,
    test::setup,
    workspace,
};

/// Programs that are looked for when nothing is to be built.
const NAMES: [&str; 3] = ["defib", "victim", "attacker"];

/// A file and its name in /payload.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Builds all programs of the packages `monitor` and `tests`, and the harness of the test `test` as `tests-NAME`.
pub(super) fn build(test: Option<&str>, install: bool) -> Result<Vec<Program>> {
    needs::provide(setup::c_compiler().as_slice(), install)?;
    let mut built = artifacts::release()?;
    let mut others = Vec::new();
    if let Some(test) = test {
        let beside = artifacts::program(&built, "defib")?.parent().context("a program is in a directory")?;
        others = foreign::build(beside)?;
        built.push(artifacts::live_test(test)?);
    }
    Ok(built.into_iter().map(Program::from).chain(others).collect())
}

/// The programs that an earlier build left in the usual place.
pub(super) fn built_earlier() -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for name in NAMES {
        let path = workspace::target().join("release").join(name);
        if fs::exists(&path).with_context(|| path.display().to_string())? {
            programs.push(Program { name: name.to_owned(), path });
        } else {
            say::line(format_args!("vm: {} is not built; the guest goes without it", path.display()));
        }
    }
    Ok(programs)
}

impl From<Executable> for Program {
    fn from(Executable { name, test, path, package: _ }: Executable) -> Self {
        Self { name: if test { format!("tests-{name}") } else { name }, path }
    }
}
