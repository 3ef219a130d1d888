//! Names that somebody may have meant. Pure.

use crate::text::Clean;

/// Names that are offered.
const OFFERED: usize = 5;
/// Characters of a name that are looked at.
const LOOKED_AT: usize = 64;

/// `; did you mean …?` or nothing.
pub(super) fn words(wanted: &str, known: &[String]) -> String {
    let near = near(wanted, known);
    if near.is_empty() {
        return String::new();
    }
    let near: Vec<_> = near.iter().map(|name| Clean(name).to_string()).collect();
    format!("; did you mean {}?", near.join(", "))
}

/// Those that contain it or are spelled nearly so, the nearest first.
fn near<'a>(wanted: &str, known: &'a [String]) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let mut near: Vec<_> = known
        .iter()
        .filter_map(|name| {
            let plain = name.to_lowercase();
            let stem = plain.strip_suffix(".service").unwrap_or(&plain);
            let away = distance(wanted.strip_suffix(".service").unwrap_or(&wanted), stem);
            let contains = !wanted.is_empty() && (plain.contains(&wanted) || wanted.contains(stem) && stem.len() > 2);
            (contains || away <= wanted.chars().count().div_ceil(3)).then_some((away, name.as_str()))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().map(|(_, name)| name).take(OFFERED).collect()
}

/// Characters to insert, remove, change or swap with their neighbour, to come from one to the other (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| text.chars().take(LOOKED_AT).collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let first: Vec<_> = (0..=b.len()).collect();
    let (mut last_but_one, mut last) = (first.clone(), first);
    for (line, letter) in a.iter().enumerate() {
        let mut row = vec![line + 1];
        for (at, other) in b.iter().enumerate() {
            let changed = last[at] + usize::from(letter != other);
            let mut least = changed.min(row[at] + 1).min(last[at + 1] + 1);
            if line > 0 && at > 0 && (letter, &a[line - 1]) == (&b[at - 1], other) {
                least = least.min(last_but_one[at - 1] + 1);
            }
            row.push(least);
        }
        last_but_one = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_swaps_as_one() {
        for (a, b, want) in [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("web", "web", 0),
            ("ü", "u", 1),
            ("wbe", "web", 1),
            ("ngnix", "nginx", 1),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (want, want), "{a} {b}");
        }
    }

    #[test]
    fn what_was_meant_is_offered() {
        let known = ["nginx.service", "postgresql@15-main.service", "web", "ssh.service", "nginx.service", "\x1bnginy"]
            .map(str::to_owned);
        assert_eq!(near("ngnix", &known[..5]), ["nginx.service"]);
        assert_eq!(near("postgres", &known), ["postgresql@15-main.service"]);
        assert_eq!(near("webb", &known), ["web"]);
        assert_eq!(words("batch", &known), "");
        assert_eq!(words("nginx", &known), "; did you mean nginx.service, \\x1bnginy?");
        let many: Vec<_> = (0..100).map(|at| format!("app-{at}.service")).collect();
        assert_eq!(near("app", &many).len(), OFFERED);
    }
}
