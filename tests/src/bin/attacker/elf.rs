//! Writes an ELF program for x86-64 whose functions call each other until the last one reads from address zero, with
//! names of any length. It is written byte by byte, since no compiler makes such a file.

/// Functions: as many as the frames that are taken of a crash.
const FUNCTIONS: usize = 16;
/// Bytes of each function.
const EACH: usize = 16;
/// Load address.
const BASE: u64 = 0x40_0000;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;
const NOTE: usize = HEADER + 2 * PROGRAM_HEADER;
/// A GNU build id, with its head.
const NOTE_LENGTH: usize = 36;
const CODE: usize = 0x100;
const SYMBOLS: usize = CODE + FUNCTIONS * EACH;
const SYMBOL: usize = 24;
/// One more symbol, which is empty, as the format requires.
const STRINGS: usize = SYMBOLS + (FUNCTIONS + 1) * SYMBOL;
/// Types and flags of sections (elf(5)).
const PROGRAM_DATA: u32 = 1;
const SYMBOL_TABLE: u32 = 2;
const STRING_TABLE: u32 = 3;
const NOTE_DATA: u32 = 7;
const ALLOCATED: u64 = 2;
const EXECUTABLE: u64 = 4;
const SECTION_NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0.shstrtab\0.note.gnu.build-id\0";

/// The file, with names of `length` bytes. They share their bytes: each begins one later than the one before.
pub(crate) fn crashing(length: usize) -> Vec<u8> {
    let strings = length + FUNCTIONS + 2;
    let section_names = STRINGS + strings;
    let sections = (section_names + SECTION_NAMES.len()).next_multiple_of(8);
    let mut file = Vec::with_capacity(sections + 6 * SECTION_HEADER);
    header(&mut file, sections as u64);
    note(&mut file);
    file.resize(CODE, 0);
    code(&mut file);
    symbols(&mut file, length);
    file.push(0);
    file.resize(section_names - 1, b'a');
    file.push(0);
    file.extend_from_slice(SECTION_NAMES);
    file.resize(sections, 0);
    let name = |wanted: &[u8]| {
        let at = SECTION_NAMES.windows(wanted.len()).position(|bytes| bytes == wanted);
        at.expect("a section's name") as u32
    };
    let section = |file: &mut Vec<u8>,
                   section: &[u8],
                   kind: u32,
                   flags: u64,
                   [offset, size]: [usize; 2],
                   [link, info]: [u32; 2]| {
        let address = if flags & ALLOCATED == 0 { 0 } else { BASE + offset as u64 };
        let (alignment, entry) = if kind == SYMBOL_TABLE { (8, SYMBOL as u64) } else { (1, 0) };
        put32(file, &[name(section), kind]);
        put64(file, &[flags, address, offset as u64, size as u64]);
        put32(file, &[link, info]);
        put64(file, &[alignment, entry]);
    };
    // In the order of elf(5): name, type, flags, place and length, link, info.
    section(&mut file, b"\0", 0, 0, [0, 0], [0, 0]);
    section(&mut file, b".text\0", PROGRAM_DATA, ALLOCATED | EXECUTABLE, [CODE, FUNCTIONS * EACH], [0, 0]);
    section(&mut file, b".symtab\0", SYMBOL_TABLE, 0, [SYMBOLS, (FUNCTIONS + 1) * SYMBOL], [3, 1]);
    section(&mut file, b".strtab\0", STRING_TABLE, 0, [STRINGS, strings], [0, 0]);
    section(&mut file, b".shstrtab\0", STRING_TABLE, 0, [section_names, SECTION_NAMES.len()], [0, 0]);
    section(&mut file, b".note.gnu.build-id\0", NOTE_DATA, ALLOCATED, [NOTE, NOTE_LENGTH], [0, 0]);
    file
}

fn header(file: &mut Vec<u8>, sections: u64) {
    // 64 bits, little-endian, version 1.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable for x86-64.
    put16(file, &[2, 62]);
    put32(file, &[1]);
    put64(file, &[BASE + CODE as u64, HEADER as u64, sections]);
    put32(file, &[0]);
    put16(file, &[HEADER as u16, PROGRAM_HEADER as u16, 2, SECTION_HEADER as u16, 6, 4]);
    // The code, readable and executable; then the note.
    put32(file, &[1, 5]);
    put64(file, &[0, BASE, BASE, SYMBOLS as u64, SYMBOLS as u64, 0x1000]);
    put32(file, &[4, 4]);
    let (note, length) = (NOTE as u64, NOTE_LENGTH as u64);
    put64(file, &[note, BASE + note, BASE + note, length, length, 4]);
}

fn note(file: &mut Vec<u8>) {
    put32(file, &[4, 20, 3]);
    file.extend_from_slice(b"GNU\0");
    file.extend_from_slice(&[0xa5; 20]);
}

fn code(file: &mut Vec<u8>) {
    for function in 0..FUNCTIONS {
        let end = file.len() + EACH;
        // push %rbp; mov %rsp,%rbp
        file.extend_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
        if function + 1 < FUNCTIONS {
            // call the next; pop %rbp; ret
            file.push(0xe8);
            let behind = file.len() + 4;
            put32(file, &[(end - behind) as u32]);
            file.extend_from_slice(&[0x5d, 0xc3]);
        } else {
            // xor %eax,%eax; mov (%rax),%rax
            file.extend_from_slice(&[0x31, 0xc0, 0x48, 0x8b, 0x00]);
        }
        file.resize(end, 0x90);
    }
}

fn symbols(file: &mut Vec<u8>, length: usize) {
    assert!(u32::try_from(length).is_ok(), "a name's place is a number of 32 bits");
    file.resize(file.len() + SYMBOL, 0);
    for function in 0..FUNCTIONS {
        put32(file, &[1 + function as u32]);
        // A global function, in the first section.
        file.extend_from_slice(&[0x12, 0]);
        put16(file, &[1]);
        put64(file, &[BASE + (CODE + function * EACH) as u64, EACH as u64]);
    }
}

fn put16(file: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
}

fn put32(file: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
}

fn put64(file: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
}
