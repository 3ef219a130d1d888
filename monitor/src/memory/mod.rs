//! Memory of services over time.
//!
//! * [`recorder`]: the last minutes of each, for the record of its death
//! * [`trend`]: how it grows with uptime over many incarnations (pure)
//! * [`forecast`]: what that means: a leak, hidden by restarts or not, and when memory runs out

pub mod forecast;
mod recorder;
pub mod trend;

pub(crate) use recorder::{Recorder, interval};
