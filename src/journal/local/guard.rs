//! Whether the files that a 200 rests on are still what their names lead to.
//!
//! The next start finds by name what this process writes through open descriptors. A file that was deleted, moved,
//! replaced or cut off meanwhile takes every later event with it, without any write or sync failing. So the files are
//! compared before anything is answered, and a difference is as final as a failed sync.
//!
//! What cannot be told, for want of a permission, say, is no difference: a `chmod` or a read-only mount moves nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::folder::Folder;
use super::layout::{FRAME, FRAME_HEADER, LOG_HEADER};
use super::named::{Displaced, Named};

/// How long another program's checkpoint may take: requests wait meanwhile.
const OTHERS: Duration = Duration::from_secs(2);

/// The state of the write-ahead log, as SQLite counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Frames {
    /// In the log.
    pub(crate) written: u64,
    /// Of these, those that are copied into the database.
    pub(crate) copied: u64,
}

/// The files of an open database.
#[derive(Debug)]
pub(crate) struct Guard {
    /// By the name that the settings give it, links included: that is where the next start looks.
    folder: Named,
    lock: Named,
    database: Named,
    log: Named,
    /// The log's index (`-shm`). Nothing rests on it, but a process that touches it beyond its end gets SIGBUS.
    index: Named,
    /// Stays open as long as SQLite has it open: closing it would take SQLite's locks back.
    database_file: File,
    log_file: File,
    /// Lengths that must not shrink.
    database_bytes: u64,
    index_bytes: u64,
    /// The database as the last checkpoint left it: only checkpoints write to it.
    written_at: Option<SystemTime>,
    frames: Frames,
    /// SQLite could not say how many there are now: the next count is taken as it is.
    is_uncounted: bool,
    /// The last frame's header, which holds a checksum over the whole log; `None` when the next commit may overwrite it, as
    /// all of the log is in the database.
    end: Option<[u8; FRAME_HEADER]>,
    /// Of the log's present use, from a frame's header.
    salts: [u8; 8],
}

impl Guard {
    /// Of the database at `path`, which SQLite has open and has read from.
    pub(crate) fn new(folder: &Folder, path: &Path, counted: Option<Frames>) -> io::Result<Self> {
        let frames = counted.unwrap_or_default();
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        let (log, index) = (beside("-wal"), beside("-shm"));
        // Opened only now: on an overlay, opening a file for writing may put another one in its place.
        let (database_file, log_file) = (File::open(path)?, File::open(&log)?);
        let index_found = fs::metadata(&index)?;
        let mut guard = Self {
            folder: Named::new(folder.name().to_owned(), &fs::metadata(folder.path())?),
            lock: Named::new(folder.name().join("lock"), &folder.lock_metadata()?),
            database: Named::new(path.to_owned(), &database_file.metadata()?),
            log: Named::new(log, &log_file.metadata()?),
            index: Named::new(index, &index_found),
            database_file,
            log_file,
            database_bytes: 0,
            index_bytes: index_found.len(),
            written_at: None,
            frames,
            is_uncounted: false,
            end: None,
            salts: [0; 8],
        };
        guard.checkpointed(counted)?;
        Ok(guard)
    }

    /// Before anything is written: what SQLite would go on from is there. `count` asks SQLite for the log's state.
    pub(crate) fn before_write(&mut self, count: impl Fn() -> Option<Frames>) -> Result<(), Displaced> {
        // First, as SQLite's count stands in it.
        self.look_at_index()?;
        let counted = self.look_at_database(count)?;
        if let Some(counted) = counted.filter(|_| self.is_uncounted) {
            self.count(counted);
        }
        let least = bytes_of(self.frames);
        let found = self.log_file.metadata().map_or(least, |found| found.len());
        if self.is_uncounted || found >= least && counted.is_none_or(|counted| counted == self.frames) {
            return Ok(());
        }
        // Another program may have copied the log into the database, which loses nothing, and may have let it start over.
        let written = counted.map_or(self.frames.written, |counted| counted.written);
        if written == 0 && self.end.is_none() {
            self.frames = Frames::default();
            return Ok(());
        }
        if written != self.frames.written {
            return Err(self.counted_otherwise(written));
        }
        if found < least {
            return Err(Displaced::CutOff { path: self.log.path().to_owned(), found, least });
        }
        Ok(())
    }

    /// Whether everything that was committed is where the next start finds it.
    pub(crate) fn look(&mut self, count: impl Fn() -> Option<Frames>) -> Result<(), Displaced> {
        self.look_at_folder()?;
        self.before_write(count)?;
        self.log.look()?;
        self.look_at_end()
    }

    /// The same after a commit, when the log's state is `counted`: also that what came before it still stands there, which
    /// the log's length does not show once it has grown again. True if the log has started over.
    pub(crate) fn committed(&mut self, counted: Option<Frames>) -> Result<bool, Displaced> {
        self.look_at_folder()?;
        // Whether it was written to is seen before the next commit: this one may have let the log start over.
        self.database.look_at_least(self.database_bytes)?;
        let Some(frames) = counted else {
            self.is_uncounted = true;
            self.log.look()?;
            return Ok(false);
        };
        self.log.look_at_least(bytes_of(frames))?;
        let end = self.read_end(frames);
        let salts = end.map_or(self.salts, salts_of);
        let started_over = salts != self.salts;
        if started_over {
            // The log's own header says the same, or recovery would end before this commit.
            if self.read_log(16).is_some_and(|header: [u8; 8]| header != salts) {
                return Err(self.index_overwritten());
            }
        } else if frames.written < self.frames.written {
            return Err(self.index_overwritten());
        } else {
            self.look_at_end()?;
        }
        // The last frame of a commit says how large the database is.
        if end.is_some_and(|end| end[4..8] == [0; 4]) {
            return Err(Displaced::Overwritten(self.log.path().to_owned()));
        }
        (self.frames, self.end, self.salts) = (frames, end, salts);
        Ok(started_over)
    }

    /// This process has copied the log into the database, as far as `counted` says.
    pub(crate) fn checkpointed(&mut self, counted: Option<Frames>) -> io::Result<()> {
        let found = self.database_file.metadata()?;
        self.database_bytes = found.len();
        self.written_at = found.modified().ok();
        match counted {
            Some(counted) => self.count(counted),
            None => self.is_uncounted = true,
        }
        Ok(())
    }

    fn count(&mut self, counted: Frames) {
        (self.frames, self.is_uncounted) = (counted, false);
        let end = self.read_end(counted);
        self.salts = end.map_or(self.salts, salts_of);
        // A log that is copied whole starts over, when nobody reads in it.
        self.end = end.filter(|_| counted.copied < counted.written);
    }

    fn look_at_folder(&self) -> Result<(), Displaced> {
        match self.lock.look() {
            Ok(_) => Ok(()),
            Err(displaced) => match self.folder.look() {
                Ok(_) => Err(displaced),
                Err(_) => Err(Displaced::Folder(self.folder.path().to_owned())),
            },
        }
    }

    fn look_at_index(&mut self) -> Result<(), Displaced> {
        match self.index.look_at_least(self.index_bytes) {
            Ok(Some(found)) => self.index_bytes = found.len(),
            Ok(None) => {}
            // The whole folder may be gone.
            Err(displaced) => return self.look_at_folder().and(Err(displaced)),
        }
        Ok(())
    }

    /// Whether nobody but this process has written to the database; and the log's state, counted afterwards. Any SQLite shell
    /// may copy the log into it, and let the log start over. That shows in the count once all of it is written.
    fn look_at_database(&mut self, count: impl Fn() -> Option<Frames>) -> Result<Option<Frames>, Displaced> {
        let start = Instant::now();
        loop {
            let found = self.database.look_at_least(self.database_bytes)?;
            let counted = count();
            if found.is_none_or(|found| found.modified().ok() == self.written_at) {
                return Ok(counted);
            }
            if counted.is_none_or(|counted| counted.written == 0 || counted.copied != self.frames.copied) {
                self.written_at = self.database.look()?.and_then(|found| found.modified().ok());
                self.frames.copied = counted.map_or(self.frames.copied, |counted| counted.copied);
                self.end = None;
                return Ok(counted);
            }
            if start.elapsed() > OTHERS {
                return Err(Displaced::Overwritten(self.database.path().to_owned()));
            }
            std::thread::sleep(OTHERS / 100);
        }
    }

    /// Whether the end of the log is as it was last seen.
    fn look_at_end(&self) -> Result<(), Displaced> {
        if self.end.is_some() && self.read_end(self.frames) != self.end {
            return Err(Displaced::Overwritten(self.log.path().to_owned()));
        }
        Ok(())
    }

    /// The log has another number of frames than it was left with. With more of them, or begun anew, SQLite has written to
    /// the database for another program; else its index is an older one.
    fn counted_otherwise(&self, written: u64) -> Displaced {
        let begun_anew = self.read_log(16).is_some_and(|salts: [u8; 8]| salts != self.salts);
        if written > self.frames.written || begun_anew {
            return Displaced::Overwritten(self.database.path().to_owned());
        }
        self.index_overwritten()
    }

    fn index_overwritten(&self) -> Displaced {
        Displaced::Overwritten(self.index.path().to_owned())
    }

    /// The header of the last frame.
    fn read_end(&self, frames: Frames) -> Option<[u8; FRAME_HEADER]> {
        let last = frames.written.checked_sub(1)?;
        self.read_log(LOG_HEADER as u64 + last * FRAME)
    }

    fn read_log<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.log_file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// How long the log is, at least.
fn bytes_of(frames: Frames) -> u64 {
    match frames.written {
        0 => 0,
        written => LOG_HEADER as u64 + written * FRAME,
    }
}

fn salts_of(header: [u8; FRAME_HEADER]) -> [u8; 8] {
    let mut salts = [0; 8];
    salts.copy_from_slice(&header[8..16]);
    salts
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::*;
    use crate::journal::identity::LogIdentity;
    use crate::journal::local::sqlite::SqliteStore;
    use crate::journal::local::store::{Commit, Note, Store, StoreError};

    struct Watched {
        store: SqliteStore,
        path: PathBuf,
        number: u64,
        _folder: Folder,
        _home: TempDir,
    }

    impl Watched {
        fn new() -> Self {
            let home = TempDir::new().unwrap();
            let folder = Folder::open(&home.path().join("journal")).unwrap();
            let path = folder.file("journal.db");
            let log = LogIdentity::random();
            let mut store = SqliteStore::create(&path, log).unwrap();
            store.settle().unwrap();
            store.watch(&folder, Some(log)).unwrap();
            let mut watched = Self { store, path, number: 0, _folder: folder, _home: home };
            watched.write(30_000).unwrap();
            watched.store.checkpoint().unwrap();
            for _ in 0..3 {
                watched.write(30_000).unwrap();
            }
            watched
        }

        fn write(&mut self, bytes: usize) -> Result<(), StoreError> {
            self.number += 1;
            let (id, text) = (2 + self.number, Some("x".repeat(bytes)));
            let note = Note { id, note: format!("note {id}"), text, revision: 1 };
            self.store.commit(&Commit { note: Some(&note), ..Commit::default() })
        }

        fn log(&self) -> PathBuf {
            self.path.with_extension("db-wal")
        }

        #[track_caller]
        fn assert_found_out(mut self, what: &str) {
            let looked = self.store.in_place().unwrap_err().to_string();
            assert!(looked.contains(what), "{looked}");
            let written = self.write(100).unwrap_err().to_string();
            assert!(written.contains("written to") || written.contains(what), "{written}");
            Box::new(self.store).abandon();
        }
    }

    fn cut(path: &Path, bytes: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    #[test]
    fn nothing_of_our_own_is_taken_for_damage() {
        let mut watched = Watched::new();
        // Through logs that start over, also with a commit that is larger than all of the log was before.
        for bytes in [100, 200_000, 100, 900_000, 50, 3_000_000, 70] {
            for _ in 0..3 {
                watched.write(bytes).unwrap();
                watched.store.in_place().unwrap();
            }
            watched.store.checkpoint().unwrap();
            watched.store.in_place().unwrap();
        }
        watched.store.settle().unwrap();
        watched.store.in_place().unwrap();
        watched.write(100).unwrap();
        // A reader keeps the log from starting over.
        let mut reader = watched.store.another().unwrap();
        let view = reader.transaction().unwrap();
        let _: u32 = view.query_row("SELECT count(*) FROM state", [], |row| row.get(0)).unwrap();
        for _ in 0..3 {
            watched.write(50_000).unwrap();
            watched.store.checkpoint().unwrap();
        }
        drop(view);
        watched.store.checkpoint().unwrap();
        watched.write(50_000).unwrap();
        watched.store.in_place().unwrap();
        Box::new(watched.store).close().unwrap();
    }

    #[test]
    fn nor_is_what_a_harmless_neighbour_does() {
        let mut watched = Watched::new();
        let file = OpenOptions::new().write(true).open(watched.log()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1_000)).unwrap();
        for file in [&watched.path, &watched.log()] {
            fs::set_permissions(file, Permissions::from_mode(0o400)).unwrap();
        }
        watched.store.in_place().unwrap();
        for mode in ["PASSIVE", "RESTART", "TRUNCATE"] {
            let shell = Connection::open(&watched.path).unwrap();
            shell.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
            drop(shell);
            if mode != "TRUNCATE" {
                watched.store.in_place().unwrap();
            }
            watched.write(100).unwrap();
            watched.store.in_place().unwrap();
        }
    }

    #[test]
    fn a_log_that_was_cut_off_assert_found_out() {
        for left in [0, 32, 4_000, 60_000] {
            let watched = Watched::new();
            cut(&watched.log(), left);
            watched.assert_found_out("cut off");
        }
        let watched = Watched::new();
        let bytes = fs::metadata(watched.log()).unwrap().len();
        cut(&watched.log(), bytes - 1);
        watched.assert_found_out("cut off");
    }

    /// SQLite writes where it thinks the log ends: behind a hole.
    #[test]
    fn a_log_that_was_cut_off_and_has_grown_again_assert_found_out() {
        let watched = Watched::new();
        let bytes = fs::metadata(watched.log()).unwrap().len();
        cut(&watched.log(), bytes / 2);
        cut(&watched.log(), bytes);
        watched.assert_found_out("written to");
    }

    #[test]
    fn files_that_were_overwritten_in_place_are_found_out() {
        for (name, asked) in [("journal.db", true), ("journal.db", false), ("journal.db-wal", true)] {
            let mut watched = Watched::new();
            let file = watched.path.with_file_name(name);
            let before = fs::read(&file).unwrap();
            watched.write(80_000).unwrap();
            if name == "journal.db" {
                watched.store.checkpoint().unwrap();
            }
            let now = fs::read(&file).unwrap();
            // As long as it is now, or it would be found out by that.
            let older = [&before[..], &now[before.len()..]].concat();
            fs::write(&file, &older[..now.len()]).unwrap();
            if name == "journal.db-wal" {
                cut(&file, before.len() as u64);
                cut(&file, now.len() as u64);
            }
            if asked {
                watched.assert_found_out("written to");
            } else {
                assert!(watched.write(100).unwrap_err().to_string().contains("written to"));
            }
        }
    }

    #[test]
    fn a_shell_that_writes_has_written_to_the_database() {
        for copied in [false, true] {
            let mut watched = Watched::new();
            if copied {
                // The shell's commit begins the log anew.
                watched.store.checkpoint().unwrap();
            }
            Connection::open(&watched.path).unwrap().execute_batch("DELETE FROM state").unwrap();
            watched.assert_found_out("journal.db was written to");
        }
    }

    /// SQLite would go on from an earlier end of the log, over what has come since.
    #[test]
    fn an_older_index_assert_found_out_before_anything_is_overwritten() {
        let mut watched = Watched::new();
        let index = watched.path.with_file_name("journal.db-shm");
        let before = fs::read(&index).unwrap();
        watched.write(30_000).unwrap();
        assert!(fs::read(&index).unwrap() != before);
        let log = fs::read(watched.log()).unwrap();
        let file = OpenOptions::new().write(true).open(&index).unwrap();
        file.write_all_at(&before, 0).unwrap();
        assert!(watched.write(100).unwrap_err().to_string().contains("journal.db-shm was written to"));
        assert!(fs::read(watched.log()).unwrap() == log);
        watched.assert_found_out("journal.db-shm was written to");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no power is cut here")]
    fn files_that_are_gone_or_others_are_found_out() {
        for name in ["journal.db", "journal.db-wal", "journal.db-shm", "lock"] {
            let watched = Watched::new();
            fs::remove_file(watched.path.with_file_name(name)).unwrap();
            watched.assert_found_out("deleted or moved away");
            let watched = Watched::new();
            let (file, copy) = (watched.path.with_file_name(name), watched.path.with_file_name("copy"));
            fs::copy(&file, &copy).unwrap();
            fs::rename(&copy, &file).unwrap();
            watched.assert_found_out("replaced by another file");
        }
        let watched = Watched::new();
        cut(&watched.path, 4_096);
        watched.assert_found_out("cut off");
        let watched = Watched::new();
        let folder = watched.path.parent().unwrap();
        fs::rename(folder, folder.with_file_name("elsewhere")).unwrap();
        watched.assert_found_out("journal's folder");
    }

    /// `cargo test --release --lib guard::tests::what_it_costs -- --ignored --nocapture`
    #[test]
    #[ignore = "prints figures"]
    #[allow(clippy::print_stdout, reason = "the figures")]
    fn what_it_costs() {
        const TIMES: u32 = 20_000;
        let mut watched = Watched::new();
        let timed = |what: &str, job: &mut dyn FnMut()| {
            let start = std::time::Instant::now();
            (0..TIMES).for_each(|_| job());
            println!("{what}: {:.2?}", start.elapsed() / TIMES);
        };
        let mut guard = watched.store.take_guard().unwrap();
        let store = &watched.store;
        timed("count of frames", &mut || assert!(store.frames().is_some()));
        timed("before a commit", &mut || guard.before_write(|| store.frames()).unwrap());
        let frames = store.frames();
        timed("after a commit", &mut || assert!(!guard.committed(frames).unwrap()));
        timed("without a commit", &mut || guard.look(|| store.frames()).unwrap());
        drop(guard);
        watched.store.settle().unwrap();
        timed("a commit and its sync, unguarded", &mut || watched.write(60_000).unwrap());
    }
}
