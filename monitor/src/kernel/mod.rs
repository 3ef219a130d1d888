//! The kernel side as the rest of the agent sees it: load and attach, then a stream of [`Event`]s and a few counters.
//!
//! * [`btf`] reads the kernel's types, [`layout`] turns them into the programs' constants
//! * [`load`] loads and attaches; [`ring`] follows the rings
//!
//! Nothing here knows services, causes or actions.

mod btf;
mod diagnostics;
mod layout;
mod load;
mod ring;

pub(crate) use diagnostics::follow_diagnostics;
pub(crate) use layout::Watched;
pub(crate) use load::{Kernel, Options, VMLINUX, load, permitted};
pub(crate) use ring::{Event, RingStats, follow};
#[cfg(any(test, fuzzing))]
pub(crate) use {layout::fuzz as fuzz_btf, ring::fuzz as fuzz_record};

/// Sources of the programs that are embedded, as a short hash.
pub(crate) const SOURCES: &str = env!("DEFIB_EBPF_SOURCES");
