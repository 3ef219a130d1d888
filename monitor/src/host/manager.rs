//! Words to the service manager that started the agent (sd_notify(3)). Without one, nothing is said.
//!
//! Nothing here waits, but for the seconds that a manager may take to keep descriptors: one that does not read must not hold up
//! what looks after services.

use std::{
    env,
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::AsFd as _,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::time::Instant;

use super::inherited::Named;

/// The manager, if there is one that wants to be told.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    beat: Option<Duration>,
}

impl Manager {
    /// The one that this process's environment names.
    pub(crate) fn from_env() -> Self {
        let socket = connect()
            .inspect_err(|error| tracing::warn!("the service manager cannot be told how the agent is: {error:#}"))
            .unwrap_or_default();
        let variable = |name| env::var(name).ok();
        let beat = beat(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id());
        Self { beat: beat.filter(|_| socket.is_some()), socket }
    }

    /// The agent does its work, which is this.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The agent begins again, as the same process, with another configuration. It says itself when it is ready.
    pub(crate) fn reloading(&self) {
        self.tell("RELOADING=1\nSTATUS=beginning again with another configuration");
    }

    /// The agent has begun to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping: what it took out of load balancers is given back");
    }

    /// The pulse that the manager listens for, begun now.
    pub(crate) fn pulse(self, now: Instant) -> Pulse {
        Pulse { next: self.beat.map(|_| now), manager: self }
    }

    /// Has the manager keep these for the next agent, in the place of what it keeps under their names. It hands them back when
    /// it starts the agent again, and closes them when the agent is stopped for good (`FileDescriptorStoreMax=` in
    /// systemd.service(5)).
    pub(crate) fn keep(&self, descriptors: &[Named]) {
        for named in descriptors {
            if let Err(error) = self.keep_one(named) {
                tracing::warn!("the service manager does not keep {} for the next agent: {error}", named.0);
                return;
            }
        }
    }

    fn keep_one(&self, (name, descriptor): &Named) -> Result<(), Errno> {
        let Some(socket) = &self.socket else { return Ok(()) };
        patiently(socket, || {
            rustix::net::send(socket, format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes(), SendFlags::empty())
        })?;
        // It would watch them for an error otherwise, and a map always says that it has one.
        let words = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        let descriptors = [descriptor.as_fd()];
        patiently(socket, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(socket, &[IoSlice::new(words.as_bytes())], &mut ancillary, SendFlags::empty())
        })
    }

    fn tell(&self, words: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(words.as_bytes()) {
            tracing::warn!("the service manager was not told `{}`: {error}", words.escape_debug());
        }
    }
}

/// The agent's sign of life. Whoever does the agent's work beats it between two pieces of work: a timer would go on beating
/// for one that hangs.
#[derive(Debug)]
pub(crate) struct Pulse {
    manager: Manager,
    next: Option<Instant>,
}

impl Pulse {
    /// When it wants to be beaten; `None` when nobody listens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Beats if it is time, with a word on what is done.
    pub(crate) fn beat(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if let (Some(next), Some(interval)) = (self.next, self.manager.beat)
            && next <= now
        {
            self.next = Some(now + interval);
            self.manager.tell(&format!("WATCHDOG=1\nSTATUS={}", status()));
        }
    }

    /// The manager, for its last words.
    pub(crate) fn manager(&self) -> &Manager {
        &self.manager
    }
}

/// How long the manager may take to make room for a message: 5 s.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Sends, and waits once while the manager's queue is full.
fn patiently(socket: &UnixDatagram, send: impl Fn() -> Result<usize, Errno>) -> Result<(), Errno> {
    match send() {
        Err(Errno::AGAIN) => {
            poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&PATIENCE))?;
            send().map(drop)
        }
        done => done.map(drop),
    }
}

fn connect() -> Result<Option<UnixDatagram>> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let name = || format!("NOTIFY_SOCKET={}", path.display());
    let socket = UnixDatagram::unbound().with_context(name)?;
    socket.connect_addr(&address.with_context(name)?).with_context(name)?;
    socket.set_nonblocking(true).with_context(name)?;
    Ok(Some(socket))
}

/// A third of the time after which the watchdog bites, so that one late beat and one lost beat do no harm. None when it was
/// meant for another process (sd_watchdog_enabled(3)).
fn beat(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let usec: u64 = usec.filter(|_| ours)?.parse().ok()?;
    (usec > 0).then(|| Duration::from_micros(usec) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        assert_eq!(beat(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(10)));
        assert_eq!(beat(Some("30000000"), None, 7), Some(Duration::from_secs(10)));
        assert_eq!(beat(Some("30000000"), Some("8"), 7), None);
        assert_eq!(beat(Some("0"), Some("7"), 7), None);
        assert_eq!(beat(None, None, 7), None);
    }

    #[test]
    fn it_beats_when_it_is_time_and_not_before() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("a setting");
        let heard = || {
            let mut words = [0; 64];
            theirs.recv(&mut words).ok().map(|length| String::from_utf8_lossy(&words[..length]).into_owned())
        };
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut pulse = Manager { socket: Some(ours), beat: Some(second) }.pulse(now);
        pulse.beat(now, || "well".to_owned());
        assert_eq!(heard().as_deref(), Some("WATCHDOG=1\nSTATUS=well"));
        pulse.beat(now + second / 2, || "too early".to_owned());
        assert_eq!((heard(), pulse.next()), (None, Some(now + second)));
        pulse.beat(now + second * 3, || "late".to_owned());
        assert_eq!((heard().is_some(), pulse.next()), (true, Some(now + second * 4)));
    }

    #[test]
    fn what_shall_be_kept_goes_with_its_name() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
        let manager = Manager { socket: Some(ours), beat: None };
        let (_, writer) = std::io::pipe().expect("a pipe");
        manager.keep(&[("map-a".to_owned(), writer.into())]);
        let mut words = [0; 64];
        let mut heard = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let mut parts = [std::io::IoSliceMut::new(&mut words)];
            let length = rustix::net::recvmsg(&theirs, &mut parts, &mut ancillary, flags).expect("a message").bytes;
            (String::from_utf8_lossy(&words[..length]).into_owned(), ancillary.drain().count())
        };
        assert_eq!(heard(), ("FDSTOREREMOVE=1\nFDNAME=map-a".to_owned(), 0));
        assert_eq!(heard(), ("FDSTORE=1\nFDNAME=map-a\nFDPOLL=0".to_owned(), 1));
        Manager { socket: None, beat: None }.keep(&[]);
    }

    #[test]
    fn nobody_is_told_nothing() {
        let mut pulse = Manager { socket: None, beat: None }.pulse(Instant::now());
        pulse.beat(Instant::now(), || unreachable!("nobody listens"));
        assert_eq!(pulse.next(), None);
    }
}
