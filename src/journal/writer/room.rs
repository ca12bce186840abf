//! Room in the journal: who yields when it is full, or its disk is, and what goes with age.
//!
//! Room for one checkpoint is kept back always: on the disk, as the ballast, or inside the database, where the disk is all
//! the journal's own. No event is taken without it. When the disk is full the ballast goes, which lets the cursors be
//! written and the write-ahead log be copied back, so that it starts over and needs no more of the disk. And delivered
//! events yield, as new ones can take their pages in the database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{DELETE_PAUSE, State, TICK, Writer, fatal};
use crate::journal::ballast::{self, Ballast};
use crate::journal::group::{from_millis, millis};
use crate::journal::place::{Place, Settled};
use crate::journal::store::{Commit, Head, StoreError, StoreState};

/// Rows deleted in one step, at most…
const DELETE_ROWS: usize = 1000;
/// …and how many are looked at first: a group seldom needs more.
const FEW_ROWS: usize = 16;
/// Delivered events yield this part of the journal at a time to a full disk, between these bounds.
const YIELD_PART: u64 = 8;
const YIELD_BYTES: (u64, u64) = (2 * ballast::BYTES, 8 * ballast::BYTES);
/// How often evictions are told.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// What refused the last group, and how many bytes it was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Full {
    /// `journal.max_bytes`.
    Bytes(u64),
    Disk(u64),
}

/// Groups that go to make room.
#[derive(Default)]
pub(super) struct Room {
    /// Delete up to here; zero: nothing.
    pub(super) through: u64,
    pub(super) bytes: u64,
    /// Undelivered ones are among them.
    pub(super) evicts: bool,
}

impl Writer {
    /// What has to go so that `bytes` more fit; `None` when not enough may go. Delivered events go first, then those
    /// that only sinks that are not required still want.
    pub(super) fn room_for(&mut self, bytes: u64) -> Result<Option<Room>, String> {
        loop {
            let over = |limit: u64| (self.recovered.live_bytes + bytes).saturating_sub(limit);
            let (must, may) = (over(self.limits.max_bytes), over(self.yield_above));
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
            match self.delete(&room, None) {
                Err(StoreError::Full(_)) => return Ok(None),
                deleted => fatal(deleted)?,
            }
        }
    }

    /// The oldest groups that may go, until `must` bytes are found, and `may` as far as they were delivered. And whether
    /// there may be more than one step takes.
    fn may_go(&mut self, must: u64, may: u64) -> Result<(Room, bool), String> {
        let delivered = self.settled_everywhere(|_| true);
        let required = self.settled_everywhere(|place| place.required);
        let mut room = Room::default();
        for rows in [FEW_ROWS, DELETE_ROWS] {
            room = Room::default();
            let heads = fatal(self.recovered.store.oldest(rows))?;
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
    pub(super) fn apply_room(&mut self, room: &Room, places: &mut BTreeMap<Arc<str>, Place>, state: &mut StoreState) {
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
    pub(super) fn room_made(&mut self, room: &Room) {
        self.recovered.live_bytes = self.recovered.live_bytes.saturating_sub(room.bytes);
        if room.evicts && self.alarmed.is_none_or(|told| told.elapsed() >= ALARM_EVERY) {
            self.alarmed = Some(Instant::now());
            tracing::error!(
                through = room.through,
                "the journal is full: sinks that are not required lose undelivered events, counted as evicted"
            );
        }
    }

    /// Writes the places that moved. On a disk that has no room even for them, they are tried again.
    pub(super) fn commit_places(&mut self) -> Result<(), String> {
        match self.delete(&Room::default(), None) {
            Err(StoreError::Full(reason)) => self.disk_is_full(0, &reason),
            written => fatal(written),
        }
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

    /// A write of about `bytes` found no room on the disk.
    pub(super) fn disk_is_full(&mut self, bytes: u64, reason: &str) -> Result<(), String> {
        self.set_full(Full::Disk(bytes), reason);
        let (room, _) = self.may_go(0, self.yielding())?;
        self.make_the_best_of_a_full_disk(&room)
    }

    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self.full, Some(Full::Disk(_)))
    }

    fn yielding(&self) -> u64 {
        (self.recovered.live_bytes / YIELD_PART).clamp(YIELD_BYTES.0, YIELD_BYTES.1)
    }

    /// Deletes `room` and writes the cursors, into the ballast's room if need be, and lets the log start over.
    fn make_the_best_of_a_full_disk(&mut self, room: &Room) -> Result<(), String> {
        if let Some(ballast) = &mut self.recovered.ballast {
            ballast.drop();
        }
        let written = match self.delete(room, None) {
            // The database as large as it is now is what the disk can hold: from now on delivered events yield earlier.
            Ok(()) if room.through > 0 => {
                self.yield_above = self.recovered.live_bytes;
                self.recovered.store.checkpoint()
            }
            Ok(()) => self.recovered.store.checkpoint(),
            Err(error) => Err(error),
        };
        if !self.dirty.is_empty() {
            self.dirty_since = Some(Instant::now());
        }
        match written {
            // There may be room at the next tick.
            Ok(()) | Err(StoreError::Full(_)) => Ok(()),
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    pub(super) fn tick(&mut self) -> Result<(), String> {
        if self.recovered.lock.as_ref().is_some_and(|folder| !folder.is_in_place()) {
            // What is written to deleted files survives no restart.
            return Err("the journal's folder was deleted or replaced while in use".to_owned());
        }
        let more = self.retain()?;
        self.tick_at = Instant::now() + if more { DELETE_PAUSE } else { TICK };
        let has_room = match self.full {
            None => return Ok(()),
            Some(Full::Bytes(bytes)) => self.room_for(bytes)?.is_some(),
            Some(Full::Disk(bytes)) => {
                if !self.disk_has_room(bytes)? {
                    let free = fatal(self.recovered.store.free_bytes())?;
                    let (room, _) = self.may_go((ballast::BYTES + bytes).saturating_sub(free), self.yielding())?;
                    if room.through > 0 {
                        self.make_the_best_of_a_full_disk(&room)?;
                    }
                }
                self.disk_has_room(bytes)?
            }
        };
        if has_room {
            self.full = None;
            tracing::info!("the journal takes events again");
            self.shared.state.send_replace(State::Open);
        }
        Ok(())
    }

    /// Whether `bytes` can be written, and room for a checkpoint is kept back.
    pub(super) fn disk_has_room(&mut self, bytes: u64) -> Result<bool, String> {
        let Some(ballast) = &mut self.recovered.ballast else { return Ok(true) };
        if ballast.take() && ballast.fits(bytes) {
            return Ok(true);
        }
        ballast.drop();
        self.keeps_back(bytes)
    }

    /// Whether room for a checkpoint stays when `bytes` are written.
    pub(super) fn keeps_back(&mut self, bytes: u64) -> Result<bool, String> {
        if self.recovered.ballast.as_ref().is_none_or(Ballast::is_held) {
            return Ok(true);
        }
        Ok(fatal(self.recovered.store.free_bytes())? >= ballast::BYTES + bytes)
    }

    pub(super) fn set_full(&mut self, full: Full, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", "full")]).inc();
        if self.full.replace(full).is_none() {
            tracing::error!(reason, "the journal cannot take events: they are answered 503 until there is room");
            self.shared.state.send_replace(State::Full);
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
        let store = &mut self.recovered.store;
        let mut groups = Vec::new();
        // Most times the oldest one has to stay, and no other needs to be looked at.
        let oldest = fatal(store.oldest(1))?;
        self.oldest = oldest.first().map(|head| from_millis(head.at));
        if oldest.iter().any(may_go) {
            groups = fatal(store.oldest(DELETE_ROWS))?.into_iter().take_while(may_go).collect();
        }
        let mut ids = Vec::new();
        if fatal(store.oldest_ids(1))?.iter().any(ids_may_go) {
            ids = fatal(store.oldest_ids(DELETE_ROWS))?.into_iter().take_while(ids_may_go).collect();
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
            Err(StoreError::Full(reason)) => self.disk_is_full(0, &reason).map(|()| false),
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    /// Copies the write-ahead log back when it is long enough.
    pub(super) fn maintain(&mut self) -> Result<(), String> {
        // On a full disk that was done when the ballast went.
        if self.is_disk_full() {
            return Ok(());
        }
        match self.recovered.store.maintain() {
            Err(StoreError::Full(reason)) => self.disk_is_full(0, &reason),
            done => fatal(done),
        }
    }
}
