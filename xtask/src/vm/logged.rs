//! Long work of other programs: their output goes to a log, and a failure shows the end of it and names the file.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, say};

/// Lines of a log that are shown after a failure.
const SHOWN: usize = 15;

/// Runs `command` to its end with all its output appended to `log`.
pub(super) fn run(command: &mut Command, log: &Path) -> Result<()> {
    let shown = process::shown(command);
    let opened = File::options().create(true).append(true).open(log).and_then(|mut file| {
        writeln!(file, "$ {shown}")?;
        Ok((file.try_clone()?, file))
    });
    let (stdout, stderr) = opened.with_context(|| log.display().to_string())?;
    let status = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).status();
    let status = status.with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        show_end(log);
        bail!("`{shown}` ended with {status}, log: {}", log.display());
    }
    Ok(())
}

/// Shows the last lines of a log, if there is anything in it.
pub(super) fn show_end(log: &Path) {
    // The error that follows names the file; one that cannot be read has nothing to show.
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(SHOWN)..];
    if !last.is_empty() {
        say::line(format_args!("the end of {}:", log.display()));
    }
    for line in last {
        say::line(format_args!("  | {}", line.escape_debug()));
    }
}
