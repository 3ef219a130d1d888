//! One run of the virtual machine: qemu as a child of this process, the guest's output read from it, and an end that
//! comes in any case: by the exit marker, by the guest's death, or by the deadline.

use std::{
    fmt,
    fs::File,
    io::{BufRead as _, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    console::{Console, Line},
    logged,
};

/// Kernel command line, without the nonce. `psi=1` and `swapaccount=1` turn on what some Debian kernels have off by
/// default; an OOM report would hold the emulated serial port, and the thread that writes it, for a tenth of a second, so errors
/// that are no bugs of the kernel stay out of the console (`loglevel=3`); a kernel bug ends the run (`oops=panic`, and qemu's `-no-reboot`) instead of leaving a half-dead guest.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic mitigations=off psi=1 swapaccount=1 \
     net.ifnames=0 systemd.unified_cgroup_hierarchy=1 systemd.show_status=false";

/// A machine that is ready to start.
pub(super) struct Machine<'a> {
    pub(super) vmlinuz: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Root file system, payload and modules, in this order; the guest's writes are thrown away.
    pub(super) disks: [&'a Path; 3],
    /// Directory for `console.log` (messages of the kernel and of systemd) and `qemu.log`.
    pub(super) logs: &'a Path,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    /// Time for all of it, boot included.
    pub(super) deadline: Duration,
    /// A word that is in no payload's output.
    pub(super) nonce: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Exit status of the payload's script.
    pub(crate) status: u8,
    /// From qemu's start to the script's.
    pub(crate) boot: Duration,
    /// From qemu's start to the script's end.
    pub(crate) total: Duration,
}

/// Boots the machine, copies the payload's output to `sink` as it comes, and ends the machine.
pub(super) fn run(machine: &Machine<'_>, sink: &mut dyn Write) -> Result<Outcome> {
    let started = Instant::now();
    let (console_log, qemu_log) = (machine.logs.join("console.log"), machine.logs.join("qemu.log"));
    let mut qemu = Qemu::start(machine, &console_log, &qemu_log)?;
    let lines = qemu.lines()?;
    let mut console = Console::new(&machine.nonce);
    let mut boot = Duration::ZERO;
    loop {
        let left = machine.deadline.saturating_sub(started.elapsed());
        // Asked for first: a guest that floods the port has always something to receive.
        let received = if left.is_zero() { Err(RecvTimeoutError::Timeout) } else { lines.recv_timeout(left) };
        let line = match received {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                let what =
                    if console.begun() { "the command was still running" } else { "it had not finished booting" };
                drop(qemu);
                // With it ends the port, and what came last may be a line without an end: the test that hangs.
                for line in lines {
                    if let Line::Output(text) = console.read(&line) {
                        sink.write_all(text).context("cannot write the guest's output")?;
                    }
                }
                logged::show_end(&console_log);
                bail!("ended by its deadline after {} s: {what}", machine.deadline.as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => {
                logged::show_end(&console_log);
                logged::show_end(&qemu_log);
                if !console.begun() {
                    return Err(StoppedBooting.into());
                }
                bail!("the machine stopped while the command ran");
            }
        };
        match console.read(&line) {
            Line::Noise => {}
            Line::Begin => boot = started.elapsed(),
            Line::Output(text) => sink.write_all(text).context("cannot write the guest's output")?,
            Line::Exit { rest, status } => {
                sink.write_all(rest).and_then(|()| sink.flush()).context("cannot write the guest's output")?;
                return Ok(Outcome { status, boot, total: started.elapsed() });
            }
        }
    }
}

/// The machine stopped before it began with the command: nothing of ours was running yet.
///
/// It happens: seen twice in some fifty boots of 7.2, which died at two seconds in code that the kernel was patching, with
/// two emulated processors.
#[derive(Debug)]
pub(super) struct StoppedBooting;

impl fmt::Display for StoppedBooting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the machine stopped during its boot")
    }
}

impl std::error::Error for StoppedBooting {}

/// The running qemu; dropping it ends it.
struct Qemu(Child);

impl Qemu {
    fn start(machine: &Machine<'_>, console_log: &Path, log: &Path) -> Result<Self> {
        let log_file = File::create(log).with_context(|| log.display().to_string())?;
        // setpriv becomes qemu; should this process be killed, the kernel ends qemu too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]);
        // Not kvm, even where /dev/kvm opens: inside another virtual machine it may stop in the middle of the boot.
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
        command.arg("-kernel").arg(machine.vmlinuz).arg("-initrd").arg(machine.initramfs);
        command.arg("-append").arg(format!("{COMMAND_LINE} defib_vm={}", machine.nonce));
        for disk in machine.disks {
            command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", escaped(disk)));
        }
        // First port: the kernel's console. Second port: the payload's output, on our pipe.
        command.arg("-serial").arg(format!("file:{}", console_log.display()));
        command.args(["-chardev", "stdio,id=payload,signal=off", "-serial", "chardev:payload"]);
        command.env("TMPDIR", machine.logs).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        command.spawn().map(Self).context("cannot start `setpriv qemu-system-x86_64`")
    }

    /// Reads the payload's port in a thread of its own, which ends with qemu.
    fn lines(&mut self) -> Result<Receiver<Vec<u8>>> {
        let output = self.0.stdout.take().context("qemu's output is taken already")?;
        let (sender, receiver) = sync_channel(1024);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            // A read error means that the port is gone, which the receiver sees as its end.
            while let Ok(Some(line)) = next_line(&mut output) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn next_line(output: &mut BufReader<impl Read>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    Ok((output.read_until(b'\n', &mut line)? > 0).then_some(line))
}

/// A comma in a file name is doubled inside a qemu option.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
