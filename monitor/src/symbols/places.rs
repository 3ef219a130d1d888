//! Function, source file and line for many addresses at once: for call stacks of growing memory. Runs in the process of its own, see
//! the module above.

use std::{collections::HashMap, path::PathBuf};

use blazesym::{
    Pid,
    symbolize::{
        CodeInfo, Input, Sym, Symbolized, Symbolizer,
        source::{Elf, Process, Source},
    },
};
use serde::{Deserialize, Serialize};

use super::{
    NAME_MAX,
    names::{debug_file, is_file},
};
use crate::text::shortened;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// Files, with their build ids in hexadecimal digits.
    pub(crate) files: Vec<(PathBuf, Option<String>)>,
    /// A process that lives, whose code made at run time may be named in a map of its own (`/tmp/perf-PID.map`).
    pub(crate) process: Option<u32>,
    /// The number of a file, and the offset in it; without one, an address in the process.
    pub(crate) places: Vec<(Option<u16>, u64)>,
}

/// What is known of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    /// Function, demangled.
    pub(crate) function: Option<String>,
    /// Source file and line.
    pub(crate) line: Option<(String, Option<u32>)>,
    /// Whether it is inlined into the next.
    pub(crate) inlined: bool,
}

/// Most functions for one place: its function, and those inlined there.
const FUNCTIONS: usize = 32;
/// Bytes of all names together: half of the longest answer. Later places get no names.
const NAMES_MAX: usize = 8 * 1024 * 1024;

/// For each place what is there, inlined functions first; nothing where nothing is known.
pub(super) fn name(question: &Places) -> Vec<Vec<Named>> {
    let symbolizer = Symbolizer::builder().enable_code_info(true).enable_inlined_fns(true).build();
    let mut by_file: HashMap<Option<u16>, Vec<(usize, u64)>> = HashMap::new();
    for (at, &(file, place)) in question.places.iter().enumerate() {
        by_file.entry(file).or_default().push((at, place));
    }
    let mut answer = vec![Vec::new(); question.places.len()];
    let mut room = NAMES_MAX;
    for (file, places) in by_file {
        let numbers: Vec<u64> = places.iter().map(|&(_, place)| place).collect();
        let Some(found) = look_up(&symbolizer, question, file, &numbers) else { continue };
        for ((at, _), found) in places.into_iter().zip(found) {
            answer[at] = found.into_iter().map_while(|named| named.within(&mut room)).collect();
        }
    }
    answer
}

impl Named {
    /// This place, if there is room for its names.
    fn within(self, room: &mut usize) -> Option<Self> {
        let names = [self.function.as_ref(), self.line.as_ref().map(|(file, _)| file)];
        *room = room.checked_sub(names.into_iter().flatten().map(String::len).sum())?;
        Some(self)
    }
}

fn look_up(symbolizer: &Symbolizer, question: &Places, file: Option<u16>, numbers: &[u64]) -> Option<Vec<Vec<Named>>> {
    let Some(file) = file else {
        let process = Source::Process(Process::new(Pid::from(question.process?)));
        return symbolize(symbolizer, &process, Input::AbsAddr(numbers));
    };
    let (path, build_id) = question.files.get(usize::from(file))?;
    let separate = build_id.as_deref().and_then(debug_file).filter(|path| is_file(path));
    // What has lines first: the separate file, then the program's own; then what has names alone.
    let files = [separate.as_deref(), Some(path.as_path())];
    let tries = [true, false].into_iter().flat_map(|lines| files.into_iter().flatten().map(move |path| (path, lines)));
    let mut best: Option<Vec<Vec<Named>>> = None;
    for (path, lines) in tries {
        let mut elf = Elf::new(path);
        elf.debug_syms = lines;
        let Some(found) = symbolize(symbolizer, &Source::Elf(elf), Input::FileOffset(numbers)) else { continue };
        match &mut best {
            None => best = Some(found),
            Some(best) => {
                for (known, found) in best.iter_mut().zip(found).filter(|(known, _)| known.is_empty()) {
                    *known = found;
                }
            }
        }
    }
    best
}

fn symbolize(symbolizer: &Symbolizer, source: &Source<'_>, input: Input<&[u64]>) -> Option<Vec<Vec<Named>>> {
    let found = symbolizer.symbolize(source, input).ok()?;
    Some(found.iter().map(|found| if let Symbolized::Sym(sym) = found { named(sym) } else { Vec::new() }).collect())
}

fn named(sym: &Sym<'_>) -> Vec<Named> {
    let name = |name: &str| shortened(name, NAME_MAX);
    let line = |info: &CodeInfo<'_>| (name(&info.to_path().to_string_lossy()), info.line);
    let inlined = sym.inlined.iter().rev().take(FUNCTIONS - 1).map(|inlined| Named {
        function: Some(name(&inlined.name)),
        line: inlined.code_info.as_ref().map(line),
        inlined: true,
    });
    let own = Named { function: Some(name(&sym.name)), line: sym.code_info.as_deref().map(line), inlined: false };
    inlined.chain([own]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_come_in_the_order_of_the_places() {
        let own = std::env::current_exe().expect("a path");
        let maps = super::super::mappings(std::process::id());
        let path = own.display().to_string();
        let offset = |address: usize| {
            let address = address as u64;
            let mapping = maps.iter().find(|mapping| (mapping.begin..mapping.end).contains(&address))?;
            (mapping.path == path).then(|| address - mapping.begin + mapping.offset)
        };
        let here = offset(the_names_come_in_the_order_of_the_places as fn() as usize).expect("our own code");
        let question = Places { files: vec![(own, None)], process: None, places: vec![(Some(0), 0), (Some(0), here)] };
        let answer = name(&question);
        assert_eq!(answer.len(), 2);
        let last = answer[1].last().expect("a function");
        assert!(last.function.as_deref().is_some_and(|name| name.contains("the_names_come_in_the_order")), "{last:?}");
        assert!(last.line.as_ref().is_some_and(|(file, _)| file.ends_with("places.rs")), "{last:?}");
        assert!(name(&Places { files: Vec::new(), ..question }).iter().all(Vec::is_empty));
    }
}
