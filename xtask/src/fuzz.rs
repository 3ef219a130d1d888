//! `cargo xtask fuzz`: a search, by libFuzzer, for bytes that make a reader panic (`monitor/fuzz/`, `monitor::fuzz`).
//!
//! What it finds is put beside the seeds, which a plain test runs from then on. What it merely learns stays in the target
//! directory.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    needs::{self, Mend, Need},
    process, say,
    tool::Tool,
    workspace,
};

/// The version that is known to work.
const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };
/// No reader is given more than that; the largest seeds are tables of some kilobytes.
const INPUT_MAX: usize = 64 * 1024;

/// Search for bytes that make a reader of what others wrote panic
///
/// Needs a nightly toolchain and a C++ compiler; installs cargo-fuzz into the target directory. Builds for five minutes when
/// it is first called. Targets run one after another, each for the given time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target; without it, all of them
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How long for each target, in whole seconds, minutes or hours: 60s, 24m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = duration)]
    time: Duration,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    let known = targets()?;
    let chosen: Vec<_> = known.iter().filter(|name| args.target.as_ref().is_none_or(|want| want == *name)).collect();
    ensure!(!chosen.is_empty(), "there is no such target; there are {}", known.join(", "));
    needs::provide(&missing().into_iter().collect::<Vec<_>>(), true)?;
    process::run(fuzz("build").args(chosen.first().filter(|_| chosen.len() == 1)))?;
    let mut failed = Vec::new();
    for name in chosen {
        say::line(format_args!("==> {name} for {} s", args.time.as_secs()));
        if let Err(error) = search(name, args.time) {
            say::error(&error);
            failed.push(name.as_str());
        }
    }
    ensure!(failed.is_empty(), "there are findings in {}", failed.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Each has a file of its own.
fn targets() -> Result<Vec<String>> {
    let listed = fs::read_dir(home().join("fuzz_targets")).context("cannot list the targets")?;
    let mut names: Vec<_> =
        listed.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort_unstable();
    Ok(names)
}

fn search(name: &str, time: Duration) -> Result<()> {
    let (learnt, seeds) = (workspace::target().join("fuzz-corpus").join(name), home().join("seeds").join(name));
    fs::create_dir_all(&learnt).with_context(|| format!("cannot make {}", learnt.display()))?;
    let mut command = fuzz("run");
    command.arg(name).args([&learnt, &seeds]).arg("--").arg(format!("-max_total_time={}", time.as_secs()));
    command.arg(format!("-max_len={INPUT_MAX}"));
    // The directory is a prefix here, so it ends with a slash.
    command.args(["-timeout=10", "-print_final_stats=1"]).arg(format!("-artifact_prefix={}/found_", seeds.display()));
    process::run(&mut command)
}

/// cargo-fuzz with a nightly, and without what makes a build slow and a fuzzer no better.
fn fuzz(what: &str) -> Command {
    let mut command = Command::new(CARGO_FUZZ.find().unwrap_or_else(|| "cargo-fuzz".into()));
    command.args([what, "--fuzz-dir"]).arg(home()).args(["--features", "libfuzzer-sys", "--target-dir"]);
    command.arg(workspace::target().join("fuzz"));
    // What cargo has set for its own toolchain would go to the other one.
    command.env_remove("CARGO").env("RUSTUP_TOOLCHAIN", "nightly").env("CARGO_PROFILE_RELEASE_LTO", "off");
    // Of an error, which is no finding, nobody needs to know the way; it costs ten times the reading.
    command.env("RUST_LIB_BACKTRACE", "0");
    command
}

fn home() -> PathBuf {
    workspace::root().join("monitor/fuzz")
}

fn missing() -> Option<Need> {
    CARGO_FUZZ.find().is_none().then(|| Need {
        what: format!("cargo-fuzz {}", CARGO_FUZZ.version),
        why: "builds the readers with libFuzzer",
        mend: Mend::Command(CARGO_FUZZ.install()),
    })
}

/// `60s`, `24m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time such as 60s, 24m or 1h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|&all| all > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("24m"), Ok(Duration::from_secs(24 * 60)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "s", "0s", "5", "1d", "-1s", "99999999999999999999s", "1ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_targets_are_found() {
        let targets = targets().expect("listed");
        assert!(targets.contains(&"ring_record".to_owned()) && targets.is_sorted(), "{targets:?}");
    }
}
