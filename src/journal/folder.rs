//! The journal's folder: its lock, its high-water mark, and renames that survive a power cut.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// A folder held by this process alone.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Held for the lock on it; the kernel lets go of it when the process dies, however it dies.
    lock: File,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path} does not exist, and neither does the folder it would be made in: create it or mount its volume")]
    Missing { path: PathBuf },
    #[error("{path} is not a directory: set journal.path to a folder")]
    NotADirectory { path: PathBuf },
    #[error("{path} is in use by another process ({holder}): one receiver per journal folder")]
    Locked { path: PathBuf, holder: String },
    #[error("{path} cannot be used: it must be writable for the receiver's user")]
    Io { path: PathBuf, source: io::Error },
}

impl Folder {
    /// Makes the folder if its parent exists, owner-only, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Err(FolderError::NotADirectory { path: path.to_owned() }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                if !parent.is_dir() {
                    return Err(FolderError::Missing { path: path.to_owned() });
                }
                DirBuilder::new().mode(0o700).create(path).map_err(io(path))?;
                sync_directory(parent).map_err(io(parent))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(FolderError::NotADirectory { path: path.to_owned() });
            }
            Err(error) => return Err(io(path)(error)),
        }
        let path = fs::canonicalize(path).map_err(io(path))?;
        if fs::metadata(&path).map_err(io(&path))?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(io(&path))?;
        }
        let lock = Self::lock(&path)?;
        Ok(Self { path, lock })
    }

    fn lock(path: &Path) -> Result<File, FolderError> {
        let file = path.join("lock");
        let io = |source| FolderError::Io { path: file.clone(), source };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only to name it in the message.
                let _ = lock.take(20).read_to_string(&mut pid);
                let holder = format!("process {}", pid.trim());
                return Err(FolderError::Locked { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        lock.set_len(0).map_err(io)?;
        lock.seek(SeekFrom::Start(0)).map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        Ok(lock)
    }

    /// Whether this is still what is found at its path, and not deleted, moved away or mounted over. What can not be told
    /// counts as yes.
    pub(super) fn is_in_place(&self) -> bool {
        match (self.lock.metadata(), fs::metadata(self.file("lock"))) {
            (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
            (_, Err(error)) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            (Err(_), _) => true,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Syncs the folder's own entries.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_directory(&self.path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing the file alone would leave the lock with any child process that was forked and has not yet exec'ed.
        let _ = self.lock.unlock();
    }
}

/// Renames, then syncs the directories of both names, so that the new name survives a power cut.
#[expect(clippy::disallowed_methods, reason = "this is the rename that syncs")]
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    for path in [to, from] {
        if let Some(directory) = path.parent() {
            sync_directory(directory)?;
        }
    }
    Ok(())
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The process that holds the lock of the folder at `path`, as the kernel lists it: trying the lock would get in the way of
/// a receiver that starts.
#[must_use]
pub fn holder(path: &Path) -> Option<String> {
    let inode = fs::metadata(path.join("lock")).ok()?.ino().to_string();
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`. Some file systems number their disks otherwise here.
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let holder = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_held = words.get(1) == Some(&"FLOCK") && words.get(5)?.rsplit(':').next() == Some(&inode);
        is_held.then(|| words.get(4).copied())?
    });
    holder.map(|process| format!("process {process}"))
}

/// The other processes that hold locks on a file that SQLite locks by records, as the kernel lists them.
pub(super) fn record_lock_holders(file: &Path) -> Vec<String> {
    let (Ok(found), Ok(locks)) = (fs::metadata(file), fs::read_to_string("/proc/locks")) else { return Vec::new() };
    let (inode, own) = (found.ino().to_string(), std::process::id().to_string());
    // `1: POSIX  ADVISORY  READ 1234 08:01:5678 124 124`. A process of another container is -1 or 0.
    let holders = locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of_file = words.get(1) == Some(&"POSIX") && words.get(5)?.rsplit(':').next() == Some(&inode);
        words.get(4).filter(|process| of_file && **process != own).map(|process| (*process).to_owned())
    });
    let mut holders: Vec<String> = holders.collect();
    holders.sort();
    holders.dedup();
    holders
}

/// What the file system under a folder means for durability.
#[must_use]
pub fn volatile_file_system(path: &Path) -> Option<&'static str> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    const OVERLAYFS: i64 = 0x794c_7630;
    match rustix::fs::statfs(path).ok()?.f_type {
        TMPFS => Some("tmpfs"),
        RAMFS => Some("ramfs"),
        OVERLAYFS => Some("overlayfs"),
        _ => None,
    }
}

/// The high-water mark: up to where events were ever acknowledged, kept outside the database. Written after each commit
/// without a sync, so it never runs ahead of what is durable, and after a SIGKILL it is exact: a database that ends
/// before it has lost something.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// The format of the journal it belongs to.
    pub(super) format: u32,
    /// The newest acknowledged sequence.
    pub(super) last: u64,
    /// The oldest sequence still kept; everything before was deleted on purpose.
    pub(super) floor: u64,
    /// The newest id ever given in quarantine.
    pub(super) kept: u64,
}

const MARK: &str = "mark";
const MARK_MAGIC: &[u8; 8] = b"ASAPPMRK";
const MARK_BYTES: usize = 48;

/// What the mark's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundMark {
    Missing,
    Unreadable,
    Found(Mark),
}

impl FoundMark {
    /// Reads the mark and changes nothing.
    pub(super) fn of(folder: &Folder) -> Self {
        match fs::read(folder.file(MARK)) {
            Ok(bytes) if !bytes.is_empty() => Mark::decode(&bytes).map_or(Self::Unreadable, Self::Found),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Self::Unreadable,
            // A crash may have come between the file and its content.
            _ => Self::Missing,
        }
    }
}

impl MarkFile {
    pub(super) fn open(folder: &Folder) -> io::Result<Self> {
        let path = folder.file(MARK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self { file })
    }

    pub(super) fn write(&self, mark: Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.encode(), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Mark {
    fn encode(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..8].copy_from_slice(MARK_MAGIC);
        bytes[8..12].copy_from_slice(&self.format.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.floor.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.kept.to_le_bytes());
        let checksum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let sound = bytes.get(..8)? == MARK_MAGIC && long(40)? == xxh3_64(bytes.get(..40)?);
        let mark = Self { format: word(8)?, last: long(16)?, floor: long(24)?, kept: long(32)? };
        sound.then_some(mark)
    }
}
