//! The journal in one SQLite database: a row per commit group, write-ahead log, `synchronous = FULL`.
//!
//! | table | a row |
//! | --- | --- |
//! | `groups` | the events that were committed together, in one LZ4 block |
//! | `ids` | their event ids; kept for the dedup window, longer than the bodies |
//! | `sinks` | a sink's place (JSON) |
//! | `dead_letters`, `quarantine` | an event, a body; with its reason (JSON) |
//! | `state` | what the journal knows of itself (JSON): how many rows there should be, and what was lost; which sinks have a place; notes of others |
//!
//! The main file of SQLite has no checksums, so every row carries one, and [`recover`](super::recover) looks at all of
//! them. Checkpoints are made by the writer, never by SQLite behind its back: their errors are sync errors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params};
use rustix::fs::statvfs;

use super::folder::Folder;
use super::guard::{Frames, Guard};
use super::layout::PAGE;
use super::named::Displaced;
use super::rows::{
    SINKS, filed, filed_page, json, put_about_itself, put_filed, put_identity, put_note, put_state, text_checksum,
};
use super::store::{
    Commit, DeadLetter, Head, OpenReader, Page, Passing, Pick, Reader, Row, Store, StoreError, StoreState,
};
use crate::journal::event::{Group, checksum};
use crate::journal::identity::LogIdentity;
use crate::journal::progress::Place;
use crate::journal::quarantine::Kept;

/// `PRAGMA user_version`. A larger one was written by a newer program: refused.
pub(crate) const FORMAT: u32 = 1;
/// "ASAP".
pub(crate) const APPLICATION_ID: u32 = 0x4153_4150;
const CACHE_KIB: i32 = 2000;
/// How long the writer waits for another process that has locked the database.
const BUSY: Duration = Duration::from_secs(2);
/// Pages in the write-ahead log from which it is copied into the main file.
const CHECKPOINT_PAGES: usize = 1000;
/// What a commit takes besides the bytes that are put into rows, about.
const COMMIT_MARGIN: u64 = 256 << 10;

/// Recovery compares it with what a file says.
pub(crate) const SCHEMA: &str = "
CREATE TABLE groups (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum INTEGER NOT NULL, block BLOB NOT NULL);
CREATE TABLE ids (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, at INTEGER NOT NULL, checksum INTEGER NOT NULL, ids BLOB NOT NULL);
CREATE TABLE sinks (id INTEGER PRIMARY KEY, name TEXT NOT NULL, place TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY, about TEXT NOT NULL, event BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE quarantine (id INTEGER PRIMARY KEY, about TEXT NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE state (id INTEGER PRIMARY KEY, state TEXT NOT NULL, checksum INTEGER NOT NULL);
";

/// The writer's connection.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    reader: SqliteReader,
    path: PathBuf,
    /// Pages written since the last checkpoint, about.
    pages: usize,
    /// A reader kept the last checkpoint from copying all of the log.
    behind: bool,
    /// For the next group's row; used again and again, so that it need not be cleared.
    buffer: Vec<u8>,
    /// The same file, if there was a descriptor left for it. It stays open as long as the connection: closing any
    /// descriptor of a file takes back all of the process's POSIX locks on it, SQLite's too.
    file: Option<File>,
    /// From when it is the journal's own on: a database that is only being made is nobody's promise.
    guard: Option<Guard>,
    /// Which log it is. Every use of the write-ahead log begins with a copy of that row: it tells the log's own.
    identity: Option<LogIdentity>,
    /// The next commit may begin one.
    signs: bool,
}

impl SqliteStore {
    /// Makes a new database at `path`, or makes one that a crash left without its first content.
    pub(crate) fn create(path: &Path, log: LogIdentity) -> Result<Self, StoreError> {
        // SQLite gives its other files the mode of this one.
        let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        made.map_err(|error| StoreError::Fatal(format!("{}: {error}", path.display())))?;
        let store = Self::open(path)?;
        store.reader.connection.execute_batch(&format!("PRAGMA page_size = {PAGE}; PRAGMA journal_mode = WAL"))?;
        store.reader.connection.execute_batch(&format!(
            "BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {SCHEMA}"
        ))?;
        put_identity(&store.reader.connection, log)?;
        put_state(&store.reader.connection, &StoreState::default())?;
        put_sink_names(&store.reader.connection)?;
        store.reader.connection.execute_batch("COMMIT")?;
        Ok(store)
    }

    /// Opens the database at `path`. Changes nothing in it but its write-ahead log's index, if it [`has_header`].
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let file = File::open(path).ok();
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // The writer waits for somebody else's lock no longer than a request may wait for its answer.
        connection.busy_timeout(BUSY)?;
        connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0")?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self {
            reader: SqliteReader { connection },
            path: path.to_owned(),
            pages: 0,
            behind: false,
            buffer: Vec::new(),
            file,
            guard: None,
            identity: None,
            signs: true,
        })
    }

    /// The same of a database whose write-ahead log was switched off, which is sound: switches it on again.
    pub(crate) fn open_with_log(path: &Path) -> rusqlite::Result<Self> {
        let store = Self::open(path)?;
        let connection = &store.reader.connection;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check == "ok" {
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        }
        Ok(store)
    }

    /// Whether nothing was ever written to it: not even its schema.
    pub(crate) fn is_blank(&self) -> rusqlite::Result<bool> {
        let tables: u32 =
            self.reader.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let version: u32 = self.reader.connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok(tables == 0 && version == 0)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.reader.connection
    }

    /// Another connection, that only reads.
    pub(crate) fn another(&self) -> rusqlite::Result<Connection> {
        connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// The main file, for reading it past SQLite.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Says in a database of an older program which log it is.
    pub(crate) fn identify(&self, log: LogIdentity) -> Result<(), StoreError> {
        Ok(put_identity(&self.reader.connection, log)?)
    }

    /// From now on its files must stay what they are, or nothing is committed any more.
    pub(crate) fn watch(&mut self, folder: &Folder, log: Option<LogIdentity>) -> io::Result<()> {
        self.identity = log;
        self.guard = Some(Guard::new(folder, &self.path, self.frames())?);
        Ok(())
    }

    /// The write-ahead log's state; `None` if SQLite cannot tell now. Costs no lock and no read.
    pub(crate) fn frames(&self) -> Option<Frames> {
        let mut count = self.reader.connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)").ok()?;
        count.query_row([], |row| Ok(Frames { written: row.get(1)?, copied: row.get(2)? })).ok()
    }

    #[cfg(test)]
    pub(crate) fn take_guard(&mut self) -> Option<Guard> {
        self.guard.take()
    }

    fn with_guard<T: Default>(
        &mut self,
        job: impl FnOnce(&mut Guard, &dyn Fn() -> Option<Frames>) -> Result<T, Displaced>,
    ) -> Result<T, Displaced> {
        // It is taken out so that it can ask this store.
        let Some(mut guard) = self.guard.take() else { return Ok(T::default()) };
        let done = job(&mut guard, &|| self.frames());
        self.guard = Some(guard);
        done
    }

    fn log(&self) -> PathBuf {
        self.path.with_extension("db-wal")
    }

    /// Copies the write-ahead log into the main file and syncs both.
    fn copy_back(&mut self, mode: &str) -> Result<(), StoreError> {
        // Copied from a log that is not ours any more, anything might come into the main file.
        self.with_guard(|guard, count| guard.look(count))?;
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        let copied = self.reader.connection.query_row(&checkpoint, [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        // Also where it broke off: some of it may be written.
        let counted = self.frames();
        if let Some(guard) = &mut self.guard {
            let looked_at = guard.checkpointed(counted);
            looked_at.map_err(|error| StoreError::Fatal(format!("{}: {error}", self.path.display())))?;
        }
        self.signs = true;
        let (_busy, log, done) = copied?;
        // What a reader held back is tried again after as many pages more.
        self.pages = usize::try_from(log.saturating_sub(done)).unwrap_or(0).min(CHECKPOINT_PAGES / 2);
        self.behind = done < log;
        Ok(())
    }

    /// Everything in the write-ahead log goes into the main file, synced: what was read back after a crash may never
    /// have reached the disk.
    pub(crate) fn settle(&mut self) -> Result<(), StoreError> {
        self.copy_back("TRUNCATE")
    }

    /// As [`settle`](Self::settle), but where the disk has no room for it the log is synced as it is: that is as durable,
    /// and the copy is made when there is room.
    pub(crate) fn settle_as_room_allows(&mut self) -> Result<(), StoreError> {
        match self.settle() {
            Err(StoreError::Passing { .. }) => {
                self.pages = CHECKPOINT_PAGES;
                let log = self.log();
                let synced = File::open(&log).and_then(|file| file.sync_all());
                synced.map_err(|error| StoreError::Fatal(format!("{}: {error}", log.display())))
            }
            settled => settled,
        }
    }

    /// Closes without writing anything.
    pub(crate) fn let_go(self) {
        // Checkpoints on closing are switched off, so this changes nothing, and a failure leaves nothing undone.
        let _ = self.reader.connection.close();
    }

    fn write(&self, commit: &Commit, row: Option<&Row>) -> rusqlite::Result<usize> {
        let connection = &self.reader.connection;
        let mut pages = 1;
        if let (Some(log), true) = (self.identity, self.signs) {
            put_identity(connection, log)?;
            pages += 1;
        }
        if let (Some(new), Some(row)) = (&commit.group, row) {
            connection.prepare_cached("INSERT INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
                row.first,
                row.last,
                row.at,
                new.group.size(),
                row.checksum.cast_signed(),
                row.block
            ])?;
            let ids_checksum = checksum(row.first, row.last, row.at, new.ids);
            connection.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
                row.first,
                row.last,
                row.at,
                ids_checksum.cast_signed(),
                new.ids
            ])?;
            pages += (row.block.len() + new.ids.len()) / PAGE + 4;
        }
        let mut sinks_changed = false;
        for (name, place) in &commit.places {
            sinks_changed |= put_place(connection, name, place)?;
            pages += 1;
        }
        for name in &commit.forgotten {
            sinks_changed |= connection.execute("DELETE FROM sinks WHERE name = ?1", [name])? > 0;
        }
        if sinks_changed {
            put_sink_names(connection)?;
        }
        for letter in &commit.dead_letters {
            pages += put_filed(connection, letter)?;
        }
        for kept in &commit.quarantine {
            pages += put_filed(connection, kept)?;
        }
        for (table, ids) in [("dead_letters", &commit.letters_gone), ("quarantine", &commit.kept_gone)] {
            let mut delete = connection.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?;
            for id in ids {
                pages += delete.execute([id])?;
            }
        }
        for (table, key, through) in [
            ("groups", "first", commit.groups_through),
            ("ids", "first", commit.ids_through),
            ("quarantine", "id", commit.quarantine_through),
        ] {
            if let Some(through) = through {
                let delete = format!("DELETE FROM {table} WHERE {key} <= ?1");
                pages += connection.prepare_cached(&delete)?.execute([through])?;
            }
        }
        if let Some(note) = commit.note {
            put_note(connection, note)?;
            pages += note.text.as_ref().map_or(0, String::len) / PAGE + 1;
        }
        if let Some(state) = commit.state {
            put_state(connection, state)?;
            pages += 1;
        }
        Ok(pages)
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        self.with_guard(|guard, count| guard.before_write(count))?;
        let row = commit.group.as_ref().map(|new| Row::of(new.group, std::mem::take(&mut self.buffer)));
        if let Err(held) = self.log_has_room(bytes_of(commit, row.as_ref())) {
            self.buffer = row.map_or_else(Vec::new, |row| row.block);
            return Err(held);
        }
        self.reader.connection.execute_batch("BEGIN IMMEDIATE")?;
        let written = self.write(commit, row.as_ref()).and_then(|pages| {
            self.reader.connection.execute_batch("COMMIT")?;
            Ok(pages)
        });
        if let Some(row) = row {
            self.buffer = row.block;
        }
        match written {
            Ok(pages) => {
                self.pages += pages;
                let started_over = self.with_guard(|guard, count| guard.committed(count()))?;
                // Where a reader kept it from doing so before.
                self.signs = started_over && !self.signs;
                Ok(())
            }
            Err(error) => {
                let error = StoreError::from(error);
                // SQLite rolls back by itself on some errors; then there is nothing left to undo.
                if matches!(error, StoreError::Passing { .. }) && !self.reader.connection.is_autocommit() {
                    self.reader.connection.execute_batch("ROLLBACK")?;
                }
                Err(error)
            }
        }
    }

    fn in_place(&mut self) -> Result<(), StoreError> {
        Ok(self.with_guard(|guard, count| guard.look(count))?)
    }

    fn oldest(&mut self, limit: usize) -> Result<Vec<Head>, StoreError> {
        heads(&self.reader.connection, "SELECT first, last, at, bytes FROM groups ORDER BY first LIMIT ?1", limit)
    }

    fn oldest_ids(&mut self, limit: usize) -> Result<Vec<Head>, StoreError> {
        heads(&self.reader.connection, "SELECT first, last, at, length(ids) FROM ids ORDER BY first LIMIT ?1", limit)
    }

    fn reader(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn readers(&self) -> OpenReader {
        let path = self.path.clone();
        Arc::new(move || {
            let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            Ok(Box::new(SqliteReader { connection }))
        })
    }

    fn maintain(&mut self) -> Result<(), StoreError> {
        if self.pages < CHECKPOINT_PAGES { Ok(()) } else { self.checkpoint() }
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.copy_back("PASSIVE")
    }

    fn log_bytes(&self) -> Option<u64> {
        fs::metadata(self.log()).ok().map(|log| log.len())
    }

    fn shrink_log(&mut self) -> Result<bool, StoreError> {
        self.copy_back("PASSIVE")?;
        if self.behind {
            return Ok(false);
        }
        // All of it is in the main file: that it starts over needs a moment without readers, which comes or does not.
        self.reader.connection.busy_timeout(Duration::ZERO)?;
        let done = self.copy_back("TRUNCATE");
        self.reader.connection.busy_timeout(BUSY)?;
        done?;
        Ok(self.log_bytes() == Some(0))
    }

    fn log_has_room(&mut self, bytes: u64) -> Result<(), StoreError> {
        let behind = self.frames().map_or(0, |frames| frames.written.saturating_sub(frames.copied));
        if behind <= CHECKPOINT_PAGES as u64 {
            return Ok(());
        }
        // What is put into such a log takes up the disk twice: there now, and in the database once it is copied.
        let pages: u64 = self.reader.connection.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let looked = fs::metadata(&self.path).and_then(|found| Ok((found.len(), statvfs(&self.path)?)));
        // What cannot be told shows with the write.
        let Ok((length, disk)) = looked else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let owed = (pages * PAGE as u64).saturating_sub(length);
        // A file system without a size has no blocks at all.
        if disk.f_blocks == 0 || free >= owed + 2 * bytes + COMMIT_MARGIN {
            return Ok(());
        }
        let log = self.log();
        let (log, behind) = (log.display(), (behind * PAGE as u64) >> 20);
        let reason = format!(
            "{log} holds {behind} MiB that are not copied into journal.db, which waits until nobody reads in it, and what \
             is left of the disk is kept for that"
        );
        Err(StoreError::Passing { why: Passing::LogHeld, reason })
    }

    fn free_bytes(&mut self) -> Result<u64, StoreError> {
        let mut free = self.reader.connection.prepare_cached("PRAGMA freelist_count")?;
        let pages: u64 = free.query_row([], |row| row.get(0))?;
        Ok(pages * PAGE as u64)
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        self.settle()?;
        // Nothing is left to checkpoint; SQLite would swallow the outcome.
        self.reader.connection.close().map_err(|(_, error)| error.into())
    }

    fn abandon(self: Box<Self>) {
        // Closing could write and sync again.
        std::mem::forget((self.reader.connection, self.file, self.guard));
    }
}

#[derive(Debug)]
struct SqliteReader {
    connection: Connection,
}

impl Reader for SqliteReader {
    fn group(&mut self, sequence: u64) -> Result<Option<Group>, StoreError> {
        let holding = "SELECT first, last, at, checksum, block FROM groups WHERE first <= ?1 AND last >= ?1 \
                       ORDER BY first DESC LIMIT 1";
        let next = "SELECT first, last, at, checksum, block FROM groups WHERE first > ?1 ORDER BY first LIMIT 1";
        for query in [holding, next] {
            let row = self.connection.prepare_cached(query)?.query_row([sequence], read_row).optional()?;
            if let Some(row) = row {
                let damaged = || StoreError::Fatal(format!("the group at sequence {} is damaged", row.first));
                return row.group().map(Some).ok_or_else(damaged);
            }
        }
        Ok(None)
    }

    fn written_since(&mut self, at: u64) -> Result<Option<u64>, StoreError> {
        // One view, whatever is deleted meanwhile.
        let view = self.connection.transaction()?;
        let end = |which: &str| view.query_row(&format!("SELECT {which}(first) FROM groups"), [], |row| row.get(0));
        let (Some(mut low), Some(newest)): (Option<u64>, Option<u64>) = (end("min")?, end("max")?) else {
            return Ok(None);
        };
        let mut query = view.prepare_cached("SELECT first, at FROM groups WHERE first >= ?1 ORDER BY first LIMIT 1")?;
        let mut group = |from: u64| query.query_row([from], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)));
        let mut high = newest;
        while low < high {
            let middle = low + (high - low) / 2;
            match group(middle)? {
                (_, written) if written >= at => high = middle,
                (first, _) => low = first.saturating_add(1),
            }
        }
        // Past the newest group, when that is older too.
        if low > newest {
            return Ok(None);
        }
        let (first, written) = group(low)?;
        Ok((written >= at).then_some(first))
    }

    fn letters(&mut self, pick: &Pick) -> Result<Page<DeadLetter>, StoreError> {
        filed_page(&self.connection, pick)
    }

    fn letter(&mut self, id: u64) -> Result<Option<DeadLetter>, StoreError> {
        filed(&self.connection, id)
    }

    fn bodies(&mut self, pick: &Pick) -> Result<Page<Kept>, StoreError> {
        filed_page(&self.connection, pick)
    }

    fn body(&mut self, id: u64) -> Result<Option<Kept>, StoreError> {
        filed(&self.connection, id)
    }
}

/// Whether a file begins as all of ours do, up to the first number that changes. If it does not, SQLite may write to it,
/// delete its log, or fail with the first write.
pub(crate) fn has_header(file: &[u8]) -> bool {
    begins(file, PAGE, 2)
}

/// The same of one without a write-ahead log.
pub(crate) fn is_without_log(file: &[u8]) -> bool {
    begins(file, PAGE, 1)
}

/// The bytes of a page, if a file begins as ours do but for that.
pub(crate) fn other_pages(file: &[u8]) -> Option<u32> {
    let pages = (9..=16).map(|power| 1 << power).filter(|&page| page != PAGE);
    let found = pages.into_iter().find(|&page| begins(file, page, 1) || begins(file, page, 2))?;
    u32::try_from(found).ok()
}

fn begins(file: &[u8], page: usize, version: u8) -> bool {
    // 65536 is written as 1.
    let [high, low] = u16::try_from(page).unwrap_or(1).to_be_bytes();
    // With or without a log, no reserved bytes, and three numbers that are the same in every file.
    let after = [high, low, version, version, 0, 64, 32, 32];
    file.strip_prefix(b"SQLite format 3\0").is_some_and(|rest| rest.starts_with(&after))
}

/// Whether the tables are what [`create`](SqliteStore::create) made them.
pub(crate) fn has_schema(connection: &Connection) -> rusqlite::Result<bool> {
    let mut tables = connection.prepare("SELECT sql FROM sqlite_schema ORDER BY rowid")?;
    let tables = tables.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(tables.iter().map(String::as_str).eq(SCHEMA.lines().filter_map(|line| line.strip_suffix(';'))))
}

/// A connection with what every one of ours needs.
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    // Only between our own connections, for moments.
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // In KiB; the file's own idea of it is not asked for.
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

/// What a commit puts into rows.
fn bytes_of(commit: &Commit, row: Option<&Row>) -> u64 {
    let group = row.map_or(0, |row| row.block.len()) + commit.group.as_ref().map_or(0, |new| new.ids.len());
    let letters = commit.dead_letters.iter().map(|letter| letter.event.len()).sum::<usize>();
    let kept = commit.quarantine.iter().map(|kept| kept.body.len()).sum::<usize>();
    (group + letters + kept) as u64
}

fn heads(connection: &Connection, query: &str, limit: usize) -> Result<Vec<Head>, StoreError> {
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map([limit], |row| {
        Ok(Head { first: row.get(0)?, last: row.get(1)?, at: row.get(2)?, bytes: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// `first, last, at, checksum, block` of `groups`.
pub(crate) fn read_row(row: &rusqlite::Row) -> rusqlite::Result<Row> {
    Ok(Row {
        first: row.get(0)?,
        last: row.get(1)?,
        at: row.get(2)?,
        checksum: row.get::<_, i64>(3)?.cast_unsigned(),
        block: row.get(4)?,
    })
}

/// True if the sink had no place before.
pub(crate) fn put_place(connection: &Connection, name: &str, place: &Place) -> rusqlite::Result<bool> {
    let place = json(place)?;
    let sum = text_checksum(0, &[name.as_bytes(), place.as_bytes()]);
    let updated = connection
        .prepare_cached("UPDATE sinks SET place = ?2, checksum = ?3 WHERE name = ?1")?
        .execute(params![name, place, sum])?;
    if updated == 0 {
        connection
            .prepare_cached("INSERT INTO sinks (name, place, checksum) VALUES (?1, ?2, ?3)")?
            .execute(params![name, place, sum])?;
    }
    Ok(updated == 0)
}

/// Every sink with a place, in order of their rows.
pub(crate) fn sink_names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection.prepare("SELECT name FROM sinks ORDER BY id")?.query_map([], |row| row.get(0))?.collect()
}

pub(crate) fn put_sink_names(connection: &Connection) -> rusqlite::Result<()> {
    put_about_itself(connection, SINKS, &sink_names(connection)?)
}

/// Until the next sink gets a place.
pub(crate) fn put_sink_names_unknown(connection: &Connection) -> rusqlite::Result<()> {
    put_about_itself(connection, SINKS, &None::<Vec<String>>)
}

impl From<Displaced> for StoreError {
    fn from(displaced: Displaced) -> Self {
        Self::Fatal(displaced.to_string())
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // A write that failed has changed nothing that counts: SQLite takes the transaction back, and the next one
        // writes to the same place. Nor has one that never began, for want of memory or file descriptors, or because
        // somebody else looks into the file. A failed sync, or anything unexpected, leaves the disk's content unknown.
        let reason = error.to_string();
        let rusqlite::Error::SqliteFailure(failure, _) = error else { return Self::Fatal(reason) };
        let why = match (failure.code, failure.extended_code) {
            (ErrorCode::DiskFull, _) => Passing::NoRoom,
            (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE) => Passing::Write,
            (_, ffi::SQLITE_IOERR_NOMEM) => Passing::Busy,
            (
                ErrorCode::OutOfMemory | ErrorCode::CannotOpen | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked,
                _,
            ) => Passing::Busy,
            _ => return Self::Fatal(reason),
        };
        Self::Passing { why, reason }
    }
}
