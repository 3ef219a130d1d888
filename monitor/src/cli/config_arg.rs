//! The configuration, for commands that only need to know where things are.

use std::path::PathBuf;

use crate::config::{Config, ConfigError, DEFAULT_PATH};

/// The option.
#[derive(clap::Args)]
// Flattened into others that are called `Args`, too; clap names a group after each.
#[group(skip)]
pub(super) struct Args {
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        help = format!("The agent's configuration, which says where things are [default: {DEFAULT_PATH}, when it exists]")
    )]
    config: Option<PathBuf>,
}

impl Args {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not valid.
    pub(super) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}
