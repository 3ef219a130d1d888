//! The files of the package, where they will be on a host.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Of the checkout, and where each goes; a directory goes with all that is in it.
const FILES: [(&str, &str); 13] = [
    ("deploy/systemd/defib.service", "usr/lib/systemd/system/defib.service"),
    ("deploy/systemd/command-services.conf", "usr/share/defib/command-services.conf"),
    ("deploy/systemd/traces.conf", "usr/share/defib/traces.conf"),
    ("deploy/defib.toml", "etc/defib/defib.toml"),
    ("deploy/prometheus", "usr/share/defib/prometheus"),
    ("deploy/grafana", "usr/share/defib/grafana"),
    ("deploy/nginx", "usr/share/defib/nginx"),
    ("deploy/kubernetes", "usr/share/defib/kubernetes"),
    ("deploy/container", "usr/share/defib/container"),
    ("docs", "usr/share/doc/defib"),
    ("README.md", "usr/share/doc/defib/README.md"),
    ("CHANGELOG.md", "usr/share/doc/defib/CHANGELOG.md"),
    ("LICENSE-MIT", "usr/share/doc/defib/copyright"),
];
/// Shells, and where each looks for what completes a command.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/defib"),
    ("zsh", "usr/share/zsh/vendor-completions/_defib"),
    ("fish", "usr/share/fish/vendor_completions.d/defib.fish"),
];
const MANUAL: &str = "usr/share/man/man1";

/// Writes them below `root`.
pub(super) fn write(root: &Path, defib: &Path) -> Result<()> {
    let program = place(root, "usr/bin/defib")?;
    copy(defib, &program)?;
    process::output(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
    set_mode(&program, 0o755)?;
    for (from, to) in FILES {
        copy_all(&workspace::root().join(from), &root.join(to))?;
    }
    for (shell, to) in COMPLETIONS {
        let script = process::output(Command::new(defib).env("COMPLETE", shell))?;
        let to = place(root, to)?;
        fs::write(&to, format!("{script}\n")).with_context(|| to.display().to_string())?;
    }
    let manual = root.join(MANUAL);
    process::output(Command::new(defib).arg("manual").arg(&manual))?;
    process::output(Command::new("gzip").args(["--recursive", "--no-name", "-9"]).arg(&manual)).map(drop)
}

/// Where `path` is below `root`, its directory made.
pub(super) fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let place = root.join(path);
    let parent = place.parent().unwrap_or(root);
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    Ok(place)
}

/// Gives `file` this mode, whatever the builder's umask is.
pub(super) fn set_mode(file: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).with_context(|| file.display().to_string())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().unwrap_or(to)).with_context(|| to.display().to_string())?;
        copy(from, to)?;
        let script = fs::metadata(from).is_ok_and(|found| found.permissions().mode() & 0o100 != 0);
        return set_mode(to, if script { 0o755 } else { 0o644 });
    }
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let name = entry.with_context(|| from.display().to_string())?.file_name();
        copy_all(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_there_and_a_script_can_be_run() -> Result<()> {
        let root = tempfile::tempdir()?;
        for (from, to) in FILES {
            copy_all(&workspace::root().join(from), &root.path().join(to))?;
        }
        let mode = |path: &str| fs::metadata(root.path().join(path)).map(|found| found.permissions().mode() & 0o777);
        assert_eq!(mode("usr/share/defib/nginx/defib-upstream")?, 0o755);
        assert_eq!(mode("usr/share/defib/kubernetes/daemonset.yaml")?, 0o644);
        assert_eq!(mode("etc/defib/defib.toml")?, 0o644);
        Ok(())
    }
}
