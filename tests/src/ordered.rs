//! A command service that is told how to die, and counts how often it began.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Command,
};

use crate::{cgroup::Cgroup, victim::binary};

/// See the module.
#[derive(Debug)]
pub struct Ordered {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub cgroup: Cgroup,
    place: tempfile::TempDir,
}

impl Ordered {
    /// A service with so many bytes of memory, which waits for an order as soon as it is started.
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

    /// Its section of a configuration, with these lines in it: it is brought back.
    pub fn config(&self, settings: &str) -> String {
        format!(
            "[[service]]\nname = '{}'\nrestart = true\nhealth = 'exec:/bin/true'\n{settings}\n\
             command = {{ start = ['/bin/sh', '{}'], cgroup = '{}' }}\n",
            self.name,
            self.script().display(),
            self.cgroup.path
        )
    }

    /// How often it began.
    pub fn started(&self) -> u64 {
        fs::read_to_string(self.starts()).unwrap_or_default().lines().count() as u64
    }

    /// Tells it to die, in a way of the victim's; false when it does not wait for that at the other end of the pipe.
    pub fn order(&self, end: &str) -> bool {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let pipe = OpenOptions::new().write(true).custom_flags(nonblock).open(self.orders());
        pipe.is_ok_and(|mut pipe| writeln!(pipe, "{end}").is_ok())
    }
}
