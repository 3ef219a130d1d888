//! Names from the kernel and from other people's configuration, made safe to show.
//!
//! A process chooses its own name, and may choose bytes that move a terminal's cursor. What is shown to people has its
//! control characters escaped; JSON and metrics escape for themselves.

use std::fmt::{self, Write as _};

use monitor_common::record::COMM_LEN;
use serde::{Serialize, Serializer};

/// Text whose control characters are shown as `\x1b` and the like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clean<'a>(pub(crate) &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            // Bidirectional overrides reorder a terminal's line, so they count as control characters here.
            if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                write!(out, "\\x{:02x}", u32::from(character))?;
            } else {
                out.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Cuts a text to `most` bytes; a cut text ends with its original length.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let note = format!("… ({} bytes)", text.len());
    format!("{}{note}", &text[..text.floor_char_boundary(most.saturating_sub(note.len()))])
}

/// A task's name as the kernel keeps it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Comm(pub(crate) [u8; COMM_LEN]);

impl Comm {
    fn bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
        &self.0[..end]
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&Clean(&String::from_utf8_lossy(self.bytes())).to_string())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl Serialize for Comm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comm(bytes: &[u8]) -> Comm {
        let mut comm = [0; COMM_LEN];
        comm[..bytes.len()].copy_from_slice(bytes);
        Comm(comm)
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor_or_break_json() {
        let hostile = comm(b"\x1b[2J\xff\"\n\\x");
        let shown = hostile.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown}");
        let json = serde_json::to_string(&hostile).expect("serializes");
        let back: String = serde_json::from_str(&json).expect("valid JSON");
        assert_eq!(back, "\u{1b}[2J\u{fffd}\"\n\\x");
        assert_eq!(comm(b"0123456789abcdef").to_string(), "0123456789abcdef", "a full name has no zero byte");
    }

    #[test]
    fn a_text_of_any_length_is_cut_between_characters_and_says_so() {
        assert_eq!(shortened("main", 100), "main");
        let long = "ä".repeat(5_000_000);
        for most in 40..50 {
            let cut = shortened(&long, most);
            assert!(cut.len() <= most && cut.ends_with("ä… (10000000 bytes)"), "{cut}");
        }
    }

    #[test]
    fn overrides_of_the_writing_direction_are_shown() {
        assert_eq!(Clean("a\u{202e}b").to_string(), "a\\x202eb");
    }
}
