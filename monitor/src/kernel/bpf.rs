//! The calls of bpf(2) that the loader does not offer: those that outlive a process (attach a program that was loaded by somebody else,
//! pin, and take what is pinned), and probes at many places of a file at once.

use std::{
    ffi::{CString, c_int},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `enum bpf_cmd` (uapi bpf.h).
const MAP_CREATE: c_int = 0;
const PROG_LOAD: c_int = 5;
const OBJ_PIN: c_int = 6;
const OBJ_GET: c_int = 7;
const RAW_TRACEPOINT_OPEN: c_int = 17;
const LINK_CREATE: c_int = 28;

/// `BPF_MAP_TYPE_ARRAY` (uapi bpf.h).
const ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_KPROBE`, which probes in user space are too, and `BPF_TRACE_UPROBE_MULTI`.
const PROBE: u32 = 2;
const MANY_PLACES: u32 = 48;

/// What `BPF_MAP_CREATE` reads of `union bpf_attr`.
#[repr(C)]
struct Map {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// What `BPF_OBJ_*` read of `union bpf_attr`.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// What `BPF_RAW_TRACEPOINT_OPEN` reads of it.
#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: u32,
    zero: u32,
}

/// What `BPF_PROG_LOAD` reads of it, up to what we say.
#[repr(C)]
#[derive(Default)]
struct Program {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log: [u64; 2],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_as: u32,
}

/// What `BPF_LINK_CREATE` reads of it for probes in user space.
#[repr(C)]
struct Places {
    program: u32,
    target: u32,
    attach_as: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    kind: u32,
    process: u32,
    zero: u32,
}

/// Loads a program for probes at many places (6.6 and newer). `code`: its instructions, of eight bytes each.
pub(super) fn load_probe(code: &[u8]) -> io::Result<OwnedFd> {
    let attributes = Program {
        kind: PROBE,
        instructions: (code.len() / 8) as u32,
        code: code.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
        name: *b"probed\0\0\0\0\0\0\0\0\0\0",
        attach_as: MANY_PLACES,
        ..Program::default()
    };
    owned(call(PROG_LOAD, &attributes)?)
}

/// Attaches such a program at offsets of a file, each with a number that the program is told, for one process; `returns`: to when the
/// functions there return.
pub(super) fn attach_probe(
    program: impl AsFd,
    path: &Path,
    places: &[(u64, u64)],
    tgid: u32,
    returns: bool,
) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (offsets, cookies): (Vec<u64>, Vec<u64>) = places.iter().copied().unzip();
    let attributes = Places {
        program: number(program),
        target: 0,
        attach_as: MANY_PLACES,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        reference_counters: 0,
        cookies: cookies.as_ptr() as u64,
        count: offsets.len() as u32,
        // `BPF_F_UPROBE_MULTI_RETURN`.
        kind: u32::from(returns),
        process: tgid,
        zero: 0,
    };
    owned(call(LINK_CREATE, &attributes)?)
}

/// Attaches a loaded program to the tracepoint or function that it was loaded for, until the returned link is closed.
pub(super) fn attach(program: impl AsFd) -> io::Result<OwnedFd> {
    let attributes = RawTracepoint { name: 0, program: number(program), zero: 0 };
    owned(call(RAW_TRACEPOINT_OPEN, &attributes)?)
}

/// A new array of 64-bit numbers that no program knows.
pub(super) fn numbers(entries: u32) -> io::Result<OwnedFd> {
    owned(call(MAP_CREATE, &Map { kind: ARRAY, key_bytes: 4, value_bytes: 8, entries, flags: 0 })?)
}

/// Gives a map, program or link a name in a mounted bpffs, which keeps it alive.
pub(super) fn pin(descriptor: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object { path: path.as_ptr() as u64, descriptor: number(descriptor), flags: 0 };
    call(OBJ_PIN, &attributes).map(drop)
}

/// Opens what is pinned there.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    owned(call(OBJ_GET, &Object { path: path.as_ptr() as u64, descriptor: 0, flags: 0 })?)
}

fn number(descriptor: impl AsFd) -> u32 {
    // One that is open is not negative.
    descriptor.as_fd().as_raw_fd() as u32
}

fn call<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    // SAFETY: `attributes` has the layout that the command reads, and it and what it may point to (a path, instructions, tables of
    // offsets) outlive the call. Of these commands none writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}

fn owned(descriptor: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just opened it for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
