//! The `defib` binary: parse, dispatch, one clear line on failure. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    monitor::cli::main()
}
