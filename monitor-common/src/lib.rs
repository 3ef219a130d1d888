//! What the kernel programs and the agent must agree on, and nothing else.
//!
//! * [`record`]: the records that travel over the two rings, with their checked decode;
//! * [`stack`]: the stack of a crashing process, which is too large for a ring;
//! * [`layout`]: where the running kernel keeps the fields that the programs read, filled from its BTF at start;
//! * [`allocation`]: the records of the programs that watch an allocator;
//! * [`counter`]: slots of the per-CPU counters;
//! * [`status`]: what a wait status means;
//! * [`watched`]: what the values of watched cgroups mean.
//!
//! Both sides compile this crate, so a change here changes the committed object: rebuild it with `cargo xtask ebpf`.
#![no_std]

pub mod allocation;
pub mod counter;
pub mod layout;
pub mod record;
pub mod stack;
pub mod status;
pub mod watched;
