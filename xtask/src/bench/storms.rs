//! Processes that fork and exit without a pause, on all processors, until this is dropped.

use std::process::{Child, Command};

use anyhow::{Context as _, Result};

use super::{Programs, kernel::End};

/// See the module.
pub(super) struct Storms(Vec<Child>);

impl Storms {
    /// One on each processor, of processes that end like this.
    pub(super) fn start(programs: &Programs, end: End) -> Result<Self> {
        let mut storms = Self(Vec::new());
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            let mut command = Command::new(&programs.victim);
            command.args(["storm", &u32::MAX.to_string()]).args(end.arguments());
            storms.0.push(command.spawn().context("cannot start a storm")?);
        }
        Ok(storms)
    }
}

impl Drop for Storms {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
