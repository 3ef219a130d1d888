//! What the package says of itself, and what it does when it comes and goes.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::tree::{place, set_mode};
use crate::{process, workspace};

/// Of `deploy/debian`.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Files that an upgrade leaves as the administrator has them.
const CONFFILES: &str = "/etc/defib/defib.toml\n";

/// Writes `DEBIAN/` below `root`.
pub(super) fn write(root: &Path, version: &str, architecture: &str) -> Result<()> {
    let libc = process::output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", "libc6"]))?;
    let control = place(root, "DEBIAN/control")?;
    fs::write(&control, fields(version, architecture, upstream(&libc))).context("DEBIAN/control")?;
    let conffiles = place(root, "DEBIAN/conffiles")?;
    fs::write(conffiles, CONFFILES).context("DEBIAN/conffiles")?;
    for script in SCRIPTS {
        let to = place(root, &format!("DEBIAN/{script}"))?;
        fs::copy(workspace::root().join("deploy/debian").join(script), &to).with_context(|| script.to_owned())?;
        set_mode(&to, 0o755)?;
    }
    Ok(())
}

/// A version without its Debian revision.
fn upstream(version: &str) -> &str {
    version.rsplit_once('-').map_or(version, |(upstream, _)| upstream)
}

/// A program may need all that the C library it was linked with has.
fn fields(version: &str, architecture: &str, libc: &str) -> String {
    format!(
        "Package: defib\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: Defib maintainers <maintainers@defib.invalid>\n\
         Depends: libc6 (>= {libc}), libgcc-s1, init-system-helpers\n\
         Section: admin\n\
         Priority: optional\n\
         Description: eBPF monitor of OOM kills and crashes that brings services back\n \
         Sees every death in the kernel, says its cause and its sender, starts again\n \
         what nobody else does, and writes the timeline.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_field_or_goes_on_with_one() {
        let fields = fields("0.1.0-1", "amd64", upstream("2.36-9+deb12u14"));
        assert!(fields.contains("\nDepends: libc6 (>= 2.36), "), "{fields}");
        assert!(fields.lines().all(|line| line.starts_with(' ') || line.contains(": ")), "{fields}");
        assert!(fields.ends_with('\n'));
    }
}
