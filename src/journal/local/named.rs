//! A file in use, and whether its name still leads to it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What happened to a file in use. Says which file, and what an operator has to know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Displaced {
    #[error("the journal's folder {0} was deleted, moved or replaced while in use")]
    Folder(PathBuf),
    #[error("{0} was deleted or moved away while in use")]
    Gone(PathBuf),
    #[error("{0} was replaced by another file while in use")]
    Replaced(PathBuf),
    #[error("{path} was cut off while in use: it has {found} of at least {least} bytes")]
    CutOff { path: PathBuf, found: u64, least: u64 },
    #[error("{0} was written to by another program while in use")]
    Overwritten(PathBuf),
}

/// A file in use, and the name it must keep.
#[derive(Debug)]
pub(crate) struct Named {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Named {
    /// `found` is what is in use.
    pub(crate) fn new(path: PathBuf, found: &Metadata) -> Self {
        Self { path, device: found.dev(), inode: found.ino() }
    }

    /// The file as its name shows it now; `None` if that cannot be told.
    pub(crate) fn look(&self) -> Result<Option<Metadata>, Displaced> {
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => Ok(Some(found)),
            Ok(_) => Err(Displaced::Replaced(self.path.clone())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(Displaced::Gone(self.path.clone()))
            }
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same of a file that has at least so many bytes.
    pub(crate) fn look_at_least(&self, least: u64) -> Result<Option<Metadata>, Displaced> {
        match self.look()? {
            Some(found) if found.len() < least => {
                Err(Displaced::CutOff { path: self.path.clone(), found: found.len(), least })
            }
            found => Ok(found),
        }
    }
}
