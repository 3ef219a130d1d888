//! What a user without rights can do to an agent that has the packaged unit's limits: each attack was found to work once. Beside it
//! honest services die and come back, and each of their deaths is to be told once, with its cause.
//!
//! `DEFIB_ATTACK_SECONDS=300` lets all attacks at once go on for longer. Times are printed (`MEASURED`); `cargo xtask bench --only
//! attacks` holds them against their targets. Here only what is counted is asserted, and times that would be wrong on any machine.

mod cgroups;
mod containers;
mod crowds;
mod names;
mod reading;
mod requests;
mod scene;
mod together;
mod units;
