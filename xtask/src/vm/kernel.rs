//! Real Debian kernels, downloaded and taken apart: `vmlinuz`, a disk with its modules, and those modules that are
//! needed before the disks can be read.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{
    apt::{Apt, Package, Source},
    cache, disk, logged,
    modules::load_order,
};
use crate::say;

/// What the guest needs to see its disks; what is built into a kernel is in no module list.
const BOOT_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// A kernel series that the harness can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12's newer kernel
    #[value(name = "6.12")]
    V6_12,
    /// Debian forky
    #[value(name = "7.2")]
    V7_2,
}

/// Places that carry a series, the best first: a release moves to the archive when its support ends, and a testing
/// release moves on to the next series.
type Places = &'static [&'static [Source]];

impl Kernel {
    /// The series, as on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    fn meta_package(self) -> &'static str {
        match self {
            Self::V5_10 | Self::V6_1 | Self::V7_2 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    fn places(self) -> Places {
        const MAIN: &str = "http://deb.debian.org/debian";
        const SECURITY: &str = "http://deb.debian.org/debian-security";
        const OLD_MAIN: &str = "http://archive.debian.org/debian";
        const OLD_SECURITY: &str = "http://archive.debian.org/debian-security";
        const FORKY_WITH_7_2: &str = "http://snapshot.debian.org/archive/debian/20261122T000000Z";
        match self {
            Self::V5_10 => &[
                &[Source { uri: MAIN, suite: "bullseye" }, Source { uri: SECURITY, suite: "bullseye-security" }],
                &[
                    Source { uri: OLD_MAIN, suite: "bullseye" },
                    Source { uri: OLD_SECURITY, suite: "bullseye-security" },
                ],
            ],
            Self::V6_1 => {
                &[&[Source { uri: MAIN, suite: "bookworm" }, Source { uri: SECURITY, suite: "bookworm-security" }]]
            }
            Self::V6_12 => &[&[Source { uri: SECURITY, suite: "bookworm-security" }]],
            Self::V7_2 => &[&[Source { uri: MAIN, suite: "forky" }], &[Source { uri: FORKY_WITH_7_2, suite: "forky" }]],
        }
    }
}

/// A kernel in the cache.
pub(super) struct KernelFiles {
    pub(super) vmlinuz: PathBuf,
    /// ext4 image that is mounted at /lib/modules.
    pub(super) modules_disk: PathBuf,
    /// Modules to load before any disk can be read, and a file `order` with their names.
    pub(super) boot_modules: PathBuf,
}

/// Downloads `kernel` if it is not in the cache.
pub(super) fn prepare(cache: &Path, kernel: Kernel) -> Result<KernelFiles> {
    let dir = cache.join(format!("kernel-{}", kernel.name()));
    cache::build_once(&dir, |dir| build(dir, kernel).with_context(|| format!("no kernel {}", kernel.name())))?;
    Ok(KernelFiles {
        vmlinuz: dir.join("vmlinuz"),
        modules_disk: dir.join("modules.ext4"),
        boot_modules: dir.join("boot-modules"),
    })
}

fn build(dir: &Path, kernel: Kernel) -> Result<()> {
    // Outside the cache entry, which disappears when the build fails.
    let log = dir.with_extension("log");
    let work = dir.join("work");
    let (tree, apt) = (work.join("tree"), work.join("apt"));
    download(kernel, &apt, &tree, &log)?;
    let tree = if tree.join("usr/lib/modules").exists() { tree.join("usr") } else { tree };
    let modules = tree.join("lib/modules");
    let release = only_entry(&modules)?;
    logged::run(Command::new("/sbin/depmod").arg("--basedir").arg(&tree).arg(&release), &log)?;
    boot_modules(&modules.join(&release), &dir.join("boot-modules"))?;
    let vmlinuz = [modules.join(&release).join("vmlinuz"), tree.join(format!("boot/vmlinuz-{release}"))]
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("the packages of {release} have no vmlinuz"))?;
    fs::rename(&vmlinuz, dir.join("vmlinuz")).with_context(|| vmlinuz.display().to_string())?;
    disk::from_directory(&modules, &dir.join("modules.ext4"), 0, &log)?;
    fs::remove_dir_all(&work).with_context(|| work.display().to_string())
}

/// Unpacks the newest kernel of the series below `tree`, from the first place that has it.
fn download(kernel: Kernel, work: &Path, tree: &Path, log: &Path) -> Result<()> {
    let mut failures = Vec::new();
    for (number, sources) in kernel.places().iter().enumerate() {
        let place = sources[0].uri;
        say::line(format_args!("vm: looking for kernel {} at {place} (log: {})", kernel.name(), log.display()));
        let found = Apt::new(&work.join(number.to_string()), sources, log)
            .and_then(|apt| closure(&apt, kernel).map(|packages| (apt, packages)));
        match found {
            Ok((apt, packages)) => {
                say::line(format_args!("vm: downloading kernel {}", packages[0].version));
                return apt.unpack(&packages, tree);
            }
            Err(error) => failures.push(format!("{place}: {error:#}")),
        }
    }
    bail!("found nowhere: {}", failures.join("; "))
}

/// All packages that the meta package is made of, step by step; their names carry a number that grows with every
/// rebuild. The meta package itself is empty.
fn closure(apt: &Apt, kernel: Kernel) -> Result<Vec<Package>> {
    let meta = apt.newest(kernel.meta_package())?;
    if !meta.version.starts_with(&format!("{}.", kernel.name())) {
        bail!("it has {}, which is not of the series {}", meta.version, kernel.name());
    }
    let mut packages: Vec<Package> = Vec::new();
    let mut names = meta.parts;
    while let Some(name) = names.pop() {
        if !packages.iter().any(|known| known.name == name) {
            let package = apt.newest(&name)?;
            names.extend(package.parts.iter().cloned());
            packages.push(package);
        }
    }
    if packages.is_empty() {
        bail!("{} {} names no package at its own version", meta.name, meta.version);
    }
    Ok(packages)
}

fn only_entry(dir: &Path) -> Result<String> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.with_context(|| dir.display().to_string())?;
    let [entry] = entries.as_slice() else {
        bail!("{} has {} entries instead of one kernel release", dir.display(), entries.len());
    };
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Copies the modules for the first minute of the guest to `target`, uncompressed, with a file that says their order.
fn boot_modules(modules: &Path, target: &Path) -> Result<()> {
    let list = modules.join("modules.dep");
    let list = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    fs::create_dir(target).with_context(|| target.display().to_string())?;
    let mut order = String::new();
    for path in load_order(&list, &BOOT_MODULES) {
        let source = modules.join(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = match name.split_once(".ko") {
            Some((stem, "")) => {
                fs::copy(&source, target.join(name)).with_context(|| source.display().to_string())?;
                format!("{stem}.ko")
            }
            Some((stem, ".xz")) => {
                let name = format!("{stem}.ko");
                let file = File::create(target.join(&name)).with_context(|| name.clone())?;
                let status = Command::new("xz").arg("-dc").arg(&source).stdin(Stdio::null()).stdout(file).status();
                if !status.context("cannot start `xz`")?.success() {
                    bail!("`xz -dc {}` failed", source.display());
                }
                name
            }
            _ => bail!("{}: compressed in a way that the harness does not know", source.display()),
        };
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(target.join("order"), order).with_context(|| target.display().to_string())
}
