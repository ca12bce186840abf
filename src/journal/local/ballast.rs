//! Room kept back on the disk, so that cursors can still be written when other files have filled it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::folder::Folder;
use super::named::Named;

/// Enough for one checkpoint of the write-ahead log.
pub(crate) const BYTES: u64 = 8 << 20;
/// What has to be free besides the bytes that are asked for.
const MARGIN: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Ballast {
    file: PathBuf,
    probe: PathBuf,
    is_held: bool,
    /// The file that was taken, and how many blocks of the disk it takes up.
    taken: Option<(Named, u64)>,
}

impl Ballast {
    /// The ballast as the last process left it.
    pub(crate) fn find(folder: &Folder) -> Self {
        let file = folder.file("ballast");
        let is_held = fs::metadata(&file).is_ok_and(|found| found.len() == BYTES);
        Self { file, probe: folder.file("probe"), is_held, taken: None }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Whether it still keeps its room back; if it was deleted or replaced, it is taken again, as far as the disk lets it.
    pub(crate) fn renew(&mut self) {
        let Some((held, blocks)) = self.taken.as_ref().filter(|_| self.is_held) else { return };
        let is_there = held.look_at_least(BYTES).map(|found| found.is_none_or(|found| found.blocks() >= *blocks));
        if !matches!(is_there, Ok(true)) {
            tracing::warn!(file = %self.file.display(), "the journal's ballast was deleted or replaced: it is made anew");
            self.is_held = false;
            // What is left of the disk decides whether events are taken without it.
            let _ = self.take();
        }
    }

    /// Gives the room back to the disk.
    pub(crate) fn drop(&mut self) {
        // One that was only begun goes as well.
        if fs::remove_file(&self.file).is_ok() {
            self.is_held = false;
        }
    }

    /// Takes the room.
    ///
    /// # Errors
    /// When the disk does not give it; [`is_no_room`] says whether it is for want of room.
    pub(crate) fn take(&mut self) -> io::Result<()> {
        if !self.is_held {
            if let Err(error) = fill(&self.file, BYTES) {
                self.drop();
                return Err(named(&self.file, error));
            }
            self.is_held = true;
            let taken = fs::metadata(&self.file).ok();
            self.taken = taken.map(|taken| (Named::new(self.file.clone(), &taken), taken.blocks()));
        }
        Ok(())
    }

    /// Whether `bytes` more can be written now. Asks by taking the room, as a quota shows in no number.
    ///
    /// # Errors
    /// When they cannot; [`is_no_room`] says whether it is for want of room.
    pub(crate) fn fits(&self, bytes: u64) -> io::Result<()> {
        let fits = fill(&self.probe, bytes + MARGIN).map_err(|error| named(&self.probe, error));
        // A probe left behind is made anew by the next one.
        let _ = fs::remove_file(&self.probe);
        fits
    }
}

/// Whether a write failed for want of room, on the disk or in a quota.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn named(path: &Path, error: io::Error) -> io::Error {
    let remedy = if error.kind() == io::ErrorKind::IsADirectory { ": move that folder away" } else { "" };
    io::Error::new(error.kind(), format!("{}: {error}{remedy}", path.display()))
}

/// Makes a file of that length, with all of it really taking up the disk.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // Not every file system can.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        allocated => return Ok(allocated?),
    }
    let zeros = [0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    file.sync_data()
}
