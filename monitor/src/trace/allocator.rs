//! Where an allocator's functions begin and end, in the files that a process has mapped; and those by which the C library takes memory
//! from the kernel.
//!
//! A function is probed at its first instruction that the kernel can imitate, as long as its arguments and the stack are untouched by
//! then: stepping over another one costs several times as much, on virtual machines ten times. It ends at its `ret` instructions,
//! and at those of functions that it jumps to for its end. Both are found by decoding it from its beginning to its end, which the
//! file tells: a probe anywhere but at the beginning of an instruction would ruin it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::kernel::Role;
use crate::unwind::module::Module;

/// The places to probe in a file, by their offset in it.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// Where functions begin.
    begins: BTreeMap<u64, Role>,
    /// Where they end.
    rets: BTreeMap<u64, Role>,
    /// Where functions for mappings begin.
    maps: BTreeMap<u64, Role>,
    /// Where they end.
    map_rets: BTreeSet<u64>,
    /// The allocator's functions, by their addresses in the file.
    extents: Vec<Range<u64>>,
}

impl Points {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// Those for mappings, in the order in which probes are to stand. `returns`: as for [`Self::in_order`].
    pub(super) fn for_mappings(&self, returns: bool) -> Vec<(Role, u64)> {
        let of = |&offset: &u64| if returns { (Role::MapReturned, offset) } else { (Role::Mapped, offset) };
        let begins = self.maps.iter().filter(|(_, role)| returns && **role != Role::Unmap).map(|(offset, _)| offset);
        let rets = self.map_rets.iter().filter(|_| !returns);
        around(&self.maps, Role::Unmap, begins.chain(rets).map(of))
    }

    /// Whether an address in the file is in a function of an allocator.
    pub(super) fn is_allocator(&self, address: u64) -> bool {
        self.extents.iter().any(|extent| extent.contains(&address))
    }

    /// All of them, in the order in which probes are to stand: what ends a call before what begins one, so that every call that was
    /// begun can be finished. `returns`: the process bears return probes. Go's functions never do.
    pub(super) fn in_order(&self, returns: bool) -> Vec<(Role, u64)> {
        let is_begin = |role: Role| !matches!(role, Role::Release | Role::AllocateGo);
        let returned = self.begins.iter().filter(|(_, role)| returns && is_begin(**role));
        let returned = returned.map(|(&offset, _)| (Role::Returned, offset));
        let rets = self.rets.iter().filter(|(_, role)| !returns || **role == Role::AllocatedGo);
        let rets = rets.map(|(&offset, &role)| (role, offset));
        around(&self.begins, Role::Release, returned.chain(rets))
    }
}

/// What takes memory back, the ends of calls, and what begins these.
fn around(begins: &BTreeMap<u64, Role>, back: Role, ends: impl Iterator<Item = (Role, u64)>) -> Vec<(Role, u64)> {
    let of = |is_back: bool| {
        let begins = begins.iter().filter(move |(_, role)| (**role == back) == is_back);
        begins.map(|(&offset, &role)| (role, offset))
    };
    of(true).chain(ends).chain(of(false)).collect()
}

/// Functions that an allocator exports, or a program has of an allocator that is linked into it. C++ and Rust come to these.
const FUNCTIONS: [(&str, Role); 17] = [
    ("malloc", Role::Allocate),
    ("calloc", Role::AllocateArray),
    ("realloc", Role::Reallocate),
    ("aligned_alloc", Role::AllocateAligned),
    ("memalign", Role::AllocateAligned),
    ("posix_memalign", Role::AllocateOut),
    ("valloc", Role::Allocate),
    ("free", Role::Release),
    ("free_sized", Role::Release),
    ("mallocx", Role::Allocate),
    ("rallocx", Role::Reallocate),
    ("dallocx", Role::Release),
    ("sdallocx", Role::Release),
    ("malloc_aligned", Role::Allocate),
    ("zalloc", Role::Allocate),
    ("realloc_aligned", Role::Reallocate),
    ("free_aligned", Role::Release),
];
/// By these the C library takes memory from the kernel and gives it back.
const MAPPING: [(&str, Role); 5] = [
    ("mmap", Role::Map),
    ("mmap64", Role::Map),
    ("mremap", Role::Remap),
    ("sbrk", Role::Extend),
    ("munmap", Role::Unmap),
];
/// What allocators put before these names: jemalloc in C and Rust, mimalloc, tcmalloc.
const PREFIXES: [&str; 5] = ["", "je_", "_rjem_", "mi_", "tc_"];
/// `operator new` and `delete` of an allocator that does not come to its own `malloc` through them.
const NEW: [&str; 4] = ["_Znwm", "_Znam", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t"];
const DELETE: [&str; 6] = ["_ZdlPv", "_ZdaPv", "_ZdlPvm", "_ZdaPvm", "_ZdlPvSt11align_val_t", "_ZdaPvSt11align_val_t"];
/// Go's.
const GO: &str = "runtime.mallocgc";

/// A function is no larger, nor ends in more others: what is beyond is no allocator's.
const EXTENT_MAX: u64 = 64 * 1024;
const TAILS_MAX: usize = 16;

/// The places to probe in a file; none when it has no allocator that is known. `is_program`: names that are not exported count
/// too.
pub(super) fn points(module: &Module, is_program: bool) -> Points {
    let mut found: BTreeMap<u64, (Role, u64)> = BTreeMap::new();
    let (mut plus, mut has_malloc, mut mapping) = (Vec::new(), false, BTreeMap::new());
    module.functions(is_program, |name, address, size| {
        let Ok(name) = std::str::from_utf8(name) else { return };
        if let Some(role) = role(name) {
            has_malloc |= role == Role::Allocate;
            found.entry(address).or_insert((role, size));
        } else if let Some(&(_, role)) = MAPPING.iter().find(|(known, _)| name.split('@').next() == Some(*known)) {
            mapping.insert(address, (role, size));
        } else if NEW.contains(&name) {
            plus.push((address, Role::Allocate, size));
        } else if DELETE.contains(&name) {
            plus.push((address, Role::Release, size));
        }
    });
    if has_malloc {
        for (address, role, size) in plus {
            found.entry(address).or_insert((role, size));
        }
    }
    let mut points = Points {
        extents: found.iter().filter_map(|(&at, &(_, size))| extent(module, at, size)).collect(),
        ..Points::default()
    };
    // A library that has these and no allocator stands in for the C library's.
    for (address, (role, size)) in mapping.into_iter().filter(|_| has_malloc) {
        let offset_of = |address| module.offset_of(address);
        let Some(offset) = offset_of(begin(module, address, size, role)) else { continue };
        if role != Role::Unmap {
            let Some(ends) = ends(module, address, size) else { continue };
            points.map_rets.extend(ends.into_iter().filter_map(offset_of));
        }
        points.maps.insert(offset, role);
    }
    for (&address, &(role, size)) in &found {
        let Some(offset) = module.offset_of(begin(module, address, size, role)) else { continue };
        let ends = match role {
            Role::Release => Some(BTreeSet::new()),
            _ => ends(module, address, size),
        };
        // A call whose end cannot be seen is not begun.
        let Some(ends) = ends else { continue };
        let end = if role == Role::AllocateGo { Role::AllocatedGo } else { Role::Allocated };
        points.begins.insert(offset, role);
        points.rets.extend(ends.into_iter().filter_map(|address| Some((module.offset_of(address)?, end))));
    }
    points
}

/// Instructions of a function that are looked at for a good place to begin.
const PROLOGUE: usize = 8;

/// The first instruction that the kernel imitates, a push or a branch, if what the programs read is untouched by then; else the first
/// of all.
fn begin(module: &Module, address: u64, size: u64, role: Role) -> u64 {
    let Some(code) = extent(module, address, size).and_then(|range| module.code(&(address..range.end))) else {
        return address;
    };
    let arguments = match role {
        Role::AllocateGo => [Register::RAX, Register::R14, Register::RSP, Register::RSP],
        Role::Map => [Register::RSI, Register::RDX, Register::RCX, Register::RSP],
        _ => [Register::RDI, Register::RSI, Register::RDX, Register::RSP],
    };
    let mut info = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    for _ in 0..PROLOGUE {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        let is_push = instruction.mnemonic() == Mnemonic::Push && instruction.op0_kind() == OpKind::Register;
        let is_branch = instruction.is_jcc_short_or_near();
        if is_push || is_branch {
            return instruction.ip();
        }
        let goes_on = instruction.flow_control() == FlowControl::Next;
        let touches = info.info(&instruction).used_registers().iter().any(|used| {
            let writes =
                !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess);
            writes && arguments.contains(&used.register().full_register())
        });
        if !goes_on || touches || instruction.is_invalid() {
            break;
        }
    }
    address
}

fn role(name: &str) -> Option<Role> {
    if name == GO {
        return Some(Role::AllocateGo);
    }
    // Exported with or without a version.
    let name = name.split('@').next()?;
    PREFIXES.iter().find_map(|prefix| {
        let name = name.strip_prefix(prefix)?;
        FUNCTIONS.iter().find(|(known, _)| *known == name).map(|&(_, role)| role)
    })
}

/// Addresses of the `ret` instructions at which a function ends; `None` when they cannot be told.
fn ends(module: &Module, address: u64, size: u64) -> Option<BTreeSet<u64>> {
    let mut ends = BTreeSet::new();
    let mut ranges: Vec<Range<u64>> = vec![extent(module, address, size)?];
    let mut at = 0;
    while let Some(range) = ranges.get(at).cloned() {
        at += 1;
        let code = module.code(&range)?;
        for target in scan(code, range.start, &mut ends) {
            if ranges.len() < TAILS_MAX
                && !ranges.iter().any(|known| known.contains(&target))
                && let Some(tail) = extent(module, target, 0)
            {
                ranges.push(tail);
            }
        }
    }
    (!ends.is_empty()).then_some(ends)
}

/// The function around an address: by the table for unwinding, else by its symbol, which may be just a part of it.
fn extent(module: &Module, address: u64, size: u64) -> Option<Range<u64>> {
    let by_symbol = (size > 0).then_some(address..address + size);
    let found = module.extent(address).or(by_symbol)?;
    (found.end - found.start <= EXTENT_MAX).then_some(found)
}

/// Adds the addresses of `ret` instructions to `ends`; returns where jumps lead that leave the code.
fn scan(code: &[u8], address: u64, ends: &mut BTreeSet<u64>) -> Vec<u64> {
    let end = address + code.len() as u64;
    let mut left = Vec::new();
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            // What follows may be no code at all.
            break;
        }
        match instruction.flow_control() {
            FlowControl::Return => drop(ends.insert(instruction.ip())),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                if target != 0 && !(address..end).contains(&target) {
                    left.push(target);
                }
            }
            _ => {}
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_allocators_are_known() {
        for (name, want) in [
            ("malloc", Some(Role::Allocate)),
            ("malloc@@GLIBC_2.2.5", Some(Role::Allocate)),
            ("_rjem_calloc", Some(Role::AllocateArray)),
            ("mi_free", Some(Role::Release)),
            ("runtime.mallocgc", Some(Role::AllocateGo)),
            ("runtime.mallocgcTiny", None),
            ("my_malloc", None),
            ("", None),
        ] {
            assert_eq!(role(name), want, "{name}");
        }
    }

    #[test]
    fn a_function_ends_at_each_ret_and_where_it_jumps_to() {
        // test rdi,rdi; je +1; ret; jmp +16 (out of it); ret
        let code = [0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xeb, 0x10, 0xc3];
        let mut ends = BTreeSet::new();
        assert_eq!(scan(&code, 0x1000, &mut ends), [0x1018]);
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), [0x1005, 0x1008]);
        // Bytes of an instruction that look like one.
        let mut ends = BTreeSet::new();
        assert!(scan(&[0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3], 0x2000, &mut ends).is_empty());
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), [0x2005]);
    }

    #[test]
    fn the_allocator_of_this_very_test_is_found() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our own mappings");
        let libc = maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains("libc.so")));
        let Some(libc) = libc else { return };
        let module = Module::open(libc.as_ref()).expect("a library");
        let points = points(&module, false);
        for returns in [true, false] {
            let end = if returns { Role::Returned } else { Role::Allocated };
            let places = points.in_order(returns);
            for role in [Role::Allocate, Role::AllocateArray, Role::Reallocate, Role::Release, end] {
                assert!(places.iter().any(|&(found, _)| found == role), "{role:?} in {places:?}");
            }
            let end = if returns { Role::MapReturned } else { Role::Mapped };
            let places = points.for_mappings(returns);
            for role in [Role::Map, Role::Remap, Role::Extend, Role::Unmap, end] {
                assert!(places.iter().any(|&(found, _)| found == role), "{role:?} in {places:?}");
            }
        }
    }
}
