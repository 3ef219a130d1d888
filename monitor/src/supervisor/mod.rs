//! Those that start services. So far [`command`], for services without an owner.

mod command;

pub(crate) use command::{CommandSupervisor, Launch};
