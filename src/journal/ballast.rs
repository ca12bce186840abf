//! Room kept back on the disk, so that cursors can still be written when other files have filled it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::folder::Folder;

/// The first is enough for one checkpoint of the write-ahead log; less is held where the disk has no more.
const SIZES: [u64; 3] = [8 << 20, 4 << 20, 2 << 20];
/// What has to be free besides the bytes that are asked for.
const MARGIN: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Ballast {
    file: PathBuf,
    probe: PathBuf,
    /// What is held; 0 for nothing.
    bytes: u64,
}

impl Ballast {
    /// The ballast as the last process left it.
    pub(super) fn find(folder: &Folder) -> Self {
        let file = folder.file("ballast");
        let bytes = fs::metadata(&file).map_or(0, |found| found.len());
        Self { file, probe: folder.file("probe"), bytes }
    }

    pub(super) fn is_held(&self) -> bool {
        self.bytes > 0
    }

    /// Gives the room back to the disk.
    pub(super) fn drop(&mut self) {
        if fs::remove_file(&self.file).is_ok() {
            self.bytes = 0;
        }
    }

    /// Takes as much room as the disk has; false when that is too little.
    pub(super) fn take(&mut self) -> bool {
        SIZES.into_iter().any(|size| self.resize(size))
    }

    /// Whether `bytes` more can be written now, with the ballast in place.
    pub(super) fn has_room(&mut self, bytes: u64) -> bool {
        let fits = SIZES.into_iter().any(|size| self.resize(size) && self.fits(bytes));
        fits || {
            self.take();
            false
        }
    }

    /// Asks by taking the room, as a quota shows in no number.
    fn fits(&self, bytes: u64) -> bool {
        let fits = open(&self.probe).and_then(|probe| fill(&probe, bytes + MARGIN)).is_ok();
        // A probe left behind is made anew by the next one.
        let _ = fs::remove_file(&self.probe);
        fits
    }

    fn resize(&mut self, size: u64) -> bool {
        let resized = open(&self.file).and_then(|file| match size {
            less if less <= self.bytes => file.set_len(less),
            more => fill(&file, more).or_else(|error| file.set_len(self.bytes).and(Err(error))),
        });
        if resized.is_ok() {
            self.bytes = size;
        }
        resized.is_ok()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes the file `bytes` long, with all of it really taking up the disk.
fn fill(mut file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
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
