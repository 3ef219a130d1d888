//! Dies on command, in one of many ways. Each way is what a real program does; nothing is pretended.
//!
//! * `crowd`: holding connections of an HTTP server
//! * `faults`: what a program brings on itself
//! * `memory`: taking too much of it
//! * `threads`: threads that end in an unusual order
//! * `processes`: ending others, or waiting to be ended
//! * `limits`: resource limits
//! * `server`: a web server that gets ill on request
//! * `sessions`: a server that leaks in one function among others

mod crowd;
mod faults;
mod limits;
mod memory;
mod processes;
mod server;
mod sessions;
mod threads;

use std::{fs, io::Read as _, path::PathBuf, process::exit};

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
    /// How willingly the kernel kills this process for want of memory
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i16>,
    /// Leave cores in this directory; without it, there are none
    #[arg(long)]
    core: Option<PathBuf>,
    /// Addresses that this process may use, in MiB
    #[arg(long)]
    address_space: Option<u64>,
    /// Go on as this user
    #[arg(long)]
    uid: Option<u32>,
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Take memory until something ends it
    Leak,
    /// A child takes memory; this process waits for the end of its input, then exits with 0
    LeakInChild,
    /// A child takes memory; this process waits for a signal
    LeakInChildAndIdle,
    /// Take memory at a pace, until something ends it
    LeakSlowly {
        /// What it takes at once, in MiB
        base: usize,
        /// What it takes in a second, in KiB
        kib: u64,
    },
    /// Have many threads, open files and mappings, some of them with a name, then take memory at a pace
    Hoard {
        /// A file to map
        file: PathBuf,
        /// Mappings beside it, of a page each
        pieces: usize,
        /// What it takes at once, in MiB
        base: usize,
        /// What it takes in a second, in KiB
        kib: u64,
    },
    /// The first thread leaves, then another takes memory
    LeakAfterLeader,
    /// A thread takes memory, the first one waits
    LeakInThread,
    /// A child in the memory of this process takes more, this process waits
    LeakInTwin,
    /// Take this many MiB and wait for the end of the input, then exit with 0
    Hold {
        /// How many
        mib: usize,
    },
    /// Take memory and read a file of its own, again and again
    Thrash {
        /// The file, written anew
        file: PathBuf,
    },
    /// The first thread leaves, then another ends the process with a code
    ExitAfterLeader {
        /// The code
        code: i32,
    },
    /// A thread that is not the first becomes a shell, which exits with a code
    ExecInThread {
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
    /// Serve HTTP on this port of loopback, and take memory or fall ill when asked to (/leak, /hold/MIB, /release, /sick,
    /// /well)
    Serve {
        /// The port
        port: u16,
    },
    /// Hold connections to an HTTP server: silent ones, half-sent requests, answers that nobody reads
    Crowd {
        /// The server
        address: std::net::SocketAddr,
        /// How many
        count: usize,
        /// Send each the beginning of a TLS handshake
        #[arg(long)]
        tls: bool,
    },
    /// Serve for ever, forgetting to close sessions
    Sessions {
        /// What they take in a second, in KiB
        kib: f64,
        /// Serve without a pause, and print the requests served in a second
        #[arg(long)]
        busy: bool,
    },
    /// Wait for a signal
    Idle,
    /// Wait for SIGTERM, then exit with a code
    OnTerm {
        /// The code
        code: i32,
    },
    /// Wait, and do not mind SIGTERM
    IgnoreTerm,
    /// Tell systemd once that all is well, then wait
    NotifyOnce,
    /// Send a signal to another process
    Kill {
        /// Its id
        pid: i32,
        /// Signal number
        signal: i32,
    },
    /// Become another program
    #[command(trailing_var_arg = true)]
    Exec {
        /// The program and its arguments
        #[arg(required = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Two processes wait in a pid namespace of their own, this one waits for the end of its init
    PidNamespace,
    /// Trace a child that shall not outlive its tracer, and exit
    TraceAndLeave,
    /// A child with a certain process id waits for a signal, this process waits for its end
    AsPid {
        /// The id
        pid: i32,
        /// The child takes memory instead
        #[arg(long)]
        leak: bool,
    },
    /// Read from address zero
    Segv,
    /// Read from address zero, in a thread
    SegvInThread,
    /// Call abort(3)
    Abort,
    /// Read from a mapped file behind its end
    Bus,
    /// Divide by zero
    Fpe,
    /// Execute an instruction that does not exist
    Ill,
    /// Hit a breakpoint
    Trap,
    /// Call a function that calls itself
    UseUpTheStack,
    /// Make a system call that a seccomp filter of its own forbids
    Sys,
    /// Make a system call that seccomp's strict mode forbids
    SysStrict,
    /// Read memory that the hardware reports as broken
    MemoryError,
    /// Write to a pipe that nobody reads
    BrokenPipe,
    /// Leave a child that asked for SIGTERM at this process's end, and exit with 0
    OutliveNobody,
    /// Close the terminal of a child
    LoseTerminal,
    /// Let an alarm(2) ring
    Alarm,
    /// Let a timer of timer_create(2) run out
    Timer,
    /// Execute a missing program in a child, as a service manager would
    ExecNothing,
    /// Start threads until the kernel refuses one, then exit with 1
    UseUpThreads,
    /// Use more processor time than its soft limit allows
    Xcpu,
    /// Use more processor time than its hard limit allows
    CpuLimit,
    /// Write a file that is longer than its limit allows
    Xfsz,
    /// Fork this many children one after the other, each exiting with a code
    Storm {
        /// How many
        count: u32,
        /// The code
        code: i32,
        /// Each ends itself by this signal instead
        #[arg(long)]
        signal: Option<i32>,
    },
}

fn main() {
    let cli = Cli::parse();
    prepare(&cli);
    match cli.way {
        Way::Leak => memory::leak(),
        Way::LeakInChild => {
            memory::leak_in_child();
            wait_for_input();
        }
        Way::LeakInChildAndIdle => {
            memory::leak_in_child();
            processes::idle()
        }
        Way::LeakSlowly { base, kib } => memory::leak_slowly(base, kib),
        Way::Hoard { file, pieces, base, kib } => memory::hoard(&file, pieces, base, kib),
        Way::LeakAfterLeader => threads::leave_to(|| memory::leak()),
        Way::LeakInThread => memory::leak_in_thread(),
        Way::LeakInTwin => memory::leak_in_twin(),
        Way::Hold { mib } => memory::hold(mib),
        Way::Thrash { file } => memory::thrash(&file),
        Way::ExitAfterLeader { code } => threads::leave_to(move || exit(code)),
        Way::ExecInThread { code } => threads::exec_in_thread(code),
        Way::Exit { code } => exit(code),
        Way::Wait => wait_for_input(),
        Way::Serve { port } => server::serve(port),
        Way::Crowd { address, count, tls } => crowd::hold(address, count, tls),
        Way::Sessions { kib, busy } => sessions::serve(kib, busy),
        Way::Idle => processes::idle(),
        Way::OnTerm { code } => processes::on_term(code),
        Way::IgnoreTerm => processes::ignore_term(),
        Way::NotifyOnce => processes::notify_once(),
        Way::Kill { pid, signal } => processes::kill(pid, signal),
        Way::Exec { words } => processes::exec(&words),
        Way::PidNamespace => processes::pid_namespace(),
        Way::TraceAndLeave => processes::trace_and_leave(),
        Way::AsPid { pid, leak: true } => processes::as_pid(pid, || memory::leak()),
        Way::AsPid { pid, leak: false } => processes::as_pid(pid, || processes::idle()),
        Way::Segv => faults::read_address_zero(),
        Way::SegvInThread => faults::read_address_zero_in_thread(),
        Way::Abort => faults::give_up(),
        Way::Bus => faults::read_behind_the_file(),
        Way::Fpe => faults::divide_by_zero(),
        Way::Ill => faults::execute_nonsense(),
        Way::Trap => faults::hit_a_breakpoint(),
        Way::UseUpTheStack => println!("{}", faults::use_up_the_stack(0)),
        Way::Sys => faults::call_what_is_forbidden(),
        Way::SysStrict => faults::call_what_strict_mode_forbids(),
        Way::MemoryError => faults::read_broken_memory(),
        Way::BrokenPipe => faults::write_to_nobody(),
        Way::OutliveNobody => processes::outlive_nobody(),
        Way::LoseTerminal => processes::lose_terminal(),
        Way::Alarm => limits::alarm(),
        Way::Timer => limits::timer(),
        Way::ExecNothing => processes::exec_nothing(),
        Way::UseUpThreads => threads::use_up(),
        Way::Xcpu => limits::xcpu(),
        Way::CpuLimit => limits::cpu_limit(),
        Way::Xfsz => limits::xfsz(),
        Way::Storm { count, code, signal } => processes::storm(count, code, signal),
    }
}

/// What comes before the death; the loss of privileges last.
fn prepare(cli: &Cli) {
    if let Some(cgroup) = &cli.cgroup {
        // 0: the writing process.
        fs::write(cgroup.join("cgroup.procs"), "0").expect("the cgroup can be entered");
    }
    if let Some(hex) = &cli.comm {
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2).expect("two digits"), 16).expect("hexadecimal");
        let name: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        // The first thread's file is the name of the process.
        fs::write(format!("/proc/self/task/{}/comm", std::process::id()), name).expect("a name can be changed");
    }
    if let Some(value) = cli.oom_score_adj {
        processes::oom_score_adj(value);
    }
    limits::core(cli.core.as_deref());
    if let Some(mib) = cli.address_space {
        limits::address_space(mib);
    }
    if let Some(uid) = cli.uid {
        tests::processes::become_user(uid);
    }
}

fn wait_for_input() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).expect("the input can be read");
}
