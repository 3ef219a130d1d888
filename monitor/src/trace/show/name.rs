//! What a place in a program's text is called.

use crate::{figures, text::Clean, trace::growth::Place};

/// Characters of a function's name that people are shown; a C++ name with its templates may have thousands.
const FOR_PEOPLE: usize = 120;
/// Characters of a name that are looked at to shorten it.
const MEASURE: usize = 16 << 10;
/// Characters of one in folded stacks and flame graphs, where the whole name helps to search.
const FOR_TOOLS: usize = 512;

/// Digits of a build id that people are shown.
const BUILD: usize = 12;

/// The last part of a path.
pub(super) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The function; where that is not known, module and offset; where not even that, the address.
pub(super) fn whole(place: &Place) -> String {
    match (&place.function, &place.module) {
        (Some(function), _) if !function.is_empty() => function.clone(),
        (_, Some(module)) => format!("{}+{:#x}", base(module), place.offset),
        _ => format!("{:#x}", place.offset),
    }
}

/// The same on a line of a terminal or a page.
pub(super) fn for_people(place: &Place) -> String {
    function(&whole(place), FOR_PEOPLE)
}

/// A function's name no longer than `most` characters: first it loses what stands in brackets, then its end.
pub(super) fn function(name: &str, most: usize) -> String {
    if name.chars().nth(most).is_none() {
        return short(name, most);
    }
    short(&without_arguments(&figures::head(name, MEASURE)), most)
}

/// `std::map<int, long>::at(int const&)` → `std::map<…>::at(…)`; what a name begins with in brackets, as Rust's and anonymous
/// namespaces do, is a part of it. Operators have brackets as names, and lose some of them.
fn without_arguments(name: &str) -> String {
    let mut kept = u32::from(name.starts_with(['<', '(']));
    let (mut depth, mut short) = (0_u32, String::new());
    let mut before = ' ';
    for character in name.chars() {
        match character {
            '<' | '(' => {
                depth += 1;
                match depth {
                    depth if depth <= kept => short.push(character),
                    depth if depth == kept + 1 => short.extend([character, '…']),
                    _ => {}
                }
            }
            '>' | ')' if before != '-' && depth > 0 => {
                if depth <= kept + 1 {
                    short.push(character);
                }
                depth -= 1;
                // Only what it begins with.
                kept = kept.min(depth);
            }
            _ if depth <= kept => short.push(character),
            _ => {}
        }
        before = character;
    }
    short
}

/// No longer than `most` characters, without control characters. Cut before it is cleaned too: the work is bounded.
pub(super) fn short(text: &str, most: usize) -> String {
    figures::head(&Clean(&figures::head(text, most)).to_string(), most)
}

/// A build id, as much of it as tells one from another.
pub(super) fn build(id: &str) -> String {
    Clean(&id.chars().take(BUILD).collect::<String>()).to_string()
}

/// A place as a frame of folded stacks, where a semicolon ends a frame, a blank begins the number and a line the stack.
pub(super) fn for_tools(place: &Place, blank: char) -> String {
    let name = figures::head(&whole(place), FOR_TOOLS);
    let harmless = |character: char| match character {
        ';' => ',',
        character if character.is_whitespace() => blank,
        character if character.is_control() => '?',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        character => character,
    };
    let name: String = name.trim().chars().map(harmless).collect();
    // An empty frame would vanish, and a number at the end would be taken for one of the two of a differential.
    match name.rsplit_once(' ') {
        _ if name.is_empty() => "?".to_owned(),
        Some((before, last)) if last.parse::<f64>().is_ok() => format!("{before}_{last}"),
        _ => name,
    }
}

/// `file:line`, when the debug information has it.
pub(crate) fn source(place: &Place) -> Option<String> {
    let file = place.file.as_deref().filter(|file| !file.is_empty())?;
    let file = figures::tail(&Clean(&figures::tail(file, FOR_PEOPLE)).to_string(), FOR_PEOPLE);
    Some(match place.line {
        Some(line) => format!("{file}:{line}"),
        None => file,
    })
}

/// Without what differs from build to build though the source is the same: offsets, a hash, the marks of a compiler's copies.
pub(super) fn across_builds(place: &Place) -> String {
    let Some(function) = place.function.as_deref().filter(|function| !function.is_empty()) else {
        return place.module.as_deref().map_or_else(|| "?".to_owned(), |module| format!("[{}]", base(module)));
    };
    let mut name = function;
    loop {
        let shorter = without_clone(without_hash(name));
        if shorter.len() == name.len() {
            return name.to_owned();
        }
        name = shorter;
    }
}

/// `name::h0123456789abcdef`, as rustc's legacy mangling ends.
fn without_hash(name: &str) -> &str {
    let hash = |tail: &str| tail.len() == 16 && tail.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.rsplit_once("::h").filter(|(_, tail)| hash(tail)).map_or(name, |(name, _)| name)
}

/// `name.constprop.0`, `name [clone .isra.0]`, `name.llvm.123`, `name.cold`: copies that a compiler makes of a function.
fn without_clone(name: &str) -> &str {
    if let Some((name, _)) = name.split_once(" [clone ") {
        return name;
    }
    let digits = |tail: &str| !tail.is_empty() && tail.bytes().all(|byte| byte.is_ascii_digit());
    let stem = name.rsplit_once('.').filter(|(_, tail)| digits(tail)).map_or(name, |(stem, _)| stem);
    let marks = [".constprop", ".isra", ".part", ".cold", ".llvm", ".lto_priv"];
    marks.iter().find_map(|mark| stem.strip_suffix(mark)).filter(|name| !name.is_empty()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(function: &str) -> Place {
        Place { function: Some(function.to_owned()), ..Place::default() }
    }

    #[test]
    fn what_has_no_function_is_called_by_module_and_offset() {
        let nameless = Place { module: Some("/srv/a b/web".to_owned()), offset: 0x1234, ..Place::default() };
        assert_eq!(for_people(&nameless), "web+0x1234");
        assert_eq!(for_people(&Place { function: Some(String::new()), ..nameless.clone() }), "web+0x1234");
        assert_eq!(for_people(&Place { offset: 0x7f00, ..Place::default() }), "0x7f00");
        assert_eq!(across_builds(&nameless), "[web]");
        assert_eq!(across_builds(&Place::default()), "?");
    }

    #[test]
    fn names_harm_neither_a_terminal_nor_the_format_of_folded_stacks() {
        let hostile = called("\x1b[2J;a\nb\u{202e} <script>");
        let shown = for_people(&hostile);
        assert!(!shown.chars().any(char::is_control) && !shown.contains('\u{202e}'), "{shown:?}");
        assert_eq!(for_tools(&hostile, '_'), "?[2J,a_b?_<script>");
        assert_eq!(for_tools(&hostile, ' '), "?[2J,a b? <script>");
        assert_eq!(for_tools(&called("f 12"), ' '), "f_12", "no second number");
        assert_eq!(for_tools(&called(" \n"), '_'), "?");
    }

    #[test]
    fn long_names_are_cut_for_people_and_less_for_tools() {
        let long = called(&format!("std::map<{}>", "int, ".repeat(20_000)));
        assert_eq!(for_people(&long), "std::map<…");
        assert_eq!(for_tools(&long, '_').chars().count(), FOR_TOOLS);
    }

    #[test]
    fn a_long_name_loses_its_arguments_first() {
        let arguments = "int, ".repeat(40);
        for (name, want) in [
            (format!("void std::map<{arguments}>::at<x>({arguments}) const"), "void std::map<…>::at<…>(…) const"),
            (format!("<web::Cache<{arguments}> as core::ops::Drop>::drop"), "<web::Cache<…> as core::ops::Drop>::drop"),
            (format!("(anonymous namespace)::fill({arguments})"), "(anonymous namespace)::fill(…)"),
            (format!("f({arguments})->g"), "f(…)->g"),
            (format!(")>)){}", "x".repeat(200)), &format!(")>)){}…", "x".repeat(115))),
            ("short<int>(int)".to_owned(), "short<int>(int)"),
        ] {
            assert_eq!(function(&name, 120), want, "{name}");
        }
    }

    #[test]
    fn copies_and_hashes_are_the_same_function_in_another_build() {
        for (name, want) in [
            ("web::cache::insert::h0123456789abcdef", "web::cache::insert"),
            ("web::cache::insert::hello", "web::cache::insert::hello"),
            ("insert.constprop.0", "insert"),
            ("insert.isra.0.cold", "insert"),
            ("insert(int) [clone .isra.0]", "insert(int)"),
            ("insert.llvm.1234567", "insert"),
            ("main.(*Cache).insert", "main.(*Cache).insert"),
            ("main.handler.func1", "main.handler.func1"),
            ("v1.2", "v1.2"),
            (".cold", ".cold"),
        ] {
            assert_eq!(across_builds(&called(name)), want, "{name}");
        }
    }

    #[test]
    fn a_source_is_told_with_its_line_if_there_is_one() {
        let mut place = called("f");
        assert_eq!(source(&place), None);
        place.file = Some("src/cache.rs".to_owned());
        assert_eq!(source(&place).as_deref(), Some("src/cache.rs"));
        place.line = Some(88);
        assert_eq!(source(&place).as_deref(), Some("src/cache.rs:88"));
        place.file = Some(format!("/{}/cache.rs", "deep/".repeat(1000)));
        assert!(source(&place).is_some_and(|text| text.ends_with("/cache.rs:88") && text.chars().count() < 140));
    }
}
