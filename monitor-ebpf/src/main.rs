//! The kernel programs: one file for each hook family, on BTF tracepoints (`tp_btf`), fentry and fexit, no kprobes. Only
//! [`allocation`] probes a traced service's own allocator; `defib trace` alone loads it.
//!
//! * [`exit`]: a process ended; counts every outcome, reports abnormal deaths and all that is watched
//! * [`signal`]: remembers who sent the signal that ends a process
//! * [`crash`]: where a process was when it caused its own fatal signal
//! * [`stack`]: copies the stack of such a process
//! * [`oom`]: the OOM killer marked a victim
//! * [`memory`]: requests for memory that the kernel refused
//! * [`life`]: exec and fork inside watched cgroups
//! * [`cgroup`]: cgroups created, removed, renamed, emptied and populated
//! * [`allocation`]: memory that an allocator hands out and takes back
//!
//! They share [`maps`] (maps and globals), [`task`] and [`current`] (reading a task), [`watched`] (whether its cgroup is), [`crowd`]
//! (a service's share of the critical ring) and [`ring`] (sending a record). Kernel fields are read through typed pointers at offsets
//! that the agent took from BTF, so the verifier checks each read and no helper call is needed.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For [`task::constant`], the only assembly here.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod allocation;
#[cfg(target_arch = "bpf")]
mod cgroup;
#[cfg(target_arch = "bpf")]
mod crash;
#[cfg(target_arch = "bpf")]
mod crowd;
#[cfg(target_arch = "bpf")]
mod current;
#[cfg(target_arch = "bpf")]
mod exit;
#[cfg(target_arch = "bpf")]
mod life;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod memory;
#[cfg(target_arch = "bpf")]
mod oom;
#[cfg(target_arch = "bpf")]
mod ring;
#[cfg(target_arch = "bpf")]
mod signal;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod watched;

/// Never returns, so that the verifier refuses any program in which a panic is reachable.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_probe_read_kernel` and others are for GPL-compatible programs only; the crate's own licence includes MIT.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// On other targets this crate is empty, so that workspace-wide commands (format, lint, doc) can include it.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
