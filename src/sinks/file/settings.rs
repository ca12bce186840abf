//! `[sinks.NAME]` with `type = "file"`.

use std::path::PathBuf;
use std::time::Duration;

use crate::settings::{INSTANT, Section, Use, YEAR};
use crate::sinks::compress::Compress;

/// A sink of `type = "file"`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub path: PathBuf,
    /// `None`: never by size (`0` in the settings).
    pub rotate_bytes: Option<u64>,
    /// `None`: never by time (`"none"` in the settings).
    pub rotate_every: Option<Duration>,
    /// Of rotated files.
    pub compress: Compress,
    /// Rotated files beyond these are deleted, oldest first; `None`: all are kept (`0` in the settings).
    pub keep_files: Option<usize>,
    pub sync: Sync,
}

/// When what was written to a file is synced to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before its events count as delivered.
    Batch,
    /// Once a second.
    Interval,
    Never,
}

pub(super) fn read(s: &mut Section<'_, '_>) -> Settings {
    let compressions = [("none", Compress::None), ("gzip", Compress::Gzip), ("zstd", Compress::Zstd)];
    let syncs = [("batch", Sync::Batch), ("interval", Sync::Interval), ("never", Sync::Never)];
    let sink = Settings {
        path: s.needed_file("path", Some(Use::Writes), "name the file that the events are written to"),
        rotate_bytes: Some(s.size("rotate_bytes", 0..=u64::MAX)).filter(|bytes| *bytes > 0),
        rotate_every: s.duration_or_none("rotate_every", INSTANT..=YEAR),
        compress: s.choice("compress", &compressions, Compress::None),
        keep_files: Some(s.number("keep_files", 0..=1_000_000)).filter(|files| *files > 0),
        sync: s.choice("sync", &syncs, Sync::Batch),
    };
    let whole = sink.rotate_bytes.is_none() && sink.rotate_every.is_none();
    let without = "has no effect without rotate_bytes or rotate_every";
    s.doubt(&["compress"], whole && sink.compress != Compress::None, without);
    s.doubt(&["keep_files"], whole && sink.keep_files.is_some(), without);
    sink
}
