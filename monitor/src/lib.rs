//! Defib: an eBPF OOM and crash monitor that closes the loop. The map of the crate, in the order of the flow:
//!
//! ```text
//! kernel ──rings──▶ decode ──▶ Event                                  kernel/
//! Event + cgroups ──▶ which service, which role                       attribution/, host/
//! evidence ──▶ cause                                                  diagnosis/ (pure)
//! the three together: deaths with cause and service                   observer.rs
//! death + supervisor + clock ──▶ actions                              healing/ (pure)
//! memory samples ──▶ trend ──▶ forecast                               memory/ (pure)
//! forecast, mark ──▶ a picture of memory, a command that looks        host/portrait.rs, before_oom.rs
//! marks, deaths, probes ──▶ in or out of the pool ──▶ load balancers  pool/ (state: pure)
//! a copied stack ──▶ who called, by the tables of the files            unwind/
//! suspects ──▶ who asked for what stays, by call stack                trace/
//! actions ──▶ start, prove health, count, serve                       supervisor/, health.rs, metrics.rs, web.rs
//! deaths, outages, forecasts ──▶ Alertmanager                         alert/ (board, outbox: pure)
//! planned actions ──may I?──▶ etcd, for the whole fleet               fleet/ (claim, pace: pure)
//! ```
//!
//! `agent.rs` alone knows all the parts and owns the engine's state; `cli/` has a file for each command.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests read files of their own"))]

mod agent;
mod alert;
mod attribution;
mod audit;
mod before_oom;
pub mod cli;
mod config;
mod control;
#[cfg(test)]
mod counted;
mod crowd;
mod diagnosis;
mod enquiry;
mod figures;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handover;
mod healing;
mod health;
mod host;
mod http;
mod incident;
mod kernel;
pub mod memory;
mod metrics;
mod observer;
mod overview;
mod pool;
mod progress;
mod questions;
mod recent;
mod roster;
mod shared;
mod steward;
mod store;
mod supervisor;
#[expect(clippy::disallowed_methods, reason = "it runs in a process of its own, whose memory and time are bounded")]
mod symbols;
mod text;
mod timeline;
mod trace;
mod unwind;
mod web;
