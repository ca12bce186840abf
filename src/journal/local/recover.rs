//! From whatever is on the disk to a journal in order, before anything is listened for.
//!
//! Everything is looked at ([`examine`](super::repair::examine)), and that the journal ends no earlier than its high-water mark.
//! If anything is amiss, the damaged files are set aside whole, what can be read is carried over into a new database
//! ([`salvage`](super::repair::salvage)), the loss is counted and told, and the receiver starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ballast::Ballast;
use super::bodies::Quarantine;
use super::dedup::{IdKey, Window};
use super::folder::{Folder, FolderError, unusable_files};
use super::layout::{DATABASE, PAGE};
use super::mark::{FoundMark, Mark, MarkFile};
use super::memory::MemoryStore;
use super::repair::examine::{Content, Seen, Trouble, examine};
use super::repair::remains::Remains;
use super::repair::salvage;
use super::sqlite;
use super::sqlite::{FORMAT, SqliteStore};
use super::store::{StoreError, StoreState};
use super::writer::{Clock, Recovered};
use crate::config::{Config, Engine, Start};
use crate::journal::identity::LogIdentity;
use crate::journal::opening::{Damage, Replaced, Report};
use crate::journal::outcome::Settled;
use crate::journal::progress::Place;

/// Why there is no journal. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(
        "{path} has format {found}, this program reads up to {FORMAT}: start the newer program again, or use another folder"
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{path} has pages of {found} bytes instead of {PAGE}: a program has rewritten it. Copy it, then give it back its pages \
         (sqlite3 journal.db 'PRAGMA journal_mode=DELETE; PRAGMA page_size={PAGE}; VACUUM'), and start again"
    )]
    PageSize { path: PathBuf, found: u32 },
    #[error("{path} could not be brought to order: {reason}")]
    Store { path: PathBuf, reason: String },
    #[error("no thread for the journal's writer")]
    Thread { source: io::Error },
}

pub(crate) fn open(config: &Config, key: IdKey, clock: Clock, max_age: u32) -> Result<(Recovered, Report), OpenError> {
    let capacity = config.dedup.capacity;
    let seen = Seen { key, clock, max_age, capacity, quarantine_bytes: config.quarantine.max_bytes };
    let (mut recovered, report) = match config.journal.engine {
        Engine::Memory => (in_memory(seen), Report::default()),
        // A cluster is opened elsewhere.
        Engine::Sqlite | Engine::Nats => on_disk(&config.journal.path, seen)?,
    };
    place_sinks(config, &mut recovered, report.places_lost);
    Ok((recovered, report))
}

fn in_memory(seen: Seen) -> Recovered {
    Recovered {
        log: Some(LogIdentity::random()),
        store: Box::new(MemoryStore::default()),
        state: StoreState::default(),
        places: BTreeMap::new(),
        window: Window::new(seen.capacity, seen.max_age),
        quarantine: Quarantine::new(seen.quarantine_bytes),
        tail: 0,
        live_bytes: 0,
        dead_letter_bytes: 0,
        retrying: 0,
        to_retry: BTreeMap::new(),
        notes: Vec::new(),
        mark: None,
        ballast: None,
        lock: None,
    }
}

/// Gives every configured sink a place, and tells those that have one and are configured no more.
fn place_sinks(config: &Config, recovered: &mut Recovered, places_lost: bool) {
    for place in recovered.places.values_mut() {
        place.gone = true;
    }
    for sink in &config.sinks {
        let first = match sink.start {
            Start::Latest if !places_lost => recovered.tail + 1,
            // After a loss: delivered again, never skipped.
            _ => recovered.state.floor,
        };
        let place = recovered.places.entry(Arc::from(sink.name.as_str())).or_insert_with(|| {
            let mut place = Place::before(first, recovered.state.letters);
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
    if let Some(error) = unusable_files(folder.path()).into_iter().next() {
        return Err(error.into());
    }
    let broken = |reason: String| OpenError::Store { path: folder.path().to_owned(), reason };
    let io = |error: io::Error| broken(error.to_string());
    let mut report = Report { warnings: folder.warnings().to_vec(), ..Report::default() };
    let mark = match FoundMark::of(folder.path()) {
        FoundMark::Found(mark) => Some(mark),
        FoundMark::Unreadable => {
            report.warn("the high-water mark was unreadable: a loss at the journal's end would not be seen");
            None
        }
        FoundMark::Missing => {
            if folder.file(DATABASE).exists() {
                report.warn("the high-water mark was missing: a loss at the journal's end would not be seen");
            }
            None
        }
    };
    refuse_foreign(folder.path(), mark)?;
    // On a full disk recovery may need its room; what is left is taken back at the end.
    let mut ballast = Ballast::find(&folder);
    if mark.is_none() && ballast.is_held() && !folder.file(DATABASE).exists() && !folder.file("rebuild").exists() {
        report.warn("the folder was in use, but the journal in it is gone: whatever it held is lost");
    }
    ballast.drop();
    if let Some(damage) = salvage::finish(&folder).map_err(|error| FolderError::io(folder.file("rebuild"), error))? {
        report.damaged(damage);
    }
    let cannot = |trouble: Trouble| match trouble {
        Trouble::Newer(found) => OpenError::Newer { path: folder.file(DATABASE), found },
        Trouble::Damaged(reason) | Trouble::Passing(reason) => broken(reason),
    };
    let (mut opened, content) = match examine_folder(&folder, mark, seen) {
        Ok(sound) => sound,
        Err(Trouble::Damaged(reason)) => {
            let damage = salvage::salvage(&folder, mark, reason, seen).map_err(|error| broken(error.to_string()))?;
            report.damaged(damage);
            examine_folder(&folder, mark, seen).map_err(cannot)?
        }
        Err(trouble) => return Err(cannot(trouble)),
    };
    report.compare(mark, &content);
    let log = identify(&opened, mark, &content).map_err(|error| broken(error.to_string()))?;
    // Bytes read back after a crash may never have reached the disk: they do now, before the first 200.
    opened.settle_as_room_allows().map_err(|error| broken(error.to_string()))?;
    opened.watch(&folder, log).map_err(io)?;
    folder.sync().map_err(io)?;
    let Content {
        log: _,
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
    } = content;
    report.places_lost = places_lost;
    report.events = (tail + 1).saturating_sub(state.floor);
    let of_mark = |error| FolderError::io(folder.file("mark"), error);
    let mut mark_file = MarkFile::open(&folder).map_err(of_mark)?;
    let mark = Mark { format: FORMAT, last: tail, floor: state.floor, kept: state.kept, log };
    mark_file.write(mark).and_then(|()| mark_file.sync()).map_err(of_mark)?;
    // Where the disk does not give it, the writer says so.
    let _ = ballast.take();
    let recovered = Recovered {
        log,
        store: Box::new(opened),
        state,
        places,
        window,
        quarantine,
        tail,
        live_bytes,
        dead_letter_bytes,
        retrying: to_retry.values().map(|letters| letters.len() as u64).sum(),
        to_retry,
        notes,
        mark: Some(mark_file),
        ballast: Some(ballast),
        lock: Some(folder),
    };
    Ok((recovered, report))
}

/// Which log it is. An older program's gets the identity that it has in the mark, or a new one; `None` when the disk has no
/// room for that now.
fn identify(opened: &SqliteStore, mark: Option<Mark>, content: &Content) -> Result<Option<LogIdentity>, StoreError> {
    if content.log.is_some() {
        return Ok(content.log);
    }
    let known = mark.filter(|mark| mark.is_of(None, content.tail)).and_then(|mark| mark.log);
    let log = known.unwrap_or_else(LogIdentity::random);
    match opened.identify(log) {
        Ok(()) => Ok(Some(log)),
        Err(StoreError::Passing { .. }) => Ok(None),
        Err(fatal) => Err(fatal),
    }
}

/// A newer program's journal, and one whose pages another program has changed, is left exactly as it is. A version number
/// that merely lost a bit is damage.
fn refuse_foreign(folder: &Path, mark: Option<Mark>) -> Result<(), OpenError> {
    let path = folder.join(DATABASE);
    if let Some(found) = mark.map(|mark| mark.format).filter(|&format| format > FORMAT) {
        return Err(OpenError::Newer { path, found });
    }
    if let Some(found) = salvage::format_version(&path).filter(|&format| format > FORMAT) {
        let one_bit_off = (found ^ FORMAT).count_ones() == 1;
        if !(one_bit_off && mark.is_some()) {
            return Err(OpenError::Newer { path, found });
        }
    }
    match sqlite::other_pages(&header_of(&path)) {
        Some(found) => Err(OpenError::PageSize { path, found }),
        None => Ok(()),
    }
}

/// Why the journal in `folder` would be refused for what it is, as far as its header and its mark show. Changes nothing.
#[must_use]
pub fn foreign_journal(folder: &Path) -> Option<OpenError> {
    let mark = match FoundMark::of(folder) {
        FoundMark::Found(mark) => Some(mark),
        FoundMark::Unreadable | FoundMark::Missing => None,
    };
    refuse_foreign(folder, mark).err()
}

/// What can be read of a file's first bytes.
fn header_of(path: &Path) -> Vec<u8> {
    let mut header = Vec::new();
    // What cannot be read is told when all of it is looked at.
    let _ = File::open(path).and_then(|file| file.take(100).read_to_end(&mut header));
    header
}

/// Opens the folder's database and looks at all of it. Nothing of it was changed if that fails.
fn examine_folder(folder: &Folder, mark: Option<Mark>, seen: Seen) -> Result<(SqliteStore, Content), Trouble> {
    let path = folder.file(DATABASE);
    let Mark { last: acknowledged, kept, log, .. } = mark.unwrap_or_default();
    let mut header = Vec::new();
    let length = match File::open(&path) {
        Ok(file) => file.take(100).read_to_end(&mut header).map_err(|error| Trouble::Damaged(error.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Trouble::Passing(error.to_string())),
    };
    let mut remains = Remains::of(&path);
    if let Some(file) = remains.leave_out_foreign(log) {
        return Err(Trouble::Damaged(format!("{file} is of another journal than the file beside it")));
    }
    // A crash may have come between a new file and its first content.
    let remains_of_log = remains.has_log();
    let may_be_new = acknowledged == 0 && kept == 0 && !remains_of_log;
    drop(remains);
    let create = || SqliteStore::create(&path, log.unwrap_or_else(LogIdentity::random));
    let store = match length {
        0 if may_be_new => create()?,
        0 => return Err(Trouble::Damaged(format!("{DATABASE} is missing or empty"))),
        // An SQLite shell has switched its log off, which copies all of it back: it is switched on again.
        _ if sqlite::is_without_log(&header) && !remains_of_log => SqliteStore::open_with_log(&path)?,
        _ if !sqlite::has_header(&header) => {
            return Err(Trouble::Damaged(format!("the header of {DATABASE} is damaged")));
        }
        _ => {
            let store = SqliteStore::open(&path)?;
            if may_be_new && store.is_blank()? {
                store.let_go();
                create()?
            } else {
                store
            }
        }
    };
    let content = match examine(&store, seen) {
        // What was acknowledged in another log is not to be looked for here.
        Ok(content) if mark.is_some_and(|mark| !mark.is_of(content.log, content.tail)) => Ok(content),
        Ok(content) if content.tail < acknowledged => Err(Trouble::Damaged(format!(
            "the journal ends at sequence {}, but events up to {acknowledged} were acknowledged",
            content.tail
        ))),
        Ok(content) if content.state.kept < kept => {
            Err(Trouble::Damaged("the bodies last put into quarantine are missing".to_owned()))
        }
        // In the file's own header it was looked at before, and is damage now.
        Err(Trouble::Newer(found)) if salvage::format_version(&path) == Some(found) => {
            Err(Trouble::Damaged(format!("the header of {DATABASE} is damaged")))
        }
        examined => examined,
    };
    match content {
        Ok(content) => Ok((store, content)),
        Err(trouble) => {
            store.let_go();
            Err(trouble)
        }
    }
}

impl Report {
    /// Whether the log that was found is the mark's; if not, all that the other one held is lost here.
    fn compare(&mut self, mark: Option<Mark>, content: &Content) {
        let Some(mark) = mark.filter(|mark| !mark.is_of(content.log, content.tail)) else { return };
        let Some(expected) = mark.log else { return };
        self.lost_events += (mark.last + 1).saturating_sub(mark.floor);
        self.replaced = Some(Replaced { expected, found: content.log, lost: (mark.floor, mark.last) });
    }

    fn damaged(&mut self, damage: Damage) {
        self.lost_events += damage.lost.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        self.lost_events += damage.lost_letters;
        for also in &damage.also {
            self.warn(&format!("damage took {also}"));
        }
        if let Some(Damage { reason, set_aside, lost, .. }) = self.damage.replace(damage) {
            let set_aside = set_aside.display();
            self.warn(&format!("damage that an interrupted start had found: {reason}; in {set_aside}; lost {lost:?}"));
        }
    }

    fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.to_owned());
    }
}
