//! Attacks by an unprivileged user on an agent with the packaged unit's limits; each attack has worked once. Meanwhile
//! honest services die and come back, and each of their deaths must be reported once, with its cause.
//!
//! `DEFIB_ATTACK_SECONDS=300` runs all attacks at once for longer. Times are printed (`MEASURED`); `cargo xtask bench
//! --only attacks` compares them with their targets. These tests assert only counts, and times that are wrong on any
//! machine.

mod cgroups;
mod containers;
mod crowds;
mod names;
mod reading;
mod requests;
mod scene;
mod together;
mod units;
