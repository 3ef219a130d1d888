//! When to bring a service back. Pure: inputs and the time go in, actions come out.
//!
//! * [`engine`]: the states of one service
//! * [`renewal`]: a planned restart, before it dies
//! * [`plan`]: what its supervisor is going to do
//! * [`budget`]: how many restarts in how long, for a service and for the host

mod budget;
mod engine;
mod plan;
pub(crate) mod renewal;

pub(crate) use budget::HostLedger;
pub(crate) use engine::{Action, Engine, Input, Intent, Memory, Outcome, Policy};
pub(crate) use plan::Plan;
