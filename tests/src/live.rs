//! Whether a live test can run here. Each that cannot is skipped alone, with its reason; the test command counts them.

use std::{fs::OpenOptions, io::Write as _, path::Path, sync::Once, thread::sleep, time::Duration};

/// The file that the test command reads skips from.
const SKIP_LOG: &str = "DEFIB_SKIP_LOG";

/// Why live tests cannot run here; `None` when they can.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to load kernel programs and to make cgroups".to_owned());
    }
    let btf = Path::new("/sys/kernel/btf/vmlinux");
    if !btf.exists() {
        return Some(format!("needs a kernel with CONFIG_DEBUG_INFO_BTF=y: there is no {}", btf.display()));
    }
    None
}

/// True when the live test `name` can run. Otherwise the reason goes to the test's output and to the skip log.
pub fn can_run(name: &str) -> bool {
    let Some(reason) = obstacle() else { return true };
    skip(name, &reason);
    false
}

/// Waits until the kernel's log has room for OOM lines again: it drops all but ten in five seconds (`oom_rs`,
/// mm/oom_kill.c), and a test that asks for what only the log says must not follow a storm of kills.
pub fn let_the_kernel_log_recover() {
    const WINDOW: Duration = Duration::from_millis(5_500);
    static ONCE: Once = Once::new();
    ONCE.call_once(|| sleep(WINDOW));
}

/// Notes that the test `name` is skipped.
///
/// # Panics
/// When the skip log is named and cannot be written: a skip that nobody counts would look like a pass.
pub fn skip(name: &str, reason: &str) {
    note("SKIP", name, reason);
}

/// Notes that the test `name` is skipped for want of something that not every machine has, which is no failure on a
/// build server.
///
/// # Panics
/// As [`skip`].
pub fn skip_ok(name: &str, reason: &str) {
    note("SKIP-OK", name, reason);
}

fn note(kind: &str, name: &str, reason: &str) {
    println!("{kind} {name}: {reason}");
    if let Some(path) = std::env::var_os(SKIP_LOG) {
        let mut log = OpenOptions::new().create(true).append(true).open(path).expect("the skip log can be opened");
        writeln!(log, "{kind} {name}: {reason}").expect("the skip log can be written");
    }
}
