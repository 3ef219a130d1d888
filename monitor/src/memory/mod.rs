//! Memory of services over time.
//!
//! ```text
//! host ──▶ sampler.rs ──▶ recorder.rs: the last minutes, for the record of a death
//!                  └────▶ follower.rs ──▶ trend/ ──▶ forecast.rs ──▶ metrics, incidents, words.rs
//! ```
//! * [`sampler`]: reads it, every few seconds
//! * [`recorder`]: the last minutes of each service
//! * [`follower`]: from measurements to samples, from forecasts to news (pure)
//! * [`trend`]: how it grows with uptime over many incarnations (pure)
//! * [`picture`]: what a process' memory consists of (pure)
//! * [`forecast`]: what that means: a leak, hidden by restarts or not, and when memory runs out

mod follower;
pub mod forecast;
pub(crate) mod picture;
mod recorder;
mod sampler;
pub mod trend;
mod words;

pub(crate) use follower::{Clocks, Follower, News};
pub(crate) use recorder::Recorder;
pub(crate) use sampler::{Measured, Target, interval, measure};
pub(crate) use trend::Pace;
pub(crate) use words::Words;
