//! Memory of services over time.
//!
//! * [`recorder`]: the last minutes of each, for the record of its death

mod recorder;

pub(crate) use recorder::{Recorder, interval};
