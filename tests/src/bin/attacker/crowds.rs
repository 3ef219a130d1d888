//! Makes many processes at once, and many deaths in a row.

use std::{
    process::exit,
    thread::sleep,
    time::{Duration, Instant},
};

use tests::processes::{fork, wait_for};

use crate::{ready, wait};

/// Forks `count` processes that wait and ignore SIGTERM.
pub(crate) fn crowd(count: usize) {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    for _ in 0..count {
        // SAFETY: this process has one thread.
        if unsafe { fork() }.is_none() {
            wait();
        }
    }
}

/// Forks `rate` children a second that exit with 1.
pub(crate) fn failures(rate: u32) -> ! {
    ready();
    let (begin, mut made) = (Instant::now(), 0_u32);
    loop {
        // SAFETY: this process has one thread.
        match unsafe { fork() } {
            None => exit(1),
            Some(child) => wait_for(child),
        }
        made = made.wrapping_add(1);
        let due = Duration::from_secs_f64(f64::from(made) / f64::from(rate));
        sleep(due.saturating_sub(begin.elapsed()));
    }
}
