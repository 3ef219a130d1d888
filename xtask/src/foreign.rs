//! Programs of the tests in other languages, whose compilers a guest does not have: built here and brought along.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, say, vm::Program, workspace};

/// A program: its file under `tests/src/foreign`, and what builds it.
struct Foreign {
    name: &'static str,
    source: &'static str,
    compiler: &'static str,
    words: &'static [&'static str],
}

const ALL: [Foreign; 7] = [
    Foreign { name: "bad-alloc", source: "bad-alloc.cpp", compiler: "g++", words: &["-O1", "-g", "-static", "-o"] },
    // As distributions build: optimised, without frame pointers, with the C library that is there.
    Foreign { name: "aborts-c", source: "aborts.c", compiler: "cc", words: &["-O2", "-fomit-frame-pointer", "-o"] },
    Foreign { name: "sessions-c", source: "sessions.c", compiler: "cc", words: &["-O2", "-g", "-o"] },
    Foreign { name: "arenas-c", source: "arenas.c", compiler: "cc", words: &["-O2", "-g", "-o"] },
    Foreign { name: "sessions-cpp", source: "sessions.cpp", compiler: "g++", words: &["-O2", "-g", "-o"] },
    Foreign { name: "sessions-go", source: "sessions.go", compiler: "go", words: &["build", "-o"] },
    Foreign { name: "go-leak", source: "go-leak.go", compiler: "go", words: &["build", "-o"] },
];

/// Builds those whose compiler is here into `directory`, beside the victim, and says which others there are: their tests do
/// not run.
pub(crate) fn build(directory: &Path) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for Foreign { name, source, compiler, words } in ALL {
        let path = directory.join(name);
        if process::find(compiler).is_none() {
            // One of an earlier day would be of another source.
            if path.exists() {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
            say::line(format_args!("{compiler} is not installed: the tests go without {name}"));
            continue;
        }
        let source = workspace::root().join("tests/src/foreign").join(source);
        // Go links statically only what does not ask for the C library.
        process::run(Command::new(compiler).env("CGO_ENABLED", "0").args(words).args([&path, &source]))?;
        programs.push(Program { name: name.to_owned(), path });
    }
    Ok(programs)
}
