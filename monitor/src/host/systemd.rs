//! stub
use std::fmt;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Stop,
    StopTimedOut,
    StartTimeout,
    RuntimeLimit,
    Watchdog,
    OomPolicy,
    NotInvolved,
}
impl fmt::Display for Meaning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self:?}")
    }
}
