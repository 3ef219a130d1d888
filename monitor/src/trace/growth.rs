//! What a trace found: growth that stays, by the call stack that asked for it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A service's lasting growth while it was traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// The service.
    pub(crate) service: String,
    /// When the trace began, wall clock.
    pub(crate) began: Timestamp,
    /// How long it took, seconds.
    pub(crate) seconds: f64,
    /// Why it ended.
    pub(crate) ended: Ended,
    /// What ran: one for each program among the traced processes.
    pub(crate) programs: Vec<Program>,
    /// Resident anonymous memory of the traced processes at the first and the last look, bytes.
    pub(crate) anonymous_bytes: [u64; 2],
    /// Stacks whose memory stays, the fastest growth first as far as it is sure; at most 256, the rest is in `others`.
    pub(crate) stacks: Vec<Stack>,
    /// Growth of all stacks that found no place in `stacks`, for want of room or because it may be chance, bytes an hour.
    pub(crate) others_bytes_per_hour: f64,
    /// Share of the growth, 0 to 1, whose stack could not be followed to its beginning.
    pub(crate) cut_share: f64,
    /// What it took.
    pub(crate) cost: Cost,
    /// What did not work here, each with the mend.
    pub(crate) notes: Vec<String>,
}

/// Why a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// Its time was up.
    Done,
    /// Somebody asked for the end.
    Asked,
    /// Every process of the service has gone.
    ServiceGone,
    /// It cost the service more than was allowed even at the rarest watching.
    TooDear,
}

/// A program among the traced processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Path of the file, as the process sees it.
    pub(crate) path: String,
    /// GNU build id in hexadecimal digits; `None` when the file has none.
    pub(crate) build_id: Option<String>,
    /// Its processes that were traced.
    pub(crate) processes: u32,
    /// What was watched: the allocator's file or `runtime.mallocgc`, for people.
    pub(crate) watched: Vec<String>,
}

/// Growth that one call stack asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// Estimate of growth that stays, bytes an hour.
    pub(crate) bytes_per_hour: f64,
    /// Allocations seen that stayed: what the estimate rests on.
    pub(crate) allocations: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Frames, the innermost first; inlined functions stand before the one that holds them.
    pub(crate) frames: Vec<Place>,
    /// Whether it was followed to its beginning.
    pub(crate) whole: bool,
}

/// A place in a program's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Path of the file, as its process saw it; `None` for code made at run time that no map names.
    pub(crate) module: Option<String>,
    /// GNU build id in hexadecimal digits.
    pub(crate) build_id: Option<String>,
    /// Offset in the file; the address when there is no module.
    pub(crate) offset: u64,
    /// Function, demangled.
    pub(crate) function: Option<String>,
    /// Source file, as the debug information names it.
    pub(crate) file: Option<String>,
    /// Line in it.
    pub(crate) line: Option<u32>,
    /// Whether the function was inlined into the next place.
    pub(crate) inlined: bool,
}

/// What a trace took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Seconds in which calls were watched, all watches together.
    pub(crate) watched_seconds: f64,
    /// Watches.
    pub(crate) watches: u64,
    /// Calls seen in them.
    pub(crate) calls: u64,
    /// Calls that found no room; each makes the growth look smaller than it is.
    pub(crate) lost: u64,
    /// Time taken from the traced processes: estimate, share of the processor time that they used, 0 to 1; of a quarter of a processor
    /// for one that uses less.
    pub(crate) share: f64,
    /// Most private memory of the tracing process, bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time of the tracing process, seconds.
    pub(crate) processor_seconds: f64,
}
