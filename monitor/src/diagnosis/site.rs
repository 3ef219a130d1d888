//! Where a process was when it crashed.

use std::fmt;

use monitor_common::record::{self, CrashSite, FRAME_ADDRESS, FRAME_BUILD_ID, PROGRAM_NAME_LEN};
use serde::Serialize;

use crate::{
    symbols::{Frame, Located, Looked, RawFrame, Stack},
    text::Clean,
};

/// A user stack, the innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Site {
    /// The frames, as far as they could be told.
    pub(crate) frames: Vec<Frame>,
    /// What is not there, and why.
    pub(crate) note: Option<&'static str>,
    /// The frames as they came, with what else is known of the process; their names are found from this.
    #[serde(skip)]
    pub(crate) stack: Stack,
    /// What was read from the process before it ended.
    #[serde(skip)]
    pub(crate) looked: Looked,
}

/// Note for every stack that was partly followed by frame pointers alone.
const OUTER_FRAMES: &str =
    "frames not marked as sure are right only where the code keeps frame pointers (-fno-omit-frame-pointer)";
/// Note when the tables ended at the last frame.
const CUT: &str = "the caller of the last frame is not known: its file has no unwind tables or was not found, or the stack is \
    larger than the 8 KiB of it that were copied";
/// Said when there is no frame at all.
const NO_FRAMES: &str = "the kernel gave no user stack";

impl Site {
    /// Takes over what the kernel programs sent; nothing has a name yet.
    pub(crate) fn new(site: &CrashSite) -> Self {
        let raw = followed(site.frames());
        let frames =
            raw.iter().enumerate().map(|(at, raw)| Frame { sure: at == 0, ..Frame::unresolved(raw) }).collect();
        let note = Some(if raw.is_empty() { NO_FRAMES } else { OUTER_FRAMES });
        let stack = Stack::new(site.tgid, raw, program(site));
        Self { frames, note, stack, looked: Looked::default() }
    }

    /// Replaces the frames by those with names.
    pub(crate) fn locate(&mut self, Located { frames, whole }: Located) {
        self.note = match frames.iter().position(|frame| !frame.sure) {
            _ if frames.is_empty() => Some(NO_FRAMES),
            Some(_) => Some(OUTER_FRAMES),
            None if whole => None,
            // The innermost frame is always right.
            None if frames.len() == 1 => Some(OUTER_FRAMES),
            None => Some(CUT),
        };
        self.frames = frames;
    }

    /// The frame that the signal hit, for one line.
    pub(crate) fn innermost(&self) -> Option<Place<'_>> {
        self.frames.first().map(Place)
    }
}

/// Where code cannot be: the upper half of the addresses is the kernel's. A "frame pointer" that is none leads there, for
/// the kernel names the mapping above a wild address.
const NOT_CODE: u64 = 1 << 47;

/// The frames up to the first that cannot be one: a chain of frame pointers through code that keeps none ends in
/// nonsense, or turns in a circle.
fn followed(frames: &[record::Frame]) -> Vec<RawFrame> {
    let mut found: Vec<RawFrame> = Vec::new();
    for frame in frames.iter().map_while(raw) {
        let (RawFrame::BuildId { offset, .. } | RawFrame::Address(offset)) = frame;
        if offset >= NOT_CODE || found.last() == Some(&frame) {
            break;
        }
        found.push(frame);
    }
    found
}

fn raw(frame: &record::Frame) -> Option<RawFrame> {
    match frame.status {
        FRAME_BUILD_ID => Some(RawFrame::BuildId { id: frame.build_id, offset: frame.offset }),
        FRAME_ADDRESS => Some(RawFrame::Address(frame.offset)),
        _ => None,
    }
}

/// The path, from the names that were sent; `None` when one is missing or cut.
fn program(site: &CrashSite) -> Option<String> {
    let mut names = Vec::new();
    for name in &site.program {
        let end = name.iter().position(|&byte| byte == 0)?;
        match &name[..end] {
            // The root of the file system.
            b"/" => {
                names.reverse();
                return Some(format!("/{}", names.join("/")));
            }
            // A name without room for its end was cut by the helper.
            _ if end == 0 || end + 1 == PROGRAM_NAME_LEN => return None,
            name => names.push(str::from_utf8(name).ok()?.to_owned()),
        }
    }
    None
}

/// Frames shown in one line, and bytes of each name there. JSON has all.
const SHOWN: usize = 16;
const NAME_SHOWN: usize = 160;

/// Writes a name, or its beginning.
fn name(out: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    let shown = &name[..name.floor_char_boundary(NAME_SHOWN)];
    write!(out, "{}{}", Clean(shown), if shown.len() < name.len() { "…" } else { "" })
}

/// The frames in one line, the innermost first.
impl fmt::Display for Site {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, frame) in self.frames.iter().take(SHOWN).enumerate() {
            let called_from = if at == 0 { "" } else { ", called from " };
            write!(out, "{called_from}{}", Place(frame))?;
        }
        if self.frames.len() > SHOWN {
            write!(out, ", called from {} more", self.frames.len() - SHOWN)?;
        }
        if self.frames.is_empty() { out.write_str("a place that is not known") } else { Ok(()) }
    }
}

/// One frame, for people.
pub(crate) struct Place<'a>(&'a Frame);

impl fmt::Display for Place<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { module, build_id, offset, symbol, symbol_offset, sure: _ } = self.0;
        if let Some(symbol) = symbol {
            name(out, symbol)?;
            write!(out, "+{:#x} in ", symbol_offset.unwrap_or(0))?;
        }
        match (module, build_id) {
            (Some(module), _) => name(out, module.rsplit('/').next().unwrap_or(module))?,
            (None, Some(build_id)) => {
                out.write_str("build ")?;
                name(out, build_id)?;
            }
            (None, None) => return write!(out, "address {offset:#x}"),
        }
        write!(out, "+{offset:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;
    use monitor_common::record::PROGRAM_NAMES;

    fn named(names: &[&str]) -> CrashSite {
        let mut site = CrashSite::zeroed();
        for (slot, name) in site.program.iter_mut().zip(names) {
            slot[..name.len()].copy_from_slice(name.as_bytes());
        }
        site
    }

    #[test]
    fn a_path_is_put_together_only_when_it_is_whole() {
        assert_eq!(program(&named(&["web", "bin", "usr", "/"])).as_deref(), Some("/usr/bin/web"));
        assert_eq!(program(&named(&["web", "bin"])), None, "the root was not reached");
        assert_eq!(program(&named(&["a"; PROGRAM_NAMES])), None, "too deep");
        let cut = "n".repeat(PROGRAM_NAME_LEN - 1);
        assert_eq!(program(&named(&[&cut, "bin", "/"])), None, "a name that may be cut");
    }

    #[test]
    fn frames_keep_what_the_kernel_told() {
        let mut site = CrashSite::zeroed();
        site.depth = 2;
        site.frames[0] = record::Frame { status: FRAME_BUILD_ID, build_id: [7; 20], offset: 0x10 };
        site.frames[1] = record::Frame { status: FRAME_ADDRESS, build_id: [0; 20], offset: 0x7f00 };
        let site = Site::new(&site);
        assert_eq!(site.frames.len(), 2);
        assert_eq!(site.innermost().map(|place| place.to_string()), Some(format!("build {}+0x10", "07".repeat(20))));
        assert_eq!(site.frames[1].offset, 0x7f00);
    }

    #[test]
    fn a_line_is_bounded_whatever_the_names_are() {
        let name = || Some("\u{1b}\u{202e}ä".repeat(1000));
        let frame = Frame { module: name(), build_id: name(), symbol: name(), ..Frame::default() };
        let mut site = Site::new(&CrashSite::zeroed());
        site.locate(Located { frames: vec![frame; 48], whole: true });
        let line = site.to_string();
        assert!(line.len() < 16 * 1024 && line.ends_with("called from 32 more"), "{} bytes", line.len());
        assert!(!line.chars().any(char::is_control));
    }

    #[test]
    fn a_note_says_what_is_not_sure() {
        let frame = |sure| Frame { sure, ..Frame::default() };
        for (frames, whole, note) in [
            (vec![], false, Some(NO_FRAMES)),
            (vec![frame(true)], false, Some(OUTER_FRAMES)),
            (vec![frame(true), frame(false)], false, Some(OUTER_FRAMES)),
            (vec![frame(true), frame(true)], false, Some(CUT)),
            (vec![frame(true), frame(true)], true, None),
        ] {
            let mut site = Site::new(&CrashSite::zeroed());
            site.locate(Located { frames, whole });
            assert_eq!(site.note, note);
        }
    }

    #[test]
    fn a_chain_ends_where_it_stops_making_sense() {
        let address = |offset| record::Frame { status: FRAME_ADDRESS, build_id: [0; 20], offset };
        let none = record::Frame { status: 0, ..address(1) };
        for (frames, want) in [
            (vec![address(1), address(2), address(1)], 3),
            (vec![address(1), address(2), address(2), address(3)], 2),
            (vec![address(1), address(u64::MAX - 7), address(3)], 1),
            (vec![address(1), none, address(3)], 1),
            (vec![], 0),
        ] {
            assert_eq!(followed(&frames).len(), want, "{frames:?}");
        }
    }
}
