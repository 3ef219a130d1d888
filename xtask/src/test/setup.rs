//! What the test command needs from the machine beyond the cargo that runs it.

use std::{env, path::Path, process::Command};

use anyhow::Result;

use crate::{
    ebpf::toolchain,
    needs::{self, Mend, Need, Step},
    process, say, supply, workspace,
};

/// What the cases of the corpus run beside our own programs: program, package, and what it is for. A case whose program is
/// missing does not run, so a build server gets them all; a person's machine is left as it is, since some begin to run.
const CORPUS: [(&str, &str, &str); 5] = [
    ("earlyoom", "earlyoom", "the corpus has it kill a process"),
    ("g++", "g++", "the corpus has a C++ program run out of memory"),
    ("go", "golang-go", "the corpus has a Go program run out of memory"),
    ("java", "default-jre-headless", "the corpus has a Java program run out of memory"),
    ("node", "nodejs", "the corpus has a JavaScript program run out of memory"),
];

/// Brings what is missing, for the live tests too if they are to run, or with `install` off fails with a list.
pub(super) fn provide(install: bool, live: bool) -> Result<()> {
    let needs = missing(live)?;
    if needs.is_empty() {
        say::line("nothing is missing");
    }
    needs::provide(&needs, install)
}

fn missing(live: bool) -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    needs.extend(c_compiler());
    for (component, subcommand, why) in [("rustfmt", "fmt", "the format check"), ("clippy", "clippy", "the lints")] {
        if !process::succeeds(workspace::cargo().args([subcommand, "--version"]))? {
            needs.push(Need { what: format!("cargo {subcommand}"), why, mend: component_mend(component) });
        }
    }
    if workspace::in_ci() {
        // A build server rebuilds the kernel object; a person who has not got the tools only checks its hashes.
        needs.extend(toolchain::missing()?);
        needs.extend(supply::missing());
    }
    if workspace::in_ci() && live {
        needs.extend(engines());
        needs.extend(monitoring());
        needs.extend(haproxy());
        needs.extend(etcd());
        needs.extend(nginx());
        needs.extend(base_image());
        needs.extend(corpus(|program| process::find(program).is_some()));
    }
    Ok(needs)
}

fn corpus(present: impl Fn(&str) -> bool) -> impl Iterator<Item = Need> {
    let missing = CORPUS.into_iter().filter(move |(program, ..)| !present(program));
    missing.map(|(program, package, why)| Need { what: program.to_owned(), why, mend: Mend::Packages(vec![package]) })
}

/// The container engines that live tests start for themselves.
fn engines() -> Option<Need> {
    let paths = ["/usr/sbin/dockerd", "/usr/bin/podman", "/usr/sbin/runc", "/bin/busybox"];
    let present = paths.into_iter().all(|path| Path::new(path).exists());
    (!present).then(|| Need {
        what: "dockerd, podman and a static busybox".to_owned(),
        why: "live tests kill processes in real containers",
        mend: Mend::Packages(vec!["docker.io", "podman", "runc", "busybox-static"]),
    })
}

/// Prometheus and Alertmanager, which live tests start for themselves.
fn monitoring() -> Option<Need> {
    let paths = ["/usr/bin/prometheus", "/usr/bin/promtool", "/usr/bin/prometheus-alertmanager", "/usr/bin/amtool"];
    let present = paths.into_iter().all(|path| Path::new(path).exists());
    (!present).then(|| Need {
        what: "prometheus, promtool, prometheus-alertmanager and amtool".to_owned(),
        why: "live tests have real ones take our metrics, rules and alerts",
        mend: Mend::Packages(vec!["prometheus", "prometheus-alertmanager"]),
    })
}

/// The load balancer that a live test starts for itself.
fn haproxy() -> Option<Need> {
    (!Path::new("/usr/sbin/haproxy").exists()).then(|| Need {
        what: "haproxy".to_owned(),
        why: "live tests take servers out of a real pool",
        mend: Mend::Packages(vec!["haproxy"]),
    })
}

/// The shared store that a live test starts a cluster of, and the tool by which an operator looks into it.
fn etcd() -> Option<Need> {
    let present = ["/usr/bin/etcd", "/usr/bin/etcdctl"].into_iter().all(|path| Path::new(path).exists());
    (!present).then(|| Need {
        what: "etcd and etcdctl".to_owned(),
        why: "live tests have agents agree through a real cluster",
        mend: Mend::Packages(vec!["etcd-server", "etcd-client"]),
    })
}

/// Another one, and what its recipe asks the agent with.
fn nginx() -> Option<Need> {
    let present = ["/usr/sbin/nginx", "/usr/bin/curl"].into_iter().all(|path| Path::new(path).exists());
    (!present).then(|| Need {
        what: "nginx and curl".to_owned(),
        why: "live tests have it in front of servers and of the agent, and ask over TLS",
        mend: Mend::Packages(vec!["nginx-light", "curl"]),
    })
}

/// What makes a small base for the image of the agent, and the client of containerd, which comes with the engines.
fn base_image() -> Option<Need> {
    let present = ["/usr/bin/mmdebstrap", "/usr/bin/ctr"].into_iter().all(|path| Path::new(path).exists());
    (!present).then(|| Need {
        what: "mmdebstrap and ctr".to_owned(),
        why: "a live test runs the agent in a container, as Kubernetes does",
        mend: Mend::Packages(vec!["mmdebstrap", "containerd"]),
    })
}

/// A C compiler: it links every program, and it compiles SQLite.
pub(crate) fn c_compiler() -> Option<Need> {
    let present = env::var_os("CC").is_some() || process::find("cc").is_some();
    (!present).then(|| Need {
        what: "a C compiler (cc)".to_owned(),
        why: "Rust links programs with it",
        mend: Mend::Packages(vec!["gcc", "libc6-dev"]),
    })
}

/// A part of the Rust toolchain, from where the toolchain itself is from.
fn component_mend(component: &'static str) -> Mend {
    if process::find("rustup").is_some() {
        return Mend::Command(Step::new(["rustup", "component", "add", component]));
    }
    let web = process::succeeds(Command::new("dpkg").args(["-L", "cargo-web"])).unwrap_or(false);
    Mend::Packages(vec![match (component, web) {
        ("rustfmt", true) => "rustfmt-web",
        ("rustfmt", false) => "rustfmt",
        (_, true) => "rust-web-clippy",
        (_, false) => "rust-clippy",
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_that_are_not_there_are_asked_for() {
        let needs: Vec<_> = corpus(|program| program == "java" || program == "g++").collect();
        let names: Vec<_> = needs.iter().map(|need| need.what.as_str()).collect();
        assert_eq!(names, ["earlyoom", "go", "node"]);
        assert!(matches!(&needs[1].mend, Mend::Packages(names) if names == &["golang-go"]));
    }
}
