//! The record of an outage, or of a death that nearly was one: evidence, timeline, decisions, memory before the end, outcome.
//!
//! * [`record`]: what is kept
//! * [`book`]: the incidents that are open, written as moments come (pure)
//! * [`picture`]: what was in memory, in words (pure)
//! * [`report`]: the root-cause timeline for people (pure)

mod book;
pub(crate) mod picture;
mod record;
pub(crate) mod report;

pub(crate) use book::{Book, Death};
pub(crate) use record::{Before, Foretold, Incident, Kind, Sample};
pub(crate) use report::markdown;
