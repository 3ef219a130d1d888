//! Tests that could not run here.
//!
//! A harness knows only passed, failed and ignored at compile time. A test that finds at run time that it cannot run
//! appends a line to the file that the environment names in [`VARIABLE`], and returns:
//!
//! ```text
//! SKIP <test name>: <reason>
//! SKIP-OK <test name>: <reason>
//! ```
//!
//! The second form is for a reason that no build server could mend, such as a kernel without cgroup v1. The same line is
//! printed, for those who have only the output of a run.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Names the file to the tests.
pub(super) const VARIABLE: &str = "DEFIB_SKIP_LOG";

/// One test that did not run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) test: String,
    pub(crate) reason: String,
    /// Whether a build server accepts it.
    pub(crate) accepted: bool,
}

impl Skip {
    /// The skip that a line of a program's output tells of, if it does.
    pub(crate) fn find(line: &str) -> Option<Self> {
        (line.starts_with("SKIP ") || line.starts_with("SKIP-OK ")).then(|| Self::parse(line))
    }

    fn parse(line: &str) -> Self {
        let (accepted, rest) = match line.strip_prefix("SKIP-OK ") {
            Some(rest) => (true, rest),
            None => (false, line.strip_prefix("SKIP ").unwrap_or(line)),
        };
        let (test, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
        Self { test: test.to_owned(), reason: reason.to_owned(), accepted }
    }
}

/// The file. Not in `/tmp`: there, the kernel (`fs.protected_regular`) keeps a test that runs as root from opening a
/// file of ours to append to it.
pub(super) struct SkipLog {
    path: PathBuf,
}

impl SkipLog {
    /// Makes an empty file in `directory`, in place of what an earlier run left.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let log = Self { path: directory.join("skipped-tests.log") };
        fs::create_dir_all(directory).with_context(|| log.cannot("make"))?;
        log.clear()?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tests that skipped since the last call, each once.
    pub(super) fn take(&self) -> Result<Vec<Skip>> {
        let text = fs::read_to_string(&self.path).with_context(|| self.cannot("read"))?;
        self.clear()?;
        let mut skips: Vec<Skip> = Vec::new();
        for skip in text.lines().filter(|line| !line.trim().is_empty()).map(Skip::parse) {
            if !skips.iter().any(|known| known.test == skip.test) {
                skips.push(skip);
            }
        }
        Ok(skips)
    }

    /// A new file rather than an emptied one, which may be root's.
    fn clear(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| self.cannot("remove")),
            _ => File::create(&self.path).map(drop).with_context(|| self.cannot("make")),
        }
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn both_forms_and_a_line_that_is_neither() {
        let parsed = Skip::parse("SKIP oom::one: needs root: run it with sudo");
        let expected = Skip { test: "oom::one".into(), reason: "needs root: run it with sudo".into(), accepted: false };
        assert_eq!(parsed, expected);
        assert!(Skip::parse("SKIP-OK v1: no cgroup v1").accepted);
        assert_eq!(Skip::parse("odd").reason, "no reason given");
        assert_eq!(Skip::find("SKIP-OK v1: no cgroup v1"), Some(Skip::parse("SKIP-OK v1: no cgroup v1")));
        assert_eq!(Skip::find("SKIPPED: 1"), None);
    }

    #[test]
    fn each_test_is_taken_once() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let log = SkipLog::create(directory.path())?;
        assert!(log.take()?.is_empty());
        let mut file = fs::OpenOptions::new().append(true).open(log.path())?;
        file.write_all(b"SKIP a: one\nSKIP a: two\n\nSKIP-OK b: three\n")?;
        let names: Vec<_> = log.take()?.into_iter().map(|skip| skip.test).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(log.take()?.is_empty());
        Ok(())
    }
}
