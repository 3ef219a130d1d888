//! Faults that a program brings on itself, each by the real thing and not by raise(3).
//!
//! Each happens in a function of its own that stays one (`inline(never)`), so that the place of the crash has a name.

use std::{fs::File, os::fd::AsRawFd as _, process::exit, ptr};

/// SIGSEGV: a read from address zero.
#[inline(never)]
pub(crate) fn read_address_zero() -> ! {
    // SAFETY: none; the fault is what is wanted. Volatile, so that it is not optimized away.
    let value = unsafe { ptr::read_volatile(ptr::null::<u8>()) };
    exit(i32::from(value))
}

/// SIGSEGV, in a thread that is not the first.
pub(crate) fn read_address_zero_in_thread() {
    std::thread::spawn(|| read_address_zero()).join().expect("the thread ends with the process");
}

/// SIGBUS: a page of a mapped file that lies behind the file's end.
#[inline(never)]
pub(crate) fn read_behind_the_file() -> ! {
    let path = std::env::temp_dir().join(format!("victim-{}", std::process::id()));
    let file = File::create_new(&path).expect("a file can be made");
    std::fs::remove_file(&path).expect("the file can be removed");
    // SAFETY: a fresh mapping of an open file; the read behind the end is the fault that is wanted.
    let value = unsafe {
        let page = libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(page, libc::MAP_FAILED, "the file can be mapped");
        ptr::read_volatile(page.cast::<u8>())
    };
    exit(i32::from(value))
}

/// SIGFPE.
#[inline(never)]
pub(crate) fn divide_by_zero() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the fault is what is wanted; the registers are declared.
    unsafe {
        std::arch::asm!("div {zero:e}", zero = in(reg) 0u32, inout("eax") 1u32 => _, inout("edx") 0u32 => _);
    }
    panic!("this processor divides by zero without a fault")
}

/// SIGILL.
#[inline(never)]
pub(crate) fn execute_nonsense() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the fault is what is wanted.
    unsafe {
        std::arch::asm!("ud2");
    }
    panic!("this processor executes what does not exist")
}

/// SIGTRAP: a breakpoint that no debugger waits for.
#[inline(never)]
pub(crate) fn hit_a_breakpoint() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the fault is what is wanted.
    unsafe {
        std::arch::asm!("int3");
    }
    panic!("this processor has no breakpoints")
}

/// SIGABRT.
#[inline(never)]
pub(crate) fn give_up() -> ! {
    std::hint::black_box(&());
    std::process::abort()
}

/// A recursion without an end. The runtime sees the fault on the guard page, says so, and aborts.
#[inline(never)]
pub(crate) fn use_up_the_stack(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 128]);
    if frame[1] == u64::MAX {
        return 0; // the stack is used up long before
    }
    use_up_the_stack(depth + 1) + frame[0]
}

/// SIGSYS: a filter that kills the process for getppid(2).
pub(crate) fn call_what_is_forbidden() -> ! {
    // Offsets and actions of seccomp(2): the number is the first word of its data.
    let number = libc::SYS_getppid as u32;
    let mut filter = [
        libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k: number },
        libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_KILL_PROCESS,
        },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to a filter that lives through the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0, "privileges can be given up");
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(set, 0, "a filter can be set");
        libc::getppid();
    }
    panic!("the filter let the call through")
}

/// SIGKILL without a sender: the strict mode of seccomp allows only read, write, exit and sigreturn.
pub(crate) fn call_what_strict_mode_forbids() -> ! {
    // SAFETY: no memory is involved. The second call is the one that is forbidden.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT), 0, "the mode can be set");
        libc::getppid();
    }
    panic!("the mode let the call through")
}

/// SIGBUS: reads a page that `MADV_HWPOISON` has marked as broken (for tests; the machine loses the page).
#[inline(never)]
pub(crate) fn read_broken_memory() -> ! {
    // SAFETY: a fresh mapping; the read is the fault that is wanted.
    let value = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED, "memory can be had");
        ptr::write_volatile(page.cast::<u8>(), 1);
        assert_eq!(libc::madvise(page, 4096, libc::MADV_HWPOISON), 0, "the kernel has CONFIG_MEMORY_FAILURE");
        ptr::read_volatile(page.cast::<u8>())
    };
    exit(i32::from(value))
}

/// SIGPIPE. The runtime of Rust ignores it, most other programs do not.
pub(crate) fn write_to_nobody() -> ! {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let written = std::io::Write::write(&mut writer, b"word");
    println!("written: {written:?}");
    exit(1)
}

/// SIGSEGV to this thread, which has blocked it: nothing happens.
pub(crate) fn send_what_is_blocked() {
    // SAFETY: the set is plain data that lives through the calls; no handler is involved.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSEGV);
        assert_eq!(
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()),
            0,
            "a signal can be blocked"
        );
        // Without the runtime's handler, which would make the signal harmless.
        assert_ne!(libc::signal(libc::SIGSEGV, libc::SIG_DFL), libc::SIG_ERR, "the handler can go");
        assert_eq!(libc::raise(libc::SIGSEGV), 0, "the signal can be sent");
    }
}
