//! Rotated files: their names, their compression, their end.
//!
//! `events.jsonl` becomes `events.jsonl.20261122T161004.123Z`, then `events.jsonl.20261122T161004.123Z.gz` by way of
//! `events.jsonl.20261122T161004.123Z.gz.tmp`. Names sort by age. Nothing else in the folder is ever touched.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use crate::config::{Compress, FileSink};

const STAMP: StaticFormatDescription =
    format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");
const TEMPORARY: &str = ".tmp";

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
}

/// A name that is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    at: PrimitiveDateTime,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Plain,
    Compressed(Extension),
    /// On its way to be compressed.
    Temporary(Extension),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extension {
    Gz,
    Zst,
}

impl Rotated {
    pub(super) fn new(settings: &FileSink) -> Self {
        let path = settings.path.clone();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self {
            folder: folder.to_owned(),
            name: path.file_name().unwrap_or_default().to_owned(),
            compress: settings.compress,
            keep: settings.keep_files,
            path,
        }
    }

    /// Gives the file at the path a name of its own, which no other file ever had. Durable once the folder is synced.
    pub(super) fn take_away(&self) -> io::Result<()> {
        let now = OffsetDateTime::now_utc();
        let now = PrimitiveDateTime::new(now.date(), now.time());
        // Later than all others, even when the clock was set back, so that the oldest is always deleted first.
        let newest = self.list()?.last().map(|newest| newest.at);
        let at = newest.map_or(now, |newest| now.max(newest.saturating_add(Duration::MILLISECOND)));
        rename_to_new(&self.path, &self.file(Name { at, form: Form::Plain })?)
    }

    pub(super) fn sync_folder(&self) -> io::Result<()> {
        match File::open(&self.folder)?.sync_all() {
            // Not every file system can.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    /// Finishes what a crash left, deletes what is too much and compresses the rest. Tells its errors in the log; what
    /// failed is done at the next rotation.
    pub(super) fn tidy(&self, stop: Stop<'_>) {
        let files = match self.list() {
            Ok(files) => files,
            // There is nothing to see to where there is no folder.
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                return self.warn("rotated files cannot be listed: let the receiver's user read their folder", &error);
            }
        };
        let (left_over, files): (Vec<Name>, Vec<Name>) =
            files.iter().partition(|file| self.is_left_over(**file, &files));
        let mut ages: Vec<PrimitiveDateTime> = files.iter().map(|file| file.at).collect();
        ages.dedup();
        let too_many = self.keep.map_or(0, |keep| ages.len().saturating_sub(keep));
        let oldest = ages.get(too_many);
        let (kept, too_old): (Vec<Name>, Vec<Name>) =
            files.into_iter().partition(|file| oldest.is_some_and(|oldest| file.at >= *oldest));
        for file in left_over.into_iter().chain(too_old) {
            if let Err(error) = self.file(file).and_then(fs::remove_file) {
                self.warn("a rotated file cannot be deleted: let the receiver's user write to its folder", &error);
            }
        }
        let Some(extension) = Extension::of(self.compress) else { return };
        for file in kept.into_iter().filter(|file| file.form == Form::Plain) {
            match self.compress(file.at, extension, stop) {
                Ok(()) => {}
                Err(_) if stop() => return,
                Err(error) => {
                    self.warn("a rotated file cannot be compressed: make room on its disk, or look at it", &error)
                }
            }
        }
    }

    /// Half a compressed file; or the original of a whole one, which had reached the disk before it got its name.
    fn is_left_over(&self, file: Name, among: &[Name]) -> bool {
        match file.form {
            Form::Temporary(_) => true,
            Form::Plain => among.iter().any(|other| other.at == file.at && matches!(other.form, Form::Compressed(_))),
            Form::Compressed(_) => false,
        }
    }

    fn compress(&self, at: PrimitiveDateTime, extension: Extension, stop: Stop<'_>) -> io::Result<()> {
        let plain = self.file(Name { at, form: Form::Plain })?;
        let temporary = self.file(Name { at, form: Form::Temporary(extension) })?;
        let written = write_compressed(&plain, &temporary, extension, stop)
            .and_then(|()| rename_to_new(&temporary, &self.file(Name { at, form: Form::Compressed(extension) })?));
        if let Err(error) = written {
            let _ = fs::remove_file(temporary);
            return Err(error);
        }
        self.sync_folder()?;
        fs::remove_file(plain)
    }

    /// Every file of ours, oldest first.
    fn list(&self) -> io::Result<Vec<Name>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            files.extend(Name::parse(&entry?.file_name(), &self.name));
        }
        files.sort_unstable();
        Ok(files)
    }

    fn file(&self, name: Name) -> io::Result<PathBuf> {
        let stamp = name.at.format(STAMP).map_err(io::Error::other)?;
        let mut file = self.name.clone();
        file.push(".");
        file.push(stamp);
        file.push(name.form.suffix());
        Ok(self.folder.join(file))
    }

    fn warn(&self, what: &str, error: &io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "{what}; tried again at the next rotation");
    }
}

impl Name {
    fn parse(name: &OsStr, base: &OsStr) -> Option<Self> {
        let rest = name.as_bytes().strip_prefix(base.as_bytes())?.strip_prefix(b".")?;
        let (stamp, suffix) = std::str::from_utf8(rest).ok()?.split_at_checked("20261122T161004.123Z".len())?;
        let at = PrimitiveDateTime::parse(stamp, STAMP).ok()?;
        let form = Form::ALL.into_iter().find(|form| form.suffix() == suffix)?;
        Some(Self { at, form })
    }
}

impl Form {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Compressed(Extension::Gz),
        Self::Compressed(Extension::Zst),
        Self::Temporary(Extension::Gz),
        Self::Temporary(Extension::Zst),
    ];

    fn suffix(self) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Compressed(extension) => extension.suffix().to_owned(),
            Self::Temporary(extension) => extension.suffix().to_owned() + TEMPORARY,
        }
    }
}

impl Extension {
    fn of(compress: Compress) -> Option<Self> {
        match compress {
            Compress::None => None,
            Compress::Gzip => Some(Self::Gz),
            Compress::Zstd => Some(Self::Zst),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gz => ".gz",
            Self::Zst => ".zst",
        }
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

fn write_compressed(from: &Path, to: &Path, extension: Extension, stop: Stop<'_>) -> io::Result<()> {
    // Whatever has come there under such a name: nothing is followed, and no pipe is waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut source = File::from(rustix::fs::open(from, flags, Mode::empty())?);
    let found = source.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    inherit(&file, &found);
    let file = match extension {
        Extension::Gz => {
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            pour(&mut source, &mut encoder, stop)?;
            encoder.finish()?
        }
        Extension::Zst => {
            let mut encoder = zstd::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            encoder.include_checksum(true)?;
            pour(&mut source, &mut encoder, stop)?;
            encoder.finish()?
        }
    };
    file.set_modified(found.modified()?)?;
    file.sync_all()
}

fn pour(from: &mut File, to: &mut impl Write, stop: Stop<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    while !stop() {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
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
