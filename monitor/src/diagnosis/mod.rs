//! From evidence to a cause of death. Pure: no I/O, no clock; time comes as an argument.
//!
//! * [`cause`]: the causes of death, as operators read them
//! * [`evidence`]: all that is known of one death
//! * [`question`]: the question to others that a death raises
//! * [`sender`]: classifies the sender of a signal
//! * [`site`]: where a crash happened
//! * [`docket`]: deaths that wait for late evidence, for a bounded time
//! * [`verdict`]: the rules

mod cause;
mod docket;
mod evidence;
mod question;
mod sender;
mod site;
mod verdict;

pub(crate) use cause::{Cause, Scope};
pub(crate) use docket::{DeathContext, Docket, Finding, Losses, MarkContext};
pub(crate) use evidence::{Count, Counts, Evidence, Item, Mark, Missing, SenderKind, Senders};
pub(crate) use question::{Question, Reply};
pub(crate) use sender::{Signaller, sender_kind};
pub(crate) use site::Site;

/// Signals as `kill -l` names them, without `SIG`.
pub(crate) fn signal_name(signal: u8) -> &'static str {
    const NAMES: [&str; 32] = [
        "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    NAMES.get(usize::from(signal)).copied().unwrap_or("RT")
}
