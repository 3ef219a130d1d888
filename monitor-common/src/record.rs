//! The records that travel over the rings.
//!
//! Each begins with a [`Header`]; [`Record::decode`] checks kind and length before it reads more, so a malformed record is an error to
//! count, never a panic or a misread. All records are plain data without padding (`Pod` refuses to derive otherwise), their sizes are
//! asserted below, and the programs write every field.

use bytemuck::{Pod, Zeroable};

/// Bytes of a task's name, zero-padded (`TASK_COMM_LEN`, sched.h).
pub const COMM_LEN: usize = 16;
/// Bytes kept of a cgroup's path; the agent looks up a longer path by the cgroup's id.
pub const PATH_LEN: usize = 256;

/// `SI_KERNEL` (siginfo.h): the kernel itself sent the signal.
pub const SI_KERNEL: i32 = 0x80;
/// `kill(2)` (siginfo.h): sent by another process or the process itself.
pub const SI_USER: i32 = 0;
/// `sigqueue(3)`.
pub const SI_QUEUE: i32 = -1;
/// `tgkill(2)`.
pub const SI_TKILL: i32 = -6;
/// Codes that timers, message queues and I/O raise, mostly from an interrupt (`SI_SIGIO` to `SI_TIMER`).
pub const SI_EVENT: core::ops::RangeInclusive<i32> = -5..=-2;
/// The origin of the signal could not be read. The kernel has no `si_code` this small.
pub const SI_UNKNOWN: i32 = i32::MIN;

/// [`Header::kind`] of an [`OomMark`].
pub const KIND_OOM_MARK: u32 = 1;
/// [`Header::kind`] of an [`Exit`].
pub const KIND_EXIT: u32 = 2;
/// [`Header::kind`] of a [`Life`].
pub const KIND_LIFE: u32 = 3;
/// [`Header::kind`] of a [`Cgroup`].
pub const KIND_CGROUP: u32 = 4;
/// [`Header::kind`] of a [`CrashSite`].
pub const KIND_CRASH_SITE: u32 = 5;

/// [`OomMark`]: the kernel's `SIGKILL` to this victim was seen before the mark. Without this flag the victim was dying already and
/// nothing was killed.
pub const MARK_KILL_SENT: u32 = 1;
/// [`OomMark`]: only the thread id is known (older prototype, and the kill was not seen).
pub const MARK_THREAD_ONLY: u32 = 2;

/// [`OomMark`]: the victim's memory figures are filled.
pub const MARK_MEMORY: u32 = 4;

/// [`OomMark::scope`]: not known, for example without fentry where the OOM killer begins.
pub const SCOPE_UNKNOWN: u32 = 0;
/// [`OomMark::scope`]: a cgroup's limit.
pub const SCOPE_MEMCG: u32 = 1;
/// [`OomMark::scope`]: the host's memory.
pub const SCOPE_GLOBAL: u32 = 2;
/// [`OomMark::scope`]: the nodes of a cpuset or memory policy.
pub const SCOPE_CPUSET: u32 = 3;
/// [`OomMark::scope`]: SysRq-f, requested by a person.
pub const SCOPE_SYSRQ: u32 = 4;

/// [`Exit`]: the process lived in a watched cgroup.
pub const EXIT_WATCHED: u32 = 1;
/// [`Exit`]: ended by `SIGKILL` with `signal->oom_mm` set: the OOM killer chose this process.
pub const EXIT_OOM_VICTIM: u32 = 2;
/// [`Exit`]: [`Exit::sender`] is filled.
pub const EXIT_SENDER: u32 = 4;
/// [`Exit`]: no signal was delivered to the last thread (`PF_SIGNALED` is not set). If the status still has a signal, kernel code
/// ended the thread directly: seccomp, or the end of an oops.
pub const EXIT_WITHOUT_SIGNAL: u32 = 8;
/// [`Exit`]: the process was forked and never executed a program (`PF_FORKNOEXEC`).
pub const EXIT_NEVER_EXECUTED: u32 = 16;
/// [`Exit`]: the service had used up its share of the critical ring for this second.
pub const EXIT_IN_CROWD: u32 = 32;

/// [`Sender`]: the signal was for the whole process; without this flag, for one thread.
pub const SENT_TO_PROCESS: u32 = 1;
/// [`Sender`]: sent by kernel code on behalf of the sender, without a siginfo of its own, as `cgroup.kill` does.
pub const SENT_WITHOUT_INFO: u32 = 2;
/// [`Sender`]: sent by the exiting first process of a pid namespace that is not the initial one.
pub const SENT_BY_NAMESPACE_END: u32 = 4;
/// [`Sender`]: sent by an exiting tracer that had asked for it (`PTRACE_O_EXITKILL`).
pub const SENT_BY_TRACER_END: u32 = 8;
/// [`Sender`]: the OOM killer sent its signal a second time to the dying victim: it kills the chosen process, and then the whole group
/// with that process (`memory.oom.group`). The kernel counts both.
pub const SENT_AGAIN: u32 = 16;
/// [`Sender`]: sent at the end of the parent, as the process had asked (`PR_SET_PDEATHSIG`).
pub const SENT_BY_PARENT_END: u32 = 32;

/// [`CrashSite`]: the signal certainly ends the process, unless a debugger takes it: it is not blocked, handled or ignored. The
/// process serves no more requests, however long its core dump takes.
pub const SITE_FATAL: u32 = 1;

/// [`Exit::seccomp_mode`]: only read, write, exit and sigreturn are allowed (`SECCOMP_MODE_STRICT`).
pub const SECCOMP_STRICT: u32 = 1;
/// [`Exit::seccomp_mode`]: a filter decides (`SECCOMP_MODE_FILTER`).
pub const SECCOMP_FILTER: u32 = 2;
/// [`Exit::seccomp_mode`]: seccomp is ending the thread (`SECCOMP_MODE_DEAD`, 5.17 and newer).
pub const SECCOMP_DEAD: u32 = 3;

/// [`CrashSite`]: the process lived in a watched cgroup.
pub const SITE_WATCHED: u32 = 2;
/// [`CrashSite`]: the thread blocked the signal when it came. Some C libraries block signals for a moment in raise(3); a process that
/// signals itself without end may block them too.
pub const SITE_BLOCKED: u32 = 4;

/// [`Life`]: a program was executed; without this flag, a process was forked.
pub const LIFE_EXEC: u32 = 1;

/// [`Cgroup::event`]: created.
pub const CGROUP_CREATED: u32 = 1;
/// [`Cgroup::event`]: removed.
pub const CGROUP_REMOVED: u32 = 2;
/// [`Cgroup::event`]: its last process has gone.
pub const CGROUP_EMPTY: u32 = 3;
/// [`Cgroup::event`]: its first process has come.
pub const CGROUP_POPULATED: u32 = 4;
/// [`Cgroup::event`]: renamed (cgroup v1); the path is the new one.
pub const CGROUP_RENAMED: u32 = 5;

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    /// One of the `KIND_*` values.
    pub kind: u32,
    /// Flags of that kind.
    pub flags: u32,
    /// CLOCK_BOOTTIME at the hook, nanoseconds.
    pub kernel_ns: u64,
}

/// A process as the kernel saw it at the hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Process {
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Thread that the hook fired for.
    pub tid: u32,
    /// Parent's process id.
    pub parent_tgid: u32,
    /// User id in the initial namespace.
    pub uid: u32,
    /// Start of the group leader, nanoseconds of CLOCK_BOOTTIME; with `tgid` the identity of the process.
    pub start_ns: u64,
    /// Id of the cgroup in the watched hierarchy, the inode number of its directory; 0 when it cannot be read.
    pub cgroup: u64,
    /// Id of the parent's cgroup; 0 when it cannot be read.
    pub parent_cgroup: u64,
    /// Name of the group leader.
    pub comm: [u8; COMM_LEN],
}

/// Who sent a signal that ends a process, or asks it to end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sender {
    /// Time of the signal, CLOCK_BOOTTIME nanoseconds.
    pub kernel_ns: u64,
    /// Start of the sending process, CLOCK_BOOTTIME nanoseconds; 0 when it cannot be read.
    pub start_ns: u64,
    /// Id of the sender's cgroup in the watched hierarchy; 0 when it cannot be read.
    pub cgroup: u64,
    /// Signal number; 0: no signal.
    pub signal: u32,
    /// `si_code` (siginfo.h): 0 for kill(2), 0x80 for the kernel, other positive values for faults; or [`SI_UNKNOWN`].
    pub si_code: i32,
    /// Id of the sending process; for a fault or abort(3), of the process itself.
    pub tgid: u32,
    /// Id of the sending thread.
    pub tid: u32,
    /// User id of the sender.
    pub uid: u32,
    /// `SENT_*` flags.
    pub flags: u32,
    /// Name of the sending thread.
    pub comm: [u8; COMM_LEN],
}

impl Process {
    /// No process.
    pub const NONE: Self =
        Self { tgid: 0, tid: 0, parent_tgid: 0, uid: 0, start_ns: 0, cgroup: 0, parent_cgroup: 0, comm: [0; COMM_LEN] };
}

impl Sender {
    /// No signal was recorded.
    pub const NONE: Self = Self {
        kernel_ns: 0,
        start_ns: 0,
        cgroup: 0,
        signal: 0,
        si_code: 0,
        tgid: 0,
        tid: 0,
        uid: 0,
        flags: 0,
        comm: [0; COMM_LEN],
    };

    /// True when the running task sent the signal. Kernel code raises all other signals, in the context of any task, so their sender
    /// is not known.
    ///
    /// The kernel also sends without a siginfo in the running task's name: for the writer of `cgroup.kill`, or at the end of a parent,
    /// a pid namespace or a tracer. Where codes cannot be read (lockdown), the running task counts as the sender.
    #[must_use]
    pub const fn is_named(&self) -> bool {
        matches!(self.si_code, SI_USER | SI_QUEUE | SI_TKILL | SI_UNKNOWN)
            || self.si_code == SI_KERNEL
                && self.flags & (SENT_BY_NAMESPACE_END | SENT_BY_TRACER_END | SENT_BY_PARENT_END) != 0
    }
}

/// The OOM killer marked a victim.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OomMark {
    /// Kind, `MARK_*` flags, time.
    pub header: Header,
    /// The victim; with [`MARK_THREAD_ONLY`] only `tid` is filled.
    pub victim: Process,
    /// Id of the process whose allocation triggered the OOM killer.
    pub trigger_tgid: u32,
    /// Id of the allocating thread.
    pub trigger_tid: u32,
    /// User id of the allocating process.
    pub trigger_uid: u32,
    /// What ran out, one of the `SCOPE_*` values.
    pub scope: u32,
    /// Name of the allocating thread.
    pub trigger_comm: [u8; COMM_LEN],
    /// Id of the allocating process's cgroup; 0 when it cannot be read.
    pub trigger_cgroup: u64,
    /// Id of the cgroup whose limit was hit, with [`SCOPE_MEMCG`].
    pub limit_owner: u64,
    /// Limit of that cgroup, pages; 0 when it cannot be read. Recorded, as the cgroup may be gone before a look-up.
    pub limit_pages: u64,
    /// Start of the request to the OOM killer, CLOCK_BOOTTIME nanoseconds, the same for all victims of one request. 0 without fentry
    /// there.
    pub request_ns: u64,
    /// Size of the victim's address space in pages; filled, like the fields below, with [`MARK_MEMORY`].
    pub total_vm_pages: u64,
    /// Resident anonymous memory in pages.
    pub anon_pages: u64,
    /// Resident pages of files.
    pub file_pages: u64,
    /// Resident pages of shared memory.
    pub shmem_pages: u64,
    /// Memory of the page tables in bytes.
    pub page_tables_bytes: u64,
    /// `oom_score_adj` of the victim, −1000 to 1000.
    pub oom_score_adj: i32,
    /// Zero.
    pub reserved: u32,
}

/// A process ended: its last thread left.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Exit {
    /// Kind, `EXIT_*` flags, time.
    pub header: Header,
    /// The process.
    pub process: Process,
    /// Wait status, as [`crate::status`] reads it.
    pub status: u32,
    /// Requests for memory (mmap, brk) that the kernel refused to the process; 0 also when refusals were not observed.
    pub refusals: u32,
    /// Time of the last refusal, CLOCK_BOOTTIME nanoseconds.
    pub refused_ns: u64,
    /// Bytes requested in the last refusal.
    pub refused_bytes: u64,
    /// Peak resident set in pages; 0 when unknown.
    pub max_rss_pages: u64,
    /// Limit of the address space (`RLIMIT_AS`) in bytes, all ones without a limit; 0 when it cannot be read.
    pub address_space_limit: u64,
    /// Hard limit of processor time (`RLIMIT_CPU`) in seconds, all ones without a limit; 0 when it cannot be read.
    pub cpu_limit: u64,
    /// Processor time of the last thread and of threads reaped before it, nanoseconds; 0 when it cannot be read.
    pub cpu_used_ns: u64,
    /// Processor time of all threads that the kernel compares with the limit, nanoseconds; 0 without such an account.
    pub cpu_timer_ns: u64,
    /// One of the `SECCOMP_*` values; 0: no seccomp, or it cannot be read.
    pub seccomp_mode: u32,
    /// Zero.
    pub reserved: u32,
    /// The last recorded signal, with [`EXIT_SENDER`].
    pub sender: Sender,
    /// The recorded signal before `sender`.
    pub before: Sender,
}

/// Number of frames in a [`CrashSite`].
pub const FRAMES: usize = 16;
/// [`Frame::status`]: build id and file offset.
pub const FRAME_BUILD_ID: i32 = 1;
/// [`Frame::status`]: an address; the kernel could not read the build id.
pub const FRAME_ADDRESS: i32 = 2;
/// [`CrashSite::stack`]: the stack was not copied.
pub const NO_STACK: u32 = u32::MAX;
/// Number of names in a [`CrashSite::program`].
pub const PROGRAM_NAMES: usize = 12;
/// Bytes kept of each name, zero-padded; a name without a zero byte may be cut.
pub const PROGRAM_NAME_LEN: usize = 48;

/// One frame of a user stack: `struct bpf_stack_build_id` (uapi bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Frame {
    /// [`FRAME_BUILD_ID`], [`FRAME_ADDRESS`], or 0: no frame.
    pub status: i32,
    /// GNU build id of the file, zero-padded.
    pub build_id: [u8; 20],
    /// Offset in the file, or the address.
    pub offset: u64,
}

/// Where a process was when it caused its own fatal signal. Precedes its [`Exit`] on the same ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CrashSite {
    /// Kind, `SITE_*` flags, time.
    pub header: Header,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Signal number.
    pub signal: u32,
    /// Number of `frames` filled.
    pub depth: u32,
    /// Slot of the [`crate::stack::CrashStack`], or [`NO_STACK`].
    pub stack: u32,
    /// Zero.
    pub reserved: u32,
    /// Frames, the innermost first. Outer frames are only right in code with frame pointers.
    pub frames: [Frame; FRAMES],
    /// Path of the program from its own name up to the root of its file system (`/`); an empty name is not known.
    pub program: [[u8; PROGRAM_NAME_LEN]; PROGRAM_NAMES],
}

/// A process was forked or executed in a watched cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Life {
    /// Kind, `LIFE_*` flags, time.
    pub header: Header,
    /// The process.
    pub process: Process,
}

/// A cgroup of the watched hierarchy came, went, changed between empty and populated, or was renamed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Cgroup {
    /// Kind, no flags, time.
    pub header: Header,
    /// Id of the cgroup.
    pub id: u64,
    /// One of the `CGROUP_*` values.
    pub event: u32,
    /// Bytes used of `path`; 0 when unknown, [`PATH_LEN`] − 1 when the path may be cut.
    pub path_len: u32,
    /// Path below the root of its hierarchy.
    pub path: [u8; PATH_LEN],
}

// A changed size is a changed contract between the committed object and the agent.
const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Process>() == 56);
    assert!(size_of::<Sender>() == 64);
    assert!(size_of::<OomMark>() == 184);
    assert!(size_of::<Exit>() == 272);
    assert!(size_of::<Life>() == 72);
    assert!(size_of::<Cgroup>() == 288);
    assert!(size_of::<Frame>() == 32);
    assert!(size_of::<CrashSite>() == 1136);
};

/// One decoded record.
#[expect(clippy::large_enum_variant, reason = "no allocator here; the queue that holds decoded records is bounded")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The OOM killer marked a victim.
    OomMark(OomMark),
    /// A process ended.
    Exit(Exit),
    /// A process was forked or executed in a watched cgroup.
    Life(Life),
    /// A cgroup changed.
    Cgroup(Cgroup),
    /// A process is about to crash.
    CrashSite(CrashSite),
}

/// Why bytes from a ring are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than a header.
    Short {
        /// Bytes seen.
        len: usize,
    },
    /// No such kind.
    Kind {
        /// The kind seen.
        kind: u32,
    },
    /// The length is not that of the kind.
    Length {
        /// The kind seen.
        kind: u32,
        /// Bytes that the kind has.
        want: usize,
        /// Bytes seen.
        len: usize,
    },
    /// A field holds a value that the programs never write.
    Field {
        /// The kind seen.
        kind: u32,
        /// Name of the field.
        field: &'static str,
    },
}

impl Record {
    /// Reads one record from `bytes`, which need no alignment.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not exactly one record of a known kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let head = bytes.get(..size_of::<Header>()).ok_or(DecodeError::Short { len: bytes.len() })?;
        let header: Header = bytemuck::pod_read_unaligned(head);
        let kind = header.kind;
        match kind {
            KIND_OOM_MARK => {
                let mark: OomMark = read(kind, bytes)?;
                if mark.scope > SCOPE_SYSRQ {
                    return Err(DecodeError::Field { kind, field: "scope" });
                }
                Ok(Self::OomMark(mark))
            }
            KIND_EXIT => read(kind, bytes).map(Self::Exit),
            KIND_LIFE => read(kind, bytes).map(Self::Life),
            KIND_CGROUP => {
                let cgroup: Cgroup = read(kind, bytes)?;
                if !(CGROUP_CREATED..=CGROUP_RENAMED).contains(&cgroup.event) {
                    return Err(DecodeError::Field { kind, field: "event" });
                }
                if cgroup.path_len as usize >= PATH_LEN {
                    return Err(DecodeError::Field { kind, field: "path_len" });
                }
                Ok(Self::Cgroup(cgroup))
            }
            KIND_CRASH_SITE => {
                let site: CrashSite = read(kind, bytes)?;
                if site.depth as usize > FRAMES {
                    return Err(DecodeError::Field { kind, field: "depth" });
                }
                Ok(Self::CrashSite(site))
            }
            _ => Err(DecodeError::Kind { kind }),
        }
    }
}

fn read<T: Pod>(kind: u32, bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() == size_of::<T>() {
        Ok(bytemuck::pod_read_unaligned(bytes))
    } else {
        Err(DecodeError::Length { kind, want: size_of::<T>(), len: bytes.len() })
    }
}

impl CrashSite {
    /// The frames that are filled.
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(..self.depth as usize).unwrap_or_default()
    }
}

impl Cgroup {
    /// The path's bytes, without the unused rest.
    pub fn path_bytes(&self) -> &[u8] {
        self.path.get(..self.path_len as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        let mut exit = Exit::zeroed();
        exit.header = Header { kind: KIND_EXIT, flags: EXIT_WATCHED, kernel_ns: 7 };
        exit.process.tgid = 42;
        exit.status = 0x8b;
        exit
    }

    #[test]
    fn a_record_survives_the_ring_at_any_alignment() {
        let exit = exit();
        let mut buffer = [0u8; size_of::<Exit>() + 8];
        for shift in 0..8 {
            buffer[shift..shift + size_of::<Exit>()].copy_from_slice(bytemuck::bytes_of(&exit));
            let decoded = Record::decode(&buffer[shift..shift + size_of::<Exit>()]);
            assert_eq!(decoded, Ok(Record::Exit(exit)));
        }
    }

    #[test]
    fn a_sender_is_named_only_where_the_running_task_is_the_sender() {
        let sender = |si_code, flags| Sender { si_code, flags, ..Sender::NONE };
        for (si_code, flags, named) in [
            (SI_USER, 0, true),
            (SI_QUEUE, 0, true),
            (SI_TKILL, 0, true),
            (SI_USER, SENT_WITHOUT_INFO, true),
            // A timer, a message queue, asynchronous I/O, a socket, a name look-up.
            (-2, 0, false),
            (-3, 0, false),
            (-4, 0, false),
            (-5, 0, false),
            (-60, 0, false),
            (SI_KERNEL, SENT_WITHOUT_INFO, false),
            (SI_KERNEL, SENT_BY_NAMESPACE_END, true),
            (SI_KERNEL, SENT_BY_TRACER_END, true),
            // A fault, or a file descriptor that was set to send a signal.
            (1, 0, false),
            (SI_UNKNOWN, 0, true),
        ] {
            assert_eq!(sender(si_code, flags).is_named(), named, "{si_code} {flags}");
        }
    }

    #[test]
    fn malformed_records_are_errors_that_say_what_is_wrong() {
        let exit = exit();
        let bytes = bytemuck::bytes_of(&exit);
        assert_eq!(Record::decode(&bytes[..15]), Err(DecodeError::Short { len: 15 }));
        assert_eq!(Record::decode(&bytes[..271]), Err(DecodeError::Length { kind: KIND_EXIT, want: 272, len: 271 }));
        let mut unknown = [0u8; 272];
        unknown[0] = 99;
        assert_eq!(Record::decode(&unknown), Err(DecodeError::Kind { kind: 99 }));

        let mut mark = OomMark::zeroed();
        mark.header.kind = KIND_OOM_MARK;
        mark.scope = 5;
        let decoded = Record::decode(bytemuck::bytes_of(&mark));
        assert_eq!(decoded, Err(DecodeError::Field { kind: KIND_OOM_MARK, field: "scope" }));

        let mut cgroup = Cgroup::zeroed();
        cgroup.header.kind = KIND_CGROUP;
        cgroup.event = 9;
        let decode = |cgroup: &Cgroup| Record::decode(bytemuck::bytes_of(cgroup));
        assert_eq!(decode(&cgroup), Err(DecodeError::Field { kind: KIND_CGROUP, field: "event" }));
        cgroup.event = CGROUP_CREATED;
        cgroup.path_len = PATH_LEN as u32;
        assert_eq!(decode(&cgroup), Err(DecodeError::Field { kind: KIND_CGROUP, field: "path_len" }));
        let mut site = CrashSite::zeroed();
        site.header.kind = KIND_CRASH_SITE;
        site.depth = FRAMES as u32 + 1;
        let decoded = Record::decode(bytemuck::bytes_of(&site));
        assert_eq!(decoded, Err(DecodeError::Field { kind: KIND_CRASH_SITE, field: "depth" }));

        cgroup.path_len = 0;
        assert_eq!(decode(&cgroup), Ok(Record::Cgroup(cgroup)));
    }
}
