//! The journal's folder: its lock, and renames that survive a power cut.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::named::Named;

/// A folder held by this process alone.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// What of it others can see, and why that cannot be helped.
    warnings: Vec<String>,
    /// As the settings name it: links may lead elsewhere later.
    name: PathBuf,
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
    #[error(
        "{path} cannot be locked: its file system has no locks, without which two receivers would destroy the journal: use a local disk"
    )]
    NoLocks { path: PathBuf, source: io::Error },
    #[error(
        "{path} is {what}, not a file of its own: move the file itself there; to keep the journal elsewhere, set journal.path \
         to that folder, or link the folder"
    )]
    NoFile { path: PathBuf, what: &'static str },
    #[error("{path} cannot be used: {remedy}")]
    Io { path: PathBuf, remedy: String, source: io::Error },
}

impl Folder {
    /// Makes the folder if its parent exists, owner-only, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::io(path, source)
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
                sync_entry(path, parent).map_err(io(parent))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(FolderError::NotADirectory { path: path.to_owned() });
            }
            Err(error) => return Err(io(path)(error)),
        }
        let name = std::path::absolute(path).map_err(io(path))?;
        let path = fs::canonicalize(path).map_err(io(path))?;
        let warnings = restrict_all(&path);
        let lock = Self::lock(&path)?;
        Ok(Self { path, name, lock, warnings })
    }

    fn lock(path: &Path) -> Result<File, FolderError> {
        let file = path.join("lock");
        let io = |source| FolderError::io(file.clone(), source);
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
            Err(TryLockError::Error(source)) if has_no_locks(&source) => {
                return Err(FolderError::NoLocks { path: path.to_owned(), source });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        lock.set_len(0).map_err(io)?;
        lock.seek(SeekFrom::Start(0)).map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        Ok(lock)
    }

    /// The lock's own file.
    pub(crate) fn lock_metadata(&self) -> io::Result<Metadata> {
        self.lock.metadata()
    }

    /// Whether the next start finds this folder, and not another one or none. What cannot be told counts as yes.
    pub(crate) fn is_in_place(&self) -> bool {
        self.lock.metadata().is_ok_and(|found| Named::new(self.name.join("lock"), &found).look().is_ok())
    }

    /// What the settings call it, from the root on.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What of it others can see.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Syncs the folder's own entries.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_directory(&self.path)
    }
}

impl FolderError {
    /// Whether it is the mode of a file of this user's, which the start gives it back.
    #[must_use]
    pub fn ends_with_the_start(&self, user: u32) -> bool {
        matches!(self, Self::Io { path, source, .. } if Errno::from_io_error(source) == Some(Errno::ACCESS)
            && fs::metadata(path).is_ok_and(|found| found.uid() == user))
    }

    /// What could not be done with this file of the folder, or the folder, with what helps.
    pub(crate) fn io(path: PathBuf, source: io::Error) -> Self {
        let remedy = denied(&path, &source);
        Self::Io { path, remedy, source }
    }
}

/// What of a database in `folder` cannot be written to, or does not stand there itself: SQLite would keep its log beside
/// what a link leads to. Changes nothing.
#[must_use]
pub fn unusable_files(folder: &Path) -> Vec<FolderError> {
    let names = ["journal.db", "journal.db-wal", "journal.db-shm"];
    names.iter().filter_map(|name| usable(folder.join(name)).err()).collect()
}

fn usable(path: PathBuf) -> Result<(), FolderError> {
    let what = match fs::symlink_metadata(&path) {
        // Only the attempt shows an immutable file.
        Ok(found) if found.is_file() => match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(_) => return Ok(()),
            Err(error) => return Err(FolderError::io(path, error)),
        },
        Ok(found) if found.is_symlink() => "a symbolic link",
        Ok(found) if found.is_dir() => "a folder",
        Ok(_) => "a device, pipe or socket",
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FolderError::io(path, error)),
    };
    Err(FolderError::NoFile { path, what })
}

/// What to do about a path that failed so: what stands in the way, and the remedy for just that.
#[must_use]
pub fn denied(path: &Path, error: &io::Error) -> String {
    if Errno::from_io_error(error) == Some(Errno::PERM) {
        // Modes and owners let it: something else does not.
        return "it or its folder is immutable or append-only (lsattr shows it, chattr -i -a ends it), or a security \
                module forbids it"
            .to_owned();
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => {}
        io::ErrorKind::IsADirectory => return "a folder has its name: move that away".to_owned(),
        io::ErrorKind::NotADirectory => return "a file has the name of a folder: move that away".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => {
            return "its file system is read-only: mount it to be written to".to_owned();
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => return "there is no room: make some".to_owned(),
        _ => return "the system does not let it".to_owned(),
    }
    let who = format!("user {}, groups {}", rustix::process::geteuid().as_raw(), own_groups());
    let nearest = path.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)));
    let Some((place, found)) = nearest else { return format!("this process may not ({who})") };
    let (owner, group, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
    format!(
        "this process ({who}) may not, for {} is of user {owner}, group {group}, mode {mode:o}: chown it to that user, or \
         let it be writable for one of those groups (chmod g+rwx; in Kubernetes, fsGroup)",
        if place.as_os_str().is_empty() { Path::new(".") } else { place }.display()
    )
}

fn own_groups() -> String {
    let mut groups: Vec<u32> = rustix::process::getgroups().unwrap_or_default().iter().map(|id| id.as_raw()).collect();
    groups.push(rustix::process::getegid().as_raw());
    groups.sort_unstable();
    groups.dedup();
    groups.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// Makes the folder and the files in it their owner's only, as far as that can be: it hardens the journal, which needs it
/// for nothing. A volume of Kubernetes is root's, its files get other modes with each mount, and some file systems have
/// none. Gives what others can see all the same.
fn restrict_all(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let files = files.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())).map(|entry| entry.path());
    let open: Vec<(PathBuf, String)> = std::iter::once((folder.to_owned(), 0o700))
        .chain(files.map(|file| (file, 0o600)))
        .filter_map(|(path, mode)| Some((path.clone(), restrict(&path, mode)?)))
        .collect();
    let warning = |(path, why): (PathBuf, String)| format!("others than its owner can use {}: {why}", path.display());
    open.into_iter().map(warning).collect()
}

/// Why the mode cannot be what it should be.
fn restrict(path: &Path, mode: u32) -> Option<String> {
    let is_open = || fs::metadata(path).ok().filter(|found| found.mode() & 0o077 != 0);
    // One that its owner cannot write to is given back its mode as well.
    let before = fs::metadata(path).ok().filter(|found| found.mode() & 0o777 != mode)?;
    let refused = fs::set_permissions(path, Permissions::from_mode(mode)).err();
    let found = is_open()?;
    let (owner, mode) = (before.uid(), found.mode() & 0o7777);
    Some(match refused {
        Some(_) if owner != rustix::process::geteuid().as_raw() => {
            format!("it is user {owner}'s, so its mode stays {mode:o}")
        }
        Some(error) => format!("its mode stays {mode:o}: {error}"),
        None => format!("its file system keeps no modes, it stays {mode:o}"),
    })
}

/// `flock` says so where a network file system was mounted without them.
fn has_no_locks(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing the file alone would leave the lock with any child process that was forked and has not yet exec'ed.
        let _ = self.lock.unlock();
    }
}

/// Renames, then syncs the directories of both names, so that the new name survives a power cut.
#[expect(clippy::disallowed_methods, reason = "this is the rename that syncs")]
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    for path in [to, from] {
        if let Some(directory) = path.parent() {
            sync_directory(directory)?;
        }
    }
    Ok(())
}

/// Makes a folder for its owner only, such that it survives a power cut.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_entry(path, parent)
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let folder = File::open(path)?;
    match folder.sync_all() {
        // Some file systems sync no folders, only all of themselves.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(rustix::fs::syncfs(&folder)?),
        synced => synced,
    }
}

/// Syncs the entry of a folder that was just made. Its parent may be one that this user can write to and not read: then the
/// whole file system is synced.
fn sync_entry(made: &Path, parent: &Path) -> io::Result<()> {
    match sync_directory(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(rustix::fs::syncfs(File::open(made)?)?),
        synced => synced,
    }
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
pub(crate) fn record_lock_holders(file: &Path) -> Vec<String> {
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
