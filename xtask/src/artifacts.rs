//! Where cargo put what it built.
//!
//! Cargo says so itself in its messages; a path put together by hand would be wrong with `CARGO_TARGET_DIR` set.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{process, workspace};

/// An executable that a build made, fresh or not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The cargo target's name.
    pub(crate) name: String,
    /// Whether it is a test harness rather than a program.
    pub(crate) test: bool,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its package's directory, in which cargo would run a test.
    pub(crate) package: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Runs a cargo command that builds, with its diagnostics on our terminal, and returns the executables that it names.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
    let mut executables = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            executables.extend(executable(&line.context("cannot read cargo's messages")?));
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{}` ended with {status}", process::shown(command));
    }
    Ok(executables)
}

/// All optimised programs of the packages `monitor` and `tests`.
pub(crate) fn release() -> Result<Vec<Executable>> {
    let mut command = workspace::cargo();
    build(command.args(["build", "--release", "--locked", "--package", "monitor", "--package", "tests"]))
}

/// The harnesses of the live tests. Nobody measures these, and optimising them takes minutes: what they start is optimised.
pub(crate) fn live_tests() -> Result<Vec<Executable>> {
    let mut command = workspace::cargo();
    let mut built = build(command.args(["test", "--locked", "--package", "tests", "--no-run"]))?;
    built.retain(|executable| executable.test);
    Ok(built)
}

/// The harness of one of them.
pub(crate) fn live_test(name: &str) -> Result<Executable> {
    let mut command = workspace::cargo();
    command.args(["test", "--locked", "--package", "tests", "--no-run", "--test", name]);
    let built = build(&mut command)?.into_iter().find(|executable| executable.test && executable.name == name);
    built.with_context(|| format!("cargo built no test named `{name}`"))
}

/// The agent's binary as it is packaged: smaller than the one of the tests, and minutes longer in the making.
pub(crate) fn packaged() -> Result<PathBuf> {
    let built = build(workspace::cargo().args(["build", "--profile", "dist", "--locked", "--package", "monitor"]))?;
    program(&built, "defib").map(Path::to_path_buf)
}

/// The agent's optimised binary, built now if it is not up to date.
pub(crate) fn defib() -> Result<PathBuf> {
    let built = build(workspace::cargo().args(["build", "--release", "--locked", "--package", "monitor"]))?;
    program(&built, "defib").map(Path::to_path_buf)
}

/// The program of that name among what was built.
pub(crate) fn program<'a>(executables: &'a [Executable], name: &str) -> Result<&'a Path> {
    executables
        .iter()
        .find(|executable| executable.name == name && !executable.test)
        .map(|executable| executable.path.as_path())
        .with_context(|| format!("cargo built no program named `{name}`"))
}

fn executable(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    Some(Executable {
        name: message.target?.name,
        test: message.profile?.test,
        path: message.executable?,
        package: message.manifest_path?.parent()?.to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_executables_count() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/tests/Cargo.toml","target":{"name":"oom"},
            "profile":{"test":true},"executable":"/t/oom-1"}"#;
        let expected =
            Executable { name: "oom".into(), test: true, path: "/t/oom-1".into(), package: "/r/tests".into() };
        assert_eq!(executable(line), Some(expected));
        assert_eq!(executable(&line.replace("\"/t/oom-1\"", "null")), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("a line that some build script printed"), None);
    }

    #[test]
    fn a_test_harness_is_not_the_program_of_its_name() {
        let harness = Executable { name: "defib".into(), test: true, path: "/t/a".into(), package: "/r".into() };
        let binary = Executable { name: "defib".into(), test: false, path: "/t/b".into(), package: "/r".into() };
        assert_eq!(program(&[harness, binary], "defib").ok(), Some(Path::new("/t/b")));
        assert!(program(&[], "defib").is_err());
    }
}
