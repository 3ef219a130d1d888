//! `/proc/PID/maps`: the files whose code a process has mapped.

use std::{collections::HashSet, fs};

use serde::{Deserialize, Serialize};

/// A mapped part of a file with code in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    /// First address.
    pub(crate) begin: u64,
    /// First address behind it.
    pub(crate) end: u64,
    /// Where in the file it begins.
    pub(crate) offset: u64,
    /// The file, as the process sees it.
    pub(crate) path: String,
}

/// Mappings taken of one process; a program has tens of libraries, a hostile one what it likes.
const TAKEN: usize = 512;
/// Processes looked at for a file that is not among the dead one's.
const PROCESSES: usize = 4096;

/// What a process has mapped; nothing when it is gone.
pub(super) fn read(tgid: u32) -> Vec<Mapping> {
    let text = fs::read(format!("/proc/{tgid}/maps")).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(parse).take(TAKEN).collect()
}

/// Every file with code in it that some process has mapped, once, with a process that has it.
pub(super) fn files_of_all() -> Vec<(u32, String)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(PROCESSES);
    for pid in pids {
        for Mapping { path, .. } in read(pid) {
            // The same path may be another file in another mount namespace; its build id decides.
            if seen.insert((namespace(pid), path.clone())) {
                found.push((pid, path));
            }
        }
    }
    found
}

/// Where a path that begins at the root of its file system may be found: below every mount.
pub(super) fn places_of(path: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| place_in(line, path)).collect()
}

/// `id parent device root mount-point …`, as proc_pid_mountinfo(5) has it: `root` is the part of the file system that is
/// mounted.
fn place_in(line: &str, path: &str) -> Option<String> {
    let mut columns = line.split(' ').skip(3);
    let (root, mount) = (columns.next()?, columns.next()?);
    let below = path.strip_prefix(root.trim_end_matches('/'))?;
    below.starts_with('/').then(|| format!("{}{below}", mount.trim_end_matches('/')))
}

fn namespace(pid: u32) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// `begin-end perms offset device inode path`, as proc_pid_maps(5) has it.
fn parse(line: &str) -> Option<Mapping> {
    let mut columns = line.splitn(6, ' ');
    let (begin, end) = columns.next()?.split_once('-')?;
    let permissions = columns.next()?;
    let offset = columns.next()?;
    let path = columns.nth(2)?.trim_start();
    let is_code = permissions.get(2..3) == Some("x") && path.starts_with('/');
    let number = |text| u64::from_str_radix(text, 16).ok();
    is_code.then_some(())?;
    Some(Mapping { begin: number(begin)?, end: number(end)?, offset: number(offset)?, path: path.to_owned() })
}

/// Takes any text for a process' mappings and our mounts.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    for line in text.lines() {
        drop((parse(line), place_in(line, "/bin/web")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let code = "55d0c8a00000-55d0c8b00000 r-xp 00012000 fe:00 1234                       /usr/bin/my web";
        let want = Mapping {
            begin: 0x55d0_c8a0_0000,
            end: 0x55d0_c8b0_0000,
            offset: 0x12000,
            path: "/usr/bin/my web".to_owned(),
        };
        assert_eq!(parse(code), Some(want));
        for other in [
            "55d0c8a00000-55d0c8b00000 r--p 00000000 fe:00 1234                       /usr/bin/web",
            "7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0                          [vdso]",
            "7f0000000000-7f0000001000 r-xp 00000000 00:00 0",
            "nonsense",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_is_looked_for_below_every_mount() {
        for (mount, place) in [
            ("22 1 254:0 / / rw - ext4 /dev/vda rw", Some("/bin/web")),
            ("23 22 254:1 / /payload rw - ext4 /dev/vdb rw", Some("/payload/bin/web")),
            ("24 22 254:1 /bin /usr/local rw - ext4 /dev/vdb rw", Some("/usr/local/web")),
            ("25 22 254:1 /bi /usr/local rw - ext4 /dev/vdb rw", None),
            ("26 22", None),
        ] {
            assert_eq!(place_in(mount, "/bin/web").as_deref(), place, "{mount}");
        }
    }

    #[test]
    fn our_own_program_is_among_our_mappings() {
        let own = std::env::current_exe().expect("a path").display().to_string();
        assert!(read(std::process::id()).iter().any(|mapping| mapping.path == own));
        assert!(read(u32::MAX).is_empty());
    }
}
