//! The initial RAM disk of a run: busybox, the kernel's boot modules and the guest's side of the harness.
//!
//! Built for every run (it takes milliseconds), so a change of the guest's scripts needs no new kernel or root image.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("guest/init.sh");
const GUEST: [(&str, &str); 2] = [
    ("guest/defib-vm.service", include_str!("guest/defib-vm.service")),
    ("guest/runner.sh", include_str!("guest/runner.sh")),
];

/// Writes the archive `target`, using the empty directory `work`.
pub(super) fn build(boot_modules: &Path, work: &Path, target: &Path) -> Result<()> {
    fill(boot_modules, work).with_context(|| format!("cannot fill {}", work.display()))?;
    let archive = File::create(target).with_context(|| target.display().to_string())?;
    let mut cpio = Command::new(BUSYBOX)
        .args(["cpio", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(work)
        .stdin(Stdio::piped())
        .stdout(archive)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start `busybox cpio`")?;
    let mut names = cpio.stdin.take().context("`busybox cpio` has no input")?;
    let listed = list(work, Path::new("."), &mut names);
    drop(names);
    let status = cpio.wait().context("`busybox cpio` is gone")?;
    listed.context("`busybox cpio` did not read its list")?;
    if !status.success() {
        bail!("`busybox cpio -o -H newc` failed ({status}) for {}", target.display());
    }
    Ok(())
}

fn fill(boot_modules: &Path, work: &Path) -> Result<()> {
    for dir in ["bin", "dev", "guest", "modules", "proc", "root"] {
        fs::create_dir_all(work.join(dir))?;
    }
    fs::copy(BUSYBOX, work.join("bin/busybox")).context(BUSYBOX)?;
    for file in fs::read_dir(boot_modules).with_context(|| boot_modules.display().to_string())? {
        let file = file?;
        fs::copy(file.path(), work.join("modules").join(file.file_name()))?;
    }
    for (name, content) in GUEST {
        fs::write(work.join(name), content)?;
    }
    fs::write(work.join("init"), INIT)?;
    fs::set_permissions(work.join("init"), Permissions::from_mode(0o755))?;
    Ok(())
}

/// Names everything below `dir`, directories before their content, as cpio wants it.
fn list(root: &Path, dir: &Path, names: &mut impl std::io::Write) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let name = dir.join(entry.file_name());
        writeln!(names, "{}", name.display())?;
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    names.flush()
}
