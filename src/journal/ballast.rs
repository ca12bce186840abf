//! Room kept back on the disk, so that cursors can still be written when other files have filled it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::folder::Folder;

/// Enough for one checkpoint of the write-ahead log.
const BYTES: u64 = 8 << 20;

#[derive(Debug)]
pub(super) struct Ballast {
    file: PathBuf,
    probe: PathBuf,
    present: bool,
}

impl Ballast {
    /// Takes the room, if the disk has it.
    pub(super) fn new(folder: &Folder) -> Self {
        let file = folder.file("ballast");
        let present = fs::metadata(&file).is_ok_and(|found| found.len() == BYTES);
        let mut ballast = Self { file, probe: folder.file("probe"), present };
        ballast.restore();
        ballast
    }

    /// Gives the room back to the disk.
    pub(super) fn drop(&mut self) {
        if self.present && fs::remove_file(&self.file).is_ok() {
            self.present = false;
        }
    }

    /// Whether `bytes` more can be written now; takes the ballast's own room back first.
    pub(super) fn has_room(&mut self, bytes: u64) -> bool {
        if !self.restore() {
            return false;
        }
        // Asked by writing, as a quota shows in no number.
        let fits = fill(&self.probe, bytes + (64 << 10)).is_ok();
        // A probe left behind is cut short by the next one.
        let _ = fs::remove_file(&self.probe);
        fits
    }

    fn restore(&mut self) -> bool {
        if !self.present {
            self.present = fill(&self.file, BYTES).is_ok();
            if !self.present {
                let _ = fs::remove_file(&self.file);
            }
        }
        self.present
    }
}

/// A file of that many zeros that really take up the disk.
fn fill(path: &PathBuf, bytes: u64) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = [0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    file.sync_data()
}
