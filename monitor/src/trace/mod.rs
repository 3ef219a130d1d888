//! Where a service's memory grows, by call stack: for suspects only, bounded in time and cost.
//!
//! ```text
//! a service ──▶ its processes ──▶ their allocators                     target.rs, allocator/
//! short watches of allocate and release ──ring──▶ calls with stacks    probe.rs (kernel side: monitor-ebpf)
//! calls ──▶ what was not released ──▶ what stays                       ledger.rs (pure), held.rs
//! what stays, by stack, in bytes an hour                               growth.rs
//! ```
//!
//! All of it runs in a process of its own, which ends with its work: programs and their cost end with it, and other people's
//! files are read far from the agent.

pub(crate) mod growth;
