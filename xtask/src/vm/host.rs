//! The Debian packages that the harness needs on this machine.

use std::{collections::HashSet, process::Command};

use anyhow::{Context as _, Result};

use crate::needs::{Mend, Need};

/// Package and what the harness uses it for.
const PACKAGES: [(&str, &str); 8] = [
    ("qemu-system-x86", "runs the virtual machine"),
    ("mmdebstrap", "makes the guest's root file system"),
    ("e2fsprogs", "makes disk images without mounting (mke2fs -d)"),
    ("busybox-static", "first process of the guest"),
    ("kmod", "sorts the kernel modules of the guest (depmod)"),
    ("xz-utils", "unpacks compressed kernel modules"),
    ("debian-archive-keyring", "checks the signatures of what is downloaded"),
    ("util-linux", "ends the machine with the harness (setpriv)"),
];

/// The packages that are not installed.
pub(super) fn missing() -> Result<Vec<Need>> {
    // Its exit status only says that some package is not known; the output says which ones are installed.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(PACKAGES.map(|(package, _)| package))
        .output()
        .context("cannot start dpkg-query: the harness needs a Debian machine")?;
    let status = String::from_utf8_lossy(&output.stdout);
    let installed = installed(&status);
    let missing = PACKAGES.into_iter().filter(|(package, _)| !installed.contains(package));
    Ok(missing
        .map(|(package, why)| Need { what: package.to_owned(), why, mend: Mend::Packages(vec![package]) })
        .collect())
}

fn installed(status: &str) -> HashSet<&str> {
    status.lines().filter_map(|line| line.strip_suffix(" installed")).collect()
}

#[cfg(test)]
mod tests {
    use super::installed;

    #[test]
    fn only_installed_packages_count() {
        let installed = installed("kmod installed\nxz-utils config-files\nmmdebstrap not-installed\n");
        assert_eq!(installed.into_iter().collect::<Vec<_>>(), ["kmod"]);
    }
}
