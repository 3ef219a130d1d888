//! `defib doctor`: what works on this machine, what does not, and how to mend it. Changes nothing.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::output;
use crate::{
    host::{
        cgroup::{Hierarchy, Version},
        kmsg::Kmsg,
        privilege::{self, OPTIONAL, REQUIRED},
    },
    kernel::{self, Watched},
};

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
    /// Only say, by the exit code, whether this user may run that command here
    #[arg(long, value_name = "COMMAND", conflicts_with = "json")]
    can: Option<Task>,
    /// Type information of the running kernel, when it is not at /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "PATH")]
    btf: Option<PathBuf>,
}

/// A command that needs privileges.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    /// Load programs
    Watch,
    /// Load programs
    Run,
    /// Load programs, and make a cgroup
    Demo,
}

/// How a finding stands.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something is off, the rest works.
    Limited,
    /// Defib cannot work.
    Broken,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if let Some(task) = args.can {
        kernel::permitted()?;
        let writable = privilege::Effective::of_self()?.has(privilege::DAC_OVERRIDE);
        anyhow::ensure!(
            task != Task::Demo || writable,
            "missing CAP_DAC_OVERRIDE (make the demo's cgroup): run as root"
        );
        return Ok(());
    }
    let hierarchy = Hierarchy::detect();
    let mut findings = vec![kernel_release(), type_information(args.btf.as_deref())];
    findings.extend(capabilities());
    findings.push(cgroups(&hierarchy));
    findings.push(lockdown());
    findings.push(kernel_log());
    findings.push(traces());
    findings.extend(programs(args.btf.as_deref(), hierarchy.as_ref().ok()));
    findings.extend(supervisors());
    if args.json {
        output::line(serde_json::to_string(&findings)?)?;
    } else {
        table(&findings)?;
    }
    let broken = findings.iter().filter(|finding| finding.state == State::Broken).count();
    anyhow::ensure!(broken == 0, "{broken} findings keep Defib from working here");
    Ok(())
}

fn table(findings: &[Finding]) -> Result<()> {
    for finding in findings {
        let (plain, colour) = match finding.state {
            State::Ok => ("ok", "32"),
            State::Limited => ("limited", "33"),
            State::Broken => ("broken", "31"),
        };
        let state = if output::colours() { format!("\x1b[{colour}m{plain:<8}\x1b[0m") } else { format!("{plain:<8}") };
        output::line(format_args!("{state} {:<18} {}", finding.what, finding.found))?;
        if let Some(mend) = &finding.mend {
            output::line(format_args!("{:>29}mend: {mend}", ""))?;
        }
    }
    Ok(())
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, state: State::Ok, found: found.into(), mend: None }
}

fn limited(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, state: State::Limited, found: found.into(), mend: Some(mend.into()) }
}

fn broken(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, state: State::Broken, found: found.into(), mend: Some(mend.into()) }
}

/// For people; nothing is decided by it.
fn kernel_release() -> Finding {
    let name = rustix::system::uname();
    ok("kernel", format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy()))
}

fn type_information(btf: Option<&Path>) -> Finding {
    let path = btf.unwrap_or(Path::new(kernel::VMLINUX));
    match std::fs::metadata(path) {
        Ok(metadata) => ok("type information", format!("{}, {}", path.display(), output::bytes(metadata.len()))),
        Err(error) => broken(
            "type information",
            format!("{}: {error}", path.display()),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or name the file with --btf PATH",
        ),
    }
}

fn capabilities() -> Vec<Finding> {
    let effective = match privilege::Effective::of_self() {
        Ok(effective) => effective,
        Err(error) => return vec![broken("capabilities", format!("{error:#}"), "mount /proc")],
    };
    let mut findings = Vec::new();
    for (list, build) in [(REQUIRED, broken as fn(_, String, String) -> _), (OPTIONAL, limited)] {
        for &capability in list {
            if !effective.has(capability) {
                let mend = format!(
                    "run as root, or grant it: setcap {}+ep on the binary, or AmbientCapabilities=",
                    capability.name.to_lowercase()
                );
                findings.push(build(
                    "capability",
                    format!("{} is missing: {}", capability.name, capability.purpose),
                    mend,
                ));
            }
        }
    }
    if findings.is_empty() {
        findings.push(ok("capabilities", "all that Defib uses"));
    }
    findings
}

fn cgroups(hierarchy: &Result<Hierarchy>) -> Finding {
    match hierarchy {
        Ok(hierarchy) => {
            let version = match hierarchy.version {
                Version::V1 => "v1 (hierarchy of the memory controller)",
                Version::V2 => "v2",
            };
            ok("cgroups", format!("{version}, mounted at {}", hierarchy.mount.display()))
        }
        Err(error) => {
            limited("cgroups", format!("{error:#}"), "without it deaths are seen, but not attributed to services")
        }
    }
}

fn lockdown() -> Finding {
    if privilege::lockdown_is_confidential() {
        limited(
            "lockdown",
            "confidentiality: paths of new cgroups and signal handlers cannot be read",
            "deaths and causes are not affected; boot with lockdown=integrity for the rest",
        )
    } else {
        ok("lockdown", "does not stand in the way")
    }
}

/// Whether programs can be probed (`CONFIG_UPROBES`).
fn traces() -> Finding {
    const PROBES: &str = "/sys/bus/event_source/devices/uprobe/type";
    if cfg!(not(target_arch = "x86_64")) {
        limited("traces", "'defib trace' knows x86-64 only", "the rest is not affected")
    } else if Path::new(PROBES).exists() {
        ok("traces", "'defib trace' can say where a service's memory grows")
    } else {
        limited(
            "traces",
            format!("{PROBES} is not there: 'defib trace' cannot watch programs"),
            "use a kernel built with CONFIG_UPROBES=y; the rest is not affected",
        )
    }
}

fn kernel_log() -> Finding {
    match Kmsg::open() {
        Ok(_) => ok("kernel log", "readable: OOM kills will name the limit that fired"),
        Err(error) => limited(
            "kernel log",
            format!("{error:#}"),
            "grant CAP_SYSLOG; without it an OOM kill lacks scope and limit",
        ),
    }
}

/// Loads and attaches for a moment: the only honest answer.
fn programs(btf: Option<&Path>, hierarchy: Option<&Hierarchy>) -> Vec<Finding> {
    let options = kernel::Options { btf, hierarchy, report_clean: false, failed_allocations: Watched::Auto };
    match kernel::load(options, Vec::new()) {
        Ok((kernel, _rings)) => {
            let mut findings = vec![ok(
                "kernel programs",
                format!(
                    "{} loaded and attached (sources {}): {}",
                    kernel.programs().len(),
                    kernel::SOURCES,
                    kernel.programs().join(", ")
                ),
            )];
            for missing in kernel.missing() {
                findings.push(limited("kernel programs", format!("off: {missing}"), "nothing to do; the rest works"));
            }
            findings
        }
        Err(error) => {
            vec![broken(
                "kernel programs",
                format!("{error:#}"),
                "mend what stands above first; then run with DEFIB_LOG=debug for the verifier's log",
            )]
        }
    }
}

fn supervisors() -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, name) in
        [("/run/systemd/system", "systemd"), ("/run/docker.sock", "Docker"), ("/run/podman/podman.sock", "Podman")]
    {
        if Path::new(path).exists() {
            found.push(name);
        }
    }
    let note = "this version restarts services of its own command supervisor";
    vec![if found.is_empty() {
        ok("supervisors", format!("none found; {note}"))
    } else {
        ok("supervisors", format!("{} found, and left alone: {note}", found.join(", ")))
    }]
}
