//! When to bring a service back. Pure: inputs and the time go in, actions come out.
//!
//! * [`engine`]: the states of one service
//! * [`budget`]: how many restarts in how long, for a service and for the host

mod budget;
mod engine;

pub(crate) use budget::Ledger;
pub(crate) use engine::{Action, Engine, Input, Policy};
