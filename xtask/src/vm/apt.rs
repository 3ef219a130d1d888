//! Downloads packages of another Debian release through an apt configuration of our own.
//!
//! Nothing is installed and the machine's own sources, lists and caches stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::logged;
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One line of sources.list: where, and which release.
pub(super) struct Source {
    pub(super) uri: &'static str,
    pub(super) suite: &'static str,
}

/// A private apt with its lists downloaded.
pub(super) struct Apt {
    config: PathBuf,
    log: PathBuf,
}

/// The fields of a package's record that the harness looks at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Names of the packages that this one needs at exactly its own version: the parts of a split kernel.
    pub(super) parts: Vec<String>,
}

impl Apt {
    /// Sets up a configuration in `dir` and downloads the package lists.
    pub(super) fn new(dir: &Path, sources: &[Source], log: &Path) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| dir.display().to_string())?;
        }
        let config = dir.join("apt.conf");
        let lines: String = sources
            .iter()
            .map(|source| format!("deb [arch=amd64 signed-by={KEYRING}] {} {} main\n", source.uri, source.suite))
            .collect();
        fs::write(dir.join("sources.list"), lines)
            .and_then(|()| fs::write(dir.join("state/status"), ""))
            .and_then(|()| fs::write(&config, configuration(dir)))
            .with_context(|| dir.display().to_string())?;
        let apt = Self { config, log: log.to_owned() };
        logged::run(apt.command("apt-get").arg("update"), log)?;
        Ok(apt)
    }

    /// The newest version of `package` that the sources have.
    pub(super) fn newest(&self, package: &str) -> Result<Package> {
        let record = process::output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        parse_record(&record).with_context(|| format!("apt-cache show {package}"))
    }

    /// Downloads `packages` and unpacks them below `tree`.
    pub(super) fn unpack(&self, packages: &[Package], tree: &Path) -> Result<()> {
        let downloads = self.config.with_file_name("downloads");
        fs::create_dir_all(&downloads).with_context(|| downloads.display().to_string())?;
        let wanted = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        logged::run(self.command("apt-get").arg("download").args(wanted).current_dir(&downloads), &self.log)?;
        for file in fs::read_dir(&downloads).with_context(|| downloads.display().to_string())? {
            logged::run(Command::new("dpkg-deb").arg("--extract").arg(file?.path()).arg(tree), &self.log)?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    // The machine's proxy settings stay in force; its hooks around `update` must not run for our lists. An archived
    // release has an expired date. Descriptions for software centres (DEP-11) would double the download.
    format!(
        r#"Dir::Etc::SourceList "{dir}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "{dir}/lists";
Dir::State::Status "{dir}/state/status";
Dir::Cache "{dir}/cache";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled "false";
"#
    )
}

/// Reads the first record of `apt-cache show`.
fn parse_record(text: &str) -> Result<Package> {
    let record = text.trim_start().split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(|value| value.trim().to_owned())
    };
    let (Some(name), Some(version)) = (field("Package"), field("Version")) else {
        bail!("a record without Package or Version");
    };
    let depends = field("Depends").unwrap_or_default();
    let exact = format!("(= {version})");
    let parts = depends
        .split(',')
        .filter_map(|one| one.trim().strip_suffix(&exact))
        .map(|name| name.trim().to_owned())
        .collect();
    Ok(Package { name, version, parts })
}

#[cfg(test)]
mod tests {
    use super::{Package, parse_record};

    #[test]
    fn a_meta_package_names_the_current_kernel() {
        let text = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (7.2.12+1)
Version: 7.2.12-1
Depends: linux-base-cloud-amd64 (= 7.2.12-1), linux-image-7.2.12+deb14-cloud-amd64 (= 7.2.12-1)
Description: Linux for x86-64 cloud (meta-package)

Package: linux-image-cloud-amd64
Version: 5.10.223-1
";
        let expected = Package {
            name: "linux-image-cloud-amd64".into(),
            version: "7.2.12-1".into(),
            parts: vec!["linux-base-cloud-amd64".into(), "linux-image-7.2.12+deb14-cloud-amd64".into()],
        };
        assert_eq!(parse_record(text).ok(), Some(expected));
    }

    #[test]
    fn alternatives_and_other_versions_are_no_parts() {
        let text = "\
Package: linux-image-5.10.0-46-cloud-amd64
Version: 5.10.262-1
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool
";
        assert_eq!(parse_record(text).map(|package| package.parts).ok(), Some(vec![]));
        assert!(parse_record("N: nothing\n").is_err());
    }
}
