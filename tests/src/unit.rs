//! Units of a real systemd, for tests that run where systemd is PID 1.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{eventually, live};

/// True when the live test `name` of the program `program` can run, which needs systemd as PID 1.
pub fn can_run(name: &str, program: &str) -> bool {
    if !live::can_run(name) {
        return false;
    }
    if fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "systemd") {
        return true;
    }
    live::skip_ok(name, &format!("needs systemd as PID 1; run it with 'cargo xtask vm --kernel 6.1 --test {program}'"));
    false
}

/// A service with its own unit file, removed with the test.
#[derive(Debug)]
pub struct Unit {
    /// Its name, with `.service`.
    pub name: String,
    /// Its script, and the files that the script writes.
    pub place: tempfile::TempDir,
}

/// Directory of units of local packages; a mask takes precedence over it.
const UNITS: &str = "/usr/local/lib/systemd/system";

/// Runs systemctl; its output.
///
/// # Panics
/// When it fails.
pub fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().expect("systemctl starts");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "systemctl {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

impl Unit {
    /// Starts a unit whose first `failures` runs do `bad` and whose later ones sleep; `service` and `unit` are lines
    /// for `[Service]` and `[Unit]`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn start(name: &str, service: &str, unit: &str, bad: &str, failures: u32) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let starts = place.path().join("starts");
        let script = place.path().join("run");
        let text = format!(
            "#!/bin/sh\necho start >> '{starts}'\n[ $(wc -l < '{starts}') -gt {failures} ] || {bad}\nexec sleep 1000\n",
            starts = starts.display()
        );
        fs::write(&script, text).expect("a script");
        fs::create_dir_all(UNITS).expect("a directory");
        let text = format!("[Unit]\n{unit}\n[Service]\nExecStart=/bin/sh {}\n{service}\n", script.display());
        let this = Self { name: format!("{name}.service"), place };
        fs::write(this.file(), text).expect("a unit");
        systemctl(&["daemon-reload"]);
        systemctl(&["start", "--no-block", &this.name]);
        this
    }

    /// Its unit file.
    pub fn file(&self) -> PathBuf {
        Path::new(UNITS).join(&self.name)
    }

    /// Number of its starts.
    pub fn starts(&self) -> usize {
        fs::read_to_string(self.place.path().join("starts")).unwrap_or_default().lines().count()
    }

    /// The main process, once it sleeps.
    ///
    /// # Panics
    /// When it does not get to sleep.
    pub fn main(&self) -> i32 {
        eventually(&format!("{} to sleep", self.name), || {
            let pid: i32 = systemctl(&["show", "-P", "MainPID", &self.name]).parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "sleep").then_some(pid)
        })
    }

    /// Kills the main process.
    ///
    /// # Panics
    /// When it is not there.
    pub fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.main()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        for words in [&["unmask", "--runtime", &self.name][..], &["stop", &self.name], &["reset-failed", &self.name]] {
            Command::new("systemctl").args(words).output().ok();
        }
        fs::remove_file(self.file()).ok();
        Command::new("systemctl").arg("daemon-reload").output().ok();
    }
}
