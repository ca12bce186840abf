//! The file that is written to.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};

use super::background::Orders;
use super::permit::remedy;
use super::rotated::{self, Rotated};
use super::settings::{Settings, Sync};
use crate::places::Inode;
use crate::sinks::lines::{self, Lines, Output};
use crate::sinks::own::Clash;
use crate::sinks::sink::Failure;

/// Appends lines, each file whole lines only.
#[derive(Debug)]
pub(super) struct Writer {
    settings: Settings,
    rotated: Rotated,
    orders: Orders,
    /// `None` before the first batch and after a failure: opening it anew looks at everything anew.
    open: Option<Open>,
    /// The last rotation failed, and that was told.
    rotation_failed: bool,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    inode: Inode,
    size: u64,
    /// The period of `rotate_every` its lines are of.
    period: u128,
}

/// For people: why something did not work.
type Reason = String;

impl Output for Writer {
    fn put(&mut self, lines: &Lines) -> Result<(), Failure> {
        let (delivered, result) = self.append(lines);
        result.map_err(|reason| {
            self.open = None;
            Failure::of_target(delivered, reason)
        })
    }
}

impl Writer {
    pub(super) fn new(settings: Settings, rotated: Rotated, orders: Orders) -> Self {
        Self { settings, rotated, orders, open: None, rotation_failed: false }
    }

    /// How many lines are out, and what stopped the rest.
    fn append(&mut self, lines: &Lines) -> (usize, Result<(), Reason>) {
        let mut line = 0;
        let mut open = match self.ready() {
            Ok(open) => open,
            Err(reason) => return (line, Err(reason)),
        };
        while line < lines.count() {
            let mut room = self.settings.rotate_bytes.map_or(u64::MAX, |most| most.saturating_sub(open.size));
            let period = self.period(SystemTime::now());
            if open.size == 0 {
                open.period = period;
            } else if lines.whole(line, room) == 0 || open.period != period {
                (open, room) = match self.rotate(open) {
                    Ok(rotated) => rotated,
                    Err(reason) => return (line, Err(reason)),
                };
            }
            // A line that is larger than a file may be has one to itself.
            let to = line + lines.whole(line, room).max(1);
            let (written, result) = self.write(&mut open, lines, line, to);
            line += written;
            if let Err(reason) = result {
                return (line, Err(reason));
            }
        }
        self.open = Some(open);
        (line, Ok(()))
    }

    /// Writes the lines `from..to`: how many are out, and what stopped the rest.
    fn write(&self, open: &mut Open, all: &Lines, from: usize, to: usize) -> (usize, Result<(), Reason>) {
        let (written, result) = lines::write(&open.file, all.text(from, to));
        open.size += written as u64;
        let whole = all.whole(from, written as u64);
        let synced = match self.settings.sync {
            Sync::Batch if whole > 0 => open.file.sync_data(),
            Sync::Interval => {
                self.orders.written(&open.file);
                Ok(())
            }
            Sync::Batch | Sync::Never => Ok(()),
        };
        if let Err(error) = synced {
            // What reached the disk is not known: all of it is written again.
            return (0, Err(self.failed("cannot be synced", &error)));
        }
        if let Err(reason) = self.still_has(open) {
            return (0, Err(reason));
        }
        (whole, result.map_err(|error| self.failed("cannot be written to", &error)))
    }

    /// Lines count as delivered only where somebody can find them: whoever deletes or truncates the file while they are
    /// being written takes them along, and they are written again. Under another name they are still there.
    fn still_has(&self, open: &Open) -> Result<(), Reason> {
        let found = open.file.metadata().map_err(|error| self.failed("cannot be looked at", &error))?;
        let what = match (found.nlink(), found.len()) {
            (0, _) => "deleted",
            (_, size) if size < open.size => "truncated",
            _ => return Ok(()),
        };
        let path = self.settings.path.display();
        Err(format!("{path} was {what} while it was written to: the events of that moment are written again"))
    }

    /// The file at the path now, which ends in a whole line.
    fn ready(&mut self) -> Result<Open, Reason> {
        if let Some(error) = self.orders.sync_failure() {
            return Err(self.failed("could not be synced; events delivered a second before may be lost", &error));
        }
        let found = match fs::symlink_metadata(&self.settings.path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(self.failed("cannot be looked at", &error)),
        };
        match (self.open.take(), found) {
            (Some(mut open), Some(found)) if open.inode == Inode::of(&found) => {
                if open.size != found.len() {
                    // Somebody has truncated it, or appended to it.
                    self.end_partial_line(&mut open)?;
                }
                Ok(open)
            }
            (before, found) => {
                if let Some(before) = before {
                    self.leave(&before)?;
                }
                if found.is_some_and(|found| !found.is_file()) {
                    return Err(self.not_regular());
                }
                self.open()
            }
        }
    }

    /// Opens the file at the path, or makes it.
    fn open(&self) -> Result<Open, Reason> {
        let clash = |clash: &Clash| format!("{} {clash}: give each its own file", self.settings.path.display());
        self.rotated.place().map_err(|found| clash(&found))?;
        // Without waiting for the reader of a pipe that has come there just now.
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened =
            rustix::io::retry_on_intr(|| rustix::fs::open(&self.settings.path, flags, Mode::RUSR | Mode::WUSR));
        let file = File::from(opened.map_err(|error| self.failed("cannot be opened", &error.into()))?);
        let found = file.metadata().map_err(|error| self.failed("cannot be looked at", &error))?;
        if !found.is_file() {
            return Err(self.not_regular());
        }
        // Its way may have changed in between: what counts is what was opened.
        if !self.rotated.place().map_err(|found| clash(&found))?.holds(Inode::of(&found)) {
            return Err(format!("{} was exchanged while it was opened", self.settings.path.display()));
        }
        if self.settings.sync != Sync::Never {
            // Whoever made it, its name may not be on the disk yet.
            self.rotated.sync_folder().map_err(|error| self.failed("is in a folder that cannot be synced", &error))?;
        }
        let period = self.period(found.modified().unwrap_or(UNIX_EPOCH));
        let mut open = Open { file: Arc::new(file), inode: Inode::of(&found), size: found.len(), period };
        self.end_partial_line(&mut open)?;
        Ok(open)
    }

    /// So that no line is ever joined to what an earlier process, a failed write or somebody else left there.
    fn end_partial_line(&self, open: &mut Open) -> Result<(), Reason> {
        let failed = |error: &io::Error| self.failed("cannot be written to", error);
        if lines::ends_in_partial_line(&open.file).map_err(|error| failed(&error))? {
            lines::write(&open.file, b"\n").1.map_err(|error| failed(&error))?;
        }
        open.size = open.file.metadata().map_err(|error| failed(&error))?.len();
        Ok(())
    }

    /// A new file at the path and its room, the old one under a name of its own. When that does not work, the old file and
    /// endless room: delivery goes on.
    fn rotate(&mut self, full: Open) -> Result<(Open, u64), Reason> {
        self.leave(&full)?;
        let mut to = None;
        let taken = self.rotated.next().and_then(|next| self.rotated.take_away(to.insert(next)));
        if let Err(error) = taken {
            if !self.rotation_failed {
                let (path, remedy) = (self.settings.path.display(), remedy(&error));
                let to = to.map(|to| to.display().to_string());
                tracing::warn!(%path, to, %error, "a file cannot be rotated and grows on{remedy}");
            }
            self.rotation_failed = true;
            return Ok((full, u64::MAX));
        }
        self.rotation_failed = false;
        self.orders.rotated();
        let new = self.open()?;
        if let Ok(found) = full.file.metadata() {
            rotated::inherit(&new.file, &found);
        }
        let room = self.settings.rotate_bytes.map_or(u64::MAX, |most| most.saturating_sub(new.size));
        Ok((Open { period: self.period(SystemTime::now()), ..new }, room))
    }

    /// The last that is done to a file before another one takes its place.
    fn leave(&self, open: &Open) -> Result<(), Reason> {
        match self.settings.sync {
            Sync::Interval => open.file.sync_data().map_err(|error| self.failed("cannot be synced", &error)),
            Sync::Batch | Sync::Never => Ok(()),
        }
    }

    /// Counted from 1970, so that days begin at midnight UTC.
    fn period(&self, at: SystemTime) -> u128 {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.settings.rotate_every.map_or(0, |every| since.as_nanos() / every.as_nanos().max(1))
    }

    fn not_regular(&self) -> Reason {
        let path = self.settings.path.display();
        format!("{path} is not a regular file (a folder, a pipe or a link, say): move it away, or name another path")
    }

    fn failed(&self, what: &str, error: &io::Error) -> Reason {
        format!("{} {what} ({error}){}", self.settings.path.display(), remedy(error))
    }
}
