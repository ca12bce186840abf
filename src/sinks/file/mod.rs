//! One event a line at the end of a file, which is rotated by size and time; rotated files are compressed and in the end
//! deleted.
//!
//! The file is the operator's as well: it may be renamed, deleted or truncated at any time (logrotate in each of its ways),
//! and the next batch goes to where the path then leads. What others have read is never taken back: a line that broke off
//! is ended and its event written again, because truncating the file would make those who follow it start over.

mod background;
mod name;
mod rotated;
mod writer;

use background::Background;
pub use name::{LONGEST_SUFFIX, is_rotated_from};
use rotated::Rotated;
use writer::Writer;

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::watch;

use super::lines::LineSink;
use super::{Failure, Sink};
use crate::config::{self, Clash, OwnFiles};
use crate::journal::Event;
use crate::places::Place;
use crate::shape::Shape;

/// Appends to a file.
#[derive(Debug)]
pub struct FileSink {
    lines: LineSink<Writer>,
    /// Ends with the sink.
    _background: Background,
}

impl FileSink {
    /// The sink of this name. Opens nothing yet: a path that cannot be written to is retried with each delivery. `own`
    /// says at any time what the sink must not touch. Within a tokio runtime only.
    #[must_use]
    pub fn new(name: &str, settings: config::FileSink, shape: Shape, own: watch::Receiver<Arc<OwnFiles>>) -> Self {
        let rotated = Rotated::new(&settings, Permit { sink: name.to_owned(), own });
        let (background, orders) = Background::start(rotated.clone(), settings.sync);
        Self { lines: LineSink::new(shape, Writer::new(settings, rotated, orders)), _background: background }
    }
}

/// What helps against an error with the file or its folder, where that is sure; to follow the error's own words.
fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => ": make its folder, or mount its volume",
        Some(Errno::ACCESS) => ": let the receiver's user read and write it and its folder",
        Some(Errno::PERM) => ": look whether it or its folder is immutable or append-only (lsattr), or another user's",
        Some(Errno::ROFS) => ": mount its volume writable",
        Some(Errno::NOSPC | Errno::DQUOT) => ": make room; it goes on by itself",
        Some(Errno::NAMETOOLONG) => ": give it a shorter name; rotation adds up to 29 bytes",
        Some(Errno::MFILE | Errno::NFILE) => ": permit more open files (LimitNOFILE, ulimit -n)",
        Some(Errno::EXIST) => ": move away what has its name already",
        Some(Errno::BUSY) => ": it is a mount of its own; mount its folder instead",
        Some(Errno::STALE) => ": mount its volume anew",
        _ => "",
    }
}

/// What a sink may touch: no file that is another sink's or the receiver's own, wherever links and mounts lead by now.
#[derive(Debug, Clone)]
struct Permit {
    sink: String,
    /// Changes with the TLS files in use.
    own: watch::Receiver<Arc<OwnFiles>>,
}

impl Permit {
    /// Where `path` leads, if the sink may write there.
    fn place(&self, path: &Path) -> Result<Place, Clash> {
        let place = Place::of(path);
        let own = Arc::clone(&self.own.borrow());
        own.permit(&self.sink, &place).map(|()| place)
    }
}

impl Sink for FileSink {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        self.lines.deliver(batch).await
    }
}
