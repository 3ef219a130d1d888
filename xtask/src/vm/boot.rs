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
    patience::{Overdue, Patience, Progress},
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
    pub(super) patience: Patience,
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
    let since = || started.elapsed();
    let status = match follow(&lines, &mut console, Progress::new(machine.patience), since, &mut boot, sink)? {
        End::Exit(status) => status,
        End::Overdue(overdue) => {
            drop(qemu);
            // The port closes then, and its last line may be incomplete: the name of the test that hangs.
            for line in lines {
                if let Line::Output(text) = console.read(&line) {
                    sink.write_all(text).context("cannot write the guest's output")?;
                }
            }
            logged::show_end(&console_log);
            bail!("{overdue}");
        }
        End::Stopped => {
            logged::show_end(&console_log);
            logged::show_end(&qemu_log);
            if !console.begun() {
                return Err(StoppedBooting.into());
            }
            bail!("the machine stopped while the command ran");
        }
    };
    Ok(Outcome { status, boot, total: started.elapsed() })
}

/// How reading a machine's port ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The command ended with this status.
    Exit(u8),
    /// It took too long.
    Overdue(Overdue),
    /// The port is gone.
    Stopped,
}

/// Reads the port until the command has ended or its time is over; `since` returns the time from the machine's start,
/// and `boot` is set to that of the command's start.
fn follow(
    lines: &Receiver<Vec<u8>>,
    console: &mut Console,
    mut progress: Progress,
    since: impl Fn() -> Duration,
    boot: &mut Duration,
    sink: &mut dyn Write,
) -> Result<End> {
    loop {
        // The time is checked first: a guest that floods the port always has a line to receive.
        let line = match progress.left(since()).map(|left| lines.recv_timeout(left)) {
            Ok(Ok(line)) => line,
            Ok(Err(RecvTimeoutError::Timeout)) => continue,
            Ok(Err(RecvTimeoutError::Disconnected)) => return Ok(End::Stopped),
            Err(overdue) => return Ok(End::Overdue(overdue)),
        };
        match console.read(&line) {
            Line::Noise => {}
            Line::Begin => {
                *boot = since();
                progress.made(*boot);
            }
            Line::Output(text) => {
                progress.made(since());
                sink.write_all(text).context("cannot write the guest's output")?;
            }
            Line::Exit { rest, status } => {
                sink.write_all(rest).and_then(|()| sink.flush()).context("cannot write the guest's output")?;
                return Ok(End::Exit(status));
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Follows a port with these lines, with a clock that advances by `step` at each reading.
    fn followed(lines: &[&str], step: Duration, ends: bool) -> (End, String) {
        let (sender, receiver) = sync_channel(64);
        for line in lines {
            sender.send(line.as_bytes().to_vec()).expect("there is room");
        }
        let now = Cell::new(Duration::ZERO);
        let since = || now.replace(now.get() + step);
        let patience = Patience { silence: Duration::from_millis(100), whole: Duration::from_secs(3600) };
        let (mut console, mut boot, mut sink) = (Console::new("n1"), Duration::ZERO, Vec::new());
        let _kept = (!ends).then_some(sender);
        let end = follow(&receiver, &mut console, Progress::new(patience), since, &mut boot, &mut sink);
        (end.expect("nothing fails"), String::from_utf8(sink).expect("text"))
    }

    #[test]
    fn tests_that_each_take_less_than_the_silence_all_run_to_their_end() {
        let step = Duration::from_millis(40);
        let mut lines = vec!["Loading Linux\n", "@@defib-vm n1 begin\n"];
        lines.extend(["test one ... ok\n"; 40]);
        lines.push("@@defib-vm n1 exit 0\n");
        let (end, output) = followed(&lines, step, false);
        assert_eq!((end, output.lines().count()), (End::Exit(0), 40));
    }

    #[test]
    fn a_command_that_hangs_is_overdue_and_so_is_a_boot() {
        let step = Duration::from_millis(40);
        let (end, output) = followed(&["@@defib-vm n1 begin\n", "test one ... ok\n"], step, false);
        assert_eq!(
            (end, output.as_str()),
            (End::Overdue(Overdue::Silent(Duration::from_millis(100))), "test one ... ok\n")
        );
        let (end, _) = followed(&["Loading Linux\n", "noise\n", "noise\n", "noise\n"], step, false);
        assert_eq!(end, End::Overdue(Overdue::Boot(Duration::from_millis(100))));
    }

    #[test]
    fn a_port_that_is_gone_is_the_end_of_the_machine() {
        assert_eq!(followed(&["@@defib-vm n1 begin\n"], Duration::ZERO, true).0, End::Stopped);
    }
}
