//! Room kept back on the disk, so that cursors can still be written when other files have filled it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::folder::Folder;

/// Enough for one checkpoint of the write-ahead log.
pub(super) const BYTES: u64 = 8 << 20;
/// What has to be free besides the bytes that are asked for.
const MARGIN: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Ballast {
    file: PathBuf,
    probe: PathBuf,
    is_held: bool,
}

impl Ballast {
    /// The ballast as the last process left it.
    pub(super) fn find(folder: &Folder) -> Self {
        let file = folder.file("ballast");
        let is_held = fs::metadata(&file).is_ok_and(|found| found.len() == BYTES);
        Self { file, probe: folder.file("probe"), is_held }
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Gives the room back to the disk.
    pub(super) fn drop(&mut self) {
        // One that was only begun goes as well.
        if fs::remove_file(&self.file).is_ok() {
            self.is_held = false;
        }
    }

    /// Takes the room, if the disk has it.
    pub(super) fn take(&mut self) -> bool {
        if !self.is_held {
            self.is_held = fill(&self.file, BYTES).is_ok();
            if !self.is_held {
                self.drop();
            }
        }
        self.is_held
    }

    /// Whether `bytes` more can be written now. Asks by taking the room, as a quota shows in no number.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        let fits = fill(&self.probe, bytes + MARGIN).is_ok();
        // A probe left behind is made anew by the next one.
        let _ = fs::remove_file(&self.probe);
        fits
    }
}

/// Makes a file of that length, with all of it really taking up the disk.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // Not every file system can.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        taken => return Ok(taken?),
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
