//! One event a line on standard output.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};

use super::kind::{self, Kind, Opening};
use super::lines::{self, LineSink, Lines, Output};
use super::plan::Plan;
use super::sink::{Failure, Sink};
use crate::journal::Event;
use crate::settings::Section;
use crate::shape::{Format, Shape};
use crate::terminal::escaped_bytes;

const NONE: &str = "standard output is closed: open it, or switch the sink off (enabled = false)";

const DELETED: &str = "its file was deleted: start the receiver again, or write to a file with a sink of type \"file\"";

/// A sink of `type = "stdout"`, which has no keys of its own.
#[derive(Debug, Clone, Default)]
pub struct Settings;

impl Kind for Settings {
    fn read(_: &mut Section<'_, '_>, _: Format) -> Self {
        Self
    }

    fn plan(&self) -> Plan {
        lines::plan(Duration::ZERO)
    }
}

impl kind::Open for Settings {
    type Sink = Stdout;

    fn open(&self, opening: Opening<'_>) -> io::Result<Vec<Stdout>> {
        Ok(vec![Stdout::new(opening.shape)?])
    }
}

/// Writes past Rust's own buffer of standard output, which after an error would not say what it still holds.
#[derive(Debug)]
pub(crate) struct Stdout(LineSink<Stream>);

impl Stdout {
    /// # Errors
    /// When there is no standard output.
    pub(super) fn new(shape: Shape) -> io::Result<Self> {
        Ok(Self(LineSink::new(shape, Stream { out: Open::new()? })))
    }
}

impl Sink for Stdout {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        self.0.deliver(batch).await
    }
}

#[derive(Debug)]
struct Stream {
    /// `None` when standard output is closed.
    out: Option<Open>,
}

#[derive(Debug)]
struct Open {
    out: File,
    /// A person reads along: what would steer the terminal is spelled otherwise, in the same JSON.
    is_terminal: bool,
    /// The last line is not ended: a write broke off, or an earlier process was killed.
    partial: bool,
    /// It is a file, and that had a name at first.
    named: bool,
}

impl Output for Stream {
    fn put(&mut self, lines: &Lines) -> Result<(), Failure> {
        if self.out.is_none() {
            let failed = |error| Failure::of_target(0, format!("standard output cannot be opened: {error}"));
            self.out = Open::new().map_err(failed)?;
        }
        let Some(open) = &mut self.out else { return Err(Failure::of_target(0, NONE.to_owned())) };
        let (delivered, result) = open.write(lines);
        result.map_err(|error| Failure::of_target(delivered, format!("standard output: {error}")))
    }
}

impl Open {
    fn new() -> io::Result<Option<Self>> {
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        if is_stand_in(&out) {
            return Ok(None);
        }
        let partial = ends_in_partial_line(&out);
        let named = links(&out)? > 0;
        let is_terminal = out.is_terminal();
        Ok(Some(Self { out, is_terminal, partial, named }))
    }

    /// How many lines went out whole, and what stopped the rest.
    fn write(&mut self, all: &Lines) -> (usize, io::Result<()>) {
        if self.partial {
            if let (_, Err(error)) = lines::write(&self.out, b"\n") {
                return (0, Err(error));
            }
            self.partial = false;
        }
        let text = all.text(0, all.count());
        if self.is_terminal {
            let text = escaped_bytes(text);
            let (written, result) = lines::write(&self.out, &text);
            self.partial = written > 0 && text.get(written - 1) != Some(&b'\n');
            // An event is one line, however it is spelled.
            return (text[..written].iter().filter(|&&byte| byte == b'\n').count(), result);
        }
        let (written, result) = lines::write(&self.out, text);
        self.partial = written > 0 && text.get(written - 1) != Some(&b'\n');
        if self.named && links(&self.out).is_ok_and(|links| links == 0) {
            // Nobody would ever find the lines there, and there is no way to another file of that name.
            return (0, Err(io::Error::other(DELETED)));
        }
        (all.whole(0, written as u64), result)
    }
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

/// How many names the file has that output goes to; none where it is something else.
fn links(out: &File) -> io::Result<u64> {
    let found = out.metadata()?;
    Ok(if found.is_file() { found.nlink() } else { 0 })
}

/// Whether output is a file whose last line an earlier process left unfinished.
fn ends_in_partial_line(out: &File) -> bool {
    let is_file = out.metadata().is_ok_and(|found| found.is_file());
    // Standard output is seldom readable itself.
    let read = || lines::ends_in_partial_line(&File::open("/proc/self/fd/1")?);
    is_file && matches!(read(), Ok(true))
}
