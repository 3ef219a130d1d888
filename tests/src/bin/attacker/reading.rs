//! Data that is large for its readers: a process's mappings, its command line, the names in its program.

use std::{
    env, fs,
    fs::File,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    ptr,
    thread::sleep,
    time::Duration,
};

use crate::{elf, ready};

/// Length of a file name, and the number of them in a path of 4 KiB (NAME_MAX, PATH_MAX).
const NAME: usize = 250;
const NAMES: usize = 15;
const PAGE: usize = 4096;

/// Maps one file `count` times under a path of nearly 4 KiB, blocks SIGSEGV, and sends itself one again and again: for
/// the kernel each is a fatal signal that the process raises itself.
pub(crate) fn mappings(directory: &Path, count: usize, pause: Duration) -> ! {
    env::set_current_dir(directory).expect("the directory can be entered");
    for _ in 0..NAMES {
        let name = "d".repeat(NAME);
        fs::create_dir_all(&name).expect("a directory can be made");
        // One directory at a time: no system call takes the whole path.
        env::set_current_dir(&name).expect("it can be entered");
    }
    fs::write("f", vec![0; PAGE]).expect("a file can be made");
    let file = File::open("f").expect("the file can be opened");
    for _ in 0..count {
        // SAFETY: a fresh mapping of an open file, which nothing reads.
        let page = unsafe {
            libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        assert_ne!(page, libc::MAP_FAILED, "the file can be mapped: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the set is written by sigemptyset(3) before it is used, and lives through the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSEGV);
        // Rust's runtime has a handler for stack overflows; a signal with a handler is not fatal.
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        assert_eq!(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()), 0, "the signal can be blocked");
        ready();
        loop {
            libc::kill(libc::getpid(), libc::SIGSEGV);
            // Takes the signal, so that the next one is raised anew.
            libc::sigwaitinfo(&raw const set, ptr::null_mut());
            sleep(pause);
        }
    }
}

/// `struct prctl_mm_map` (uapi linux/prctl.h).
#[repr(C)]
struct MmMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Shows a command line of `gib` GiB of zero bytes. Needs no memory and no privilege.
pub(crate) fn command_line(gib: usize) {
    let stat = fs::read_to_string("/proc/self/stat").expect("it can be read");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_ascii_whitespace().collect();
    // Fields numbered as in proc_pid_stat(5); the first after the name is 3.
    let field = |number: usize| fields[number - 3].parse::<u64>().expect("an address");
    let length = gib << 30;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping that nothing here reads; sbrk(3) with 0 changes nothing; the map lives through the call.
    let shown = unsafe {
        let begin = libc::mmap(ptr::null_mut(), length, libc::PROT_READ, flags, -1, 0);
        assert_ne!(begin, libc::MAP_FAILED, "addresses can be had: {}", std::io::Error::last_os_error());
        let begin = begin as u64;
        let map = MmMap {
            start_code: field(26),
            end_code: field(27),
            start_data: field(45),
            end_data: field(46),
            start_brk: field(47),
            brk: libc::sbrk(0) as u64,
            start_stack: field(28),
            arg_start: begin,
            arg_end: begin + length as u64,
            env_start: field(50),
            env_end: field(51),
            auxv: 0,
            auxv_size: 0,
            exe_fd: u32::MAX,
        };
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MmMap>(), 0)
    };
    assert_eq!(shown, 0, "a command line can be shown: {}", std::io::Error::last_os_error());
}

/// Makes a program that crashes in functions whose names are `length` bytes long.
pub(crate) fn long_names(directory: &Path, length: usize) -> PathBuf {
    let program = directory.join("long-names");
    // A running program's file cannot be written.
    fs::remove_file(&program).ok();
    fs::write(&program, elf::crashing(length)).expect("a program can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
    program
}

/// Runs a program that crashes.
pub(crate) fn run_again_and_again(program: &Path, pause: Duration) -> ! {
    loop {
        let status = Command::new(program).status().expect("the program starts");
        assert!(!status.success(), "it crashes");
        sleep(pause);
    }
}

/// Becomes a program that crashes.
pub(crate) fn become_program(program: &Path, pause: Duration) -> ! {
    sleep(pause);
    let error = Command::new(program).exec();
    panic!("cannot run {}: {error}", program.display())
}
