//! Files that decide what the agent does: read only when nobody but root, or the agent's own user, can have written them.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// In one line, without the path, when it cannot be read, is no file, is too long, or can be written by others.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    // Not to wait for the writer of a pipe that was put there.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let open = File::options().read(true).custom_flags(flags).open(path);
    let file = open.map_err(|error| format!("cannot read it: {error}"))?;
    // Of what is open, which nobody can exchange any more.
    let found = file.metadata().map_err(|error| format!("cannot read it: {error}"))?;
    if !found.is_file() {
        return Err("is no file".to_owned());
    }
    if let Some(why) = written_by_others(found.mode(), found.uid(), found.gid()) {
        return Err(why);
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot read it: {error}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("is longer than {most} bytes, which is the most that is read"));
    }
    Ok(bytes)
}

/// Who else could have written a file of that mode, owner and group, and the mend; `None`: nobody.
fn written_by_others(mode: u32, owner: u32, group: u32) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    if owner != 0 && owner != own {
        return Some(format!("belongs to user {owner}, who could change it; chown root"));
    }
    if mode & 0o002 != 0 {
        return Some(format!("can be written by everybody (mode {:04o}); chmod go-w", mode & 0o7777));
    }
    (mode & 0o020 != 0 && group != 0)
        .then(|| format!("can be written by group {group} (mode {:04o}); chmod g-w", mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn what_others_can_write_is_refused_with_the_mend() {
        let own = rustix::process::geteuid().as_raw();
        for (mode, owner, group, want) in [
            (0o100_644, 0, 0, None),
            (0o100_640, own, 4, None),
            (0o100_660, 0, 0, None),
            (0o100_660, 0, 4, Some("chmod g-w")),
            (0o100_646, own, 0, Some("chmod go-w")),
            (0o100_600, 12_345, 0, Some("chown root")),
        ] {
            let why = written_by_others(mode, owner, group);
            assert_eq!(why.is_some(), want.is_some(), "{mode:o} {owner} {group}: {why:?}");
            assert!(why.is_none_or(|why| want.is_some_and(|want| why.contains(want))));
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
        assert!(read(directory.path(), 5).expect_err("a directory").contains("is no file"));
        assert!(read(&directory.path().join("x"), 5).expect_err("not there").contains("cannot read it"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("set");
        assert!(read(&path, 5).expect_err("open to all").contains("mode 0666"));
    }
}
