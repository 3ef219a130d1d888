//! `cargo xtask`: everything that is done to this repository rather than by the program.
//!
//! * [`ebpf`]: build the kernel programs, or check that the committed object is what its sources give
//! * [`test`]: format, lints, unit tests, object check, live kernel tests
//! * [`corpus`]: the corpus of deaths on this kernel and on others, and the table of docs/diagnosis.md
//! * [`bench`]: measure cost and speed, and write docs/performance.md; measure the forecast, and write docs/forecast.md
//! * [`vm`]: run a command or a live test on another kernel
//! * [`dist`]: build the Debian package
//! * [`fuzz`]: search for bytes that make a reader panic
//! * [`demo`], [`run`]: build the program as the invoking user, start it with the rights that it needs
//!
//! One file (or directory) for each command; the rest is what they share: [`needs`] (what a machine lacks and the
//! command that brings it), [`artifacts`] (where cargo put an executable), [`document`] (what runs write
//! in docs/), [`privilege`] (root, sudo or neither),
//! [`process`] (children and their errors), [`tee`] (output to two places), [`workspace`] (paths), [`say`] (the only way to
//! the terminal).
mod artifacts;
mod bench;
mod corpus;
mod demo;
mod dist;
mod document;
mod ebpf;
mod foreign;
mod fuzz;
mod launch;
mod needs;
mod privilege;
mod process;
mod run;
mod say;
mod source_hash;
mod supply;
mod tee;
mod test;
mod tool;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests and starts Defib from its sources
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Test(test::Args),
    Ebpf(ebpf::Args),
    Vm(vm::Args),
    Corpus(corpus::Args),
    Bench(bench::Args),
    Dist(dist::Args),
    Fuzz(fuzz::Args),
    Soak(bench::soak::Args),
}

impl Command {
    fn execute(self) -> Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::execute(&args),
            Self::Run(args) => run::execute(&args),
            Self::Test(args) => test::execute(args),
            Self::Ebpf(args) => ebpf::execute(&args),
            Self::Vm(args) => vm::execute(&args),
            Self::Corpus(args) => corpus::execute(&args),
            Self::Bench(args) => bench::execute(&args),
            Self::Dist(args) => dist::execute(&args),
            Self::Fuzz(args) => fuzz::execute(&args),
            Self::Soak(args) => bench::soak::execute(&args),
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().command.execute() {
        Ok(code) => code,
        Err(error) => {
            say::error(&error);
            ExitCode::FAILURE
        }
    }
}
