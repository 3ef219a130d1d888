//! Resource limits (setrlimit(2)): set for what follows, or run into.

use std::{io::Write as _, path::Path, process::exit};

/// Sets a limit, soft and hard.
fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit lives through the call.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0, "a limit can be set");
}

/// Cores go to this directory; without one, there are none.
pub(crate) fn core(directory: Option<&Path>) {
    let Some(directory) = directory else { return limit(libc::RLIMIT_CORE, 0, 0) };
    std::env::set_current_dir(directory).expect("the directory can be entered");
    limit(libc::RLIMIT_CORE, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
}

/// Addresses beyond this many MiB are refused.
pub(crate) fn address_space(mib: u64) {
    limit(libc::RLIMIT_AS, mib << 20, mib << 20);
}

/// Uses processor time until something ends it.
fn burn() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// SIGXCPU: more than a second of processor time, where the hard limit is far.
pub(crate) fn xcpu() -> ! {
    limit(libc::RLIMIT_CPU, 1, 10);
    burn()
}

/// SIGKILL: more than a second of processor time, where that is the hard limit.
pub(crate) fn cpu_limit() -> ! {
    limit(libc::RLIMIT_CPU, 1, 1);
    burn()
}

/// SIGXFSZ: a file that grows beyond its limit.
pub(crate) fn xfsz() -> ! {
    limit(libc::RLIMIT_FSIZE, 4096, 4096);
    let path = std::env::temp_dir().join(format!("victim-{}", std::process::id()));
    let mut file = std::fs::File::create_new(&path).expect("a file can be made");
    std::fs::remove_file(&path).expect("the file can be removed");
    let written = file.write(&[1; 4096]).and_then(|_| file.write(&[1]));
    println!("written: {written:?}");
    exit(1)
}

/// SIGALRM, in a second.
pub(crate) fn alarm() -> ! {
    // SAFETY: no memory is involved.
    unsafe { libc::alarm(1) };
    super::processes::idle()
}

/// SIGTERM from a timer (timer_create(2)), in a tenth of a second.
pub(crate) fn timer() -> ! {
    // SAFETY: both structures are plain data, for which zeros are valid.
    let (mut event, mut time): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGTERM;
    time.it_value.tv_nsec = 100_000_000;
    let mut timer = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the calls.
    unsafe {
        let made = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        assert_eq!(made, 0, "a timer can be made");
        assert_eq!(libc::timer_settime(timer, 0, &raw const time, std::ptr::null_mut()), 0, "a timer can be set");
    }
    super::processes::idle()
}
