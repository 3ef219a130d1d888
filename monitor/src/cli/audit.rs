//! `defib audit`: who would stay dead after an OOM kill, and the setting that changes that.

use anyhow::Result;
use serde::Serialize;

use super::output;
use crate::{
    host::{
        containers::{self, Container},
        systemd::Systemd,
    },
    text::Clean,
};

/// Arguments of `audit`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// JSON, for programs
    #[arg(long)]
    json: bool,
    /// Those that would come back too
    #[arg(long)]
    all: bool,
}

/// One unit or container.
#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    name: String,
    covered: bool,
    /// Why it would stay dead, or when it would.
    why: Option<String>,
    /// A drop-in file or a command.
    mend: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut findings = Vec::new();
    let mut silent = Vec::new();
    match units().await {
        Ok(found) => findings.extend(found),
        Err(error) => silent.push(format!("systemd: {error:#}")),
    }
    for engine in containers::ENGINES {
        if !containers::is_here(engine) {
            continue;
        }
        match of_engine(engine).await {
            Ok(found) => findings.extend(found),
            Err(error) => silent.push(format!("{engine}: {error:#}")),
        }
    }
    if !args.all {
        findings.retain(|finding| !finding.covered);
    }
    findings.sort_by(|a, b| (a.covered, a.kind, &a.name).cmp(&(b.covered, b.kind, &b.name)));
    if args.json {
        output::json(&findings)?;
    } else if findings.is_empty() && !silent.is_empty() {
        output::line("nothing was found to be uncovered, and not all could be looked at")?;
    } else {
        show(&findings)?;
    }
    for who in silent {
        tracing::warn!("not looked at: {who}");
    }
    Ok(())
}

async fn units() -> Result<Vec<Finding>> {
    let systemd = Systemd::default();
    let mut findings = Vec::new();
    for name in systemd.services().await? {
        let unit = systemd.unit(&name).await?;
        // What does not run, or is meant to end, has nothing to come back to.
        if unit.load_state != "loaded" || unit.kind == "oneshot" || unit.active_state == "inactive" {
            continue;
        }
        let gap = unit.gap();
        let mend = gap.as_ref().map(|_| {
            format!(
                "# /etc/systemd/system/{name}.d/oom-restart.conf\n[Service]\nRestart=on-failure\nRestartSec=2s\n\
                 RestartPreventExitStatus=\n"
            )
        });
        let covered = gap.is_none();
        findings.push(Finding { kind: "unit", name, covered, why: gap.or_else(|| unit.gives_up_after()), mend });
    }
    Ok(findings)
}

async fn of_engine(engine: &'static str) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for name in containers::list(engine).await? {
        let Some(container) = containers::state(engine, &name).await? else { continue };
        if container.status != "running" {
            continue;
        }
        findings.push(of_container(engine, container));
    }
    Ok(findings)
}

fn of_container(engine: &'static str, container: Container) -> Finding {
    let Container { name, policy, retries, .. } = container;
    let (covered, why) = match policy.as_str() {
        "always" | "unless-stopped" => (true, None),
        "on-failure" if retries > 0 => (true, Some(format!("gives up after {retries} deaths"))),
        "on-failure" => (true, None),
        policy => (false, Some(format!("restart policy {policy}"))),
    };
    let mend = (!covered).then(|| format!("{engine} update --restart unless-stopped {name}"));
    Finding { kind: engine, name, covered, why, mend }
}

fn show(findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return output::line("whatever runs here would come back after an OOM kill");
    }
    output::line(format!("{:<7} {:<36} {:<6} WHY", "KIND", "NAME", "BACK?"))?;
    for Finding { kind, name, covered, why, mend: _ } in findings {
        let back = if *covered { "yes" } else { "no" };
        let why = why.as_deref().unwrap_or_default();
        output::line(format!("{kind:<7} {:<36} {back:<6} {}", output::tail(&Clean(name).to_string(), 36), Clean(why)))?;
    }
    let mends: Vec<_> = findings.iter().filter_map(|finding| finding.mend.as_deref()).collect();
    if !mends.is_empty() {
        output::line("\nWhat would bring them back (then systemctl daemon-reload):\n")?;
        for mend in mends {
            output::line(mend)?;
        }
        output::line("Or name them in the agent's configuration: [[service]] unit = \"NAME\", restart = true")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_without_a_policy_stay_dead() {
        let container = |policy: &str, retries| Container {
            name: "web".to_owned(),
            policy: policy.to_owned(),
            retries,
            ..Container::default()
        };
        for (policy, retries, covered, why) in [
            ("no", 0, false, Some("restart policy no")),
            ("always", 0, true, None),
            ("on-failure", 3, true, Some("gives up after 3 deaths")),
        ] {
            let finding = of_container("docker", container(policy, retries));
            assert_eq!((finding.covered, finding.why.as_deref()), (covered, why));
            assert_eq!(finding.mend.is_some(), !covered);
        }
    }
}
