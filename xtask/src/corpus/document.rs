//! The part of docs/diagnosis.md that a run writes.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

const BEGIN: &str = "<!-- corpus: begin, written by cargo xtask corpus --all --write -->\n";
const END: &str = "<!-- corpus: end -->\n";

/// Puts `block` in place of what an earlier run wrote.
pub(super) fn write(path: &Path, block: &str) -> Result<()> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(name)?;
    fs::write(path, with(&text, block).with_context(name)?).with_context(name)
}

fn with(text: &str, block: &str) -> Result<String> {
    for marker in [BEGIN, END] {
        let count = text.matches(marker).count();
        ensure!(count == 1, "the line `{}` is there {count} times instead of once", marker.trim_end());
    }
    let (before, rest) = text.split_once(BEGIN).context("a begin")?;
    let (_, after) = rest.split_once(END).context("the end stands before the begin")?;
    Ok(format!("{before}{BEGIN}\n{block}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let empty = format!("# A\n\n{BEGIN}{END}\nthe end\n");
        let first = with(&empty, "| one |\n").expect("markers are there");
        assert_eq!(first, format!("# A\n\n{BEGIN}\n| one |\n\n{END}\nthe end\n"));
        let second = with(&first, "| two |\n").expect("markers are there");
        assert_eq!(second, first.replace("one", "two"));
    }

    #[test]
    fn markers_that_are_missing_double_or_turned_round_are_errors() {
        for text in [String::new(), BEGIN.to_owned(), format!("{END}{BEGIN}"), format!("{BEGIN}{BEGIN}{END}")] {
            assert!(with(&text, "x").is_err(), "{text}");
        }
    }

    #[test]
    fn the_document_of_this_repository_has_the_markers() {
        let path = crate::workspace::root().join("docs/diagnosis.md");
        let text = fs::read_to_string(path).expect("the document can be read");
        assert!(with(&text, "x").is_ok());
    }
}
