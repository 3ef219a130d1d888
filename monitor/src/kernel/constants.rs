//! Writes the layout into the compiled programs: each instruction that loads a placeholder loads the slot's value from then on.

use anyhow::{Result, ensure};
use monitor_common::layout::{Layout, constant, place_of};

/// `BPF_LD | BPF_IMM | BPF_DW` (uapi bpf_common.h, bpf.h): loads a number of 64 bits, in two instructions of eight bytes each, with
/// the halves of the number in the last four bytes of either.
const LOAD_NUMBER: u8 = 0x18;
/// Where the first byte's upper half is not zero, the number names a map or the like.
const SOURCE: u8 = 0xf0;
const INSTRUCTION: usize = 8;

/// The object with this layout in its programs.
///
/// The whole object is looked through, not its sections: they are aligned as instructions are, and nothing that is none looks
/// like a placeholder in one.
///
/// # Errors
/// When the object was not compiled for this layout.
pub(super) fn fill(object: &[u8], layout: &Layout) -> Result<Vec<u8>> {
    let slots: &[u32] = bytemuck::cast_slice(std::slice::from_ref(layout));
    let mut filled = object.to_vec();
    let mut found = 0;
    for at in (0..object.len().saturating_sub(2 * INSTRUCTION - 1)).step_by(INSTRUCTION) {
        let Some(place) = loaded(&filled[at..at + 2 * INSTRUCTION]).and_then(place_of) else { continue };
        let slot = (place % size_of::<u32>() == 0).then(|| slots.get(place / size_of::<u32>())).flatten();
        ensure!(slot.is_some(), "the kernel programs want a slot of the layout that there is not: {place}");
        let value = slot.copied().map_or(0, constant).to_le_bytes();
        filled[at + 4..at + 8].copy_from_slice(&value[..4]);
        filled[at + 12..at + 16].copy_from_slice(&value[4..]);
        found += 1;
    }
    ensure!(found > 0, "the kernel programs have no place for the layout");
    Ok(filled)
}

/// The number that these two instructions load.
fn loaded(code: &[u8]) -> Option<u64> {
    let half = |at: usize| Some(u64::from(u32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?)));
    let is_load = code.first() == Some(&LOAD_NUMBER) && code.get(1)? & SOURCE == 0;
    if is_load { Some(half(4)? | half(12)? << 32) } else { None }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use monitor_common::layout::placeholder;

    use super::{super::load::OBJECT, *};

    /// `r3 = number ll`.
    fn load(number: u64) -> Vec<u8> {
        let (low, high) = ((number as u32).to_le_bytes(), ((number >> 32) as u32).to_le_bytes());
        [[LOAD_NUMBER, 3, 0, 0].as_slice(), &low, &[0; 4], &high].concat()
    }

    #[test]
    fn a_placeholder_becomes_the_value_of_its_slot_and_all_else_stays() {
        let layout = Layout { task_pid: 0x1234_5678, ..Layout::unknown() };
        let other = load(placeholder(0) ^ 1 << 40);
        let slots = [offset_of!(Layout, task_pid), offset_of!(Layout, task_tgid)].map(|at| load(placeholder(at)));
        let object = [&other[..], &slots.concat(), &[7; 5]].concat();
        let wanted = [&other[..], &load(0x1234_5678), &load(u64::MAX), &[7; 5]].concat();
        assert_eq!(fill(&object, &layout).expect("filled"), wanted);
    }

    #[test]
    fn an_object_for_another_layout_is_refused() {
        let refusal = |object: &[u8]| fill(object, &Layout::unknown()).expect_err("refused").to_string();
        assert!(refusal(&load(placeholder(size_of::<Layout>()))).contains("that there is not"));
        assert!(refusal(&load(placeholder(2))).contains("that there is not"));
        assert!(refusal(&load(5)).contains("no place"));
        assert!(refusal(&[]).contains("no place"));
    }

    #[test]
    fn nothing_in_our_own_object_is_left_open() {
        let filled = fill(&OBJECT.0, &Layout::unknown()).expect("filled");
        // At any byte: one that is not where instructions are would be passed over.
        let tag = (placeholder(0) >> 32) as u32;
        let halves = |bytes: &[u8]| bytes.windows(4).filter(|half| *half == tag.to_le_bytes()).count();
        assert!(halves(&OBJECT.0) > 50 && halves(&filled) == 0, "{} of {}", halves(&filled), halves(&OBJECT.0));
    }
}
