//! The parts of documents that runs write, between markers.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// The lines between which a part stands.
pub(crate) struct Markers {
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
}

/// In docs/diagnosis.md.
pub(crate) const CORPUS: Markers = Markers {
    begin: "<!-- corpus: begin, written by cargo xtask corpus --all --write -->\n",
    end: "<!-- corpus: end -->\n",
};

/// In docs/forecast.md.
pub(crate) const FORECAST: Markers = Markers {
    begin: "<!-- forecast: begin, written by cargo xtask bench forecast -->\n",
    end: "<!-- forecast: end -->\n",
};

impl Markers {
    /// Puts `block` in place of what an earlier run wrote.
    pub(crate) fn write(&self, path: &Path, block: &str) -> Result<()> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(name)?;
        fs::write(path, self.with(&text, block).with_context(name)?).with_context(name)
    }

    fn with(&self, text: &str, block: &str) -> Result<String> {
        let Self { begin, end } = self;
        for marker in [begin, end] {
            let count = text.matches(marker).count();
            ensure!(count == 1, "the line `{}` is there {count} times instead of once", marker.trim_end());
        }
        let (before, rest) = text.split_once(begin).context("a begin")?;
        let (_, after) = rest.split_once(end).context("the end stands before the begin")?;
        Ok(format!("{before}{begin}\n{block}\n{end}{after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = CORPUS.begin;
    const END: &str = CORPUS.end;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let empty = format!("# A\n\n{BEGIN}{END}\nthe end\n");
        let first = CORPUS.with(&empty, "| one |\n").expect("markers are there");
        assert_eq!(first, format!("# A\n\n{BEGIN}\n| one |\n\n{END}\nthe end\n"));
        let second = CORPUS.with(&first, "| two |\n").expect("markers are there");
        assert_eq!(second, first.replace("one", "two"));
    }

    #[test]
    fn markers_that_are_missing_double_or_turned_round_are_errors() {
        for text in [String::new(), BEGIN.to_owned(), format!("{END}{BEGIN}"), format!("{BEGIN}{BEGIN}{END}")] {
            assert!(CORPUS.with(&text, "x").is_err(), "{text}");
        }
    }

    #[test]
    fn the_documents_of_this_repository_have_the_markers() {
        for (name, markers) in [("docs/diagnosis.md", CORPUS), ("docs/forecast.md", FORECAST)] {
            let text = fs::read_to_string(crate::workspace::root().join(name)).expect("the document can be read");
            assert!(markers.with(&text, "x").is_ok(), "{name}");
        }
    }
}
