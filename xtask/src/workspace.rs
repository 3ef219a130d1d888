//! Where things are in the checkout, and the cargo that is running us.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The top directory of the checkout.
///
/// Cargo names the package's directory at run time; the path at compile time serves a binary that is started by hand.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// The cargo that started us, so that its version and toolchain stay the same in every child; runs at the top.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The directory for what the tasks keep between runs. Cargo's own may be elsewhere (`CARGO_TARGET_DIR`), see
/// [`crate::artifacts`].
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Whether a build server runs us: there, what a person may lack (root, the kernel tool chain) is an error.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}
