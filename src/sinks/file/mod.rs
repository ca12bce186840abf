//! One event a line at the end of a file, which is rotated by size and time; rotated files are compressed and in the end
//! deleted.
//!
//! The file is the operator's as well: it may be renamed, deleted or truncated at any time (logrotate in each of its ways),
//! and the next batch goes to where the path then leads. What others have read is never taken back: a line that broke off
//! is ended and its event written again, because truncating the file would make those who follow it start over.

mod background;
mod kind;
mod name;
mod permit;
mod rotated;
mod settings;
mod writer;

use background::Background;
pub(super) use name::is_rotated_from;
use permit::Permit;
use rotated::Rotated;
pub use settings::{Settings, Sync};
use writer::Writer;

use std::sync::Arc;

use tokio::sync::watch;

use super::lines::LineSink;
use super::own::OwnFiles;
use super::sink::{Failure, Sink};
use crate::journal::Event;
use crate::shape::Shape;

/// Appends to a file.
#[derive(Debug)]
pub(crate) struct FileSink {
    lines: LineSink<Writer>,
    /// Ends with the sink.
    _background: Background,
}

impl FileSink {
    /// The sink of this name. Opens nothing yet: a path that cannot be written to is retried with each delivery. `own`
    /// says at any time what the sink must not touch. Within a tokio runtime only.
    #[must_use]
    pub(super) fn new(name: &str, settings: Settings, shape: Shape, own: watch::Receiver<Arc<OwnFiles>>) -> Self {
        let rotated = Rotated::new(&settings, Permit { sink: name.to_owned(), own });
        let (background, orders) = Background::start(rotated.clone(), settings.sync);
        Self { lines: LineSink::new(shape, Writer::new(settings, rotated, orders)), _background: background }
    }
}

impl Sink for FileSink {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        self.lines.deliver(batch).await
    }
}
