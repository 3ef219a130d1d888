use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{TARGETS, run};

/// Changes of each seed. All of them take a second or two; the search for more is `cargo xtask fuzz`.
const CHANGES: usize = 300;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let listed = fs::read_dir(place("seeds").join(target)).expect("each reader has seeds");
    let paths = listed.map(|entry| entry.expect("listed").path());
    paths.map(|path| (path.clone(), fs::read(path).expect("readable"))).collect()
}

#[test]
fn every_reader_is_a_target_with_seeds() {
    let names = |directory: &str| -> BTreeSet<String> {
        let listed = fs::read_dir(place(directory)).expect("it is there");
        let stems = listed.map(|entry| entry.expect("listed").path().file_stem().expect("a name").to_owned());
        stems.map(|stem| stem.into_string().expect("UTF-8")).collect()
    };
    let want: BTreeSet<String> = TARGETS.iter().map(|target| target.0.to_owned()).collect();
    assert_eq!(names("seeds"), want);
    assert_eq!(names("fuzz_targets"), want);
}

#[test]
fn no_seed_and_no_change_of_one_makes_a_reader_panic() {
    for (target, _) in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target}");
        for (path, seed) in seeds {
            let holds = |bytes: &[u8]| {
                let shown = || format!("{} or a change of it: {}", path.display(), bytes.escape_ascii());
                std::panic::catch_unwind(|| run(target, bytes)).unwrap_or_else(|_| panic!("{}", shown()));
            };
            holds(&seed);
            let mut random = fastrand::Rng::with_seed(seed.len() as u64);
            for _ in 0..CHANGES {
                holds(&change(&seed, &mut random));
            }
        }
    }
}

/// One to four cuts, flips, repetitions or extreme numbers.
fn change(seed: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let (at, len) = (random.usize(..bytes.len()), random.usize(1..=8));
        let end = (at + len).min(bytes.len());
        match random.u8(..5) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.u8(..8),
            2 => bytes[at..end].fill(if random.bool() { 0xff } else { 0 }),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => drop(bytes.splice(at..end, *b"18446744073709551615")),
        }
    }
    bytes
}
