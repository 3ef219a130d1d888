//! Processes that end others, or wait to be ended.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
            process::CommandExt as _,
        },
    },
    process::{Command, exit},
};

use rustix::process::Pid;
use tests::processes::{self, wait_for};

/// Waits until something ends it.
pub(crate) fn idle() -> ! {
    loop {
        // SAFETY: waits for a signal; no precondition.
        unsafe { libc::pause() };
    }
}

/// What SIGTERM makes of this process.
static CODE: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

extern "C" fn leave(_: i32) {
    // SAFETY: _exit(2) may be called from a signal handler.
    unsafe { libc::_exit(CODE.load(std::sync::atomic::Ordering::Relaxed)) }
}

/// Answers SIGTERM by exiting with a code.
pub(crate) fn on_term(code: i32) -> ! {
    CODE.store(code, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the handler calls nothing but _exit(2).
    unsafe { libc::signal(libc::SIGTERM, leave as *const () as libc::sighandler_t) };
    idle()
}

/// Does not answer SIGTERM.
pub(crate) fn ignore_term() -> ! {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    idle()
}

/// Tells systemd that it is ready and alive (sd_notify(3)), and never again.
pub(crate) fn notify_once() -> ! {
    let path = std::env::var_os("NOTIFY_SOCKET").expect("systemd names its socket");
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let socket = UnixDatagram::unbound().expect("a socket");
    let message = b"READY=1\nWATCHDOG=1";
    socket.send_to_addr(message, &address.expect("an address")).expect("systemd listens");
    idle()
}

/// Sends a signal to another process, and exits.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: no precondition.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "the signal can be sent");
}

/// Becomes another program.
pub(crate) fn exec(words: &[String]) -> ! {
    let (program, arguments) = words.split_first().expect("clap asks for one");
    let error = Command::new(program).args(arguments).exec();
    panic!("cannot run {program}: {error}");
}

/// fork(2). This process has one thread, so the child may do anything.
fn fork() -> Option<Pid> {
    // SAFETY: this process has one thread.
    unsafe { processes::fork() }
}

/// Fork this many children one after the other, each ending itself by a signal, else exiting with a code.
pub(crate) fn storm(count: u32, code: i32, signal: Option<i32>) {
    for _ in 0..count {
        match fork() {
            None => {
                if let Some(signal) = signal {
                    // SAFETY: no precondition.
                    unsafe { libc::raise(signal) };
                }
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(code) }
            }
            Some(child) => wait_for(child),
        }
    }
}

/// A pid namespace with two processes, its init and another, that wait; this process waits for the end of init.
pub(crate) fn pid_namespace() {
    // SAFETY: this process has one thread; only its later children are in the new namespace.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0, "a pid namespace can be made");
    match fork() {
        Some(init) => wait_for(init),
        None => {
            // The member and its init both wait.
            fork();
            idle()
        }
    }
}

/// Traces a child that shall not outlive its tracer, and exits.
pub(crate) fn trace_and_leave() {
    let Some(child) = fork() else { idle() };
    // SAFETY: options go by value; the request touches no memory of ours.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.as_raw_nonzero().get(), 0, libc::PTRACE_O_EXITKILL) };
    assert_eq!(seized, 0, "the child can be traced");
}

/// A child that has the process id `pid` does as it is told; this process waits for its end.
pub(crate) fn as_pid(pid: i32, child: impl FnOnce()) {
    let mut wanted = pid;
    // clone3(2): `set_tid` names the id in the innermost pid namespace.
    let mut arguments = libc::clone_args {
        flags: 0,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: (&raw mut wanted) as u64,
        set_tid_size: 1,
        cgroup: 0,
    };
    // SAFETY: as fork(2); the structure and the id live through the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) } {
        -1 => {
            println!("cannot take the id {pid}: {}", io::Error::last_os_error());
            exit(1)
        }
        0 => child(),
        pid => i32::try_from(pid).ok().and_then(Pid::from_raw).into_iter().for_each(wait_for),
    }
}

/// Sets this process's `oom_score_adj`, -1000 to 1000.
pub(crate) fn oom_score_adj(value: i16) {
    fs::write("/proc/self/oom_score_adj", value.to_string()).expect("the score can be set");
}

/// Starts a child that asks for SIGTERM at its parent's end; this process ends once the child has asked.
pub(crate) fn outlive_nobody() {
    let (mut reader, mut writer) = io::pipe().expect("a pipe");
    if fork().is_none() {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) }, 0, "a wish can be set");
        io::Write::write_all(&mut writer, b"1").expect("the parent reads");
        idle()
    }
    io::Read::read_exact(&mut reader, &mut [0]).expect("the child writes");
}

/// Starts a child that leads a session at a pseudo terminal, closes the terminal, and waits for the child's end.
pub(crate) fn lose_terminal() {
    let (mut ours, mut theirs) = (0, 0);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: both numbers are valid for the call; nothing else is asked for.
    let opened = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) };
    assert_eq!(opened, 0, "a pseudo terminal can be had");
    let (mut reader, mut writer) = io::pipe().expect("a pipe");
    let Some(child) = fork() else {
        // SAFETY: descriptors of this process; the child must not keep the other side open.
        unsafe {
            libc::close(ours);
            assert!(libc::setsid() > 0, "a session of its own");
            assert_eq!(libc::ioctl(theirs, libc::TIOCSCTTY, 0), 0, "the terminal can be taken");
        }
        io::Write::write_all(&mut writer, b"1").expect("the parent reads");
        idle()
    };
    io::Read::read_exact(&mut reader, &mut [0]).expect("the child writes");
    // SAFETY: ours to close.
    unsafe {
        libc::close(theirs);
        libc::close(ours);
    }
    wait_for(child);
}

/// Starts a child that executes a missing program and exits as those of systemd and of shells do; waits for its end.
pub(crate) fn exec_nothing() {
    let Some(child) = fork() else {
        drop(Command::new("/nonexistent/program").exec());
        exit(127)
    };
    wait_for(child);
}
