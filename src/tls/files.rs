//! What the files of `[tls]` hold, read before anything is made of it: a set is judged as it was at one time.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::digest::sha256;
use crate::config::Tls;
use crate::pem;

/// The contents of all files of one `[tls]` section.
#[derive(Default)]
pub struct Files(BTreeMap<PathBuf, Result<Content, String>>);

/// Identifies contents without holding them: a digest of each file, or why it could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Result<[u8; 32], String>>);

pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

impl Files {
    /// Reads them all, now. What cannot be read is kept as such.
    #[must_use]
    pub fn read(tls: &Tls) -> Self {
        Self(names(tls).map(|file| (file.to_owned(), read(file))).collect())
    }

    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = |content: &Result<Content, String>| match content {
            Ok(content) => Ok(sha256(&content.bytes)),
            Err(error) => Err(error.clone()),
        };
        Fingerprint(self.0.iter().map(|(file, content)| (file.clone(), digest(content))).collect())
    }

    pub(super) fn get(&self, file: &Path) -> Result<&Content, &str> {
        self.0.get(file).map_or(Err("it was not read"), |content| content.as_ref().map_err(String::as_str))
    }
}

impl Fingerprint {
    /// The files that are new or hold something else in `other`.
    pub fn changed<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Path> {
        other.0.iter().filter(|(file, content)| self.0.get(*file) != Some(*content)).map(|(file, _)| file.as_path())
    }
}

/// Says no contents: the private key is among them.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// All files that `[tls]` names.
pub fn names(tls: &Tls) -> impl Iterator<Item = &Path> {
    let pair = [&tls.certificate, &tls.private_key];
    pair.into_iter().chain(&tls.client_ca).chain(&tls.client_crl).map(PathBuf::as_path)
}

fn read(file: &Path) -> Result<Content, String> {
    let bytes = pem::read(file)?;
    let mode = std::fs::metadata(file).map_err(|error| error.to_string())?.permissions().mode();
    Ok(Content { bytes, mode })
}
