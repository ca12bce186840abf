//! What is left of a database that SQLite may not be able to read any more.
//!
//! Every page of the file and of its write-ahead log is searched for rows, whatever the trees above them say: each of our
//! rows carries a checksum, so one that is intact proves itself wherever it stands. Older copies turn up as well, and
//! rows that were deleted; [`salvage`](super::salvage) sorts them out.
//!
//! No event's bytes can pose as rows: what does not fit its row's page stands in overflow pages, and those begin with a
//! page number, never with the mark of a page of rows.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::journal::identity::LogIdentity;
use crate::journal::local::layout::{FRAME, FRAME_HEADER, LOG_HEADER, PAGE};
use crate::journal::local::rows::{IDENTITY, Identity};

/// A value of a row. Our tables hold no other kinds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

/// The files as they were found, open for reading.
#[derive(Debug)]
pub(crate) struct Remains {
    database: Option<File>,
    pages: u32,
    log: Option<File>,
    /// Of both files; no row is larger.
    bytes: usize,
    /// Where the pages of the log's transactions stand in it, oldest first.
    frames: Vec<u64>,
    /// The newest of them, by page number.
    newest: HashMap<u32, u64>,
}

/// Where to look for a page that another one refers to.
#[derive(Debug, Clone, Copy)]
enum View {
    /// In the log, else in the file.
    Newest,
    File,
}

type Page = [u8; PAGE];

/// The first byte of a page of rows.
const LEAF: u8 = 0x0d;
/// The same of a page that leads to others.
const INNER: u8 = 0x05;
/// Where the table `state` begins: tables get their pages in the order in which they are made.
const STATE_ROOT: u32 = 7;
/// Far more than any table of ours has.
const LEVELS: usize = 8;
/// Of our widest table.
const COLUMNS: usize = 6;

impl Remains {
    /// Of the database at `path`; what is missing or cannot be read is left out.
    pub(crate) fn of(path: &Path) -> Self {
        let length = |file: &File| file.metadata().map_or(0, |found| found.len());
        let database = File::open(path).ok();
        let database_bytes = database.as_ref().map_or(0, length);
        let log = File::open(format!("{}-wal", path.display())).ok();
        let log_bytes = log.as_ref().map_or(0, length);
        let mut remains = Self {
            database,
            pages: u32::try_from(database_bytes.div_ceil(PAGE as u64)).unwrap_or(u32::MAX),
            log,
            bytes: usize::try_from(database_bytes + log_bytes).unwrap_or(usize::MAX),
            frames: Vec::new(),
            newest: HashMap::new(),
        };
        remains.read_log(log_bytes);
        remains
    }

    /// Whether any transaction stands in the log.
    pub(crate) fn has_log(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Where the two files are of different logs, leaves out the one that is not `ours`, and names it. If neither is, the
    /// database stays. SQLite would mix them: a write-ahead log does not say which database it is of.
    pub(crate) fn leave_out_foreign(&mut self, ours: Option<LogIdentity>) -> Option<&'static str> {
        let (of_database, of_log) = (self.database_identity()?, self.log_identity()?);
        if of_database == of_log {
            return None;
        }
        if ours == Some(of_log) {
            (self.database, self.pages) = (None, 0);
            return Some("journal.db");
        }
        self.log = None;
        self.frames.clear();
        self.newest.clear();
        Some("journal.db-wal")
    }

    /// Of the newest copy in the write-ahead log, which has one from its first commit on.
    fn log_identity(&self) -> Option<LogIdentity> {
        let (log, mut page) = (self.log.as_ref()?, [0; PAGE]);
        self.frames.iter().rev().find_map(|&offset| {
            read(log, offset, &mut page);
            self.identity_on(&page)
        })
    }

    fn database_identity(&self) -> Option<LogIdentity> {
        let (mut number, mut page) = (STATE_ROOT, [0; PAGE]);
        for _ in 0..LEVELS {
            self.page(number, View::File, &mut page)?;
            number = match (page[0], short(&page, 3)) {
                (LEAF, _) => return self.identity_on(&page),
                (INNER, 0) => word(&page, 8),
                (INNER, _) => word(page.get(short(&page, 12).into()..).filter(|cell| cell.len() >= 4)?, 0),
                _ => return None,
            };
        }
        None
    }

    /// On a page of `state`, if it is the first one.
    fn identity_on(&self, page: &Page) -> Option<LogIdentity> {
        if page[0] != LEAF || short(page, 3) == 0 {
            return None;
        }
        let (key, payload, _) = self.payload(page.get(short(page, 8).into()..)?, View::File)?;
        match record(&payload)?[..] {
            [Value::Null, Value::Text(row), Value::Integer(sum)]
                if key == IDENTITY && xxh3_64(row.as_bytes()).cast_signed() == sum =>
            {
                serde_json::from_str::<Identity>(row).ok().map(|row| row.log)
            }
            _ => None,
        }
    }

    /// Finds the frames of the log's present use, up to the last one that ends a transaction: what an earlier use left
    /// behind has another salt. Their checksums are not looked at, as a row's own is.
    fn read_log(&mut self, bytes: u64) {
        let Some(log) = &self.log else { return };
        let frames = bytes.saturating_sub(LOG_HEADER as u64) / FRAME;
        let at = |number: u64| LOG_HEADER as u64 + number * FRAME;
        let header = |number: u64| {
            let mut header = [0; FRAME_HEADER];
            read(log, at(number), &mut header);
            header
        };
        let mut start = [0; LOG_HEADER];
        read(log, 0, &mut start);
        let salt = |bytes: &[u8]| long(bytes, 0);
        // The log's own header may be what is damaged; the frames repeat its salt.
        let first = [salt(&start[16..]), salt(&header(0)[8..]), salt(&header(1)[8..])];
        let salts = if first[1] == first[2] { first[1] } else { first[0] };
        let mut committed = 0;
        let mut found = Vec::new();
        for number in 0..frames {
            let header = header(number);
            // One flipped bit is none of an earlier use: of that, half of the bits differ.
            if (salt(&header[8..]) ^ salts).count_ones() > 1 {
                continue;
            }
            found.push((word(&header, 0), at(number) + FRAME_HEADER as u64));
            if word(&header, 4) != 0 {
                committed = found.len();
            }
        }
        found.truncate(committed);
        self.frames = found.iter().map(|&(_, offset)| offset).collect();
        self.newest = found.into_iter().collect();
    }

    /// Calls `each` with the key and the values of every row there is, the log's newest first, until it fails. `each` says
    /// whether the row was intact; if not, it may come once more, put together from other pages.
    pub(crate) fn each_row<E>(&self, mut each: impl FnMut(u64, &[Value]) -> Result<bool, E>) -> Result<(), E> {
        let mut page = [0; PAGE];
        if let Some(log) = &self.log {
            for &offset in self.frames.iter().rev() {
                read(log, offset, &mut page);
                self.rows_of(&page, [View::Newest, View::File], &mut each)?;
            }
        }
        if let Some(database) = &self.database {
            for number in 0..u64::from(self.pages) {
                read(database, number * PAGE as u64, &mut page);
                self.rows_of(&page, [View::File, View::Newest], &mut each)?;
            }
        }
        Ok(())
    }

    fn rows_of<E>(
        &self,
        page: &Page,
        views: [View; 2],
        each: &mut impl FnMut(u64, &[Value]) -> Result<bool, E>,
    ) -> Result<(), E> {
        if (page[0] ^ LEAF).count_ones() > 1 {
            return Ok(());
        }
        let pointers = page[8..].chunks_exact(2).take(short(page, 3).into());
        for cell in pointers.filter_map(|pointer| page.get(short(pointer, 0).into()..)) {
            for view in views {
                let Some((key, payload, is_whole)) = self.payload(cell, view) else { continue };
                let intact = match record(&payload) {
                    Some(values) => each(key, &values)?,
                    None => false,
                };
                if intact || is_whole {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A cell's key and payload, and whether all of that stood in the cell.
    fn payload(&self, cell: &[u8], view: View) -> Option<(u64, Vec<u8>, bool)> {
        const LARGEST: usize = PAGE - 35;
        const SMALLEST: usize = (PAGE - 12) * 32 / 255 - 23;
        let (length, cell) = varint(cell)?;
        let (key, cell) = varint(cell)?;
        let length = usize::try_from(length).ok().filter(|&length| length <= self.bytes)?;
        if length <= LARGEST {
            return Some((key, cell.get(..length)?.to_vec(), true));
        }
        let rest = SMALLEST + (length - SMALLEST) % (PAGE - 4);
        let local = if rest <= LARGEST { rest } else { SMALLEST };
        let mut payload = cell.get(..local)?.to_vec();
        let mut next = word(cell.get(local..local + 4)?, 0);
        let mut page = [0; PAGE];
        while payload.len() < length {
            self.page(next, view, &mut page)?;
            next = word(&page, 0);
            let part = (length - payload.len()).min(PAGE - 4);
            payload.extend_from_slice(&page[4..4 + part]);
        }
        Some((key, payload, false))
    }

    fn page(&self, number: u32, view: View, page: &mut Page) -> Option<()> {
        let in_log = self.newest.get(&number).filter(|_| matches!(view, View::Newest));
        let (file, offset) = match in_log {
            Some(&offset) => (self.log.as_ref()?, offset),
            None if (1..=self.pages).contains(&number) => {
                (self.database.as_ref()?, u64::from(number - 1) * PAGE as u64)
            }
            None => return None,
        };
        read(file, offset, page);
        Some(())
    }
}

/// Fills `bytes` from `offset` on; with zeros where the file ends or the disk cannot read.
fn read(file: &File, offset: u64, bytes: &mut [u8]) {
    bytes.fill(0);
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(read @ 1..) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// The values of a row, as the file format has them (section 2.1 of its documentation).
fn record(payload: &[u8]) -> Option<Vec<Value<'_>>> {
    let (header, _) = varint(payload)?;
    let (header, mut body) = payload.split_at_checked(usize::try_from(header).ok()?)?;
    let (_, mut types) = varint(header)?;
    let mut values = Vec::with_capacity(COLUMNS);
    while !types.is_empty() && values.len() < COLUMNS {
        let (kind, rest) = varint(types)?;
        types = rest;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 => 8,
            12.. => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let (bytes, rest) = body.split_at_checked(length)?;
        body = rest;
        values.push(match kind {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => {
                let negative = bytes[0] & 0x80 != 0;
                let sign = if negative { -1 } else { 0 };
                Value::Integer(bytes.iter().fold(sign, |number, &byte| number << 8 | i64::from(byte)))
            }
            kind if kind % 2 == 0 => Value::Blob(bytes),
            _ => Value::Text(std::str::from_utf8(bytes).ok()?),
        });
    }
    types.is_empty().then_some(values)
}

/// A number as SQLite writes it, and what follows.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for at in 0..8 {
        let byte = *bytes.get(at)?;
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    Some((number << 8 | u64::from(*bytes.get(8)?), &bytes[9..]))
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
