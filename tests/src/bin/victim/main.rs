//! Dies on command, in one of many ways. Each way is what a real program does; nothing is pretended.

mod faults;

use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    process::{Command, exit},
    thread::{sleep, spawn},
    time::Duration,
};

use clap::{Parser, Subcommand};

/// A program that dies on command.
#[derive(Parser)]
struct Cli {
    /// Enter this cgroup first
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Be called by these bytes, given in hexadecimal
    #[arg(long)]
    comm: Option<String>,
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Take memory until something ends it
    Leak,
    /// A child takes memory; this process waits for the end of its input, then exits with 0
    LeakInChild,
    /// The first thread leaves, then another takes memory
    LeakAfterLeader,
    /// The first thread leaves, then another ends the process with a code
    ExitAfterLeader {
        /// The code
        code: i32,
    },
    /// Exit with a code
    Exit {
        /// The code
        code: i32,
    },
    /// Wait for the end of the input, then exit with 0
    Wait,
    /// Read from address zero
    Segv,
    /// Call abort(3)
    Abort,
    /// Read from a mapped file behind its end
    Bus,
    /// Divide by zero
    Fpe,
    /// Execute an instruction that does not exist
    Ill,
    /// Make a system call that a seccomp filter of its own forbids
    Sys,
    /// Use more processor time than its limit allows
    Xcpu,
    /// Fork this many children one after the other, each exiting with a code
    Storm {
        /// How many
        count: u32,
        /// The code
        code: i32,
    },
}

fn main() {
    let cli = Cli::parse();
    if let Some(cgroup) = cli.cgroup {
        // 0: the writing process.
        fs::write(cgroup.join("cgroup.procs"), "0").expect("the cgroup can be entered");
    }
    if let Some(hex) = cli.comm {
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2).expect("two digits"), 16).expect("hexadecimal");
        let name: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        // The first thread's file is the name of the process.
        fs::write(format!("/proc/self/task/{}/comm", std::process::id()), name).expect("a name can be changed");
    }
    match cli.way {
        Way::Leak => leak(),
        Way::LeakInChild => {
            let mut child = Command::new(std::env::current_exe().expect("a program has a path"))
                .arg("leak")
                .spawn()
                .expect("a child starts");
            child.wait().expect("the child ends");
            wait_for_input();
        }
        Way::LeakAfterLeader => leave_to(|| leak()),
        Way::ExitAfterLeader { code } => leave_to(move || exit(code)),
        Way::Exit { code } => exit(code),
        Way::Wait => wait_for_input(),
        Way::Segv => {
            // SAFETY: none; the fault is what is wanted. Volatile, so that it is not optimized away.
            let value = unsafe { std::ptr::read_volatile(std::ptr::null::<u8>()) };
            exit(i32::from(value));
        }
        Way::Abort => std::process::abort(),
        Way::Bus => faults::bus(),
        Way::Fpe => faults::fpe(),
        Way::Ill => faults::ill(),
        Way::Sys => faults::sys(),
        Way::Xcpu => faults::xcpu(),
        Way::Storm { count, code } => storm(count, code),
    }
}

fn leak() -> ! {
    let mut taken = Vec::new();
    loop {
        // Written to, so that the pages are really there.
        taken.push(vec![1u8; 1024 * 1024]);
    }
}

/// Starts a thread and ends this one alone, so that the thread group's leader is gone while the process lives.
fn leave_to(work: impl FnOnce() + Send + 'static) -> ! {
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

fn wait_for_input() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).expect("the input can be read");
}

fn storm(count: u32, code: i32) {
    for _ in 0..count {
        // SAFETY: this process has one thread, so the child may do as it likes; it only exits.
        match unsafe { libc::fork() } {
            // SAFETY: ends the child without running anything of the parent's.
            0 => unsafe { libc::_exit(code) },
            -1 => panic!("cannot fork"),
            child => {
                let mut status = 0;
                // SAFETY: `status` is valid for the call.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
            }
        }
    }
}
