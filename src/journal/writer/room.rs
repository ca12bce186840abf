//! Room in the journal: who yields when it is full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Writer, fatal};
use crate::journal::group::millis;
use crate::journal::place::{Place, Settled};
use crate::journal::store::{Head, StoreState};

/// Rows deleted in one step, at most.
const DELETE_ROWS: usize = 1000;

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
                tracing::warn!(%sink, through = room.through, "the journal is full: undelivered events evicted");
            }
        }
    }

    /// What has to go so that `bytes` more fit; `None` when not enough may go. Delivered events go first, then those
    /// that only sinks that are not required still want.
    pub(super) fn room_for(&mut self, bytes: u64) -> Result<Option<Room>, String> {
        let wanted = (self.recovered.live_bytes + bytes).saturating_sub(self.limits.max_bytes);
        if wanted == 0 {
            return Ok(Some(Room::default()));
        }
        let delivered = self.settled_everywhere(|_| true);
        let required = self.settled_everywhere(|place| place.required);
        let mut room = Room::default();
        for Head { last, bytes, .. } in fatal(self.recovered.store.oldest(DELETE_ROWS))? {
            if room.bytes >= wanted || last > delivered.max(required) {
                break;
            }
            room.evicts |= last > delivered;
            room.through = last;
            room.bytes += bytes;
        }
        Ok((room.bytes >= wanted).then_some(room))
    }

    /// Up to where every sink of the kind is settled.
    pub(super) fn settled_everywhere(&self, which: impl Fn(&Place) -> bool) -> u64 {
        let cursors = self.recovered.places.values().filter(|place| which(place)).map(Place::cursor);
        cursors.min().unwrap_or(self.recovered.tail).min(self.recovered.tail)
    }

    /// The disk is full: let delivered events go, so that their pages can be used again, and write the cursors, with the
    /// ballast's room if need be.
    pub(super) fn make_the_best_of_a_full_disk(&mut self) -> Result<(), String> {
        let delivered = self.settled_everywhere(|_| true);
        let mut room = Room::default();
        for head in fatal(self.recovered.store.oldest(DELETE_ROWS))? {
            if head.last > delivered {
                break;
            }
            room.through = head.last;
            room.bytes += head.bytes;
        }
        if self.delete(&room, None)? {
            return Ok(());
        }
        if let Some(ballast) = &mut self.recovered.ballast {
            ballast.drop();
        }
        self.delete(&Room::default(), None).map(|_| ())
    }

    pub(super) fn tick(&mut self) -> Result<(), String> {
        self.retain()?;
        let has_room = match self.full {
            None => return Ok(()),
            Some(Full::Bytes(bytes)) => self.room_for(bytes)?.is_some(),
            Some(Full::Disk(bytes)) => self.recovered.ballast.as_mut().is_none_or(|ballast| ballast.has_room(bytes)),
        };
        if has_room {
            self.set_open();
        }
        Ok(())
    }

    /// Lets go of what was delivered long enough ago, and of ids that left the window.
    pub(super) fn retain(&mut self) -> Result<(), String> {
        let age = |keep: Duration| {
            millis(SystemTime::now()).saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        let (old, expired) = (age(self.limits.retention), age(self.limits.dedup_window));
        let delivered = self.settled_everywhere(|_| true);
        let mut room = Room::default();
        for head in fatal(self.recovered.store.oldest(DELETE_ROWS))? {
            if head.last > delivered || head.at >= old {
                break;
            }
            room.through = head.last;
            room.bytes += head.bytes;
        }
        let mut ids_through = None;
        for head in fatal(self.recovered.store.oldest_ids(DELETE_ROWS))? {
            let beyond_capacity = self.recovered.tail - head.last >= self.limits.dedup_capacity;
            if !beyond_capacity && head.at >= expired {
                break;
            }
            ids_through = Some(head.last);
        }
        if room.through > 0 || ids_through.is_some() {
            self.delete(&room, ids_through)?;
        }
        Ok(())
    }
}
