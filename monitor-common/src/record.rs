//! The records that travel over the rings.
//!
//! Each begins with a [`Header`]; [`Record::decode`] checks kind and length before it believes anything else, so a
//! malformed record is an error to count, never a panic or a misread. All records are plain data without padding
//! (`Pod` refuses to derive otherwise), their sizes are asserted below, and every field is written by the programs.

use bytemuck::{Pod, Zeroable};

/// Bytes of a task's name, zero-padded (`TASK_COMM_LEN`, sched.h).
pub const COMM_LEN: usize = 16;
/// Bytes kept of a cgroup's path; the agent looks a longer one up by its id.
pub const PATH_LEN: usize = 256;

/// `SI_KERNEL` (siginfo.h): the kernel itself sent the signal.
pub const SI_KERNEL: i32 = 0x80;
/// The origin of the signal could not be read. No `si_code` of the kernel's is this small.
pub const SI_UNKNOWN: i32 = i32::MIN;

/// [`Header::kind`] of an [`OomMark`].
pub const KIND_OOM_MARK: u32 = 1;
/// [`Header::kind`] of an [`Exit`].
pub const KIND_EXIT: u32 = 2;
/// [`Header::kind`] of a [`Life`].
pub const KIND_LIFE: u32 = 3;
/// [`Header::kind`] of a [`Cgroup`].
pub const KIND_CGROUP: u32 = 4;

/// [`OomMark`]: the kernel's `SIGKILL` to this victim was seen before the mark. Without it the victim was dying
/// already and nothing was killed.
pub const MARK_KILL_SENT: u32 = 1;
/// [`OomMark`]: only the thread id is known (older prototype, and the kill was not seen).
pub const MARK_THREAD_ONLY: u32 = 2;

/// [`OomMark::scope`]: not known; the kernel lets no program in where the OOM killer begins.
pub const SCOPE_UNKNOWN: u32 = 0;
/// [`OomMark::scope`]: a cgroup's limit.
pub const SCOPE_MEMCG: u32 = 1;
/// [`OomMark::scope`]: the host's memory.
pub const SCOPE_GLOBAL: u32 = 2;
/// [`OomMark::scope`]: the nodes of a cpuset or memory policy.
pub const SCOPE_CPUSET: u32 = 3;
/// [`OomMark::scope`]: SysRq-f, asked for by a person.
pub const SCOPE_SYSRQ: u32 = 4;

/// [`Exit`]: the process lived in a watched cgroup.
pub const EXIT_WATCHED: u32 = 1;
/// [`Exit`]: `signal->oom_mm` was set, the OOM killer had chosen this process.
pub const EXIT_OOM_VICTIM: u32 = 2;
/// [`Exit`]: [`Exit::sender`] is filled.
pub const EXIT_SENDER: u32 = 4;

/// [`Life`]: a program was executed; without it, a process was forked.
pub const LIFE_EXEC: u32 = 1;

/// [`Cgroup::event`]: created.
pub const CGROUP_CREATED: u32 = 1;
/// [`Cgroup::event`]: removed.
pub const CGROUP_REMOVED: u32 = 2;
/// [`Cgroup::event`]: its last process has gone.
pub const CGROUP_EMPTY: u32 = 3;
/// [`Cgroup::event`]: its first process has come.
pub const CGROUP_POPULATED: u32 = 4;

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
    /// The parent's cgroup likewise.
    pub parent_cgroup: u64,
    /// Name of the group leader.
    pub comm: [u8; COMM_LEN],
}

/// Who sent the signal that was recorded last for a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sender {
    /// When, CLOCK_BOOTTIME in nanoseconds.
    pub kernel_ns: u64,
    /// The signal.
    pub signal: u32,
    /// `si_code` (siginfo.h): 0 a user's kill(2), 0x80 the kernel, positive otherwise a fault; or [`SI_UNKNOWN`].
    pub si_code: i32,
    /// Process that sent it; the process itself for a fault or abort(3).
    pub tgid: u32,
    /// Its user.
    pub uid: u32,
    /// 1 when the signal was for the whole process, 0 for one thread.
    pub group: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the thread that sent it.
    pub comm: [u8; COMM_LEN],
}

impl Process {
    /// Nobody.
    pub const NONE: Self =
        Self { tgid: 0, tid: 0, parent_tgid: 0, uid: 0, start_ns: 0, cgroup: 0, parent_cgroup: 0, comm: [0; COMM_LEN] };
}

impl Sender {
    /// No signal was recorded.
    pub const NONE: Self =
        Self { kernel_ns: 0, signal: 0, si_code: 0, tgid: 0, uid: 0, group: 0, reserved: 0, comm: [0; COMM_LEN] };
}

/// The OOM killer marked a victim.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OomMark {
    /// Kind, `MARK_*` flags, time.
    pub header: Header,
    /// The victim; with [`MARK_THREAD_ONLY`] only `tid` is filled.
    pub victim: Process,
    /// Process whose allocation triggered the OOM killer.
    pub trigger_tgid: u32,
    /// Its user.
    pub trigger_uid: u32,
    /// Name of the allocating thread.
    pub trigger_comm: [u8; COMM_LEN],
    /// What ran out, one of the `SCOPE_*` values.
    pub scope: u32,
    /// Zero.
    pub reserved: u32,
    /// Id of the cgroup whose limit fired, with [`SCOPE_MEMCG`].
    pub limit_owner: u64,
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
    /// Zero.
    pub reserved: u32,
    /// Peak resident set in pages; 0 when unknown.
    pub max_rss_pages: u64,
    /// The last recorded signal, with [`EXIT_SENDER`].
    pub sender: Sender,
}

/// A process came to life in a watched cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Life {
    /// Kind, `LIFE_*` flags, time.
    pub header: Header,
    /// The process.
    pub process: Process,
}

/// A cgroup of the watched hierarchy came, went, or changed between empty and populated.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Cgroup {
    /// Kind, no flags, time.
    pub header: Header,
    /// Its id.
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
    assert!(size_of::<Sender>() == 48);
    assert!(size_of::<OomMark>() == 112);
    assert!(size_of::<Exit>() == 136);
    assert!(size_of::<Life>() == 72);
    assert!(size_of::<Cgroup>() == 288);
};

/// One decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The OOM killer marked a victim.
    OomMark(OomMark),
    /// A process ended.
    Exit(Exit),
    /// A process came to life in a watched cgroup.
    Life(Life),
    /// A cgroup changed.
    Cgroup(Cgroup),
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
                if !(CGROUP_CREATED..=CGROUP_POPULATED).contains(&cgroup.event) {
                    return Err(DecodeError::Field { kind, field: "event" });
                }
                if cgroup.path_len as usize >= PATH_LEN {
                    return Err(DecodeError::Field { kind, field: "path_len" });
                }
                Ok(Self::Cgroup(cgroup))
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
    fn malformed_records_are_errors_that_say_what_is_wrong() {
        let exit = exit();
        let bytes = bytemuck::bytes_of(&exit);
        assert_eq!(Record::decode(&bytes[..15]), Err(DecodeError::Short { len: 15 }));
        assert_eq!(Record::decode(&bytes[..135]), Err(DecodeError::Length { kind: KIND_EXIT, want: 136, len: 135 }));
        let mut unknown = [0u8; 136];
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
        cgroup.path_len = 0;
        assert_eq!(decode(&cgroup), Ok(Record::Cgroup(cgroup)));
    }
}
