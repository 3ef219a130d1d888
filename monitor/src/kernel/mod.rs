//! The kernel side as the rest of the agent sees it: load and attach, then a stream of [`Event`]s and a few counters.
//!
//! * [`btf`] reads the kernel's types, [`layout`] turns them into the programs' constants, [`constants`] writes those into them
//! * [`sizes`] tells how large the maps must be on this host
//! * [`load`] loads and attaches, or takes over the [`set`] of an earlier agent when [`about`] says that it fits
//! * [`ring`] follows the rings, whose memory is [`records`]
//! * [`stacks`] reads the stacks of crashing processes, which are too large for a ring
//! * [`allocations`] has the programs for `defib trace`, which the agent does not load
//! * [`bpf`] has the few system calls that the loader does not offer, [`pins`] keeps a set in a bpffs
//!
//! Nothing here knows services, causes or actions.

mod about;
mod allocations;
mod bpf;
mod btf;
mod constants;
mod diagnostics;
mod layout;
mod load;
mod pins;
mod records;
mod ring;
mod set;
mod sizes;
mod stacks;

pub(crate) use about::Remains;
pub(crate) use allocations::{Allocations, Counts, Probe, Role};
pub(crate) use diagnostics::follow_diagnostics;
pub(crate) use layout::Watched;
pub(crate) use load::{Kernel, Options, Origin, Rings, Skipped, VMLINUX, load, permitted};
pub(crate) use pins::Pins;
pub(crate) use records::Span;
pub(crate) use ring::{Event, RingStats, Settled, follow, follow_remains};
pub(crate) use stacks::CrashStacks;
#[cfg(any(test, fuzzing))]
pub(crate) use {layout::fuzz as fuzz_btf, ring::fuzz as fuzz_record};

/// Sources of the programs that are embedded, as a short hash.
pub(crate) const SOURCES: &str = env!("DEFIB_EBPF_SOURCES");
