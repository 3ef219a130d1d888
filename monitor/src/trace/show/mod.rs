//! What a trace found, shown: as a table, as a flame graph, as folded stacks, beside what another build did; and kept.
//!
//! ```text
//! Place ──▶ its names: for people, for tools, without what differs from build to build     name.rs (pure)
//! Place ──▶ is this the code that asked, or what it asked through?                         culprit.rs (pure)
//! stacks that people cannot tell apart are one to them                                    alike.rs (pure)
//! Growth ──▶ report for people                                                             report.rs (pure)
//!        ──▶ folded stacks ──▶ flame graph                                                 folded.rs, flame.rs (pure)
//!        ──▶ the few lines that incidents and lists show                                   summary.rs (pure)
//! two Growths ──▶ what grew, what is new, what is gone                                     compare.rs (pure)
//! all of it ──▶ files in the state directory, a bounded number                             kept.rs, room.rs (pure)
//! ```
//!
//! Names come from other people's programs. They are cut and cleaned here for every reader but JSON, which escapes for itself.

mod alike;
pub(crate) mod compare;
mod culprit;
mod flame;
mod folded;
pub(crate) mod kept;
mod name;
pub(crate) mod report;
mod room;
pub(crate) mod summary;

#[cfg(test)]
pub(crate) mod sample;
