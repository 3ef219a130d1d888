//! Where the running kernel keeps the fields that the programs read.
//!
//! The agent fills a [`Layout`] from `/sys/kernel/btf/vmlinux` and writes it into the programs
//! before they are loaded. The verifier then knows every offset: it checks each read against the
//! kernel's own types (a wrong offset is refused at load, never read) and removes the branches whose fields are absent.
//!
//! Where a program needs a slot, it has an instruction that loads a [`placeholder`]. The agent replaces the placeholder by the slot's
//! value, so nothing is read at run time.

/// Offset of a field that the running kernel does not have; evidence from that field is missing.
pub const ABSENT: u32 = u32::MAX;

/// High bits of a placeholder, which no other number has: "defib" and a zero byte.
const PLACEHOLDER: u64 = 0x6465_6669_6200_0000;

/// What the compiled programs load for the slot at byte `at` of a [`Layout`]; `at` is below 64 KiB.
#[must_use]
pub const fn placeholder(at: usize) -> u64 {
    assert!(at < 1 << 16, "the place of a slot");
    PLACEHOLDER | at as u64
}

/// Byte in a [`Layout`] that a placeholder stands for; `None` when `number` is no placeholder.
#[must_use]
pub const fn place_of(number: u64) -> Option<usize> {
    if number & !0xffff == PLACEHOLDER { Some((number & 0xffff) as usize) } else { None }
}

/// The number that replaces a placeholder. [`ABSENT`] becomes all 64 bits, which an instruction can compare with at no cost.
#[must_use]
pub const fn constant(slot: u32) -> u64 {
    if slot == ABSENT { u64::MAX } else { slot as u64 }
}

/// A field of a kernel structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the kernel structure.
    pub structure: &'static str,
    /// Names that the member has had, newest first.
    pub names: &'static [&'static str],
    /// What is lost when the field is absent; `None`: the programs cannot work without it.
    pub evidence: Option<&'static str>,
}

macro_rules! layout {
    ($($(#[$doc:meta])* $slot:ident: $structure:literal . $($name:literal)|+ $(=> $evidence:literal)?,)+) => {
        /// Byte offsets of kernel fields, and the facts about the host that the programs branch on.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct Layout {
            $(
                $(#[$doc])*
                pub $slot: u32,
            )+
            /// 1 when `sched_process_exit` has the argument `group_dead` (6.16 and newer).
            pub exit_tells_group_dead: u32,
            /// 1 when cgroups are watched by their id in the v1 memory hierarchy, 0 for v2.
            pub watch_memory_v1: u32,
            /// `css_set.subsys[memory_cgrp_id]`, or [`ABSENT`].
            pub css_set_memory: u32,
            /// 1 when programs on tracepoints can be preempted, and then miss events (7.0 and newer).
            pub preemptible: u32,
            /// 1 when clean exits of unwatched processes are reported too (`defib watch --all`).
            pub report_clean: u32,
            /// Size of `struct k_sigaction`, or [`ABSENT`].
            pub sigaction_size: u32,
            /// First counter of `mm_struct.rss_stat`, whose shape changed in 6.2, or [`ABSENT`].
            pub mm_rss: u32,
            /// Distance from one counter of `rss_stat` to the next, bytes.
            pub mm_rss_stride: u32,
            /// Size of `struct upid`, or [`ABSENT`].
            pub upid_size: u32,
            /// `hierarchy_id` of the watched hierarchy; v2 is always 0.
            pub hierarchy: u32,
            /// Frame pointer in `struct pt_regs`, or [`ABSENT`].
            pub regs_bp: u32,
            /// Link register in `struct pt_regs`, on processors that have one, or [`ABSENT`].
            pub regs_lr: u32,
            /// Size of `struct pt_regs`, or [`ABSENT`].
            pub regs_size: u32,
            /// 1 when the kernel has the helper `bpf_task_pt_regs` (5.15 and newer).
            pub tells_regs: u32,
            /// 1 when `bpf_probe_read_kernel` may be used (refused under lockdown=confidentiality).
            pub may_probe: u32,
        }

        impl Layout {
            /// All fields to look up, with the slot that takes the offset.
            pub const FIELDS: &[(Field, fn(&mut Self) -> &mut u32)] = &[
                $((
                    Field { structure: $structure, names: &[$($name),+], evidence: layout!(@evidence $($evidence)?) },
                    |layout| &mut layout.$slot,
                ),)+
            ];

            /// A layout before the look-up of its fields.
            pub const fn unknown() -> Self {
                Self {
                    $($slot: ABSENT,)+
                    exit_tells_group_dead: 0,
                    watch_memory_v1: 0,
                    css_set_memory: ABSENT,
                    preemptible: 0,
                    report_clean: 0,
                    sigaction_size: ABSENT,
                    mm_rss: ABSENT,
                    mm_rss_stride: 0,
                    upid_size: ABSENT,
                    hierarchy: 0,
                    regs_bp: ABSENT,
                    regs_lr: ABSENT,
                    regs_size: ABSENT,
                    tells_regs: 0,
                    may_probe: 0,
                }
            }
        }
    };
    (@evidence) => { None };
    (@evidence $evidence:literal) => { Some($evidence) };
}

layout! {
    /// Thread id.
    task_pid: "task_struct"."pid",
    /// Process id, in the initial namespace.
    task_tgid: "task_struct"."tgid",
    /// The thread's own wait status.
    task_exit_code: "task_struct"."exit_code",
    /// First thread; its start time and name are the process's.
    task_group_leader: "task_struct"."group_leader",
    /// Start of the thread, nanoseconds since boot; renamed in 5.5.
    task_start: "task_struct"."start_boottime" | "real_start_time",
    /// Thread name, 16 bytes.
    task_comm: "task_struct"."comm",
    /// Threads that have not begun to exit.
    signal_live: "signal_struct"."live",
    /// Threads that have not been reaped.
    signal_nr_threads: "signal_struct"."nr_threads",
    /// Set when the OOM killer chose this process.
    signal_oom_mm: "signal_struct"."oom_mm" => "OOM victims whose mark was lost",
    /// Peak resident set in pages, filled when the process ends.
    signal_maxrss: "signal_struct"."maxrss" => "peak memory of the dead process",
    /// Parent: the process that the kernel tells of the death.
    task_real_parent: "task_struct"."real_parent" => "main process or worker",
    /// Credentials.
    task_cred: "task_struct"."cred" => "user of an OOM victim",
    /// User id.
    cred_uid: "cred"."uid" => "user of an OOM victim",
    /// The same controller's state in the parent cgroup.
    css_parent: "cgroup_subsys_state"."parent" => "cgroups made inside a watched service",
    /// A cgroup's own `cgroup_subsys_state`.
    cgroup_self: "cgroup"."self" => "cgroups made inside a watched service",
    /// The root of a cgroup's hierarchy.
    cgroup_root: "cgroup"."root" => "cgroups that come and go",
    /// The number of a hierarchy, as in /proc/PID/cgroup.
    cgroup_root_hierarchy: "cgroup_root"."hierarchy_id" => "cgroups that come and go",
    /// Why a signal was sent (siginfo(5)).
    siginfo_code: "kernel_siginfo"."si_code" => "origin of a signal",
    /// The cgroup whose limit was hit, in a request to the OOM killer; null for the host.
    oom_control_memcg: "oom_control"."memcg" => "limit behind an OOM kill, where the kernel's log does not say it",
    /// Size of the request, 2^order pages; −1 for SysRq-f.
    oom_control_order: "oom_control"."order" => "limit behind an OOM kill, where the kernel's log does not say it",
    /// What ran out (`enum oom_constraint`).
    oom_control_constraint: "oom_control"."constraint" => "limit behind an OOM kill, where the kernel's log does not say it",
    /// A memory cgroup's own `cgroup_subsys_state`.
    mem_cgroup_css: "mem_cgroup"."css" => "limit behind an OOM kill, where the kernel's log does not say it",
    /// The memory that counts against a memory cgroup's limit.
    mem_cgroup_memory: "mem_cgroup"."memory" => "size of the limit behind an OOM kill, when its cgroup is gone at once",
    /// Limit of a counter, pages.
    page_counter_max: "page_counter"."max" => "size of the limit behind an OOM kill, when its cgroup is gone at once",
    /// Signal handlers.
    task_sighand: "task_struct"."sighand" => "whether a signal was fatal",
    /// The table of handlers.
    sighand_action: "sighand_struct"."action" => "whether a signal was fatal",
    /// The `sigaction` of one entry.
    k_sigaction_sa: "k_sigaction"."sa" => "whether a signal was fatal",
    /// The handler function, or SIG_DFL.
    sigaction_handler: "sigaction"."sa_handler" => "whether a signal was fatal",
    /// The tracer's options (`PT_*`); 0 without a tracer.
    task_ptrace: "task_struct"."ptrace" => "kills by the end of a tracer",
    /// A task's ids in its pid namespaces.
    task_thread_pid: "task_struct"."thread_pid" => "kills by the end of a pid namespace",
    /// Depth of the pid namespace, 0 for the initial one.
    pid_level: "pid"."level" => "kills by the end of a pid namespace",
    /// The ids, one for each depth.
    pid_numbers: "pid"."numbers" => "kills by the end of a pid namespace",
    /// An id in one namespace.
    upid_nr: "upid"."nr" => "kills by the end of a pid namespace",
    /// Address space.
    task_mm: "task_struct"."mm" => "program of a crash",
    /// The program's file.
    mm_exe_file: "mm_struct"."exe_file" => "program of a crash",
    /// Start of the program's code.
    mm_start_code: "mm_struct"."start_code" => "callers of a crash without frame pointers",
    /// End of the program's code.
    mm_end_code: "mm_struct"."end_code" => "callers of a crash without frame pointers",
    /// The file's inode.
    file_inode: "file"."f_inode" => "callers of a crash without frame pointers",
    /// The number of an inode.
    inode_number: "inode"."i_ino" => "callers of a crash without frame pointers",
    /// The thread's kernel stack, with the user registers at its end.
    task_stack: "task_struct"."stack" => "callers of a crash without frame pointers",
    /// Instruction pointer of the program.
    regs_ip: "pt_regs"."ip" | "pc" => "callers of a crash without frame pointers",
    /// Stack pointer of the program.
    regs_sp: "pt_regs"."sp" => "callers of a crash without frame pointers",
    /// Path of a file; renamed in 6.18.
    file_path: "file"."f_path" | "__f_path" => "program of a crash",
    /// Directory entry of a path.
    path_dentry: "path"."dentry" => "program of a crash",
    /// Name of a directory entry; renamed in 6.15.
    dentry_name: "dentry"."d_name" | "__d_name" => "program of a crash",
    /// Directory entry of the parent.
    dentry_parent: "dentry"."d_parent" => "program of a crash",
    /// The characters of a name.
    qstr_name: "qstr"."name" => "program of a crash",
    /// Size of the address space in pages.
    mm_total_vm: "mm_struct"."total_vm" => "memory figures of an OOM victim",
    /// Size of the page tables, bytes.
    mm_page_tables: "mm_struct"."pgtables_bytes" => "memory figures of an OOM victim",
    /// Adjustment of the OOM score, −1000 to 1000.
    signal_oom_score_adj: "signal_struct"."oom_score_adj" => "memory figures of an OOM victim",
    /// Resource limits.
    signal_rlim: "signal_struct"."rlim" => "limits of address space and processor time",
    /// Signals that a thread has blocked.
    task_blocked: "task_struct"."blocked" => "crashes that are certain before the process has ended, and those whose signal is blocked",
    /// The signal that the kernel sends when the parent ends.
    task_pdeath_signal: "task_struct"."pdeath_signal" => "kills by the end of a parent",
    /// Processor time of a thread in user space, nanoseconds.
    task_utime: "task_struct"."utime" => "kills at a limit of processor time",
    /// Processor time of a thread in the kernel, nanoseconds.
    task_stime: "task_struct"."stime" => "kills at a limit of processor time",
    /// Processor time of reaped threads in user space, nanoseconds.
    signal_utime: "signal_struct"."utime" => "kills at a limit of processor time",
    /// Processor time of reaped threads in the kernel, nanoseconds.
    signal_stime: "signal_struct"."stime" => "kills at a limit of processor time",
    /// Processor time of all threads, kept while a limit or a timer needs it.
    signal_cputimer: "signal_struct"."cputimer" => "kills at a limit of processor time",
    /// The sums in `signal_cputimer`.
    cputimer_atomic: "thread_group_cputimer"."cputime_atomic" => "kills at a limit of processor time",
    /// Processor time in user space, nanoseconds.
    cputime_utime: "task_cputime_atomic"."utime" => "kills at a limit of processor time",
    /// Processor time in the kernel, nanoseconds.
    cputime_stime: "task_cputime_atomic"."stime" => "kills at a limit of processor time",
    /// Seccomp state.
    task_seccomp: "task_struct"."seccomp" => "kills by seccomp",
    /// Seccomp mode.
    seccomp_mode: "seccomp"."mode" => "kills by seccomp",
    /// System call number, on x86-64.
    regs_call: "pt_regs"."orig_ax" => "refused requests for memory",
    /// First argument of a system call, on x86-64.
    regs_first: "pt_regs"."di" => "refused requests for memory",
    /// Second argument of a system call, on x86-64.
    regs_second: "pt_regs"."si" => "refused requests for memory",
    /// The cgroup of a controller's state.
    css_cgroup: "cgroup_subsys_state"."cgroup" => "attribution to a service on cgroup v1",
    /// A cgroup's node in its file system.
    cgroup_kn: "cgroup"."kn" => "attribution to a service",
    /// The node's id: the inode number of the cgroup's directory.
    kernfs_id: "kernfs_node"."id" => "attribution to a service",
    /// The cgroup in the v2 hierarchy.
    css_set_dfl_cgrp: "css_set"."dfl_cgrp" => "attribution to a service on cgroup v2",
    /// The cgroups of a task.
    task_cgroups: "task_struct"."cgroups" => "attribution to a service",
    /// Wait status of the process.
    signal_group_exit_code: "signal_struct"."group_exit_code",
    /// `SIGNAL_*` flags.
    signal_flags: "signal_struct"."flags",
    /// `PF_*` flags.
    task_flags: "task_struct"."flags",
    /// State shared by the threads of a process.
    task_signal: "task_struct"."signal",
}
