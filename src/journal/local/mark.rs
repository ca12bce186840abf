//! The high-water mark: up to where events were ever acknowledged, kept outside the database.
//!
//! Written after each commit without a sync, so it never runs ahead of what is durable, and after a SIGKILL it is exact: a
//! database that ends before it, or is another log than the mark's, has lost something. Nothing rests on it: one that is
//! gone while it is in use is made anew.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use xxhash_rust::xxh3::xxh3_64;

use super::folder::{Folder, make_directory, rename, sync_directory};
use super::named::Named;
use crate::journal::event::millis;
use crate::journal::identity::LogIdentity;

#[derive(Debug)]
pub(crate) struct MarkFile {
    file: File,
    named: Named,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    /// The format of the journal it belongs to.
    pub(crate) format: u32,
    /// The newest acknowledged sequence.
    pub(crate) last: u64,
    /// The oldest sequence still kept; everything before was deleted on purpose.
    pub(crate) floor: u64,
    /// The newest id ever given in quarantine.
    pub(crate) kept: u64,
    /// Whose numbers these are. Programs of before December 2026 know no identity, and write none.
    pub(crate) log: Option<LogIdentity>,
}

const MARK: &str = "mark";
const MAGIC: &[u8; 8] = b"ASAPPMRK";
/// What every program knows, with its checksum…
const HEAD: usize = 48;
/// …and the identity, with one over all of it.
const BYTES: usize = HEAD + 24;

/// What the mark's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundMark {
    Missing,
    Unreadable,
    Found(Mark),
}

impl FoundMark {
    /// Reads the mark in a folder and changes nothing.
    pub(crate) fn of(folder: &Path) -> Self {
        Self::at(&folder.join(MARK))
    }

    fn at(path: &Path) -> Self {
        match fs::read(path) {
            // A link or a folder with its name is none of ours.
            _ if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) => Self::Unreadable,
            Ok(bytes) if !bytes.is_empty() => Mark::decode(&bytes).map_or(Self::Unreadable, Self::Found),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Self::Unreadable,
            // A crash may have come between the file and its content.
            _ => Self::Missing,
        }
    }
}

impl MarkFile {
    pub(crate) fn open(folder: &Folder) -> io::Result<Self> {
        let path = folder.file(MARK);
        match Self::at(path.clone()) {
            // What it said is known. The folder is writable, so another one can take its place.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                fs::remove_file(&path)?;
                Self::at(path)
            }
            opened => opened,
        }
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        // Nothing rests on what has its name: it goes out of the way, whole.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            rename(&path, &path.with_file_name(format!("mark-set-aside-{}", millis(SystemTime::now()))))?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let named = Named::new(path, &file.metadata()?);
        Ok(Self { file, named })
    }

    /// Whether the next start finds it whole.
    pub(crate) fn is_in_place(&self) -> bool {
        self.named.look_at_least(BYTES as u64).is_ok()
    }

    pub(crate) fn write(&mut self, mark: Mark) -> io::Result<()> {
        if let Err(displaced) = self.named.look() {
            tracing::warn!(reason = %displaced, "the journal's high-water mark is made anew");
            *self = Self::at(self.named.path().to_owned())?;
        }
        self.file.write_all_at(&mark.encode(), 0)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// For the end of a process whose folder is not what `folder` leads to any more: leaves the mark for the next start to find
/// there, so that it counts what it misses. A mark of another journal stays as it is, and so does all of a folder that
/// another process holds. True if the mark is there.
pub(crate) fn leave(folder: &Path, mark: Mark) -> io::Result<bool> {
    if let Err(error) = fs::metadata(folder)
        && error.kind() == io::ErrorKind::NotFound
    {
        make_directory(folder)?;
    }
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    let path = folder.join(MARK);
    match FoundMark::at(&path) {
        FoundMark::Missing => {}
        // An earlier copy of the same folder.
        FoundMark::Found(found) if found.log.is_some() && found.log == mark.log && found.last <= mark.last => {}
        FoundMark::Found(_) | FoundMark::Unreadable => return Ok(false),
    }
    let mut file = MarkFile::at(path)?;
    file.write(mark)?;
    file.sync()?;
    sync_directory(folder)?;
    Ok(true)
}

impl Mark {
    /// Whether it is the mark of this log, which ends at `tail`. A log without an identity is the one it was written for,
    /// unless it has more than was ever acknowledged in that one.
    pub(crate) fn is_of(&self, log: Option<LogIdentity>, tail: u64) -> bool {
        match (self.log, log) {
            (Some(expected), Some(found)) => expected == found,
            (Some(_), None) => tail <= self.last,
            (None, _) => true,
        }
    }

    fn encode(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.format.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.floor.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.kept.to_le_bytes());
        let checksum = xxh3_64(&bytes[..40]);
        bytes[40..48].copy_from_slice(&checksum.to_le_bytes());
        if let Some(log) = self.log {
            bytes[48..64].copy_from_slice(&log.to_bytes());
            // Over the head too: an older program writes a new one, and leaves the rest.
            let checksum = xxh3_64(&bytes[..64]);
            bytes[64..].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let sound = bytes.get(..8)? == MAGIC && long(40)? == xxh3_64(bytes.get(..40)?);
        let log =
            || (long(64)? == xxh3_64(bytes.get(..64)?)).then_some(LogIdentity::of(*bytes.get(48..)?.first_chunk()?));
        let mark = Self { format: word(8)?, last: long(16)?, floor: long(24)?, kept: long(32)?, log: log() };
        sound.then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_by_this_program_and_by_older_ones() {
        let log = Some(LogIdentity::random());
        let mark = Mark { format: 1, last: 300, floor: 200, kept: 7, log };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        let without = Mark { log: None, ..mark };
        assert_eq!(Mark::decode(&without.encode()), Some(without));
        // An older program's has no more than the head. Over a newer one's it leaves the rest.
        let (old, mut mixed) = (Mark { last: 301, ..without }, mark.encode());
        assert_eq!(Mark::decode(&old.encode()[..HEAD]), Some(old));
        mixed[..HEAD].copy_from_slice(&old.encode()[..HEAD]);
        assert_eq!(Mark::decode(&mixed), Some(old));
    }

    #[test]
    fn it_knows_its_log() {
        let (ours, other) = (LogIdentity::random(), LogIdentity::random());
        let mark = Mark { last: 300, log: Some(ours), ..Mark::default() };
        assert!(mark.is_of(Some(ours), 200));
        assert!(!mark.is_of(Some(other), 300));
        // From before there were identities: an earlier copy of ours, or another one with more in it.
        assert!(mark.is_of(None, 300));
        assert!(!mark.is_of(None, 301));
        assert!(Mark { log: None, ..mark }.is_of(Some(other), 400));
    }

    #[test]
    fn it_is_left_where_the_next_start_looks_but_never_over_another_ones() {
        let home = tempfile::TempDir::new().unwrap();
        let folder = home.path().join("journal");
        let log = Some(LogIdentity::random());
        let mark = |last| Mark { format: 1, last, floor: 1, kept: 0, log };
        assert!(leave(&folder, mark(20)).unwrap());
        assert!(leave(&folder, mark(30)).unwrap());
        assert!(!leave(&folder, mark(25)).unwrap());
        assert!(!leave(&folder, Mark { log: Some(LogIdentity::random()), ..mark(40) }).unwrap());
        let held = Folder::open(&folder).unwrap();
        assert_eq!(FoundMark::of(held.path()), FoundMark::Found(mark(30)));
        assert!(!leave(&folder, mark(50)).unwrap());
    }
}
