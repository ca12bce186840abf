//! Room in the journal: who yields when it is full, or its disk is, and what goes with age.
//!
//! Room for one checkpoint is kept back always: on the disk, as the ballast, or inside the database, where the disk is all
//! the journal's own. No event is taken without it. When the disk is full the ballast goes, which lets the cursors be
//! written and the write-ahead log be copied back, so that it starts over and needs no more of the disk. And delivered
//! events yield, as new ones can take their pages in the database.
//!
//! While another program reads in the log, all that is written takes up the disk twice, once in the log and later in the
//! database. Room for the second is kept back as well, or a log that fills the disk could never be copied back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::obstacle::{Obstacle, probed};
use super::{DELETE_PAUSE, TICK, Writer};
use crate::journal::disk::Disk;
use crate::journal::event::{from_millis, millis};
use crate::journal::local::ballast;
use crate::journal::local::ballast::Ballast;
use crate::journal::local::folder::record_lock_holders;
use crate::journal::local::store::{Commit, Head, Passing, Store, StoreError, StoreState};
use crate::journal::outcome::Settled;
use crate::journal::progress::Place;

/// Rows deleted in one step, at most…
const DELETE_ROWS: usize = 1000;
/// …and how many are looked at first: a group seldom needs more.
const FEW_ROWS: usize = 16;
/// Delivered events yield this part of the journal at a time to a full disk, between these bounds.
const YIELD_PART: u64 = 8;
const YIELD_BYTES: (u64, u64) = (2 * ballast::BYTES, 8 * ballast::BYTES);
/// What a disk that is not full has left, at least.
pub(crate) const SPARE: u64 = 2 * ballast::BYTES;
/// What a disk must have left beside that before delivered events are kept as before: this part of it, or so many bytes.
/// A journal that fills its disk never has as much left, so that the ceiling does not come and go.
const LIFT_PART: u64 = 4;
const LIFT_BYTES: u64 = 8 * ballast::BYTES;
/// Or others must have given back this part of it, or as many bytes: then the journal can have more of it than before. No
/// less than `SPARE`, as some file systems count late what was deleted.
const BACK_PART: u64 = 8;
/// How often that is looked at. On some file systems it costs a write of as much.
const LIFT_EVERY: Duration = Duration::from_secs(5);
/// A write-ahead log that is longer is held by a reader: a checkpoint is due at an eighth of it.
const LOG_BYTES: u64 = 32 << 20;
/// How often that is logged.
pub(crate) const WARN_EVERY: Duration = Duration::from_secs(60);
/// How often evictions are logged.
pub(crate) const ALARM_EVERY: Duration = Duration::from_secs(60);

/// What a full disk was found to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ceiling {
    /// Delivered events yield above this many live bytes.
    pub(crate) bytes: u64,
    /// The least that the journal could have of the disk since then: what it takes up, and what is free.
    share: u64,
    /// When it is looked at next whether the disk has room again.
    look_at: Instant,
}

/// Groups that go to make room.
#[derive(Default)]
pub(crate) struct Room {
    /// Delete up to here; zero: nothing.
    pub(crate) through: u64,
    pub(crate) bytes: u64,
    /// Undelivered ones are among them.
    pub(crate) evicts: bool,
}

impl Writer {
    /// What has to go so that `bytes` more fit; `None` when not enough may go. Delivered events go first, then those
    /// that only sinks that are not required still want.
    pub(crate) fn room_for(&mut self, bytes: u64) -> Result<Option<Room>, StoreError> {
        loop {
            let over = |limit: u64| (self.recovered.live_bytes + bytes).saturating_sub(limit);
            let ceiling = self.ceiling.map_or(u64::MAX, |ceiling| ceiling.bytes);
            let (must, may) = (over(self.limits.max_bytes), over(ceiling));
            if must == 0 && may == 0 {
                return Ok(Some(Room::default()));
            }
            let (room, more) = self.may_go(must, may)?;
            if room.bytes >= must {
                return Ok(Some(room));
            }
            if !more {
                return Ok(None);
            }
            // One step is not enough: it is taken, and then the next one.
            self.delete(&room, None)?;
        }
    }

    /// The oldest groups that may go, until `must` bytes are found, and `may` as far as they were delivered. And whether
    /// there may be more than one step takes.
    fn may_go(&mut self, must: u64, may: u64) -> Result<(Room, bool), StoreError> {
        let delivered = self.settled_everywhere(|_| true);
        let required = self.settled_everywhere(|place| place.required);
        let mut room = Room::default();
        for rows in [FEW_ROWS, DELETE_ROWS] {
            room = Room::default();
            let heads = self.recovered.store.oldest(rows)?;
            for Head { last, bytes, .. } in &heads {
                let evicts = *last > delivered;
                if *last > required || room.bytes >= if evicts { must } else { must.max(may) } {
                    return Ok((room, false));
                }
                room = Room { through: *last, bytes: room.bytes + bytes, evicts };
            }
            if heads.len() < rows {
                return Ok((room, false));
            }
        }
        Ok((room, true))
    }

    /// Up to where every sink of the kind is settled.
    fn settled_everywhere(&self, which: impl Fn(&Place) -> bool) -> u64 {
        let cursors = self.recovered.places.values().filter(|place| which(place)).map(Place::cursor);
        cursors.min().unwrap_or(self.recovered.tail).min(self.recovered.tail)
    }

    /// Settles at every sink that the room's events are evicted from.
    pub(crate) fn apply_room(&mut self, room: &Room, places: &mut BTreeMap<Arc<str>, Place>, state: &mut StoreState) {
        if room.through == 0 {
            return;
        }
        state.floor = room.through + 1;
        if !room.evicts {
            return;
        }
        for (sink, place) in places.iter_mut().filter(|(_, place)| !place.required) {
            if place.cursor() < room.through {
                place.settle(1, room.through, Settled::Evicted);
                self.dirty.insert(Arc::clone(sink), ());
            }
        }
    }

    /// The room is made.
    pub(crate) fn room_made(&mut self, room: &Room) {
        self.recovered.live_bytes = self.recovered.live_bytes.saturating_sub(room.bytes);
        if room.evicts && self.alarmed.take().is_some() {
            tracing::error!(
                through = room.through,
                "the journal is full: sinks that are not required lose undelivered events, counted as evicted"
            );
        }
    }

    /// Writes the places that moved. On a disk that has no room even for them, they are tried again.
    pub(crate) fn commit_places(&mut self) -> Result<(), String> {
        let written = self.delete(&Room::default(), None);
        written.or_else(|error| self.hindered(0, error))
    }

    /// Deletes what `room` and `ids_through` say, and writes every place that moved.
    fn delete(&mut self, room: &Room, ids_through: Option<u64>) -> Result<(), StoreError> {
        let mut places = self.recovered.places.clone();
        let mut state = self.recovered.state.clone();
        self.apply_room(room, &mut places, &mut state);
        if let Some(through) = ids_through {
            state.ids_floor = through + 1;
        }
        let commit = Commit {
            places: self.dirty.keys().filter_map(|sink| Some((&**sink, places.get(sink)?))).collect(),
            groups_through: (room.through > 0).then_some(room.through),
            ids_through,
            state: state.changed_from(&self.recovered.state),
            ..Commit::default()
        };
        self.recovered.store.commit(&commit)?;
        drop(commit);
        let moved_floor = state.floor != self.recovered.state.floor;
        self.recovered.state = state;
        self.recovered.places = places;
        self.room_made(room);
        self.clean();
        if moved_floor {
            self.write_mark();
        }
        Ok(())
    }

    /// Room on a full disk: delivered events yield, the cursors are written, into the ballast's room if need be, and the
    /// log starts over. `wanted` is what has to fit then; without it nothing goes that was not delivered.
    ///
    /// # Errors
    /// Final ones. There may be room at the next tick.
    pub(crate) fn make_the_best_of_a_full_disk(&mut self, wanted: Option<u64>) -> Result<(), String> {
        let made = self.yield_to_disk(wanted);
        if !self.dirty.is_empty() {
            self.dirty_since = Some(Instant::now());
        }
        match made {
            Ok(()) | Err(StoreError::Passing { .. }) => Ok(()),
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    fn yield_to_disk(&mut self, wanted: Option<u64>) -> Result<(), StoreError> {
        // Nothing that is deleted would shorten the log, or the database that it goes into.
        if matches!(self.obstacle, Some((Obstacle::Log(_), _))) || self.recovered.store.log_has_room(0).is_err() {
            if let Some(ballast) = &mut self.recovered.ballast {
                ballast.drop();
            }
            self.delete(&Room::default(), None)?;
            return self.recovered.store.checkpoint();
        }
        let must = match wanted {
            Some(bytes) => (ballast::BYTES + bytes).saturating_sub(self.recovered.store.free_bytes()?),
            None => 0,
        };
        let (room, _) = self.may_go(must, self.yielding())?;
        if room.through == 0 && wanted.is_some() {
            return Ok(());
        }
        if let Some(ballast) = &mut self.recovered.ballast {
            ballast.drop();
        }
        self.delete(&room, None)?;
        if room.through > 0 {
            self.limit_replay();
        }
        self.recovered.store.checkpoint()
    }

    fn yielding(&self) -> u64 {
        (self.recovered.live_bytes / YIELD_PART).clamp(YIELD_BYTES.0, YIELD_BYTES.1)
    }

    /// The database as large as it is now is what the disk can hold: from now on delivered events yield earlier.
    fn limit_replay(&mut self) {
        let bytes = self.recovered.live_bytes;
        self.look_at_disk();
        let share = self.share_of_disk().min(self.ceiling.map_or(u64::MAX, |ceiling| ceiling.share));
        if self.ceiling.replace(Ceiling { bytes, share, look_at: Instant::now() + LIFT_EVERY }).is_none() {
            let disk = self.disk.as_ref().map(Disk::to_string).unwrap_or_default();
            tracing::warn!(
                bytes,
                disk,
                "the disk is full: delivered events make room before journal.retention is over, and cannot be replayed"
            );
        }
    }

    /// What the journal takes up of its disk, and what is free there. A journal that grows leaves it as it is.
    fn share_of_disk(&self) -> u64 {
        let (Some(folder), Some(disk)) = (&self.recovered.lock, &self.disk) else { return 0 };
        let files = fs::read_dir(folder.path()).into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
        files.map(|file| file.blocks() * 512).sum::<u64>() + disk.free_bytes
    }

    /// Lets delivered events stay as before, once the disk has room for them again.
    fn lift_ceiling(&mut self) {
        let Some(ceiling) = self.ceiling.filter(|ceiling| Instant::now() >= ceiling.look_at) else { return };
        self.look_at_disk();
        let share = self.share_of_disk();
        let (Some(disk), Some(ballast)) = (&self.disk, &mut self.recovered.ballast) else { return };
        let back = (disk.total_bytes / BACK_PART).clamp(SPARE, LIFT_BYTES);
        let (wanted, beside) = if share >= ceiling.share.saturating_add(back) {
            (back, ballast::BYTES)
        } else {
            ((disk.total_bytes / LIFT_PART).min(LIFT_BYTES), SPARE)
        };
        let is_free = disk.free_bytes >= wanted + beside;
        // A quota shows in no number, but in the attempt.
        if is_free && ballast.take().is_ok() && ballast.fits(wanted).is_ok() {
            tracing::info!(%disk, "the disk has room again: delivered events are kept for journal.retention as before");
            self.ceiling = None;
        } else {
            let share = share.min(ceiling.share);
            self.ceiling = Some(Ceiling { share, look_at: Instant::now() + LIFT_EVERY, ..ceiling });
        }
    }

    pub(crate) fn tick(&mut self) -> Result<(), String> {
        // Nothing need come for it to be noticed that what is written would survive no restart.
        self.recovered.store.in_place().map_err(|error| error.to_string())?;
        if self.recovered.mark.as_ref().is_some_and(|mark| !mark.is_in_place()) {
            self.write_mark();
        }
        if let Some(ballast) = &mut self.recovered.ballast {
            ballast.renew();
        }
        let more = self.retain()?;
        self.tick_at = Instant::now() + if more { DELETE_PAUSE } else { TICK };
        self.look_at_disk();
        self.look_at_log()?;
        if self.obstacle.is_some() {
            return self.try_again();
        }
        // It went when the disk was full, and there is room beside it by now.
        if let (Some(ballast), Some(disk)) = (&mut self.recovered.ballast, &self.disk)
            && !ballast.is_held()
            && disk.free_bytes > SPARE
        {
            // Else it is tried again; what it would be for is kept back inside the database.
            let _ = ballast.take();
        }
        self.lift_ceiling();
        Ok(())
    }

    /// Gives the room of a log that has grown back to the disk, or says who holds it.
    fn look_at_log(&mut self) -> Result<(), String> {
        self.log_bytes = self.recovered.store.log_bytes();
        let grown = self.log_bytes.filter(|&bytes| bytes > LOG_BYTES);
        let Some(bytes) = grown else {
            if self.log_warned.reset() {
                tracing::info!("the journal's write-ahead log is short again");
            }
            return Ok(());
        };
        match self.recovered.store.shrink_log() {
            Ok(true) => self.log_bytes = self.recovered.store.log_bytes(),
            Ok(false) if self.log_warned.take().is_some() => {
                let disk = self.disk.as_ref().map(Disk::to_string).unwrap_or_default();
                let processes = self.lock_holders();
                tracing::warn!(
                    bytes,
                    disk,
                    processes,
                    "a reader of journal.db holds the write-ahead log, which grows until it ends: close that program"
                );
            }
            // It is tried again at the next tick; what it means for events shows with the next of them.
            Ok(false) | Err(StoreError::Passing { .. }) => {}
            Err(StoreError::Fatal(reason)) => return Err(reason),
        }
        Ok(())
    }

    /// The other processes that have the journal's database locked, as far as the kernel tells.
    pub(crate) fn lock_holders(&self) -> String {
        let index = self.recovered.lock.as_ref().map(|folder| folder.file("journal.db-shm"));
        index.map(|index| record_lock_holders(&index).join(", ")).unwrap_or_default()
    }

    /// Sees what the journal's disk has left.
    pub(crate) fn look_at_disk(&mut self) {
        let Some(folder) = &self.recovered.lock else { return };
        let seen = match &self.disk {
            Some(disk) => disk.again(folder.path()),
            None => Disk::under(folder.path()),
        };
        self.disk = seen.inspect_err(|error| tracing::debug!(%error, "the journal's disk cannot be looked at")).ok();
    }

    /// Whether `bytes` can be written, and room for a checkpoint is kept back.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn disk_has_room(&mut self, bytes: u64) -> Result<(), StoreError> {
        let Some(ballast) = &mut self.recovered.ballast else { return Ok(()) };
        let taken = ballast.take().and_then(|()| ballast.fits(bytes));
        if let Err(held) = self.recovered.store.log_has_room(bytes) {
            ballast.drop();
            return Err(held);
        }
        let Err(lack) = taken else { return Ok(()) };
        ballast.drop();
        match self.keeps_back(bytes) {
            Err(StoreError::Passing { why: Passing::NoRoom, .. }) => Err(probed(lack)),
            kept => kept,
        }
    }

    /// Whether room for a checkpoint stays when `bytes` are written.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn keeps_back(&mut self, bytes: u64) -> Result<(), StoreError> {
        if self.recovered.ballast.as_ref().is_none_or(Ballast::is_held) {
            return Ok(());
        }
        if self.recovered.store.free_bytes()? >= ballast::BYTES + bytes {
            return Ok(());
        }
        let reason = "what is left of the disk is kept back for the cursors".to_owned();
        Err(StoreError::Passing { why: Passing::NoRoom, reason })
    }

    /// What housekeeping reads; `None` when it cannot be read just now: the next tick tries again.
    fn look<T>(&mut self, read: impl FnOnce(&mut dyn Store) -> Result<T, StoreError>) -> Result<Option<T>, String> {
        match read(&mut *self.recovered.store) {
            Ok(read) => Ok(Some(read)),
            Err(StoreError::Passing { reason, .. }) => {
                tracing::warn!(reason, "the journal's housekeeping cannot read it now; it is tried again");
                Ok(None)
            }
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    /// Lets go of what was delivered long enough ago, and of ids that left the window. True if there may be more.
    fn retain(&mut self) -> Result<bool, String> {
        let age = |keep: Duration| {
            millis(SystemTime::now()).saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        let (old, expired) = (age(self.limits.retention), age(self.limits.dedup_window));
        let delivered = self.settled_everywhere(|_| true);
        let (tail, capacity) = (self.recovered.tail, self.limits.dedup_capacity);
        let may_go = |head: &Head| head.last <= delivered && head.at < old;
        let ids_may_go = |head: &Head| tail - head.last >= capacity || head.at < expired;
        let mut groups = Vec::new();
        // Most times the oldest one has to stay, and no other needs to be looked at.
        let Some(oldest) = self.look(|store| store.oldest(1))? else { return Ok(false) };
        self.oldest = oldest.first().map(|head| from_millis(head.at));
        if oldest.iter().any(may_go) {
            let Some(older) = self.look(|store| store.oldest(DELETE_ROWS))? else { return Ok(false) };
            groups = older.into_iter().take_while(may_go).collect();
        }
        let mut ids = Vec::new();
        let Some(oldest) = self.look(|store| store.oldest_ids(1))? else { return Ok(false) };
        if oldest.iter().any(ids_may_go) {
            let Some(older) = self.look(|store| store.oldest_ids(DELETE_ROWS))? else { return Ok(false) };
            ids = older.into_iter().take_while(ids_may_go).collect();
        }
        if groups.is_empty() && ids.is_empty() {
            return Ok(false);
        }
        let room = Room {
            through: groups.last().map_or(0, |head| head.last),
            bytes: groups.iter().map(|head| head.bytes).sum(),
            evicts: false,
        };
        match self.delete(&room, ids.last().map(|head| head.last)) {
            Ok(()) => Ok(groups.len().max(ids.len()) == DELETE_ROWS),
            Err(error) => self.hindered(0, error).map(|()| false),
        }
    }

    /// Copies the write-ahead log back when it is long enough.
    pub(crate) fn maintain(&mut self) -> Result<(), String> {
        // On a full disk that was done when the ballast went, and else it is part of the next attempt.
        if self.is_blocked() {
            return Ok(());
        }
        let done = self.recovered.store.maintain();
        done.or_else(|error| self.hindered(0, error))
    }
}
