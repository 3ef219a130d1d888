//! The only reader of `/proc`, `/sys` and files that others write. Every read is bounded in bytes, entries and time.
//!
//! Others decide how long such a file is: a process can show a command line of 64 GiB, a user can fill a directory. So
//! every read names its bound and returns whether the data was cut ([`Bounded`]); the caller refuses cut data, or uses
//! the beginning. `clippy.toml` forbids unbounded reads.
//!
//! None of this may run on the task that owns the agent's state, except for files of one page that the kernel writes.

use std::{
    fs::{DirEntry, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes read of a file with a few figures, which the kernel writes within a page (seq_file and kernfs, `PAGE_SIZE`).
/// arm64 has pages of 64 KiB, but none of these files fills even a small one.
pub(crate) const FIGURES: usize = 4096;

/// Bytes of the first read; later reads grow up to [`PIECE_MAX`].
const PIECE: usize = 4096;
const PIECE_MAX: usize = 256 * 1024;

/// Data that was read within bounds.
#[must_use = "whether it was cut decides what it may be used for"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bounded<T> {
    /// All the data.
    Whole(T),
    /// The beginning; there is more.
    Cut(T),
}

impl<T> Bounded<T> {
    /// The data, cut or not: for callers that can use the beginning.
    pub(crate) fn beginning(self) -> T {
        match self {
            Self::Whole(value) | Self::Cut(value) => value,
        }
    }

    /// The data if it was not cut.
    pub(crate) fn all(self) -> Option<T> {
        match self {
            Self::Whole(value) => Some(value),
            Self::Cut(_) => None,
        }
    }

    /// True when there is more than was read.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self, Self::Cut(_))
    }

    /// `value`, cut or not.
    pub(crate) fn new(value: T, is_cut: bool) -> Self {
        if is_cut { Self::Cut(value) } else { Self::Whole(value) }
    }

    /// Changes the data and keeps whether it was cut.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Bounded<U> {
        match self {
            Self::Whole(value) => Bounded::Whole(change(value)),
            Self::Cut(value) => Bounded::Cut(change(value)),
        }
    }
}

impl Bounded<Vec<u8>> {
    /// All bytes of the file.
    ///
    /// # Errors
    /// `FileTooLarge` when it was cut.
    pub(crate) fn whole(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Cut(bytes) => {
                let text = format!("it is longer than {} bytes, which is the most that is read", bytes.len());
                Err(io::Error::new(ErrorKind::FileTooLarge, text))
            }
        }
    }
}

/// The first `most` bytes of a regular file (those of `/proc` and `/sys` are regular).
///
/// # Errors
/// When it cannot be read, or is a pipe, a device or a directory.
pub(crate) fn read(path: impl AsRef<Path>, most: usize) -> io::Result<Bounded<Vec<u8>>> {
    take(&mut open(path.as_ref(), OFlags::empty())?, most, None)
}

/// A file of at most `most` bytes as text. Invalid UTF-8 is replaced: others choose the names in it.
///
/// # Errors
/// Those of [`read`], and `FileTooLarge`.
pub(crate) fn text(path: impl AsRef<Path>, most: usize) -> io::Result<String> {
    read(path, most)?.whole().map(lossy)
}

/// The first `most` bytes of a file as text.
///
/// # Errors
/// Those of [`read`].
pub(crate) fn beginning(path: impl AsRef<Path>, most: usize) -> io::Result<String> {
    read(path, most).map(Bounded::beginning).map(lossy)
}

/// The last `most` bytes of a regular file that others write. Symbolic links are not followed.
///
/// # Errors
/// Those of [`read`], and `ELOOP` for a link.
pub(crate) fn tail(path: impl AsRef<Path>, most: usize) -> io::Result<Bounded<Vec<u8>>> {
    let mut file = open(path.as_ref(), OFlags::NOFOLLOW)?;
    let skipped = file.metadata()?.len().saturating_sub(most as u64);
    file.seek(SeekFrom::Start(skipped))?;
    // Bytes added meanwhile are left out.
    let end = take(&mut file, most, None)?.beginning();
    Ok(Bounded::new(end, skipped > 0))
}

/// The first `most` bytes that come before `until`. The time is checked between two reads; nothing ends a read that
/// blocks.
///
/// # Errors
/// When one of the reads fails.
pub(crate) fn take(from: &mut impl Read, most: usize, until: Option<Instant>) -> io::Result<Bounded<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = PIECE;
    loop {
        let begin = bytes.len();
        if begin > most {
            bytes.truncate(most);
            return Ok(Bounded::Cut(bytes));
        }
        // One more byte than wanted tells whether there is more.
        bytes.resize(begin + piece.min(most + 1 - begin), 0);
        match from.read(&mut bytes[begin..]) {
            Ok(0) => {
                bytes.truncate(begin);
                return Ok(Bounded::Whole(bytes));
            }
            Ok(size) => bytes.truncate(begin + size),
            Err(error) if error.kind() == ErrorKind::Interrupted => bytes.truncate(begin),
            Err(error) => return Err(error),
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            bytes.truncate(most);
            return Ok(Bounded::Cut(bytes));
        }
        piece = (2 * piece).min(PIECE_MAX);
    }
}

/// The first `most` bytes from a peer or a child. The caller bounds the time.
///
/// # Errors
/// When one of the reads fails.
#[expect(clippy::disallowed_methods, reason = "`take` bounds it")]
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Bounded<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.take(most as u64 + 1).read_to_end(&mut bytes).await?;
    let is_cut = bytes.len() > most;
    bytes.truncate(most);
    Ok(Bounded::new(bytes, is_cut))
}

/// Calls `visit` for the first `most` entries of a directory, until `until`. Entries that vanish meanwhile are left
/// out.
///
/// # Errors
/// When it cannot be opened.
#[expect(clippy::disallowed_methods, reason = "entries and time are counted here")]
pub(crate) fn visit(
    directory: &Path,
    most: usize,
    until: Option<Instant>,
    mut visit: impl FnMut(&DirEntry),
) -> io::Result<Bounded<()>> {
    for (number, entry) in std::fs::read_dir(directory)?.enumerate() {
        // Reading the clock for each entry would double the cost.
        let is_late = || number % 64 == 63 && until.is_some_and(|until| Instant::now() >= until);
        if number >= most || is_late() {
            return Ok(Bounded::Cut(()));
        }
        if let Ok(entry) = entry {
            visit(&entry);
        }
    }
    Ok(Bounded::Whole(()))
}

/// The first `most` entries of a directory.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn entries(directory: impl AsRef<Path>, most: usize) -> io::Result<Bounded<Vec<PathBuf>>> {
    let mut found = Vec::new();
    let seen = visit(directory.as_ref(), most, None, |entry| found.push(entry.path()))?;
    Ok(seen.map(|()| found))
}

/// The target of a symbolic link.
///
/// # Errors
/// When it cannot be read.
#[expect(clippy::disallowed_methods, reason = "the kernel gives no more than PATH_MAX bytes, 4096 (readlink(2))")]
pub(crate) fn link(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    std::fs::read_link(path)
}

/// Opens a regular file. Does not wait for a pipe or a device in its place.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Reads any bytes as a file; the first two are the bound.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some((most, mut file)) = bytes.split_first_chunk::<2>() else { return };
    let (most, all) = (usize::from(u16::from_le_bytes(*most)), file);
    let Ok(read) = take(&mut file, most, None) else { panic!("a slice can be read") };
    assert_eq!(read.is_cut(), all.len() > most);
    assert_eq!(read.beginning(), all[..all.len().min(most)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::ffi::OsStrExt as _};

    fn place(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, bytes).expect("written");
        (directory, path)
    }

    #[test]
    fn a_file_is_whole_up_to_its_bound_and_cut_beyond() {
        let (_directory, path) = place(b"12345");
        assert_eq!(read(&path, 5).expect("read"), Bounded::Whole(b"12345".to_vec()));
        assert_eq!(read(&path, 4).expect("read"), Bounded::Cut(b"1234".to_vec()));
        assert_eq!(text(&path, 5).expect("read"), "12345");
        assert_eq!(text(&path, 4).expect_err("cut").kind(), ErrorKind::FileTooLarge);
        assert_eq!(beginning(&path, 4).expect("read"), "1234");
        assert_eq!(tail(&path, 2).expect("read"), Bounded::Cut(b"45".to_vec()));
        assert_eq!(tail(&path, 5).expect("read"), Bounded::Whole(b"12345".to_vec()));
        assert_eq!(read(&path, 0).expect("read"), Bounded::Cut(Vec::new()));
    }

    #[test]
    fn a_file_without_an_end_is_cut() {
        let mut endless = io::repeat(b'x');
        let most = 3 * PIECE_MAX + 1;
        let read = take(&mut endless, most, None).expect("read");
        assert!(read.is_cut());
        assert_eq!(read.beginning().len(), most);
        let read = take(&mut endless, usize::MAX - 1, Some(Instant::now())).expect("read");
        assert!(read.is_cut(), "no time is left after the first piece");
        assert_eq!(read.beginning().len(), PIECE);
    }

    #[tokio::test]
    async fn a_peer_without_an_end_is_cut() {
        assert_eq!(receive(&mut tokio::io::repeat(b'x'), 3).await.expect("read"), Bounded::Cut(b"xxx".to_vec()));
        assert_eq!(receive(&mut &b"xxx"[..], 3).await.expect("read"), Bounded::Whole(b"xxx".to_vec()));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let (directory, path) = place(b"1");
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a pipe");
        assert_eq!(read(&pipe, 9).expect_err("a pipe").kind(), ErrorKind::InvalidInput);
        assert_eq!(read(directory.path(), 9).expect_err("a directory").kind(), ErrorKind::InvalidInput);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(read(&link, 9).is_ok() && tail(&link, 9).is_err(), "only files of others are not looked for elsewhere");
    }

    #[test]
    fn a_directory_is_listed_up_to_its_bound() {
        let (directory, _path) = place(b"1");
        fs::write(directory.path().join("other"), "").expect("written");
        let listed = |most| entries(directory.path(), most).expect("listed").map(|entries| entries.len());
        assert_eq!((listed(2), listed(1)), (Bounded::Whole(2), Bounded::Cut(1)));
    }

    #[test]
    fn a_name_that_is_no_text_takes_nothing_from_the_rest() {
        let (_directory, path) = place(b"Name:\t\xff\xfe\nVmSwap:\t7 kB\n");
        assert!(text(&path, 99).expect("read").contains("\nVmSwap:\t7 kB\n"));
        assert!(!path.as_os_str().as_bytes().is_empty());
    }
}
