//! One event a line at the end of a file, which is rotated by size and time; rotated files are compressed and in the end
//! deleted.
//!
//! The file is the operator's as well: it may be renamed, deleted or truncated at any time (logrotate in each of its ways),
//! and the next batch goes to where the path then leads. What others have read is never taken back: a line that broke off
//! is ended and its event written again, because truncating the file would make those who follow it start over.

mod background;
mod rotated;
mod writer;

use background::Background;
use rotated::Rotated;
use writer::Writer;

use super::lines::LineSink;
use super::{Failure, Sink};
use crate::config;
use crate::journal::Event;
use crate::shape::Shape;

/// Appends to a file.
#[derive(Debug)]
pub struct FileSink {
    lines: LineSink<Writer>,
    /// Ends with the sink.
    _background: Background,
}

impl FileSink {
    /// Opens nothing yet: a path that cannot be written to is retried with each delivery. Within a tokio runtime only.
    #[must_use]
    pub fn new(settings: config::FileSink, shape: Shape) -> Self {
        let rotated = Rotated::new(&settings);
        let (background, orders) = Background::start(rotated.clone(), settings.sync);
        Self { lines: LineSink::new(shape, Writer::new(settings, rotated, orders)), _background: background }
    }
}

impl Sink for FileSink {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        self.lines.deliver(batch).await
    }
}
