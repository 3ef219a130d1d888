//! A command service that dies on command and counts its starts.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Command,
};

use crate::{cgroup::Cgroup, victim::binary};

/// A command service that dies on command.
#[derive(Debug)]
pub struct Ordered {
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub cgroup: Cgroup,
    place: tempfile::TempDir,
}

impl Ordered {
    /// A service with a memory limit of `limit` bytes, which waits for an order once it is started.
    ///
    /// # Panics
    /// When its files cannot be made.
    pub fn new(name: String, limit: u64) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let service = Self { name, cgroup: Cgroup::new(Some(limit)), place };
        let made = Command::new("mkfifo").arg(service.orders()).status().expect("mkfifo starts");
        assert!(made.success());
        let script = format!(
            "echo start >> {}\nread order < {}\nexec {} $order\n",
            service.starts().display(),
            service.orders().display(),
            binary("victim").display()
        );
        fs::write(service.script(), script).expect("a script");
        service
    }

    fn starts(&self) -> PathBuf {
        self.place.path().join("starts")
    }

    fn orders(&self) -> PathBuf {
        self.place.path().join("orders")
    }

    fn script(&self) -> PathBuf {
        self.place.path().join("run")
    }

    /// Its section of a configuration, with `restart` on and these lines.
    pub fn config(&self, settings: &str) -> String {
        format!(
            "[[service]]\nname = '{}'\nrestart = true\nhealth = 'exec:/bin/true'\n{settings}\n\
             command = {{ start = ['/bin/sh', '{}'], cgroup = '{}' }}\n",
            self.name,
            self.script().display(),
            self.cgroup.path
        )
    }

    /// Number of its starts.
    pub fn started(&self) -> u64 {
        fs::read_to_string(self.starts()).unwrap_or_default().lines().count() as u64
    }

    /// Orders it to die in one of the victim's ways; false when it is not waiting for an order.
    pub fn order(&self, end: &str) -> bool {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let pipe = OpenOptions::new().write(true).custom_flags(nonblock).open(self.orders());
        pipe.is_ok_and(|mut pipe| writeln!(pipe, "{end}").is_ok())
    }
}
