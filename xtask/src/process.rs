//! Child processes whose failures name the command.

use std::{
    env,
    ffi::OsStr,
    io::ErrorKind,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs to the end with our terminal; any exit status but 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Standard output of a short command, trimmed; any exit status but 0 is an error that quotes standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the command runs and succeeds, its output unseen. Absence counts as failure.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match quiet.status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot start {}", shown(command))),
    }
}

/// The file that a program name means, by `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// The command as a person would type it, without the environment.
pub(crate) fn shown(command: &Command) -> String {
    let program = command.get_program();
    let name = PathBuf::from(program).file_name().map_or_else(|| program.to_owned(), OsStr::to_owned);
    let mut words = vec![name.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_command_and_its_words() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo no luck >&2; exit 3"]);
        let error = output(&mut command).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("`sh -c "), "{error}");
        assert!(error.contains("exit status: 3") && error.ends_with("no luck"), "{error}");
    }

    #[test]
    fn an_absent_program_does_not_succeed() {
        assert!(!succeeds(&mut Command::new("no-such-program-here")).unwrap_or(true));
    }
}
