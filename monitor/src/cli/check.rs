//! `defib check FILE`

use std::path::PathBuf;

use anyhow::Result;

use super::output;
use crate::{config::Config, web};

/// Arguments of `check`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file to validate, with the one that its [http] web_config names
    file: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = Config::load(Some(&args.file))?;
    if let Some(file) = &config.http.web_config {
        output::line(format_args!("{}: valid; {}", file.display(), web::check(file)?))?;
    }
    let services = config.services();
    let restarts = services.iter().filter(|service| service.restart).count();
    output::line(format_args!(
        "{}: valid; {} [[service]], {restarts} of them restarted when nobody else does it",
        args.file.display(),
        services.len()
    ))
}
