//! One event a line on standard output.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};

use super::{Failure, Sink};
use crate::journal::Event;

const NONE: &str = "standard output is closed: open it, or switch the sink off (enabled = false)";

/// Writes past Rust's own buffer of standard output, which after an error would not say what it still holds.
#[derive(Debug)]
pub struct Stdout {
    /// `None` while a write is under way, or when standard output is closed.
    out: Option<Line>,
}

#[derive(Debug)]
struct Line {
    out: File,
    /// The last line is not ended: a write broke off, or an earlier process was killed.
    partial: bool,
}

impl Stdout {
    /// # Errors
    /// When there is no standard output.
    pub fn new() -> io::Result<Self> {
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        if is_stand_in(&out) {
            return Ok(Self { out: None });
        }
        let partial = ends_in_partial_line(&out);
        Ok(Self { out: Some(Line { out, partial }) })
    }
}

impl Sink for Stdout {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        let Some(mut line) = self.out.take().or_else(|| Self::new().ok().and_then(|mut new| new.out.take())) else {
            return Err(Failure::of_target(0, NONE.to_owned()));
        };
        let mut text = Vec::with_capacity(batch.iter().map(|event| event.body().len() + 1).sum());
        let mut ends = Vec::with_capacity(batch.len());
        for event in batch {
            push_line(&mut text, event.body());
            ends.push(text.len());
        }
        // On a thread that may block: whoever reads standard output may have stopped.
        let write = tokio::task::spawn_blocking(move || {
            let (written, result) = line.write(&text);
            (line, written, result)
        });
        let Ok((line, written, result)) = write.await else {
            return Err(Failure::of_target(0, "the write was given up".to_owned()));
        };
        self.out = Some(line);
        let delivered = ends.partition_point(|&end| end <= written);
        result.map_err(|error| Failure::of_target(delivered, format!("standard output: {error}")))
    }
}

impl Line {
    /// How many bytes of `text` went out, and what stopped the rest.
    fn write(&mut self, text: &[u8]) -> (usize, io::Result<()>) {
        if self.partial {
            if let Err(error) = self.out.write_all(b"\n") {
                return (0, Err(error));
            }
            self.partial = false;
        }
        let mut written = 0;
        while written < text.len() {
            match self.out.write(&text[written..]) {
                Ok(0) => return self.broken_off(written, text, ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody set the shared descriptor to not block; a reader that is slow is no failure.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return self.broken_off(written, text, error),
            }
        }
        (written, Ok(()))
    }

    fn broken_off(&mut self, written: usize, text: &[u8], error: io::Error) -> (usize, io::Result<()>) {
        self.partial = written > 0 && text.get(written - 1) != Some(&b'\n');
        (written, Err(error))
    }
}

/// Appends `body` as one line. CR and LF stand only between tokens in valid JSON, so a space means the same.
fn push_line(text: &mut Vec<u8>, body: &[u8]) {
    text.extend(body.iter().map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    text.push(b'\n');
}

/// Whether this is what Rust's runtime puts in the place of a closed standard output: /dev/null, for reading and writing.
/// Events written there would count as delivered, and be gone. `> /dev/null` is for writing only, and means it.
fn is_stand_in(out: &File) -> bool {
    let is_null = || -> io::Result<bool> {
        let (out, null) = (out.metadata()?, fs::metadata("/dev/null")?);
        Ok(out.file_type().is_char_device() && out.rdev() == null.rdev())
    };
    let read_and_write = fcntl_getfl(out).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR);
    read_and_write && matches!(is_null(), Ok(true))
}

/// Whether output is a file whose last line an earlier process left unfinished.
fn ends_in_partial_line(out: &File) -> bool {
    let last_byte = || -> io::Result<Option<u8>> {
        if !out.metadata()?.is_file() {
            return Ok(None);
        }
        // Standard output is seldom readable itself.
        let mut file = File::open("/proc/self/fd/1")?;
        if file.seek(SeekFrom::End(0))? == 0 {
            return Ok(None);
        }
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        Ok(Some(last[0]))
    };
    matches!(last_byte(), Ok(Some(byte)) if byte != b'\n')
}
