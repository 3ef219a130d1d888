//! A directory that is built once, whoever comes first, and seen by others only when it is complete.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::say;

/// Makes sure that the directory `path` exists: if not, `build` fills an empty directory, which then takes that name.
///
/// Others who ask for the same path meanwhile wait. A build that was broken off leaves nothing that counts.
pub(super) fn build_once(path: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().context("a cached directory needs a parent")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let lock_path = path.with_added_extension("lock");
    let lock = File::create(&lock_path).with_context(|| lock_path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say::line(format_args!("vm: another run is making {}; waiting for it", path.display()));
            lock.lock().with_context(|| lock_path.display().to_string())?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| lock_path.display().to_string()),
    }
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_added_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    }
    fs::create_dir(&unfinished).with_context(|| unfinished.display().to_string())?;
    build(&unfinished)?;
    fs::rename(&unfinished, path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use anyhow::{Result, bail};

    use super::build_once;

    #[test]
    fn a_failed_build_does_not_count_and_a_finished_one_is_not_repeated() -> Result<()> {
        let base = env::temp_dir().join(format!("defib-vm-cache-{}", process::id()));
        let path = base.join("kernel-6.1");
        assert!(build_once(&path, |_| bail!("broken off")).is_err());
        assert!(!path.exists());
        build_once(&path, |dir| Ok(fs::write(dir.join("file"), "1")?))?;
        build_once(&path, |_| bail!("built again"))?;
        assert_eq!(fs::read_to_string(path.join("file"))?, "1");
        fs::remove_dir_all(base)?;
        Ok(())
    }
}
