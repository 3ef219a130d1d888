//! What a run brings into the guest: programs, extra files and the script, on a disk mounted at /payload.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{disk, logged, programs::Program};

/// Room for what the script writes beside itself, in MiB.
const FREE_MIB: u64 = 256;
/// What runs when the caller has no command: proof that this is the machine that was asked for.
const SELF_CHECK: &str = r#"set -e
echo "kernel: $(uname -r)"
echo "pid 1: $(cat /proc/1/comm), $(systemctl is-system-running --wait)"
echo "cgroup: $(stat -fc %T /sys/fs/cgroup)"
echo "BTF: $(stat -c %s /sys/kernel/btf/vmlinux) bytes"
busctl --system --list >/dev/null && echo "dbus: answers"
systemd-run --quiet --wait --pipe echo "systemd-run: works"
if [ -x defib ]; then ./defib --version; fi
"#;

/// What the guest shall do, and with what.
pub(super) struct Payload<'a> {
    pub(super) programs: &'a [Program],
    /// Files and directories to copy to /payload, under their own names.
    pub(super) with: &'a [PathBuf],
    /// Commands for bash, run in /payload; without them, the machine checks itself.
    pub(super) script: Option<&'a str>,
}

/// Fills the directory `work` and makes the disk image `image` of it.
pub(super) fn build(payload: &Payload<'_>, work: &Path, image: &Path, log: &Path) -> Result<()> {
    let Payload { programs, with, script } = payload;
    fs::create_dir_all(work).with_context(|| work.display().to_string())?;
    for Program { name, path } in *programs {
        fs::copy(path, work.join(name)).with_context(|| path.display().to_string())?;
    }
    for path in *with {
        if !path.exists() {
            bail!("--with {}: no such file", path.display());
        }
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--preserve=mode,timestamps,links", "--"]).args([path.as_path(), work]);
        logged::run(&mut copy, log)?;
    }
    let script = script.unwrap_or(SELF_CHECK);
    fs::write(work.join("run.sh"), format!("{script}\n")).with_context(|| work.display().to_string())?;
    disk::from_directory(work, image, FREE_MIB, log)
}
