//! Attacks an agent as an unprivileged user can: each attack has worked once.
//!
//! Enters the given cgroups as root, becomes another user, and attacks as that user. Prints `ready` once the attack is
//! under way, and goes on until it is killed, unless the attack ends by itself.
//!
//! * `reading`: data that is large for its readers
//! * `elf`: a program whose symbols have long names
//! * `crowds`: many processes, and many deaths
//! * `cgroups`: many cgroups, and cgroups with names of units and containers
//! * `requests`: many connections, and a foreign host name

mod cgroups;
mod crowds;
mod elf;
mod reading;
mod requests;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::exit,
    thread::{park, sleep},
    time::Duration,
};

use clap::{Parser, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use tests::processes::become_user;

/// Attacks an agent on command, as an unprivileged user.
#[derive(Parser)]
struct Cli {
    /// Enter this cgroup first, as root; may be given more than once
    #[arg(long)]
    enter: Vec<PathBuf>,
    /// The user to become
    #[arg(long, default_value_t = 65534)]
    uid: u32,
    /// Set this process name
    #[arg(long)]
    comm: Option<String>,
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Map a file many times under a path of 4 KiB, then send itself a SIGSEGV that it has blocked, again and again
    Mappings {
        /// A directory to work in
        directory: PathBuf,
        /// How many mappings
        #[arg(long, default_value_t = 65_000)]
        count: usize,
        /// Milliseconds between two signals
        #[arg(long, default_value_t = 10)]
        pause: u64,
    },
    /// Show a command line of this many GiB, then exit with 3
    CommandLine {
        /// How many
        gib: usize,
        /// Milliseconds until it exits
        #[arg(long, default_value_t = 3000)]
        lives: u64,
    },
    /// Run a program again and again that crashes in functions with long names
    LongNames {
        /// A directory to work in
        directory: PathBuf,
        /// KiB of each name
        #[arg(long, default_value_t = 800)]
        kib: usize,
        /// Milliseconds between two crashes
        #[arg(long, default_value_t = 500)]
        pause: u64,
        /// Become that program instead, after the pause
        #[arg(long)]
        once: bool,
    },
    /// Fork this many processes that wait and ignore SIGTERM, then exit with 1
    Crowd {
        /// How many
        count: usize,
        /// Milliseconds until it exits, after the last fork
        #[arg(long, default_value_t = 0)]
        lives: u64,
    },
    /// Fork children that exit with 1, at this rate
    Failures {
        /// How many a second
        rate: u32,
    },
    /// Make many cgroups, remove them, and make them again
    Cgroups {
        /// Below which
        directory: PathBuf,
        /// How many
        count: usize,
        /// Name of each; `{}` is its number
        #[arg(long, default_value = "c{}")]
        name: String,
        /// Leave them, and wait
        #[arg(long)]
        keep: bool,
    },
    /// Make a cgroup with the name of a unit or container, and do something in it
    Impostor {
        /// Its path; missing parents are made
        directory: PathBuf,
        /// Limit its memory to this many MiB
        #[arg(long)]
        limit: Option<u64>,
        /// Take this many MiB there and keep them; more than the limit is an OOM kill
        #[arg(long, default_value_t = 0)]
        mib: usize,
        /// End with this code, in a child
        #[arg(long)]
        exit: Option<i32>,
        /// Repeat, with this pause in milliseconds
        #[arg(long)]
        again: Option<u64>,
    },
    /// Leave orphans that execute programs in a cgroup below the given one, and exit with 1
    Orphans {
        /// The service's cgroup
        directory: PathBuf,
    },
    /// Send a signal to another process
    Kill {
        /// Its id
        pid: i32,
        /// Signal number
        signal: i32,
    },
    /// Hold connections open whose requests never end, or whose answers are never read
    Connections {
        /// Address of the server
        address: SocketAddr,
        /// How many
        count: usize,
        /// Ask for this, and read none of the answer
        #[arg(long)]
        unread: Option<String>,
    },
    /// Ask for a path under a foreign name, and print the status
    ForeignHost {
        /// Address of the server
        address: SocketAddr,
        /// The name
        host: String,
        /// The path
        path: String,
    },
    /// Wait for a signal
    Idle,
}

fn main() {
    let cli = Cli::parse();
    for cgroup in &cli.enter {
        // 0: the writing process.
        let entered = fs::write(cgroup.join("cgroup.procs"), "0");
        entered.unwrap_or_else(|error| panic!("{} cannot be entered: {error}", cgroup.display()));
    }
    become_user(cli.uid);
    if let Some(name) = &cli.comm {
        rustix::thread::set_name(&std::ffi::CString::new(name.as_str()).expect("no zero byte"))
            .expect("a name can be set");
    }
    match cli.way {
        Way::Mappings { directory, count, pause } => reading::mappings(&directory, count, millis(pause)),
        Way::CommandLine { gib, lives } => {
            reading::command_line(gib);
            ready();
            sleep(millis(lives));
            exit(3)
        }
        Way::LongNames { directory, kib, pause, once } => {
            let program = reading::long_names(&directory, kib << 10);
            ready();
            match once {
                true => reading::become_program(&program, millis(pause)),
                false => reading::run_again_and_again(&program, millis(pause)),
            }
        }
        Way::Crowd { count, lives } => {
            crowds::crowd(count);
            ready();
            sleep(millis(lives));
            exit(1)
        }
        Way::Failures { rate } => crowds::failures(rate),
        Way::Cgroups { directory, count, name, keep } => cgroups::many(&directory, count, &name, keep),
        Way::Impostor { directory, limit, mib, exit, again } => {
            let act = cgroups::Act { limit_mib: limit, mib, exit };
            cgroups::impostor(&directory, &act, again.map(millis))
        }
        Way::Orphans { directory } => cgroups::orphans(&directory),
        Way::Kill { pid, signal } => {
            let signal = Signal::from_named_raw(signal).expect("a signal");
            kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("the signal can be sent");
        }
        Way::Connections { address, count, unread } => requests::hold(address, count, unread.as_deref()),
        Way::ForeignHost { address, host, path } => println!("{}", requests::status_as(address, &host, &path)),
        Way::Idle => wait(),
    }
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Says that the attack is under way.
fn ready() {
    // The starter may have closed the pipe.
    let mut out = std::io::stdout();
    writeln!(out, "ready").and_then(|()| out.flush()).ok();
}

/// Waits for a signal.
fn wait() -> ! {
    loop {
        park();
    }
}
