//! Every reader of data from others, as a function of bytes: the kernel's records and type information, files of the
//! host, answers of other programs, lines from sockets. None of them may panic on any bytes.
//!
//! `cargo xtask fuzz` searches for bytes that make one panic (`monitor/fuzz/`). A plain test runs its seeds, with some
//! random changes; earlier findings are among the seeds.

use std::path::Path;

use crate::{
    attribution::{Origin, Table},
    cli,
    config::Config,
    control, fleet, healing,
    host::{
        bounded, cgroup, cgroup_walk, containers, kmsg, last_words, pressure,
        process::{self, Identity},
        systemd,
    },
    incident::Incident,
    kernel,
    memory::{Follower, picture},
    pool, symbols,
    text::Clean,
};

/// A reader, by the name of its target and of the directory of its seeds.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 15] = [
    ("agent_check", agent_check),
    ("btf", kernel::fuzz_btf),
    ("config", config),
    ("control", control),
    ("csv", cli::fuzz_forecast),
    ("dbus", systemd::fuzz),
    ("docker", containers::fuzz),
    ("etcd", fleet::fuzz_etcd),
    ("haproxy", haproxy),
    ("host_text", host_text),
    ("kernel_log", kernel_log),
    ("prometheus", cli::fuzz_prometheus),
    ("ring_record", kernel::fuzz_record),
    ("state", state),
    ("symbols", symbols::fuzz),
];

/// Runs the reader of that name.
///
/// # Panics
/// When there is none, or it has a fault.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    target.unwrap_or_else(|| panic!("there is no reader {name}")).1(bytes);
}

fn agent_check(bytes: &[u8]) {
    wait_for(pool::fuzz_agent_check(bytes));
}

fn control(bytes: &[u8]) {
    wait_for(control::fuzz(bytes));
}

fn wait_for(task: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: Option<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build().ok();
    }
    RUNTIME.with(|runtime| match runtime {
        Some(runtime) => runtime.block_on(task),
        None => panic!("no runtime can be had"),
    });
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(Path::new("defib.toml"), text) {
        Ok(config) => drop((config.services(), config.host_budget())),
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line: {error}"),
    }
}

fn haproxy(bytes: &[u8]) {
    pool::fuzz_haproxy(&String::from_utf8_lossy(bytes));
}

/// Also what a service wrote last, by whoever keeps it: the journal, an engine, a file.
fn kernel_log(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    kmsg::fuzz(&text);
    if let Some(line) = last_words::out_of_memory(&text) {
        assert!(!Clean(line).to_string().contains(char::is_control), "it is shown to people");
    }
}

fn host_text(bytes: &[u8]) {
    bounded::fuzz(bytes);
    cgroup_walk::fuzz(bytes);
    process::fuzz(bytes);
    picture::fuzz(bytes);
    let text = String::from_utf8_lossy(bytes);
    cgroup::fuzz(&text);
    pressure::fuzz(&text);
    symbols::fuzz_maps(&text);
    let (_, root) = Origin::claim(&text);
    assert!(text.starts_with(root));
    let place = Table::default().describe(&text);
    assert!(place.path.starts_with(place.root()));
}

/// Rows of a state file that was changed by another hand, or by a bad disk.
fn state(bytes: &[u8]) {
    if let Ok(memory) = serde_json::from_slice::<healing::Memory>(bytes) {
        drop(memory.after_reboot(i64::MAX));
    }
    if let Ok(follower) = serde_json::from_slice::<Follower>(bytes) {
        drop((follower.forecast(), follower.foretold(), follower.is_due(Identity { tgid: 1, start_ns: 1 }, 1)));
    }
    if let Ok(incident) = serde_json::from_slice::<Incident>(bytes) {
        assert!(serde_json::to_vec(&incident).is_ok(), "it can be kept again");
    }
}

#[cfg(test)]
mod tests;
