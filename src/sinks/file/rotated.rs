//! Rotated files: their names, their compression, their end.
//!
//! `events.jsonl` becomes `events.jsonl.20261122T161004.123Z`, then `events.jsonl.20261122T161004.123Z.gz` by way of
//! `events.jsonl.20261122T161004.123Z.gz.tmp`. Names sort by age. Nothing else in the folder is ever touched.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::name::{Extension, Form, Name};
use super::permit::{Permit, remedy};
use super::settings::Settings;
use crate::places::{Inode, Place, folder_of};
use crate::sinks::compress::Compress;
use crate::sinks::own::Clash;

/// Bytes that are read at a time.
const BUFFER: usize = 128 << 10;

/// Whether to leave the rest for another time.
type Stop<'a> = &'a dyn Fn() -> bool;

/// The rotated files of one path.
#[derive(Debug, Clone)]
pub(super) struct Rotated {
    path: PathBuf,
    folder: PathBuf,
    /// Of the file that is written to.
    name: OsString,
    compress: Compress,
    keep: Option<usize>,
    permit: Permit,
}

impl Rotated {
    pub(super) fn new(settings: &Settings, permit: Permit) -> Self {
        let path = settings.path.clone();
        Self {
            folder: folder_of(&path).to_owned(),
            name: path.file_name().unwrap_or_default().to_owned(),
            compress: settings.compress,
            keep: settings.keep_files,
            permit,
            path,
        }
    }

    /// A name for the file at the path, which no other file ever had.
    pub(super) fn next(&self) -> io::Result<PathBuf> {
        let now = Name::plain(OffsetDateTime::now_utc()).at;
        // Later than all others, even when the clock was set back, so that the oldest is always deleted first.
        let newest = self.list()?.into_iter().rfind(|name| name.has_later_ones());
        let at = newest.map_or(now, |newest| now.max(newest.at.saturating_add(Duration::MILLISECOND)));
        self.file(Name { at, form: Form::Plain })
    }

    /// Gives the file at the path this name. Durable once the folder is synced.
    pub(super) fn take_away(&self, name: &Path) -> io::Result<()> {
        rename_to_new(&self.path, name)
    }

    /// Where the path leads, if its sink may write there.
    pub(super) fn place(&self) -> Result<Place, Clash> {
        self.permit.place(&self.path)
    }

    pub(super) fn sync_folder(&self) -> io::Result<()> {
        match File::open(&self.folder)?.sync_all() {
            // Not every file system can.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    /// Finishes what a crash left, deletes what is too much and compresses the rest. Logs its errors; what failed is done
    /// at the next rotation.
    pub(super) fn tidy(&self, stop: Stop<'_>) {
        let files = match self.list() {
            Ok(files) => files,
            // There is nothing to see to where there is no folder.
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => return self.warn("rotated files cannot be listed", &error),
        };
        let mut files: Vec<Name> = files.into_iter().filter(|file| self.is_ours(*file)).collect();
        let compressed = |among: &[Name], at| {
            among.iter().find_map(|file| match file.form {
                Form::Compressed(extension) if file.at == at => Some(extension),
                _ => None,
            })
        };
        for file in files.clone() {
            let is_left_over = match file.form {
                Form::Temporary(_) => true,
                // Whole, it had reached the disk before it got its name.
                Form::Plain => compressed(&files, file.at).is_some_and(|extension| self.is_copied(file.at, extension)),
                Form::Compressed(_) => false,
            };
            if is_left_over {
                self.delete(file);
                files.retain(|other| *other != file);
            }
        }
        let mut ages: Vec<PrimitiveDateTime> = files.iter().map(|file| file.at).collect();
        ages.dedup();
        let too_many = self.keep.map_or(0, |keep| ages.len().saturating_sub(keep));
        let oldest = ages.get(too_many);
        let (kept, too_old): (Vec<Name>, Vec<Name>) =
            files.into_iter().partition(|file| oldest.is_some_and(|oldest| file.at >= *oldest));
        too_old.into_iter().for_each(|file| self.delete(file));
        let Some(extension) = Extension::of(self.compress) else { return };
        let is_next = |file: &&Name| file.form == Form::Plain && compressed(&kept, file.at).is_none();
        for file in kept.iter().filter(is_next) {
            match self.compress(file.at, extension, stop) {
                Ok(()) => {}
                Err(_) if stop() => return,
                Err(error) => self.warn("a rotated file cannot be compressed", &error),
            }
        }
    }

    /// Whether a file with such a name is one of this sink's: no pipe, no link, and no other's, wherever links lead by now.
    fn is_ours(&self, file: Name) -> bool {
        let Ok(path) = self.file(file) else { return false };
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            return false;
        }
        if !file.has_later_ones() {
            tracing::warn!(path = %path.display(), "a file that is named like a rotated one is let alone: its name is of the last year there is; give it another one");
            return false;
        }
        match self.permit.place(&path) {
            Ok(_) => true,
            Err(clash) => {
                tracing::warn!(path = %path.display(), "a file that is named like a rotated one is let alone: it {clash}");
                false
            }
        }
    }

    /// Whether the compressed file holds all of the original. One that somebody else made, or is making, may not.
    fn is_copied(&self, at: PrimitiveDateTime, extension: Extension) -> bool {
        let same = || -> io::Result<bool> {
            let plain = open_regular(&self.file(Name { at, form: Form::Plain })?)?;
            let packed = open_regular(&self.file(Name { at, form: Form::Compressed(extension) })?)?;
            match extension {
                Extension::Gz => same_bytes(plain, flate2::read::MultiGzDecoder::new(packed)),
                Extension::Zst => same_bytes(plain, zstd::Decoder::new(packed)?),
            }
        };
        let different = || io::Error::other("they differ: look at both, and move one away");
        match same().and_then(|same| if same { Ok(()) } else { Err(different()) }) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => {
                self.warn("a rotated file and a compressed one of its name are both kept", &error);
                false
            }
        }
    }

    fn delete(&self, file: Name) {
        match self.file(file).and_then(fs::remove_file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                self.warn("a rotated file cannot be deleted", &error);
            }
            _ => {}
        }
    }

    /// Nothing is left to do where somebody has taken the file away.
    fn compress(&self, at: PrimitiveDateTime, extension: Extension, stop: Stop<'_>) -> io::Result<()> {
        let plain = self.file(Name { at, form: Form::Plain })?;
        let temporary = self.file(Name { at, form: Form::Temporary(extension) })?;
        let source = match open_regular(&plain) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            source => source?,
        };
        let read = write_compressed(&source, &temporary, extension, stop).and_then(|read| {
            rename_to_new(&temporary, &self.file(Name { at, form: Form::Compressed(extension) })?)?;
            Ok(read)
        });
        let read = read.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        self.sync_folder()?;
        match fs::symlink_metadata(&plain) {
            Ok(found) if Inode::of(&found) == Inode::of(&source.metadata()?) && found.len() == read => {
                fs::remove_file(plain)
            }
            Ok(_) => Err(io::Error::other("it has changed meanwhile: both are kept")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Every name like those of ours, oldest first.
    fn list(&self) -> io::Result<Vec<Name>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            files.extend(Name::parse(&entry?.file_name(), &self.name));
        }
        files.sort_unstable();
        Ok(files)
    }

    fn file(&self, name: Name) -> io::Result<PathBuf> {
        Ok(self.folder.join(name.of(&self.name).map_err(io::Error::other)?))
    }

    fn warn(&self, what: &str, error: &io::Error) {
        let (path, remedy) = (self.path.display(), remedy(error));
        tracing::warn!(%path, %error, "{what}{remedy}; tried again at the next rotation");
    }
}

/// Gives a file that takes another's place the same readers, as far as this user may.
pub(super) fn inherit(file: &File, from: &Metadata) {
    let group = std::os::unix::fs::fchown(file, None, Some(from.gid()));
    // Another group has not been let in.
    let mode = if group.is_ok() { 0o777 } else { 0o707 };
    // This user has to be able to open it again.
    let _ = file.set_permissions(Permissions::from_mode(from.mode() & mode | 0o600));
}

/// Whatever has come there under such a name: nothing is followed, and no pipe is waited for.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// How many bytes it has read.
fn write_compressed(source: &File, to: &Path, extension: Extension, stop: Stop<'_>) -> io::Result<u64> {
    let found = source.metadata()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    inherit(&file, &found);
    let (file, read) = match extension {
        Extension::Gz => {
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            let read = pour(source, &mut encoder, stop)?;
            (encoder.finish()?, read)
        }
        Extension::Zst => {
            let mut encoder = zstd::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            encoder.include_checksum(true)?;
            let read = pour(source, &mut encoder, stop)?;
            (encoder.finish()?, read)
        }
    };
    file.set_modified(found.modified()?)?;
    file.sync_all()?;
    Ok(read)
}

fn same_bytes(one: File, other: impl Read) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::with_capacity(BUFFER, one), BufReader::with_capacity(BUFFER, other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let both = left.len().min(right.len());
        if both == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..both] != right[..both] {
            return Ok(false);
        }
        one.consume(both);
        other.consume(both);
    }
}

fn pour(mut from: &File, to: &mut impl Write, stop: Stop<'_>) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut all = 0;
    while !stop() {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                all += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::Interrupted.into())
}

/// Renames, but never onto a file that is there. The caller syncs the folder.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows how; and nobody else gives such names.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !fs::exists(to)? => Ok(rustix::fs::rename(from, to)?),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use tempfile::TempDir;
    use tokio::sync::watch;

    use super::*;
    use crate::sinks::file::settings::Sync;

    /// Has a file compressed that somebody has his way with once it is read to its end: what became of both, and of it.
    fn compress_while(meanwhile: impl Fn(&Path)) -> (TempDir, io::Result<()>, Vec<String>) {
        let folder = TempDir::new().unwrap();
        let settings = Settings {
            path: folder.path().join("events"),
            rotate_bytes: None,
            rotate_every: None,
            compress: Compress::Gzip,
            keep_files: None,
            sync: Sync::Batch,
        };
        let rotated = Rotated::new(&settings, Permit { sink: "out".to_owned(), own: watch::channel(Arc::default()).1 });
        let name = Name::plain(OffsetDateTime::UNIX_EPOCH);
        let plain = rotated.file(name).unwrap();
        fs::write(&plain, "{\"a\":1}\n").unwrap();
        let asked = Cell::new(0);
        let done = rotated.compress(name.at, Extension::Gz, &|| {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                meanwhile(&plain);
            }
            false
        });
        let mut left: Vec<String> = rotated.list().unwrap().iter().map(|name| format!("{:?}", name.form)).collect();
        left.sort();
        (folder, done, left)
    }

    #[test]
    fn an_original_is_deleted_only_as_it_was_compressed() {
        let packed = "Compressed(Gz)".to_owned();
        let (_, done, left) = compress_while(|_| ());
        assert!(done.is_ok() && left == [packed.clone()], "{done:?} {left:?}");
        let (_, done, left) = compress_while(|plain| fs::remove_file(plain).unwrap());
        assert!(done.is_ok() && left == [packed.clone()], "{done:?} {left:?}");
        let (folder, done, left) =
            compress_while(|plain| rustix::fs::rename(plain, plain.with_file_name("aside")).unwrap());
        assert!(done.is_ok() && left == [packed.clone()], "{done:?} {left:?}");
        assert_eq!(fs::read_to_string(folder.path().join("aside")).unwrap(), "{\"a\":1}\n");
        // Exchanged, and cut: both stay.
        let (_, done, left) = compress_while(|plain| {
            fs::write(plain.with_file_name("other"), "{\"b\":2}\n").unwrap();
            rustix::fs::rename(plain.with_file_name("other"), plain).unwrap();
        });
        assert!(done.is_err() && left == [packed.clone(), "Plain".to_owned()], "{done:?} {left:?}");
        let (_, done, left) = compress_while(|plain| fs::write(plain, "").unwrap());
        assert!(done.is_err() && left == [packed.clone(), "Plain".to_owned()], "{done:?} {left:?}");
        // In the way of the whole one: that is not touched, and nothing is lost.
        let (folder, done, left) = compress_while(|plain| {
            let mut target = plain.as_os_str().to_owned();
            target.push(".gz");
            fs::write(target, "another's").unwrap();
        });
        assert!(done.is_err() && left == [packed, "Plain".to_owned()], "{done:?} {left:?}");
        drop(folder);
    }
}
