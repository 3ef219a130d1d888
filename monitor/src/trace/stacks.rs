//! Stacks, each kept once and numbered. Bounded: what comes when there is no room is counted under one number.

use std::collections::HashMap;

use super::ledger::StackId;

/// A place in a program's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// Number of the file, see [`super::process`]; `None`: code that is in no file.
    pub(super) module: Option<u16>,
    /// Address as the file counts them, or in memory when there is none. Of an outer frame, that of the call's last byte.
    pub(super) address: u64,
}

/// Stacks, places and places in all stacks that are kept: 2 MiB with what holds them together.
const STACKS_MAX: usize = 8192;
const FRAMES_MAX: usize = 16384;
const WORDS_MAX: usize = 256 * 1024;
/// Frames of one stack; beyond, the outermost are left out and it is not whole.
pub(super) const DEPTH_MAX: usize = 96;

/// The number of what found no room.
pub(super) const OTHERS: StackId = StackId::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    frames: Vec<Frame>,
    frame_ids: HashMap<Frame, u32>,
    ids: HashMap<Box<[u32]>, StackId>,
    whole: Vec<bool>,
    words: usize,
}

impl Stacks {
    /// The number of a stack, its innermost frame first.
    pub(super) fn id(&mut self, frames: &[Frame], whole: bool) -> StackId {
        let whole = whole && frames.len() <= DEPTH_MAX;
        let frames = &frames[..frames.len().min(DEPTH_MAX)];
        let mut key = Vec::with_capacity(frames.len());
        for frame in frames {
            match self.frame_ids.get(frame) {
                Some(&id) => key.push(id),
                None if self.frames.len() >= FRAMES_MAX => return OTHERS,
                None => {
                    let id = self.frames.len() as u32;
                    self.frames.push(*frame);
                    self.frame_ids.insert(*frame, id);
                    key.push(id);
                }
            }
        }
        if let Some(&id) = self.ids.get(&*key) {
            return id;
        }
        if self.ids.len() >= STACKS_MAX || self.words + key.len() > WORDS_MAX {
            return OTHERS;
        }
        let id = self.ids.len() as StackId;
        self.words += key.len();
        self.whole.push(whole);
        self.ids.insert(key.into(), id);
        id
    }

    /// Those stacks' frames, and whether each is whole.
    pub(super) fn get(&self, wanted: &[StackId]) -> HashMap<StackId, (Vec<Frame>, bool)> {
        let frame = |&id: &u32| self.frames.get(id as usize).copied();
        let mut found = HashMap::new();
        for (key, &id) in self.ids.iter().filter(|(_, id)| wanted.contains(id)) {
            let whole = self.whole.get(id as usize).copied().unwrap_or(false);
            found.insert(id, (key.iter().filter_map(frame).collect(), whole));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(address: u64) -> Frame {
        Frame { module: Some(0), address }
    }

    #[test]
    fn a_stack_is_kept_once() {
        let mut stacks = Stacks::default();
        let first = stacks.id(&[frame(1), frame(2)], true);
        let second = stacks.id(&[frame(2), frame(1)], false);
        assert_eq!(stacks.id(&[frame(1), frame(2)], true), first);
        let got = stacks.get(&[first, second]);
        assert_eq!(got[&first], (vec![frame(1), frame(2)], true));
        assert_eq!(got[&second], (vec![frame(2), frame(1)], false));
    }

    #[test]
    fn what_finds_no_room_is_counted_together() {
        let mut stacks = Stacks::default();
        let ids: Vec<_> = (0..10_000).map(|n| stacks.id(&[frame(n), frame(0)], true)).collect();
        assert_eq!(ids.iter().filter(|&&id| id == OTHERS).count(), 10_000 - STACKS_MAX);
        assert_eq!(stacks.id(&[frame(5), frame(0)], true), ids[5], "known ones are found all the same");
        let deep: Vec<_> = (0..200).map(frame).collect();
        let mut stacks = Stacks::default();
        let id = stacks.id(&deep, true);
        assert_eq!((stacks.get(&[id])[&id].0.len(), stacks.get(&[id])[&id].1), (DEPTH_MAX, false));
    }
}
