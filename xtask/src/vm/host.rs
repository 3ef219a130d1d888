//! The Debian packages that the harness needs on this machine.

use std::{collections::HashMap, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    needs::{Mend, Need, Step},
    privilege, process, say,
};

/// Package and what the harness uses it for.
const PACKAGES: [(&str, &str); 8] = [
    (QEMU, "runs the virtual machine"),
    ("mmdebstrap", "makes the guest's root file system"),
    ("e2fsprogs", "makes disk images without mounting (mke2fs -d)"),
    ("busybox-static", "first process of the guest"),
    ("kmod", "sorts the kernel modules of the guest (depmod)"),
    ("xz-utils", "unpacks compressed kernel modules"),
    ("debian-archive-keyring", "checks the signatures of what is downloaded"),
    ("util-linux", "ends the machine with the harness (setpriv)"),
];
const QEMU: &str = "qemu-system-x86";
/// Not needed, but of the same source as [`QEMU`], and often there already, from backports: a newer one does not go with
/// an older qemu.
const UTILS: &str = "qemu-utils";

/// The packages that are not installed, and one that is too new to go with them.
pub(crate) fn missing() -> Result<Vec<Need>> {
    // Its exit status only says that some package is not known; the output says which ones are installed.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n"])
        .args(PACKAGES.map(|(package, _)| package))
        .arg(UTILS)
        .output()
        .context("cannot start dpkg-query: the harness needs a Debian machine")?;
    let status = String::from_utf8_lossy(&output.stdout);
    let installed = installed(&status);
    let missing = PACKAGES.into_iter().filter(|(package, _)| !installed.contains_key(package));
    let mut needs: Vec<_> = missing
        .map(|(package, why)| Need { what: package.to_owned(), why, mend: Mend::Packages(vec![package]) })
        .collect();
    if let (None, Some(utils)) = (installed.get(QEMU), installed.get(UTILS)) {
        needs.extend(older_utils(utils)?);
    }
    Ok(needs)
}

/// Asks for the tools of the qemu that will be installed, if those that are here are newer.
fn older_utils(installed: &str) -> Result<Option<Need>> {
    if privilege::is_root() {
        // The version must be one that the sources have now; old lists would name one that is gone.
        say::line(format_args!("{UTILS} is here without {QEMU}: is there a {QEMU} of its version?"));
        Step::new(["apt-get", "update", "--quiet"]).run()?;
    }
    let policy = process::output(Command::new("apt-cache").args(["policy", QEMU]).env("LC_ALL", "C"))?;
    let Some(candidate) = candidate(&policy) else { return Ok(None) };
    let newer = process::succeeds(Command::new("dpkg").args(["--compare-versions", installed, "gt", candidate]))?;
    Ok(newer.then(|| Need {
        what: format!("{UTILS} {candidate} instead of {installed}"),
        why: "the newer one does not go with the qemu of this machine's package sources",
        mend: Mend::Downgrade { package: UTILS, version: candidate.to_owned() },
    }))
}

/// Installed packages and their versions.
fn installed(status: &str) -> HashMap<&str, &str> {
    status.lines().filter_map(|line| line.split_once(" installed ")).collect()
}

/// The version that apt would install.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let status = "kmod installed 30+20221128-1\nxz-utils config-files 5.4.1-1\nmmdebstrap not-installed \n";
        assert_eq!(installed(status).into_iter().collect::<Vec<_>>(), [("kmod", "30+20221128-1")]);
    }

    #[test]
    fn the_candidate_is_not_what_is_installed() {
        let policy = "\
qemu-system-x86:
  Installed: (none)
  Candidate: 1:7.2+dfsg-7+deb12u18+b3
  Version table:
     1:7.2+dfsg-7+deb12u18+b3 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
";
        assert_eq!(candidate(policy), Some("1:7.2+dfsg-7+deb12u18+b3"));
        assert_eq!(candidate(&policy.replace("1:7.2+dfsg-7+deb12u18+b3", "(none)")), None);
        assert_eq!(candidate(""), None);
    }
}
