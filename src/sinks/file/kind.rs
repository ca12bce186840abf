//! What a file sink says of itself, and how it is opened.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::fs::Access;
use rustix::io::Errno;

use super::FileSink;
use super::name::LONGEST_SUFFIX;
use super::settings::{self, Settings};
use crate::findings::{Finding, mib};
use crate::places::folder_of;
use crate::settings::Section;
use crate::shape::Format;
use crate::sinks::kind::{Checked, Kind, Open, Opening};
use crate::sinks::lines;
use crate::sinks::plan::Plan;

/// How long a line waits for others: one write and one sync serve all that came meanwhile.
const WAIT: Duration = Duration::from_millis(20);

impl Kind for Settings {
    fn read(s: &mut Section<'_, '_>, _: Format) -> Self {
        settings::read(s)
    }

    fn plan(&self) -> Plan {
        lines::plan(WAIT)
    }

    fn check(&self, sink: &Checked<'_>) -> Vec<Finding> {
        check(self, sink.key, sink.journal)
    }
}

impl Open for Settings {
    type Sink = FileSink;

    fn open(&self, opening: Opening<'_>) -> io::Result<Vec<FileSink>> {
        Ok(vec![FileSink::new(opening.name, self.clone(), opening.shape, opening.own.clone())])
    }
}

/// What would make a file sink's events wait, or lose them. Nothing of it keeps the receiver from starting.
fn check(file: &Settings, key: &str, journal: Option<&Path>) -> Vec<Finding> {
    let path_key = format!("{key}.path");
    let (shown, folder) = (file.path.display(), folder_of(&file.path));
    if let Some(why) = unwritable(&file.path) {
        let text = format!("{shown} {why}; its events would wait in the journal until it can");
        return vec![Finding::warning(path_key, text)];
    }
    let mut findings = Vec::new();
    if let Ok(found) = fs::metadata(folder)
        && found.mode() & 0o022 != 0
        && found.mode() & 0o1000 == 0
    {
        let text =
            format!("others can write to the folder {}, and so exchange the file: chmod go-w it", folder.display());
        findings.push(Finding::warning(&path_key, text));
    }
    let rotates = file.rotate_bytes.is_some() || file.rotate_every.is_some();
    let name = file.path.file_name().map_or(0, OsStr::len);
    let longest = rustix::fs::statvfs(folder).map_or(u64::MAX, |found| found.f_namemax);
    if rotates && name.saturating_add(LONGEST_SUFFIX) as u64 > longest {
        let text = format!(
            "its name has {name} bytes, and a rotated file's up to {} bytes more, which {} does not permit (at most \
             {longest}): it would not be rotated or compressed; give it a shorter name",
            LONGEST_SUFFIX,
            folder.display()
        );
        findings.push(Finding::warning(&path_key, text));
    }
    let is_endless = file.keep_files.is_none();
    if is_endless && journal.is_some_and(|journal| is_same_disk(folder, existing(journal))) {
        let text = "nothing is ever deleted, on the journal's own disk, until it is full and events are refused: \
                    set it together with rotate_bytes, move the file, or have something else clear it away";
        findings.push(Finding::warning(format!("{key}.keep_files"), text));
    }
    let most = file.rotate_bytes.zip(file.keep_files).map(|(bytes, files)| bytes.saturating_mul(files as u64 + 1));
    if let (Some(most), Ok(free)) = (most, free(folder))
        && free < most
    {
        let text = format!(
            "with rotate_bytes up to {} on a disk that has {} left: full, its events would wait in the journal; \
             keep fewer files, or make room",
            mib(most),
            mib(free)
        );
        findings.push(Finding::warning(format!("{key}.keep_files"), text));
    }
    findings
}

fn unwritable(path: &Path) -> Option<String> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Some("is no regular file".to_owned()),
        Ok(_) => {
            let denied = rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).err()?;
            Some(format!("cannot be read and written by this user ({denied})"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let denied = rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK).err()?;
            let remedy = match denied {
                Errno::NOENT | Errno::NOTDIR => ": make the folder",
                Errno::ACCESS => ": give the folder to the receiver's user",
                Errno::ROFS => ": mount its volume writable",
                _ => "",
            };
            Some(format!("cannot be made in its folder ({denied}){remedy}"))
        }
        Err(error) => Some(format!("cannot be looked at ({error})")),
    }
}

fn is_same_disk(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.dev() == b.dev())
}

/// The folder itself, or the one that it would be made in.
fn existing(path: &Path) -> &Path {
    if path.exists() { path } else { folder_of(path) }
}

fn free(path: &Path) -> io::Result<u64> {
    let fs = rustix::fs::statvfs(path)?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}
