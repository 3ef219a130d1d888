//! Files that decide what root does must be root's alone, and so must every directory above them: whoever can write one, or put
//! another in its place, is root.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    process::geteuid,
};

use super::bounded::{self, Bounded};

/// Group and others may write (inode(7)).
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// In such a directory nobody can replace what belongs to somebody else.
const STICKY: u32 = 0o1000;

/// Refuses a file or directory that somebody else could change or replace. Without root's rights there is nothing to gain,
/// and all is well; likewise with a path that does not exist.
///
/// # Errors
/// Names what is open to others, and the mend.
pub(crate) fn ensure_ours(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let path = std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))?;
    ensure_each(&path)?;
    match fs::canonicalize(&path) {
        // Links may lead to a place that is less guarded than their own.
        Ok(real) if real != path => ensure_each(&real),
        _ => Ok(()),
    }
}

/// Reads a file of at most `most` bytes that nobody else could have changed.
///
/// # Errors
/// One line to follow the path: when it cannot be read, is not a regular file, is too long, or is not ours.
pub(crate) fn read(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    ensure_ours(path).map_err(|error| format!("is not safe: {error:#}"))?;
    let read = bounded::read(path, most).and_then(Bounded::whole);
    read.map_err(|error| format!("cannot be read: {error}"))
}

/// Likewise for what the agent keeps in its state directory, where a link would lead its hand elsewhere.
///
/// # Errors
/// As [`ensure_ours`].
pub(crate) fn ensure_state_is_ours(directory: &Path) -> Result<()> {
    ensure_ours(directory)?;
    if !geteuid().is_root() {
        return Ok(());
    }
    for name in ["defib.db", "defib.db-wal", "defib.db-shm", "output", "traces", "before-oom"] {
        let path = directory.join(name);
        let Some(metadata) = look_at(&path)? else { continue };
        if metadata.is_symlink() {
            bail!("{0} is a link, which is not followed: remove it ('rm {0}')", path.display());
        }
        ensure_one(&path, &metadata, true)?;
    }
    Ok(())
}

fn ensure_each(path: &Path) -> Result<()> {
    for above in path.ancestors() {
        if let Some(metadata) = look_at(above)? {
            ensure_one(above, &metadata, above == path)?;
        }
    }
    Ok(())
}

fn look_at(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// `itself`: not only a directory on the way.
fn ensure_one(path: &Path, metadata: &Metadata, itself: bool) -> Result<()> {
    let mode = if is_read_only(path) { metadata.mode() & !(GROUP_WRITES | OTHERS_WRITE) } else { metadata.mode() };
    if let Some((fault, mend)) = fault(metadata.uid(), metadata.gid(), mode, metadata.is_symlink(), itself) {
        bail!("{0} {fault}, who could have this agent do anything as root: '{mend} {0}'", path.display());
    }
    Ok(())
}

/// Where nothing can be written, modes say nothing: Kubernetes gives the directory of a ConfigMap 0777, and mounts it so.
fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// What is wrong, and the command that mends it.
fn fault(owner: u32, group: u32, mode: u32, link: bool, itself: bool) -> Option<(String, &'static str)> {
    if owner != 0 {
        return Some((format!("belongs to user {owner}"), "chown root"));
    }
    // A link has no mode of its own.
    if link || (mode & STICKY != 0 && !itself) {
        return None;
    }
    if mode & OTHERS_WRITE != 0 {
        return Some(("can be written by everybody".to_owned(), "chmod go-w"));
    }
    (mode & GROUP_WRITES != 0 && group != 0).then(|| (format!("can be written by group {group}"), "chmod go-w"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_others_can_write_or_replace_is_at_fault() {
        for (owner, group, mode, link, itself, at_fault) in [
            (0, 0, 0o100_600, false, true, false),
            (0, 0, 0o100_664, false, true, false),
            (0, 50, 0o100_664, false, true, true),
            (0, 0, 0o100_666, false, true, true),
            (1000, 0, 0o100_600, false, true, true),
            (0, 0, 0o041_777, false, false, false),
            (0, 0, 0o041_777, false, true, true),
            (0, 0, 0o040_777, false, false, true),
            (0, 0, 0o120_777, true, true, false),
            (1000, 0, 0o120_777, true, true, true),
        ] {
            let found = fault(owner, group, mode, link, itself);
            assert_eq!(found.is_some(), at_fault, "{owner} {group} {mode:o}: {found:?}");
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_and_no_further_than_allowed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web.yml");
        fs::write(&path, "12345").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(read(&path, 5).expect("read"), b"12345");
        assert!(read(&path, 4).expect_err("too long").contains("4 bytes"));
        assert!(read(directory.path(), 5).expect_err("a directory").contains("is not a regular file"));
        assert!(read(&directory.path().join("x"), 5).expect_err("not there").contains("cannot be read"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("set");
        if geteuid().is_root() {
            assert!(read(&path, 5).expect_err("open to all").contains("chmod go-w"));
        }
    }

    #[test]
    fn what_does_not_exist_is_nobody_s() {
        ensure_ours(Path::new("/nonexistent/a/b")).expect("nothing is there");
        ensure_state_is_ours(Path::new("/nonexistent/a/b")).expect("nothing is there");
    }
}
