//! Folded stacks, which flame-graph tools read: a line for each stack, its frames from the outermost on with semicolons between
//! them, a blank, and the growth in bytes an hour.

use std::{collections::BTreeMap, fmt::Write as _};

use super::name;
use crate::trace::growth::{Growth, Stack};

/// Frames of one line, counted from the innermost; beyond, the outer ones become [`CUT`]. The kernel follows 127.
const DEPTH: usize = 256;
/// The outermost frame of a stack that was not followed to its beginning.
const CUT: &str = "[cut]";
/// Stands for all stacks that found no place.
const OTHERS: &str = "[other stacks]";

/// The stacks that grow, in the order of their text, each once. `blank` stands where a name has white space.
pub(super) fn folded(growth: &Growth, blank: char) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &growth.stacks {
        let growth = whole_bytes(stack.bytes_per_hour);
        if growth > 0 {
            let sum = lines.entry(line(stack, blank)).or_default();
            *sum = sum.saturating_add(growth);
        }
    }
    let others = whole_bytes(growth.others_bytes_per_hour);
    if others > 0 {
        lines.insert(OTHERS.replace(' ', &blank.to_string()), others);
    }
    let mut text = String::new();
    for (stack, growth) in lines {
        // Writing to a string does not fail.
        writeln!(text, "{stack} {growth}").ok();
    }
    text
}

fn line(stack: &Stack, blank: char) -> String {
    let is_cut = !stack.whole || stack.frames.len() > DEPTH;
    let mut frames: Vec<_> = stack.frames.iter().take(DEPTH).map(|place| name::for_tools(place, blank)).collect();
    if is_cut || frames.is_empty() {
        frames.push(CUT.to_owned());
    }
    frames.reverse();
    frames.join(";")
}

/// What shrinks or is no number counts nothing.
fn whole_bytes(bytes_per_hour: f64) -> u64 {
    bytes_per_hour.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::show::sample;

    #[test]
    fn stacks_stand_from_the_outermost_on_with_their_growth() {
        let text = folded(&sample::growth(), '_');
        assert_eq!(
            text,
            "[cut];web::tick;vec_grow;malloc 1048576\n\
             [other_stacks] 2097152\n\
             _start;main;web::serve;web::cache::insert;operator_new(unsigned_long);malloc 209715200\n"
        );
    }

    #[test]
    fn equal_stacks_are_one_and_what_does_not_grow_is_none() {
        let mut growth = sample::growth();
        growth.others_bytes_per_hour = f64::NAN;
        let one = growth.stacks[0].clone();
        growth.stacks = vec![one.clone(), one.clone(), Stack { bytes_per_hour: -5.0, ..one.clone() }];
        growth.stacks[2].frames.pop();
        assert_eq!(folded(&growth, '_').lines().count(), 1);
        assert!(folded(&growth, '_').ends_with(" 419430400\n"));
    }

    #[test]
    fn each_line_of_hostile_names_can_be_taken_apart_again() {
        let growth = sample::hostile(10_000);
        for blank in ['_', ' '] {
            let text = folded(&growth, blank);
            assert!(text.len() < 100 << 20, "bounded: {}", text.len());
            for line in text.lines() {
                let (stack, growth) = line.rsplit_once(' ').expect("a number behind a blank");
                growth.parse::<u64>().expect("a number");
                assert!(stack.split(';').all(|frame| !frame.trim().is_empty()), "{line}");
                let before = stack.rsplit_once(' ').map_or("", |(_, last)| last);
                assert!(before.parse::<f64>().is_err(), "no second number: {line}");
                assert!(!stack.chars().any(char::is_control));
            }
        }
    }
}
