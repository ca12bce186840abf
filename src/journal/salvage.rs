//! A damaged database: set aside whole, and what can be read of it carried over into a new one.
//!
//! 1. The damaged files are copied into `rebuild/` and mended there as far as the format allows: the first page of our
//!    database is the same in every journal but for a few numbers, and the write-ahead log's checksums can be computed
//!    anew past a flipped bit (every row has a checksum of its own, so nothing wrong slips through).
//! 2. Row by row, what is sound goes into `rebuild/new.db`. Holes become losses, told and counted.
//! 3. `rebuild/complete` says that the new database is whole and synced. Then the damaged files move into a folder of
//!    their own and the new one takes their place; a crash in between goes on from there.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::folder::{Folder, Mark, rename, sync_directory};
use super::group::{Ids, checksum, digest, millis};
use super::place::Settled;
use super::recover::{DATABASE, Damage, Seen, each_place, examine, read_state};
use super::sqlite::{self, PAGE, SqliteStore};
use super::store::{Loss, Row, StoreError, StoreState};

const FILES: [&str; 3] = ["journal.db", "journal.db-wal", "journal.db-shm"];

/// Why a damaged journal could not be replaced. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SalvageError {
    #[error("it is damaged ({0}), and there is no way to write a new one beside it: {1}")]
    Io(String, io::Error),
    #[error("it is damaged ({0}), and the new one cannot be written: {1}")]
    Store(String, StoreError),
}

/// `user_version` in a database's header, if there is one to read.
pub(super) fn format_version(database: &Path) -> Option<u32> {
    let mut header = [0; 100];
    File::open(database).ok()?.read_exact(&mut header).ok()?;
    header.starts_with(b"SQLite format 3\0").then(|| header_number(&header, 60))
}

fn header_number(header: &[u8], at: usize) -> u32 {
    header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Carries on a replacement that a crash interrupted, or clears the remains of an unfinished one.
pub(super) fn finish(folder: &Folder) -> io::Result<()> {
    let rebuild = folder.file("rebuild");
    match fs::read_to_string(rebuild.join("complete")) {
        Ok(aside) => replace(folder, &rebuild, &folder.file(aside.trim())),
        Err(_) if rebuild.exists() => fs::remove_dir_all(&rebuild),
        Err(_) => Ok(()),
    }
}

/// Replaces the folder's database by a new one with all that can be read of it.
pub(super) fn salvage(folder: &Folder, mark: Option<Mark>, reason: String, seen: Seen) -> Result<Damage, SalvageError> {
    let io = |error| SalvageError::Io(reason.clone(), error);
    let store = |error| SalvageError::Store(reason.clone(), error);
    let rebuild = folder.file("rebuild");
    if rebuild.exists() {
        fs::remove_dir_all(&rebuild).map_err(io)?;
    }
    make_directory(&rebuild).map_err(io)?;
    let copy = rebuild.join("damaged.db");
    let old = mended_copy(folder, &copy).map_err(io)?;
    let path = rebuild.join("new.db");
    let mut new = SqliteStore::create(&path).map_err(store)?;
    let now = millis(SystemTime::now());
    let lost = carry_over(old.as_ref(), new.connection(), mark, &reason, now).map_err(|error| store(error.into()))?;
    new.settle().map_err(store)?;
    // Proof that the next step has something to put in the old one's place.
    examine(new.connection(), seen).map_err(|why| store(StoreError::Fatal(why)))?;
    new.let_go();
    drop(old);
    for name in ["damaged.db", "damaged.db-wal", "damaged.db-shm", "new.db-wal", "new.db-shm"] {
        remove(&rebuild.join(name)).map_err(io)?;
    }
    let aside = format!("damaged-{now}");
    let complete = rebuild.join("complete.new");
    fs::write(&complete, &aside).and_then(|()| File::open(&complete)?.sync_all()).map_err(io)?;
    rename(&complete, &rebuild.join("complete")).map_err(io)?;
    let aside = folder.file(&aside);
    replace(folder, &rebuild, &aside).map_err(io)?;
    Ok(Damage { reason, set_aside: aside, lost })
}

/// Moves the damaged files aside and the new database into their place. Can be done again from any point on.
fn replace(folder: &Folder, rebuild: &Path, aside: &Path) -> io::Result<()> {
    let new = rebuild.join("new.db");
    // Once the new database has moved, what stands in the folder is it.
    if new.exists() {
        if !aside.exists() {
            make_directory(aside)?;
            folder.sync()?;
        }
        for name in FILES {
            let file = folder.file(name);
            if file.exists() {
                rename(&file, &aside.join(name))?;
            }
        }
        rename(&new, &folder.file(DATABASE))?;
    }
    fs::remove_dir_all(rebuild)?;
    folder.sync()
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A copy of the damaged database that SQLite will open, if any can be made; `None` if there is nothing to read.
fn mended_copy(folder: &Folder, copy: &Path) -> io::Result<Option<Connection>> {
    let wal = PathBuf::from(format!("{}-wal", copy.display()));
    for (name, to) in [(FILES[0], copy), (FILES[1], &wal)] {
        let from = folder.file(name);
        if from.exists() {
            fs::copy(&from, to)?;
        }
    }
    if wal.exists() {
        mend_log(&wal)?;
    }
    if !copy.exists() {
        if !wal.exists() {
            return Ok(None);
        }
        // All that was written since the last checkpoint stands in the log; an empty database lets it be read.
        fs::write(copy, template_page(1)?)?;
    }
    if let Some(connection) = readable(copy) {
        return Ok(Some(connection));
    }
    let pages = u32::try_from(fs::metadata(copy)?.len().div_ceil(PAGE as u64)).unwrap_or(u32::MAX);
    OpenOptions::new().write(true).open(copy)?.write_all_at(&template_page(pages)?, 0)?;
    remove(&PathBuf::from(format!("{}-shm", copy.display())))?;
    Ok(readable(copy))
}

/// The database, if SQLite can read its schema.
fn readable(path: &Path) -> Option<Connection> {
    let connection = sqlite::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    let tables = ["groups", "ids", "sinks", "dead_letters", "quarantine", "state"];
    let intact = tables.iter().all(|table| connection.prepare(&format!("SELECT * FROM {table}")).is_ok());
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).is_ok();
    (intact && version).then_some(connection)
}

/// The first page as every journal of this format has it, for a file of so many pages and no free ones.
fn template_page(pages: u32) -> io::Result<Vec<u8>> {
    let mut connection = Connection::open_in_memory().map_err(io::Error::other)?;
    let sql = format!(
        "PRAGMA page_size = {PAGE}; PRAGMA application_id = {}; PRAGMA user_version = {}; {}",
        sqlite::APPLICATION_ID,
        sqlite::FORMAT,
        sqlite::SCHEMA
    );
    connection.execute_batch(&sql).map_err(io::Error::other)?;
    let image = connection.serialize("main").map_err(io::Error::other)?;
    let mut page = image.get(..PAGE).ok_or_else(|| io::Error::other("no first page"))?.to_vec();
    // Write-ahead log; the file's size, believed because the two counters beside it agree.
    page[18..20].copy_from_slice(&[2, 2]);
    page[24..28].copy_from_slice(&1_u32.to_be_bytes());
    page[28..32].copy_from_slice(&pages.to_be_bytes());
    page[92..96].copy_from_slice(&1_u32.to_be_bytes());
    Ok(page)
}

const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const FRAME: usize = FRAME_HEADER + PAGE;

/// Computes the checksums of a write-ahead log anew, so that a flipped bit in it no longer hides what comes after.
/// Frames of an earlier use of the file, behind the end of this one, are told by their salt.
fn mend_log(path: &Path) -> io::Result<()> {
    let mut log = fs::read(path)?;
    if log.len() < LOG_HEADER + FRAME {
        return Ok(());
    }
    let word = |log: &[u8], at: usize| header_number(log, at);
    // The header may be what is damaged; all of it is known but the salt, and every frame repeats that.
    let salt: [u8; 8] = match log[LOG_HEADER + 8..LOG_HEADER + 16].try_into() {
        Ok(first_frame) if log.len() < LOG_HEADER + 2 * FRAME || log[LOG_HEADER + FRAME + 8..][..8] == first_frame => {
            first_frame
        }
        _ => log[16..24].try_into().unwrap_or_default(),
    };
    let big_endian = 0x377f_0683_u32;
    log[0..4].copy_from_slice(&big_endian.to_be_bytes());
    log[4..8].copy_from_slice(&3_007_000_u32.to_be_bytes());
    log[8..12].copy_from_slice(&u32::try_from(PAGE).unwrap_or_default().to_be_bytes());
    log[16..24].copy_from_slice(&salt);
    let mut sum = (0, 0);
    sum = log_checksum(sum, &log[..24]);
    put_sum(&mut log, 24, sum);
    let mut at = LOG_HEADER;
    while at + FRAME <= log.len() {
        let next_matches = log.get(at + FRAME + 8..at + FRAME + 16) == Some(&salt[..]);
        if log[at + 8..at + 16] != salt {
            if !next_matches {
                break;
            }
            log[at + 8..at + 16].copy_from_slice(&salt);
        }
        if word(&log, at) == 0 {
            break;
        }
        sum = log_checksum(sum, &log[at..at + 8]);
        sum = log_checksum(sum, &log[at + FRAME_HEADER..at + FRAME]);
        put_sum(&mut log, at + 16, sum);
        at += FRAME;
    }
    fs::write(path, log)
}

fn put_sum(log: &mut [u8], at: usize, sum: (u32, u32)) {
    log[at..at + 4].copy_from_slice(&sum.0.to_be_bytes());
    log[at + 4..at + 8].copy_from_slice(&sum.1.to_be_bytes());
}

/// The checksum of SQLite's file format documentation, section 4.2, in big-endian words.
fn log_checksum(mut sum: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        sum.0 = sum.0.wrapping_add(header_number(pair, 0)).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(header_number(pair, 4)).wrapping_add(sum.0);
    }
    sum
}

/// Copies every sound row; gives the ranges of sequences that are gone.
fn carry_over(
    old: Option<&Connection>,
    new: &Connection,
    mark: Option<Mark>,
    reason: &str,
    now: u64,
) -> rusqlite::Result<Vec<(u64, u64)>> {
    new.execute_batch("BEGIN IMMEDIATE")?;
    let old_state = old.and_then(|old| read_state(old).ok().flatten());
    let mut present: Vec<(u64, u64)> = Vec::new();
    let mut with_ids: Vec<(u64, u64)> = Vec::new();
    if let Some(old) = old {
        let ids = keys(old, "ids", "first");
        let groups = keys(old, "groups", "first");
        for &key in groups.union(&ids) {
            let group = row(old, "SELECT first, last, at, checksum, block FROM groups WHERE first = ?1", key);
            let group = group.filter(|row| row.is_sound() && present.last().is_none_or(|&(_, last)| row.first > last));
            let ids = row(old, "SELECT first, last, at, checksum, ids FROM ids WHERE first = ?1", key);
            let ids = ids.filter(|row| checksum(row.first, row.last, row.at, &row.block) == row.checksum);
            let ids = ids.or_else(|| group.as_ref().and_then(ids_of));
            if let Some(group) = group
                && let Some(content) = group.group()
            {
                new.prepare_cached("INSERT INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
                    group.first,
                    group.last,
                    group.at,
                    content.size(),
                    group.checksum.cast_signed(),
                    group.block
                ])?;
                present.push((group.first, group.last));
            }
            if let Some(ids) = ids
                && with_ids.last().is_none_or(|&(_, last)| ids.first > last)
            {
                put_ids(new, &ids)?;
                with_ids.push((ids.first, ids.last));
            }
        }
    }
    let mut state = StoreState::default();
    let tail = present.last().map_or(0, |&(_, last)| last).max(mark.map_or(0, |mark| mark.last));
    let tail = tail.max(with_ids.last().map_or(0, |&(_, last)| last));
    let oldest = present.first().map_or(tail + 1, |&(first, _)| first);
    state.floor = match (&old_state, mark) {
        (Some(old), _) => old.floor,
        (None, Some(mark)) => mark.floor.max(1),
        (None, None) => oldest,
    }
    .min(oldest);
    state.losses = old_state.map(|state| state.losses).unwrap_or_default();
    let known: Vec<(u64, u64)> = state.losses.iter().map(|loss| (loss.first, loss.last)).collect();
    let lost = holes(state.floor, tail, present.iter().chain(&known));
    for &(first, last) in &lost {
        state.losses.push(Loss { first, last, found_at: now, reason: reason.to_owned() });
    }
    state.losses.sort_by_key(|loss| loss.first);
    state.ids_floor = with_ids.first().map_or(tail + 1, |&(first, _)| first);
    for (first, last) in holes(state.ids_floor, tail, with_ids.iter()) {
        // Ids that are gone for good: their events may be stored once more.
        put_ids(new, &Row { first, last, at: now, checksum: checksum(first, last, now, &[]), block: Vec::new() })?;
    }
    if let Some(old) = old {
        let mut places = Vec::new();
        // A place that cannot be read is made anew at the beginning: delivered again, never skipped.
        let _ = each_place(old, |place| places.extend(place));
        for (name, mut place) in places {
            for &(first, last) in &lost {
                place.settle(first, last, Settled::Lost);
            }
            sqlite::put_place(new, &name, &place)?;
        }
        state.dead_letters = copy_table(old, new, "dead_letters", "event")?;
        state.quarantined = copy_table(old, new, "quarantine", "body")?;
    }
    sqlite::put_state(new, &state)?;
    new.execute_batch("COMMIT")?;
    Ok(lost)
}

/// Every key of a table that can be found: from the front, and from the back, where a damaged page stops the scan.
fn keys(connection: &Connection, table: &str, key: &str) -> BTreeSet<u64> {
    let mut keys = BTreeSet::new();
    for order in ["ASC", "DESC"] {
        let Ok(mut statement) = connection.prepare(&format!("SELECT {key} FROM {table} ORDER BY {key} {order}")) else {
            continue;
        };
        let Ok(mut rows) = statement.query([]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            let Ok(key) = row.get(0) else { continue };
            if !keys.insert(key) && order == "DESC" {
                // Here the scan from the front had come to.
                break;
            }
        }
    }
    keys
}

fn row(connection: &Connection, query: &str, key: u64) -> Option<Row> {
    connection.prepare_cached(query).ok()?.query_row([key], sqlite::read_row).optional().ok().flatten()
}

/// The ids row of a group, from its events.
fn ids_of(group: &Row) -> Option<Row> {
    let events = std::sync::Arc::new(group.group()?).events(group.first).ok()?;
    let mut ids = Ids::default();
    for event in &events {
        ids.push(event.event_id(), digest(event.body()));
    }
    let block = ids.as_bytes().to_vec();
    Some(Row { checksum: checksum(group.first, group.last, group.at, &block), block, ..*group })
}

fn put_ids(connection: &Connection, ids: &Row) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        ids.first,
        ids.last,
        ids.at,
        ids.checksum.cast_signed(),
        ids.block
    ])?;
    Ok(())
}

/// What of `from..=to` none of the ranges covers.
fn holes<'a>(from: u64, to: u64, ranges: impl Iterator<Item = &'a (u64, u64)>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = ranges.copied().collect();
    ranges.sort_unstable();
    let mut holes = Vec::new();
    let mut next = from;
    for (first, last) in ranges {
        if first > next {
            holes.push((next, (first - 1).min(to)));
        }
        next = next.max(last + 1);
    }
    if next <= to {
        holes.push((next, to));
    }
    holes
}

/// Copies the rows of a table that are sound; how many.
fn copy_table(old: &Connection, new: &Connection, table: &str, blob: &str) -> rusqlite::Result<u64> {
    let mut copied = 0;
    for key in keys(old, table, "id") {
        let read = old.query_row(&format!("SELECT about, {blob}, checksum FROM {table} WHERE id = ?1"), [key], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
        });
        let Ok((about, bytes, sum)) = read else { continue };
        if sqlite::text_checksum(key, &[about.as_bytes(), &bytes]) == sum {
            new.prepare_cached(&format!("INSERT INTO {table} VALUES (?1, ?2, ?3, ?4)"))?
                .execute(params![key, about, bytes, sum])?;
            copied += 1;
        }
    }
    Ok(copied)
}
