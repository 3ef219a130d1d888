//! The manual pages, made of what the command line says of itself.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

/// Writes a page for each command that is for people.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write(directory: &Path) -> Result<()> {
    let written = fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(super::Cli::command().disable_help_subcommand(true), directory));
    written.with_context(|| directory.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_what_people_call_and_none_for_what_they_do_not() {
        let place = tempfile::tempdir().expect("a directory");
        write(place.path()).expect("written");
        for page in ["defib.1", "defib-run.1", "defib-incidents-show.1"] {
            assert!(place.path().join(page).is_file(), "{page}");
        }
        for page in ["defib-aside.1", "defib-launch.1", "defib-locate.1", "defib-manual.1"] {
            assert!(!place.path().join(page).exists(), "{page}");
        }
    }
}
