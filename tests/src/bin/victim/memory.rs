//! Processes that take memory, until they have what they want or something ends them.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    process::Command,
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use crate::wait_for_input;

const MIB: usize = 1024 * 1024;

/// Takes memory until something ends it.
pub(crate) fn leak() -> ! {
    let mut taken = Vec::new();
    loop {
        // Written to, so that the pages are really there.
        taken.push(vec![1u8; MIB]);
    }
}

/// Takes this much at once, then so much in each second, in small pages.
pub(crate) fn leak_slowly(base_mib: usize, kib_per_second: u64) -> ! {
    const PAGE: usize = 4096;
    // SAFETY: takes numbers only. It fails where there are no huge pages, which is as good.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    let base = std::hint::black_box(vec![1u8; base_mib * MIB]);
    let begin = Instant::now();
    let mut taken = Vec::new();
    loop {
        // By the clock, not by the sleeps: a busy machine makes those longer.
        let due = begin.elapsed().as_micros() as u64 * kib_per_second * 1024 / 1_000_000 / PAGE as u64;
        while (taken.len() as u64) < due {
            taken.push(vec![1u8; PAGE]);
        }
        sleep(Duration::from_millis(2));
        std::hint::black_box(&base);
    }
}

/// Threads and open files of [`hoard`].
const THREADS: usize = 20;
const FILES: usize = 100;

/// Has a lot of everything, then takes memory at a pace.
pub(crate) fn hoard(file: &Path, pieces: usize, base_mib: usize, kib_per_second: u64) -> ! {
    for _ in 0..THREADS {
        spawn(|| sleep(Duration::from_secs(3600)));
    }
    let files: Vec<_> = (0..FILES).map(|_| File::open("/dev/null").expect("it is there")).collect();
    let page = 4096;
    let mapped =
        File::create_new(file).and_then(|mut file| file.write_all(&vec![1; 2 * MIB])).and_then(|()| File::open(file));
    let mapped = mapped.expect("a file can be made");
    // SAFETY: new mappings at addresses that the kernel chooses, which nobody else knows; they are read and written within their
    // size, and stay until the end.
    unsafe {
        use std::os::fd::AsRawFd as _;
        let map = |size: usize, flags, fd| {
            let at = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0);
            assert_ne!(at, libc::MAP_FAILED, "memory can be mapped");
            at.cast::<u8>()
        };
        let of_file = map(2 * MIB, libc::MAP_PRIVATE, mapped.as_raw_fd());
        let shared = libc::memfd_create(c"hoard".as_ptr(), 0);
        assert_eq!(libc::ftruncate(shared, 3 * MIB as i64), 0, "it can grow");
        let of_shared = map(3 * MIB, libc::MAP_SHARED, shared);
        for at in (0..2 * MIB).step_by(page) {
            std::hint::black_box(of_file.add(at).read_volatile());
            of_shared.add(at).write_volatile(1);
        }
        // What differs in protection from its neighbours is a mapping by itself.
        let begin = map(pieces * page, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        for piece in 0..pieces {
            let at = begin.add(piece * page);
            at.write_volatile(1);
            if piece % 2 == 0 {
                assert_eq!(libc::mprotect(at.cast(), page, libc::PROT_READ), 0, "it can be protected");
            }
        }
    }
    std::hint::black_box(&files);
    leak_slowly(base_mib, kib_per_second)
}

/// Takes this much in small pages and keeps it until the end of the input.
pub(crate) fn hold(mib: usize) {
    // SAFETY: takes numbers only. It fails where there are no huge pages, which is as good.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    let held = vec![1u8; mib * MIB];
    wait_for_input();
    drop(std::hint::black_box(held));
}

/// A child takes memory; this process waits for its end.
pub(crate) fn leak_in_child() {
    let mut child = Command::new(std::env::current_exe().expect("a program has a path"))
        .arg("leak")
        .spawn()
        .expect("a child starts");
    child.wait().expect("the child ends");
}

/// A thread takes memory while the first one waits for it.
pub(crate) fn leak_in_thread() {
    spawn(|| leak()).join().expect("the thread ends with the process");
}

/// A child that runs in the memory of this process takes more of it, as between vfork(2) and exec(2), when this process
/// waits.
pub(crate) fn leak_in_twin() {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: with no stack of its own, the child goes on with ours while we stand still. It never returns from `leak`,
    // and when it is killed, so are we: nobody comes back to the frames that it has used.
    if unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } == 0 {
        leak();
    }
    panic!("the child is gone and this process is not");
}

/// Takes memory step by step and reads a file of its own beside it, again and again: where there is a soft limit, the
/// kernel is always looking for pages to take back, and the process always waits for it.
pub(crate) fn thrash(file: &Path) -> ! {
    let mut pages = File::options().create(true).truncate(true).read(true).write(true).open(file).expect("a file");
    for _ in 0..64 {
        pages.write_all(&vec![1; MIB]).expect("the file can be filled");
    }
    spawn(move || {
        let mut taken = Vec::new();
        loop {
            taken.push(vec![1u8; MIB / 4]);
            sleep(Duration::from_millis(5));
        }
    });
    let mut page = vec![0; 4096];
    loop {
        pages.seek(SeekFrom::Start(0)).expect("the file can be read again");
        while pages.read(&mut page).expect("the file can be read") > 0 {}
    }
}
