//! One job on one kernel: everything from the payload to the end of the machine.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use super::{
    boot::{self, Machine, Outcome, StoppedBooting},
    host, image, initramfs,
    kernel::{self, Kernel},
    patience::Patience,
    payload::{self, Payload},
    programs::Program,
};
use crate::{needs, say, tee::Tee, workspace};

/// How often a machine is booted that stops before it begins.
const BOOTS: u32 = 3;

/// What all machines are made of, ready for any number of jobs.
pub(crate) struct Harness {
    cache: PathBuf,
    image: PathBuf,
}

/// What a machine shall do, and with what.
pub(crate) struct Job<'a> {
    pub(crate) programs: &'a [Program],
    /// Files and directories to copy to /payload, under their own names.
    pub(crate) with: &'a [PathBuf],
    /// Commands for bash, run in /payload; without them, the machine checks itself.
    pub(crate) script: Option<&'a str>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) patience: Patience,
}

impl Harness {
    /// Brings what this machine lacks, or with `install` off fails with a list; then makes the root file system, with
    /// the Debian packages `include` beside the usual ones.
    pub(crate) fn prepare(include: &[String], install: bool) -> Result<Self> {
        needs::provide(&host::missing()?, install)?;
        let cache = workspace::target().join("vm");
        let image = image::prepare(&cache, include)?;
        Ok(Self { cache, image })
    }

    /// Runs the job on `kernel`, its output going to `sink` as it comes and to a file.
    ///
    /// Boots again when a machine stopped before anything of ours ran in it; says so each time.
    pub(crate) fn run(&self, kernel: Kernel, job: &Job<'_>, sink: &mut dyn Write) -> Result<Outcome> {
        for _ in 1..BOOTS {
            match self.run_once(kernel, job, sink) {
                Err(error) if error.is::<StoppedBooting>() => say::line(format_args!("vm: {error:#}; booting again")),
                result => return result,
            }
        }
        self.run_once(kernel, job, sink)
    }

    fn run_once(&self, kernel: Kernel, job: &Job<'_>, sink: &mut dyn Write) -> Result<Outcome> {
        let name = kernel.name();
        let files = kernel::prepare(&self.cache, kernel)?;
        let nonce = nonce();
        let logs = self.cache.join("runs").join(format!("{name}-{nonce}"));
        let scratch = logs.join("scratch");
        fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;

        let (initramfs, disk) = (scratch.join("initramfs"), scratch.join("payload.ext4"));
        initramfs::build(&files.boot_modules, &scratch.join("initramfs.d"), &initramfs)?;
        let payload = Payload { programs: job.programs, with: job.with, script: job.script };
        payload::build(&payload, &scratch.join("payload"), &disk, &logs.join("payload.log"))?;

        say::line(format_args!("vm: booting kernel {name} (logs: {})", logs.display()));
        let machine = Machine {
            vmlinuz: &files.vmlinuz,
            initramfs: &initramfs,
            disks: [&self.image, &disk, &files.modules_disk],
            logs: &logs,
            memory_mib: job.memory_mib,
            cpus: job.cpus,
            patience: job.patience,
            nonce,
        };
        let copy = logs.join("output.log");
        let copy = File::create(&copy).with_context(|| copy.display().to_string())?;
        let outcome = boot::run(&machine, &mut Tee(sink, copy));
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        outcome.with_context(|| format!("kernel {name}, logs: {}", logs.display()))
    }
}

/// A word that no other run has.
fn nonce() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", now.as_millis(), process::id())
}
