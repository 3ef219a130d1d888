//! Processes whose threads do not end in the usual order.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, exit},
    thread::{sleep, spawn},
    time::Duration,
};

/// Starts a thread and ends this one alone, so that the thread group's leader is gone while the process lives.
pub(crate) fn leave_to(work: impl FnOnce() + Send + 'static) -> ! {
    spawn(move || {
        // The leader must have left before the rest happens.
        while leader_lives() {
            sleep(Duration::from_millis(1));
        }
        work();
    });
    // SAFETY: ends this thread only. Nothing on its stack is used by another.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit does not return");
}

fn leader_lives() -> bool {
    // A leader that has left is a zombie until the whole process ends.
    fs::read_to_string("/proc/self/stat")
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

/// A thread that is not the first becomes another program: it takes over the process, its id included.
pub(crate) fn exec_in_thread(code: i32) {
    let thread = spawn(move || {
        let error = Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).exec();
        panic!("cannot run a shell: {error}");
    });
    thread.join().expect("the thread becomes another program");
}

/// Starts threads that wait, until one more is refused; then exits with 1.
pub(crate) fn use_up() -> ! {
    let wait = || loop {
        std::thread::park();
    };
    for _ in 0..1000 {
        if std::thread::Builder::new().spawn(wait).is_err() {
            exit(1);
        }
    }
    exit(0)
}
