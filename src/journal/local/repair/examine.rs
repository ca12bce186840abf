//! A look at everything a database holds: SQLite's own check, its schema, every row's checksum, that no sequence is
//! missing, and that there are as many rows as there should be.
//!
//! What takes long in a large one is done side by side, while the file is read ahead.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};
use std::time::SystemTime;

use rusqlite::{Connection, ErrorCode, OptionalExtension, ffi};
use rustix::fs::{Advice, fadvise};

use crate::journal::event::{Ids, checksum, millis};
use crate::journal::identity::LogIdentity;
use crate::journal::local::bodies::Quarantine;
use crate::journal::local::dedup::{IdKey, Window};
use crate::journal::local::rows;
use crate::journal::local::sqlite;
use crate::journal::local::sqlite::{FORMAT, SqliteStore};
use crate::journal::local::store::{DeadLetter, Note, StoreError, StoreState};
use crate::journal::local::writer::Clock;
use crate::journal::progress::Place;
use crate::journal::progress::Retrying;
use crate::journal::quarantine::Kept;

/// Everything a sound database holds that the writer keeps in RAM.
pub(crate) struct Content {
    /// `None`: it was made by a program that knew no identities.
    pub(crate) log: Option<LogIdentity>,
    pub(crate) state: StoreState,
    pub(crate) places: BTreeMap<Arc<str>, Place>,
    /// A sink without a place may have had one.
    pub(crate) places_lost: bool,
    pub(crate) window: Window,
    pub(crate) quarantine: Quarantine,
    pub(crate) tail: u64,
    pub(crate) live_bytes: u64,
    pub(crate) dead_letter_bytes: u64,
    /// Retried dead letters by sink, oldest first.
    pub(crate) to_retry: BTreeMap<String, Vec<u64>>,
    pub(crate) notes: Vec<Note>,
}

/// What loading the dedup window needs to know.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) key: IdKey,
    pub(crate) clock: Clock,
    pub(crate) max_age: u32,
    pub(crate) capacity: usize,
    pub(crate) quarantine_bytes: u64,
}

/// Why a database cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Damaged(String),
    #[error("it has format {0}")]
    Newer(u32),
    /// No fault of the file: no memory, no file descriptor, someone else's lock.
    #[error("{0}")]
    Passing(String),
}

impl Trouble {
    fn damaged<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Damaged(what.into()))
    }
}

/// Reads and checks everything in a database. Changes nothing.
pub(crate) fn examine(store: &SqliteStore, seen: Seen) -> Result<Content, Trouble> {
    let connection = store.connection();
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, u32>(0));
    let (id, format) = (number("application_id")?, number("user_version")?);
    if id == sqlite::APPLICATION_ID && format > FORMAT {
        return Err(Trouble::Newer(format));
    }
    if id != sqlite::APPLICATION_ID || format != FORMAT {
        return Trouble::damaged("the file's header is damaged");
    }
    if !sqlite::has_schema(connection)? {
        return Trouble::damaged("the file's schema is damaged");
    }
    let mut state = match rows::about_itself::<StoreState>(connection, rows::STATE).optional() {
        Ok(Some(Some(state))) => state,
        unusable => {
            quick_check(connection)?;
            let how = if unusable?.is_some() { "damaged" } else { "missing" };
            return Trouble::damaged(format!("the row that says which events are kept is {how}"));
        }
    };
    let log = match rows::about_itself::<rows::Identity>(connection, rows::IDENTITY).optional()? {
        Some(Some(found)) => Some(found.log),
        Some(None) => return Trouble::damaged("the row that says which log it is is damaged"),
        None => None,
    };
    let over = AtomicBool::new(false);
    let (checked, groups, ids) = thread::scope(|scope| {
        let spawn = || thread::Builder::new().name("recovery".to_owned());
        let (second, third) = (store.another()?, store.another()?);
        let checked = spawn().spawn_scoped(scope, move || quick_check(&second))?;
        let groups = spawn().spawn_scoped(scope, {
            let state = &state;
            move || examine_groups(&third, state)
        })?;
        if let Some(file) = store.file() {
            // It only helps: where there is no thread left for it, the others read for themselves.
            let _ = spawn().spawn_scoped(scope, || read_ahead(file, &over));
        }
        let ids = load_ids(connection, &state, seen);
        let (checked, groups) = (join(checked), join(groups));
        over.store(true, Relaxed);
        Ok::<_, Trouble>((checked, groups, ids))
    })?;
    checked?;
    let (tail, live_bytes) = groups?;
    let (window, ids_tail) = ids?;
    if ids_tail != tail {
        return Trouble::damaged(format!("the ids at sequence {} are missing", ids_tail + 1));
    }
    let (places, places_lost) = load_places(connection, tail)?;
    let (dead_letter_bytes, to_retry) = examine_letters(connection, &mut state, &places)?;
    let quarantine = load_quarantine(connection, &state, seen)?;
    let notes = rows::notes(connection)?.filter(|notes| notes.len() as u64 == state.notes);
    let Some(notes) = notes else { return Trouble::damaged("a note is damaged or missing") };
    Ok(Content {
        log,
        state,
        places,
        places_lost,
        window,
        quarantine,
        tail,
        live_bytes,
        dead_letter_bytes,
        to_retry,
        notes,
    })
}

/// Reads a file once from its beginning to its end, so that those who read it page by page, and not in its own order, find
/// it in the page cache. Nothing else comes of it: what cannot be read, they will notice. Ends early when it is `over`.
fn read_ahead(file: &File, over: &AtomicBool) {
    // It only makes the kernel read larger pieces at a time.
    let _ = fadvise(file, 0, None, Advice::Sequential);
    let (mut piece, mut at) = (vec![0; 1 << 20], 0);
    while !over.load(Relaxed)
        && let Ok(length @ 1..) = file.read_at(&mut piece, at)
    {
        at += length as u64;
    }
}

fn join<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// SQLite's own: the structure of the whole file, and what its pages are used for.
fn quick_check(connection: &Connection) -> Result<(), Trouble> {
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check == "ok" { Ok(()) } else { Err(Trouble::Damaged(check)) }
}

/// Checks every group and that none is missing; the newest sequence ever given, and the bytes of live events.
fn examine_groups(connection: &Connection, state: &StoreState) -> Result<(u64, u64), Trouble> {
    let mut losses = state.losses.iter().peekable();
    let mut past_losses = |mut expected: u64| {
        while let Some(loss) = losses.next_if(|loss| loss.first <= expected) {
            expected = expected.max(loss.last + 1);
        }
        expected
    };
    let mut expected = state.floor;
    let mut live_bytes = 0;
    let mut groups = connection.prepare("SELECT first, last, at, checksum, block, bytes FROM groups ORDER BY first")?;
    let mut rows = groups.query([])?;
    while let Some(row) = rows.next()? {
        let found = sqlite::read_row(row)?;
        let bytes: u64 = row.get(5)?;
        // All the way to the events, as a lane would: what it could not read would end every start again.
        let readable = found.group().is_some_and(|group| Arc::new(group).events(found.first).is_ok());
        if !readable || found.size() != Some(bytes) {
            return Trouble::damaged(format!("the group at sequence {} is damaged", found.first));
        }
        expected = past_losses(expected);
        if found.first != expected {
            return Trouble::damaged(format!("the group at sequence {expected} is missing"));
        }
        expected = found.last + 1;
        live_bytes += bytes;
    }
    Ok((past_losses(expected).saturating_sub(1), live_bytes))
}

/// The dedup window, and the sequence that its rows go up to.
fn load_ids(connection: &Connection, state: &StoreState, seen: Seen) -> Result<(Window, u64), Trouble> {
    let mut window = Window::new(seen.capacity, seen.max_age);
    let now = millis(SystemTime::now());
    let base = seen.clock.now();
    let mut expected = state.ids_floor;
    let mut ids = connection.prepare("SELECT first, last, at, checksum, ids FROM ids ORDER BY first")?;
    let mut rows = ids.query([])?;
    while let Some(row) = rows.next()? {
        let row = sqlite::read_row(row)?;
        let damaged = || Trouble::Damaged(format!("the ids at sequence {} are damaged", row.first));
        if row.first > row.last || checksum(row.first, row.last, row.at, &row.block) != row.checksum {
            return Err(damaged());
        }
        if row.first != expected {
            return Trouble::damaged(format!("the ids at sequence {expected} are missing"));
        }
        expected = row.last + 1;
        // A clock that went back makes ids young, one that went far ahead makes them old; neither loses an event.
        let age = u32::try_from(now.saturating_sub(row.at) / 1000).unwrap_or(u32::MAX);
        let seen_at = base.saturating_sub(age);
        Ids::read(&row.block, |id, digest| window.insert(seen.key.hash(id), digest, seen_at)).map_err(|_| damaged())?;
    }
    Ok((window, expected.saturating_sub(1)))
}

/// Every sink's place, and whether some may be lost.
fn load_places(connection: &Connection, tail: u64) -> Result<(BTreeMap<Arc<str>, Place>, bool), Trouble> {
    let mut places = BTreeMap::new();
    let mut sinks = connection.prepare("SELECT name, place, checksum FROM sinks ORDER BY id")?;
    let mut rows = sinks.query([])?;
    while let Some(row) = rows.next()? {
        let (name, place, sum): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let intact = rows::text_checksum(0, &[name.as_bytes(), place.as_bytes()]) == sum;
        let place: Option<Place> = serde_json::from_str(&place).ok();
        // One that points beyond the end would skip what is yet to come.
        let Some(place) = place.filter(|place| intact && place.reach() <= tail) else {
            return Trouble::damaged(format!("the place of the sink {name} is damaged"));
        };
        places.insert(Arc::from(name), place);
    }
    match rows::about_itself::<Option<Vec<String>>>(connection, rows::SINKS).optional()? {
        Some(Some(Some(names))) if names == sqlite::sink_names(connection)? => Ok((places, false)),
        Some(Some(None)) => Ok((places, true)),
        None => Trouble::damaged("the row that says which sinks have a place is missing"),
        _ => Trouble::damaged("a sink's place is missing"),
    }
}

/// The bytes of the dead letters, and those that are retried; `state` then knows which is the oldest, and the newest ever.
fn examine_letters(
    connection: &Connection,
    state: &mut StoreState,
    places: &BTreeMap<Arc<str>, Place>,
) -> Result<(u64, BTreeMap<String, Vec<u64>>), Trouble> {
    let (mut count, mut bytes, mut oldest, mut newest) = (0, 0, None, state.letters);
    let mut to_retry: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut pending: BTreeMap<String, u64> = BTreeMap::new();
    let mut letters = connection.prepare("SELECT id, about, event, checksum FROM dead_letters ORDER BY id")?;
    let mut rows = letters.query([])?;
    while let Some(row) = rows.next()? {
        let (id, about, event, sum): (u64, String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let intact = rows::text_checksum(id, &[about.as_bytes(), &event]) == sum;
        let Some(found) = serde_json::from_str::<DeadLetter>(&about).ok().filter(|_| intact) else {
            return Trouble::damaged("a dead letter is damaged");
        };
        (count, bytes, newest) = (count + 1, bytes + event.len() as u64, newest.max(id));
        oldest.get_or_insert(id);
        if let Some(retrying) = found.retrying {
            *pending.entry(found.sink.clone()).or_default() += u64::from(retrying == Retrying::Counted);
            to_retry.entry(found.sink).or_default().push(id);
        }
    }
    if count != state.dead_letters {
        return Trouble::damaged("a dead letter is missing");
    }
    if let Some((name, _)) =
        places.iter().find(|(name, place)| place.retrying() != pending.get(&***name).copied().unwrap_or_default())
    {
        return Trouble::damaged(format!("a retried dead letter of the sink {name} is missing"));
    }
    (state.letters, state.letters_floor) = (newest, oldest.unwrap_or(newest + 1));
    Ok((bytes, to_retry))
}

fn load_quarantine(connection: &Connection, state: &StoreState, seen: Seen) -> Result<Quarantine, Trouble> {
    let mut quarantine = Quarantine::new(seen.quarantine_bytes);
    let mut count = 0;
    let mut kept = connection.prepare("SELECT id, about, body, checksum FROM quarantine ORDER BY id")?;
    let mut rows = kept.query([])?;
    while let Some(row) = rows.next()? {
        let (id, about, body, sum): (u64, String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let intact = rows::text_checksum(id, &[about.as_bytes(), &body]) == sum;
        let Some(found) = serde_json::from_str::<Kept>(&about).ok().filter(|_| intact) else {
            return Trouble::damaged("a quarantined body is damaged");
        };
        quarantine.recover(id, found.digest, body.len());
        count += 1;
    }
    if count != state.quarantined {
        return Trouble::damaged("a quarantined body is missing");
    }
    quarantine.go_on_after(state.kept);
    Ok(quarantine)
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        use ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory,
            PermissionDenied, ReadOnly, SystemIoFailure,
        };
        const UNREADABLE: [i32; 3] =
            [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS];
        let passing = match error.sqlite_error() {
            Some(failure) => match failure.code {
                CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | OutOfMemory
                | PermissionDenied
                | ReadOnly => true,
                SystemIoFailure => !UNREADABLE.contains(&failure.extended_code),
                _ => false,
            },
            None => false,
        };
        if passing { Self::Passing(error.to_string()) } else { Self::Damaged(error.to_string()) }
    }
}

/// No thread.
impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Passing(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Without it, any other program that closes the database would take its log away under us.
    #[test]
    fn sqlite_keeps_its_lock_on_the_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("journal.db");
        let store = SqliteStore::create(&path, LogIdentity::random()).unwrap();
        let clock = Clock::starting_at(1);
        examine(&store, Seen { key: IdKey::random(), clock, max_age: 1, capacity: 1, quarantine_bytes: 1 }).unwrap();
        let file = format!(":{} ", fs::metadata(&path).unwrap().ino());
        let holder = format!(" {} ", std::process::id());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        assert!(locks.lines().any(|lock| lock.contains(&file) && lock.contains(&holder)), "{locks}");
    }
}
