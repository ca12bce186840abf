//! From whatever is on the disk to a journal in order, before anything is listened for.
//!
//! Everything is looked at: SQLite's own check, every row's checksum, that no sequence is missing, and that the journal
//! ends no earlier than its high-water mark. If anything is amiss, the damaged files are set aside whole, what can be read
//! is carried over into a new database ([`salvage`](super::salvage)), the loss is counted and told, and the receiver
//! starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::Connection;

use super::ballast::Ballast;
use super::folder::{Folder, FolderError, FoundMark, Mark, MarkFile};
use super::group::{Ids, checksum, millis};
use super::place::{Place, Settled};
use super::quarantine::Quarantine;
use super::salvage;
use super::sqlite::{self, FORMAT, SqliteStore};
use super::store::{Kept, Loss, MemoryStore, StoreError, StoreState};
use super::window::{IdKey, Window};
use super::writer::{Clock, Recovered};
use crate::config::{Config, Engine, Start};

pub(super) const DATABASE: &str = "journal.db";

/// Why there is no journal. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(
        "{path} has format {found}, this program reads up to {FORMAT}: start the newer program again, or use another folder"
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{path} could not be brought to order: {reason}")]
    Store { path: PathBuf, reason: String },
    #[error("no thread for the journal's writer")]
    Thread { source: io::Error },
}

/// What recovery found, for the log, `status` and the metrics.
#[derive(Debug, Default)]
pub struct Report {
    pub events: u64,
    /// Acknowledged events that damage took, found at this start.
    pub lost_events: u64,
    /// What was damaged, how, and where it was set aside.
    pub damage: Option<Damage>,
    pub warnings: Vec<String>,
}

/// What was found to be wrong at start.
#[derive(Debug)]
pub struct Damage {
    pub reason: String,
    /// The folder that holds the damaged files as they were found.
    pub set_aside: PathBuf,
    /// Ranges of sequences that are gone.
    pub lost: Vec<(u64, u64)>,
}

/// Everything a sound database holds that the writer keeps in RAM.
pub(super) struct Content {
    pub(super) state: StoreState,
    pub(super) places: BTreeMap<Arc<str>, Place>,
    pub(super) window: Window,
    pub(super) quarantine: Quarantine,
    pub(super) tail: u64,
    pub(super) live_bytes: u64,
    pub(super) dead_letter_bytes: u64,
    pub(super) next_dead_letter: u64,
}

/// What loading the dedup window needs to know.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) key: IdKey,
    pub(super) clock: Clock,
    pub(super) max_age: u32,
    pub(super) capacity: usize,
    pub(super) quarantine_bytes: u64,
}

pub(super) fn open(config: &Config, key: IdKey, clock: Clock, max_age: u32) -> Result<(Recovered, Report), OpenError> {
    let capacity = config.dedup.capacity;
    let seen = Seen { key, clock, max_age, capacity, quarantine_bytes: config.quarantine.max_bytes };
    let (mut recovered, report) = match config.journal.engine {
        Engine::Memory => (in_memory(seen), Report::default()),
        Engine::Sqlite => on_disk(&config.journal.path, seen)?,
    };
    // After damage a place may be gone with the rest; a sink begins at the beginning then, as it may have been there.
    let lost_places = report.damage.is_some();
    place_sinks(config, &mut recovered, lost_places);
    Ok((recovered, report))
}

fn in_memory(seen: Seen) -> Recovered {
    Recovered {
        store: Box::new(MemoryStore::default()),
        state: StoreState::default(),
        places: BTreeMap::new(),
        window: Window::new(seen.capacity, seen.max_age),
        quarantine: Quarantine::new(seen.quarantine_bytes),
        tail: 0,
        live_bytes: 0,
        dead_letter_bytes: 0,
        next_dead_letter: 1,
        mark: None,
        ballast: None,
        lock: None,
    }
}

/// Gives every configured sink a place, and tells those that have one and are configured no more.
fn place_sinks(config: &Config, recovered: &mut Recovered, lost_places: bool) {
    for place in recovered.places.values_mut() {
        place.gone = true;
    }
    for sink in &config.sinks {
        let first = match sink.start {
            Start::Latest if !lost_places => recovered.tail + 1,
            _ => recovered.state.floor,
        };
        let place = recovered.places.entry(Arc::from(sink.name.as_str())).or_insert_with(|| {
            let mut place = Place::before(first);
            // What is lost behind its first sequence was never stored for it.
            for loss in &recovered.state.losses {
                place.settle(loss.first.max(first), loss.last, Settled::Lost);
            }
            place
        });
        (place.enabled, place.required, place.gone) = (sink.enabled, sink.required, false);
    }
}

fn on_disk(path: &Path, seen: Seen) -> Result<(Recovered, Report), OpenError> {
    let folder = Folder::open(path)?;
    let broken = |reason: String| OpenError::Store { path: folder.path().to_owned(), reason };
    let io = |error: io::Error| broken(error.to_string());
    // On a full disk recovery may need its room; what is left is taken back at the end.
    let mut ballast = Ballast::find(&folder);
    ballast.drop();
    let (mark_file, found_mark) = MarkFile::open(&folder).map_err(io)?;
    salvage::finish(&folder).map_err(io)?;
    let mut report = Report::default();
    let mark = match found_mark {
        FoundMark::Found(mark) => Some(mark),
        FoundMark::Unreadable => {
            report
                .warnings
                .push("the high-water mark was unreadable: a loss at the journal's end would not be seen".into());
            None
        }
        FoundMark::Missing => {
            if folder.file(DATABASE).exists() {
                report
                    .warnings
                    .push("the high-water mark was missing: a loss at the journal's end would not be seen".into());
            }
            None
        }
    };
    refuse_newer(&folder, mark)?;
    let store = |error: StoreError| broken(error.to_string());
    let (mut opened, content) = match examine_folder(&folder, mark, seen) {
        Ok(sound) => sound,
        Err(reason) => {
            let damage = salvage::salvage(&folder, mark, reason, seen).map_err(|error| broken(error.to_string()))?;
            report.lost_events = damage.lost.iter().map(|(first, last)| last - first + 1).sum();
            report.damage = Some(damage);
            examine_folder(&folder, mark, seen).map_err(|reason| broken(format!("even the new database: {reason}")))?
        }
    };
    // Bytes read back after a crash may never have reached the disk: they do now, before the first 200.
    opened.settle_as_room_allows().map_err(store)?;
    folder.sync().map_err(io)?;
    let Content { state, places, window, quarantine, tail, live_bytes, dead_letter_bytes, next_dead_letter } = content;
    report.events = tail + 1 - state.floor;
    let mark = Mark { format: FORMAT, last: tail, floor: state.floor };
    mark_file.write(mark).and_then(|()| mark_file.sync()).map_err(io)?;
    ballast.take();
    let recovered = Recovered {
        store: Box::new(opened),
        state,
        places,
        window,
        quarantine,
        tail,
        live_bytes,
        dead_letter_bytes,
        next_dead_letter,
        mark: Some(mark_file),
        ballast: Some(ballast),
        lock: Some(folder),
    };
    Ok((recovered, report))
}

/// A newer program's journal is left exactly as it is. A version number that merely lost a bit is damage.
fn refuse_newer(folder: &Folder, mark: Option<Mark>) -> Result<(), OpenError> {
    let path = folder.file(DATABASE);
    let newer = |found| OpenError::Newer { path: path.clone(), found };
    if let Some(mark) = mark
        && mark.format > FORMAT
    {
        return Err(newer(mark.format));
    }
    let Some(found) = salvage::format_version(&path) else { return Ok(()) };
    let one_bit_off = (found ^ FORMAT).count_ones() == 1;
    if found > FORMAT && !(one_bit_off && mark.is_some()) {
        return Err(newer(found));
    }
    Ok(())
}

/// Opens the folder's database and looks at all of it. `Err` says what is wrong; nothing was changed then.
fn examine_folder(folder: &Folder, mark: Option<Mark>, seen: Seen) -> Result<(SqliteStore, Content), String> {
    let path = folder.file(DATABASE);
    let acknowledged = mark.map_or(0, |mark| mark.last);
    let told = |error: StoreError| error.to_string();
    let empty = |name| fs::metadata(folder.file(name)).map_or(true, |found| found.len() == 0);
    let store = match (path.exists(), acknowledged == 0 && empty("journal.db-wal")) {
        (false, true) => SqliteStore::create(&path).map_err(told)?,
        (false, false) => return Err(format!("{DATABASE} is missing")),
        (true, new) => {
            let store = SqliteStore::open(&path).map_err(told)?;
            // A crash may have come between a new file and its first content.
            if new && store.is_blank().map_err(told)? {
                store.let_go();
                SqliteStore::create(&path).map_err(told)?
            } else {
                store
            }
        }
    };
    let content = match examine(store.connection(), seen) {
        Ok(content) => content,
        Err(reason) => {
            store.let_go();
            return Err(reason);
        }
    };
    if content.tail < acknowledged {
        let end = content.tail;
        store.let_go();
        return Err(format!("the journal ends at sequence {end}, but events up to {acknowledged} were acknowledged"));
    }
    Ok((store, content))
}

/// Reads and checks everything in a database.
pub(super) fn examine(connection: &Connection, seen: Seen) -> Result<Content, String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, u32>(0));
    if number("application_id").map_err(sql)? != sqlite::APPLICATION_ID
        || number("user_version").map_err(sql)? != FORMAT
    {
        return Err("the file's header is damaged".to_owned());
    }
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql)?;
    if check != "ok" {
        return Err(check);
    }
    let state = read_state(connection).map_err(sql)?.ok_or("the state row is damaged")?;
    let (tail, live_bytes) = examine_groups(connection, &state)?;
    let window = load_ids(connection, &state, tail, seen)?;
    let places = read_places(connection).map_err(sql)?.ok_or("a sink's place is damaged")?;
    let (mut letters, mut dead_letter_bytes, mut next_dead_letter) = (0, 0, 1);
    let mut sound = true;
    read_letters(connection, |id, letter, intact| {
        (letters, dead_letter_bytes, next_dead_letter) = (letters + 1, dead_letter_bytes + letter, id + 1);
        sound &= intact;
    })
    .map_err(sql)?;
    if !sound || letters != state.dead_letters {
        return Err("a dead letter is damaged or missing".to_owned());
    }
    let mut quarantine = Quarantine::new(seen.quarantine_bytes);
    let mut kept = 0;
    read_quarantine(connection, |id, found| match found {
        Some(found) => {
            kept += 1;
            quarantine.recover(id, found.digest, found.body.len());
        }
        None => sound = false,
    })
    .map_err(sql)?;
    if !sound || kept != state.quarantined {
        return Err("a quarantined body is damaged or missing".to_owned());
    }
    Ok(Content { state, places, window, quarantine, tail, live_bytes, dead_letter_bytes, next_dead_letter })
}

/// Checks every group and that none is missing; the newest sequence ever given, and the bytes of live events.
fn examine_groups(connection: &Connection, state: &StoreState) -> Result<(u64, u64), String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let mut expected = state.floor;
    let mut live_bytes = 0;
    let mut groups =
        connection.prepare("SELECT first, last, at, checksum, block, bytes FROM groups ORDER BY first").map_err(sql)?;
    let mut rows = groups.query([]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let found = sqlite::read_row(row).map_err(sql)?;
        let bytes: u64 = row.get(5).map_err(sql)?;
        let length = found.block.first_chunk().map(|length| u64::from(u32::from_le_bytes(*length)));
        if !found.is_sound() || length != Some(bytes) {
            return Err(format!("the group at sequence {} is damaged", found.first));
        }
        expected = past_losses(expected, &state.losses);
        if found.first != expected {
            return Err(format!("sequences {expected} to {} are missing", found.first.saturating_sub(1)));
        }
        expected = found.last + 1;
        live_bytes += bytes;
    }
    Ok((past_losses(expected, &state.losses) - 1, live_bytes))
}

/// `expected`, or the first sequence after the known losses that begin there.
fn past_losses(mut expected: u64, losses: &[Loss]) -> u64 {
    for loss in losses {
        if loss.first <= expected && expected <= loss.last {
            expected = loss.last + 1;
        }
    }
    expected
}

fn load_ids(connection: &Connection, state: &StoreState, tail: u64, seen: Seen) -> Result<Window, String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let mut window = Window::new(seen.capacity, seen.max_age);
    let now = millis(SystemTime::now());
    let base = seen.clock.now();
    let mut expected = state.ids_floor;
    let mut ids = connection.prepare("SELECT first, last, at, checksum, ids FROM ids ORDER BY first").map_err(sql)?;
    let mut rows = ids.query([]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let row = sqlite::read_row(row).map_err(sql)?;
        let damaged = || format!("the ids at sequence {} are damaged", row.first);
        if checksum(row.first, row.last, row.at, &row.block) != row.checksum {
            return Err(damaged());
        }
        expected = past_losses(expected, &state.losses);
        if row.first != expected {
            return Err(format!("the ids of sequences {expected} to {} are missing", row.first.saturating_sub(1)));
        }
        expected = row.last + 1;
        // A clock that went back makes ids young, one that went far ahead makes them old; neither loses an event.
        let age = u32::try_from(now.saturating_sub(row.at) / 1000).unwrap_or(u32::MAX);
        let seen_at = base.saturating_sub(age);
        Ids::read(&row.block, |id, digest| window.insert(seen.key.hash(id), digest, seen_at)).map_err(|_| damaged())?;
    }
    if past_losses(expected, &state.losses) != tail + 1 && tail + 1 != state.ids_floor {
        return Err(format!("the ids of sequences {expected} to {tail} are missing"));
    }
    Ok(window)
}

/// `None` when it is there but damaged, or not there.
pub(super) fn read_state(connection: &Connection) -> rusqlite::Result<Option<StoreState>> {
    let (state, sum): (String, i64) =
        connection
            .query_row("SELECT state, checksum FROM state WHERE id = 1", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if xxhash_rust::xxh3::xxh3_64(state.as_bytes()).cast_signed() != sum {
        return Ok(None);
    }
    Ok(serde_json::from_str(&state).ok())
}

/// `None` when any of them is damaged.
fn read_places(connection: &Connection) -> rusqlite::Result<Option<BTreeMap<Arc<str>, Place>>> {
    let mut places = BTreeMap::new();
    let mut sound = true;
    each_place(connection, |place| match place {
        Some((name, place)) => {
            places.insert(Arc::from(name), place);
        }
        None => sound = false,
    })?;
    Ok(sound.then_some(places))
}

/// Every sink's place; `None` for a damaged one.
pub(super) fn each_place(
    connection: &Connection,
    mut each: impl FnMut(Option<(String, Place)>),
) -> rusqlite::Result<()> {
    let mut sinks = connection.prepare("SELECT name, place, checksum FROM sinks ORDER BY id")?;
    let mut rows = sinks.query([])?;
    while let Some(row) = rows.next()? {
        let (name, place, sum): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let intact = sqlite::text_checksum(0, &[name.as_bytes(), place.as_bytes()]) == sum;
        let place = serde_json::from_str(&place).ok().filter(|_| intact);
        each(place.map(|place| (name, place)));
    }
    Ok(())
}

/// Every dead letter's id, the bytes of its event, and whether it is intact.
fn read_letters(connection: &Connection, mut each: impl FnMut(u64, u64, bool)) -> rusqlite::Result<()> {
    let mut letters = connection.prepare("SELECT id, about, event, checksum FROM dead_letters ORDER BY id")?;
    let mut rows = letters.query([])?;
    while let Some(row) = rows.next()? {
        let (id, about, event, sum): (u64, String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        each(id, event.len() as u64, sqlite::text_checksum(id, &[about.as_bytes(), &event]) == sum);
    }
    Ok(())
}

/// Every quarantined body; `None` for a damaged one.
fn read_quarantine(connection: &Connection, mut each: impl FnMut(u64, Option<Kept>)) -> rusqlite::Result<()> {
    let mut kept = connection.prepare("SELECT id, about, body, checksum FROM quarantine ORDER BY id")?;
    let mut rows = kept.query([])?;
    while let Some(row) = rows.next()? {
        let (id, about, body, sum): (u64, String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let intact = sqlite::text_checksum(id, &[about.as_bytes(), &body]) == sum;
        let found = serde_json::from_str::<Kept>(&about).ok().filter(|_| intact);
        each(id, found.map(|found| Kept { id, body: body.into(), ..found }));
    }
    Ok(())
}
