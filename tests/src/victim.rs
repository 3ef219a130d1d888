//! Starts the program that dies on command (`src/bin/victim/`).

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::cgroup::Cgroup;

/// A victim that was started.
#[derive(Debug)]
pub struct Victim {
    child: Child,
}

/// A binary of this workspace: beside the one that `DEFIB_BINARY` names, else beside the test that runs.
///
/// # Panics
/// When it was not built: `cargo build --release -p monitor -p tests`.
pub fn binary(name: &str) -> PathBuf {
    let directory = match std::env::var_os("DEFIB_BINARY").map(PathBuf::from) {
        Some(defib) => defib.parent().map(Path::to_owned),
        // target/PROFILE/deps/test-hash
        None => std::env::current_exe().ok().and_then(|test| Some(test.parent()?.parent()?.to_owned())),
    };
    let path = directory.expect("binaries lie in a directory").join(name);
    assert!(path.exists(), "{} is missing: build it beside the agent", path.display());
    path
}

impl Victim {
    /// Starts a victim that enters `cgroup` and dies as `words` say.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(cgroup: Option<&Cgroup>, words: &[&str]) -> Self {
        let mut command = Command::new(binary("victim"));
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup").arg(&cgroup.directory);
        }
        let child = command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the victim starts");
        Self { child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends what waits for its standard input, and waits for its end.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().expect("the victim can be waited for")
    }

    /// Kills it and waits for its end. A dropped one lives on.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the victim can be killed");
        self.child.wait().expect("the victim can be waited for");
    }

    /// Waits for its end, its standard input left open.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait_with_input_open(mut self) -> ExitStatus {
        let input = self.child.stdin.take();
        let status = self.child.wait().expect("the victim can be waited for");
        drop(input);
        status
    }
}
