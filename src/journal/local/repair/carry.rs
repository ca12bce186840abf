//! What goes from a damaged database into the new one, and what is told to be lost.
//!
//! Rows are taken in wherever they turn up intact, whatever their age. Groups and ids never change, so any copy will do;
//! of a place and of the state the furthest copy counts. What was deleted on purpose is told by the floors.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::remains::{Remains, Value};
use crate::journal::event::{Ids, checksum, digest};
use crate::journal::identity::LogIdentity;
use crate::journal::local::mark::Mark;
use crate::journal::local::rows;
use crate::journal::local::sqlite;
use crate::journal::local::sqlite::SqliteStore;
use crate::journal::local::store::{DeadLetter, Loss, Note, Row, StoreError, StoreState};
use crate::journal::outcome::Settled;
use crate::journal::progress::Place;
use crate::journal::progress::Retrying;
use crate::journal::quarantine::Kept;

/// After this many bytes the new database's log is copied into its file, so that it never holds everything.
const STEP: usize = 16 << 20;

/// What came of it.
pub(crate) struct Carried {
    /// Ranges of sequences that are gone.
    pub(crate) lost: Vec<(u64, u64)>,
    /// So many dead letters are gone.
    pub(crate) lost_letters: u64,
    /// What else is gone, in words.
    pub(crate) also: Vec<String>,
}

/// Copies every intact row, and leaves the new database such that it passes examination.
pub(crate) fn carry_over(
    remains: &Remains,
    new: &mut SqliteStore,
    mark: Option<Mark>,
    reason: &str,
    now: u64,
) -> Result<Carried, StoreError> {
    let mut carrier = Carrier {
        new,
        log: None,
        states: Vec::new(),
        names: None,
        places: BTreeMap::new(),
        notes: BTreeMap::new(),
        since_step: 0,
    };
    carrier.begin()?;
    remains.each_row(|key, row| carrier.take(key, row))?;
    let carried = carrier.finish(mark, reason, now)?;
    carrier.new.connection().execute_batch("COMMIT")?;
    Ok(carried)
}

struct Carrier<'a> {
    new: &'a mut SqliteStore,
    /// Which log it is, if a row says so.
    log: Option<LogIdentity>,
    states: Vec<StoreState>,
    /// Of all sinks that ever had a place, if that is known.
    names: Option<BTreeSet<String>>,
    places: BTreeMap<String, Place>,
    notes: BTreeMap<u64, Note>,
    since_step: usize,
}

impl Carrier<'_> {
    fn begin(&self) -> Result<(), StoreError> {
        Ok(self.new.connection().execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Takes in a row of one of our tables; false if it is none, or not intact.
    fn take(&mut self, key: u64, row: &[Value]) -> Result<bool, StoreError> {
        use Value::{Blob, Integer, Null, Text};
        if i64::try_from(key).is_err() {
            return Ok(false);
        }
        match *row {
            [Null, Integer(last), Integer(at), Integer(_), Integer(sum), Blob(block)] => {
                self.take_group(key, last, at, sum, block)
            }
            [Null, Integer(last), Integer(at), Integer(sum), Blob(ids)] => self.take_ids(key, last, at, sum, ids),
            [Null, Text(about), Blob(bytes), Integer(sum)] => self.take_letter_or_kept(key, about, bytes, sum),
            [Null, Text(name), Text(place), Integer(sum)] => {
                if rows::text_checksum(0, &[name.as_bytes(), place.as_bytes()]) != sum {
                    return Ok(false);
                }
                let Ok(place) = serde_json::from_str::<Place>(place) else { return Ok(false) };
                let known = self.places.get(name);
                if known.is_none_or(|known| place.progress() > known.progress()) {
                    self.places.insert(name.to_owned(), place);
                }
                Ok(true)
            }
            [Null, Text(state), Integer(sum)] => {
                if xxhash_rust::xxh3::xxh3_64(state.as_bytes()).cast_signed() != sum {
                    return Ok(false);
                }
                if let Ok(state) = serde_json::from_str(state) {
                    self.states.push(state);
                } else if let Ok(note) = serde_json::from_str::<Note>(state) {
                    let note = Note { id: key, ..note };
                    let known = self.notes.get(&key);
                    if key > rows::SINKS && known.is_none_or(|known| note.revision > known.revision) {
                        self.notes.insert(key, note);
                    }
                } else if let Ok(found) = serde_json::from_str::<rows::Identity>(state) {
                    self.log.get_or_insert(found.log);
                } else if let Ok(Some(names)) = serde_json::from_str::<Option<Vec<String>>>(state) {
                    self.names.get_or_insert_default().extend(names);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn take_group(&mut self, first: u64, last: i64, at: i64, sum: i64, block: &[u8]) -> Result<bool, StoreError> {
        let Some((last, at)) = span(first, last, at) else { return Ok(false) };
        if !is_free(self.new.connection(), "groups", first, last)? {
            return Ok(true);
        }
        let row = Row { first, last, at, checksum: sum.cast_unsigned(), block: block.to_vec() };
        let Some(group) = row.group() else { return Ok(false) };
        let insert = "INSERT INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        self.new.connection().prepare_cached(insert)?.execute(params![
            first,
            last,
            at,
            group.size(),
            sum,
            row.block
        ])?;
        self.took(row.block.len())
    }

    fn take_ids(&mut self, first: u64, last: i64, at: i64, sum: i64, ids: &[u8]) -> Result<bool, StoreError> {
        let Some((last, at)) = span(first, last, at) else { return Ok(false) };
        if checksum(first, last, at, ids) != sum.cast_unsigned() {
            return Ok(false);
        }
        if is_free(self.new.connection(), "ids", first, last)? {
            put_ids(self.new.connection(), first, last, at, ids)?;
            return self.took(ids.len());
        }
        Ok(true)
    }

    fn take_letter_or_kept(&mut self, id: u64, about: &str, bytes: &[u8], sum: i64) -> Result<bool, StoreError> {
        if rows::text_checksum(id, &[about.as_bytes(), bytes]) != sum {
            return Ok(false);
        }
        let new = self.new.connection();
        if let Ok(letter) = serde_json::from_str::<DeadLetter>(about) {
            // Every time it died it had had more attempts.
            let known = rows::filed::<DeadLetter>(new, id)?;
            if known.is_none_or(|known| letter.attempts > known.attempts) {
                put_as_it_was(new, "dead_letters", id, about, bytes, sum)?;
            }
        } else if serde_json::from_str::<Kept>(about).is_ok() {
            put_as_it_was(new, "quarantine", id, about, bytes, sum)?;
        } else {
            return Ok(false);
        }
        self.took(bytes.len())
    }

    fn took(&mut self, bytes: usize) -> Result<bool, StoreError> {
        self.since_step += bytes;
        if self.since_step > STEP {
            self.since_step = 0;
            self.new.connection().execute_batch("COMMIT")?;
            self.new.settle()?;
            self.begin()?;
        }
        Ok(true)
    }

    /// Deletes what was deleted before, works out what is missing, and writes places and state to match.
    fn finish(&mut self, mark: Option<Mark>, reason: &str, now: u64) -> Result<Carried, StoreError> {
        let new = self.new.connection();
        let known = std::mem::take(&mut self.states)
            .into_iter()
            .max_by_key(|state| (state.floor, state.ids_floor, state.losses.len(), state.kept, state.revision));
        let mut state = known.clone().unwrap_or_default();
        // Another log's says nothing of this one.
        let mark = mark.filter(|mark| mark.is_of(self.log, 0)).unwrap_or_default();
        if let Some(log) = self.log.or(mark.log) {
            rows::put_identity(new, log)?;
        }
        let last_ids = number(new, "SELECT max(last) FROM ids")?.unwrap_or(0);
        // Without either, the oldest group there is: that anything went before it cannot be told.
        state.floor = match known.as_ref().map_or(0, |state| state.floor).max(mark.floor) {
            0 => number(new, "SELECT min(first) FROM groups")?.unwrap_or(last_ids + 1),
            floor => floor,
        };
        new.execute("DELETE FROM groups WHERE first < ?1", [state.floor])?;
        if known.is_none() {
            state.ids_floor = number(new, "SELECT min(first) FROM ids")?.unwrap_or(u64::MAX).min(state.floor);
        }
        new.execute("DELETE FROM ids WHERE first < ?1", [state.ids_floor])?;
        // No sequence that was ever given comes again.
        let tail = [
            state.floor - 1,
            state.ids_floor - 1,
            mark.last,
            last_ids,
            number(new, "SELECT max(last) FROM groups")?.unwrap_or(0),
            state.losses.iter().map(|loss| loss.last).max().unwrap_or(0),
            self.places.values().map(Place::reach).max().unwrap_or(0),
        ];
        let tail = tail.into_iter().max().unwrap_or(0);

        let mut also = Vec::new();
        let lost = self.lose(&mut state, tail, reason, now)?;
        let names = self.names.clone();
        let newest_letter =
            number(self.new.connection(), "SELECT max(id) FROM dead_letters")?.unwrap_or(0).max(state.letters);
        for name in names.iter().flatten().filter(|name| !self.places.contains_key(*name)).collect::<Vec<_>>() {
            also.push(format!("the place of the sink {name}: it gets every event that is kept once more"));
            self.places.insert(name.clone(), Place::before(state.floor, newest_letter));
        }
        if names.is_none() {
            also.push("perhaps places of sinks: those get every event that is kept once more".to_owned());
        }
        let ids = self.bring_ids_to_order(&state, tail, &lost, now)?;
        if ids > 0 {
            also.push(format!("the ids of {ids} events: if they come again, they are stored again"));
        }
        for place in self.places.values_mut() {
            // If the newest copy of a place is gone, what became of events deleted since is not known any more.
            place.settle(1, state.floor - 1, Settled::Lost);
            for loss in &state.losses {
                place.settle(loss.first, loss.last, Settled::Lost);
            }
        }
        let lost_letters = self.file(&mut state, known.is_some(), mark, &mut also)?;
        for (name, place) in &self.places {
            sqlite::put_place(self.new.connection(), name, place)?;
        }
        match names {
            Some(_) => sqlite::put_sink_names(self.new.connection())?,
            None => sqlite::put_sink_names_unknown(self.new.connection())?,
        }

        rows::put_state(self.new.connection(), &state)?;
        Ok(Carried { lost, lost_letters, also })
    }

    /// Brings dead letters, quarantine and notes to order, and says in `also` what is gone or may have come back; how many
    /// dead letters are gone.
    fn file(
        &mut self,
        state: &mut StoreState,
        is_known: bool,
        mark: Mark,
        also: &mut Vec<String>,
    ) -> Result<u64, StoreError> {
        let new = self.new.connection();
        new.execute("DELETE FROM dead_letters WHERE id < ?1", [state.letters_floor])?;
        new.execute("DELETE FROM quarantine WHERE id < ?1", [state.kept_floor])?;
        let count = |table: &str| number(new, &format!("SELECT count(*) FROM {table}")).map(Option::unwrap_or_default);
        let newest = |table: &str| number(new, &format!("SELECT max(id) FROM {table}")).map(Option::unwrap_or_default);
        let (letters, kept) = (count("dead_letters")?, count("quarantine")?);
        let (newest_letter, newest_kept) = (newest("dead_letters")?, newest("quarantine")?);
        let missing = state.dead_letters.saturating_sub(letters);
        let never_seen = mark.kept.saturating_sub(state.kept.max(newest_kept));
        match state.quarantined.saturating_sub(kept) + never_seen {
            0 => {}
            missing => also.push(format!("{missing} quarantined bodies")),
        }
        // Deleted rows turn up as well, and nothing tells them from the others.
        let back = |found: u64, known: u64| if is_known { found.saturating_sub(known) } else { found };
        match (back(letters, state.dead_letters), back(kept, state.quarantined)) {
            (0, 0) => {}
            (letters, kept) => also.push(format!(
                "the end of some dead letters (up to {letters}) or quarantined bodies (up to {kept}): they are there again"
            )),
        }
        self.end_retries(missing, also)?;
        (state.dead_letters, state.quarantined) = (letters, kept);
        state.letters = state.letters.max(newest_letter);
        state.kept = state.kept.max(newest_kept).max(mark.kept);
        self.put_notes(state, also)?;
        Ok(missing)
    }

    /// Every dead letter is dead: one that was delivered may be among those that seem to be retried. `missing` are gone:
    /// lost to their sinks.
    fn end_retries(&mut self, missing: u64, also: &mut Vec<String>) -> Result<(), StoreError> {
        let new = self.new.connection();
        let mut dead: BTreeMap<String, u64> = BTreeMap::new();
        let mut ended = 0;
        for id in rows::retried_letters(new)? {
            let Some(mut letter) = rows::filed::<DeadLetter>(new, id)? else { continue };
            if letter.retrying.take() == Some(Retrying::Counted) {
                *dead.entry(letter.sink.clone()).or_default() += 1;
            }
            rows::put_filed(new, &letter)?;
            ended += 1;
        }
        if ended > 0 {
            also.push(format!("the retry of {ended} dead letters: they are dead again"));
        }
        let mut unknown = missing;
        let mut gone: BTreeMap<String, u64> = BTreeMap::new();
        for (name, place) in &mut self.places {
            let retrying = place.retrying();
            let found = dead.get(name).copied().unwrap_or_default().min(retrying);
            let lost = (retrying - found).min(unknown);
            unknown -= lost;
            place.end_retries(lost, Settled::Lost);
            place.end_retries(retrying - lost, Settled::DeadLettered);
            *gone.entry(name.clone()).or_default() += lost;
        }
        if unknown > 0 {
            let found = rows::letters_of_sinks(new)?;
            // Accounts that have more than there are. Discarded ones are in them too: with several such sinks, the sum is
            // right, and which of them it was cannot be told.
            for (name, place) in &mut self.places {
                let lost = place.lose_letters(found.get(name).map_or(&[], Vec::as_slice), unknown);
                unknown -= lost;
                *gone.entry(name.clone()).or_default() += lost;
            }
        }
        if missing > 0 {
            let sinks = gone.iter().filter(|(_, gone)| **gone > 0);
            let sinks: String = sinks.map(|(name, gone)| format!(", {gone} of the sink {name}")).collect();
            also.push(format!("{missing} dead letters{sinks}"));
        }
        Ok(())
    }

    fn put_notes(&self, state: &mut StoreState, also: &mut Vec<String>) -> Result<(), StoreError> {
        for note in self.notes.values() {
            rows::put_note(self.new.connection(), note)?;
        }
        let found = self.notes.len() as u64;
        match state.notes.saturating_sub(found) {
            0 => {}
            missing => also.push(format!("{missing} notes, such as how far a replay has come")),
        }
        state.notes = found;
        Ok(())
    }

    /// The ranges of sequences that are missing, which become known losses.
    fn lose(&self, state: &mut StoreState, tail: u64, reason: &str, now: u64) -> Result<Vec<(u64, u64)>, StoreError> {
        let floor = state.floor;
        state.losses.retain(|loss| loss.last >= floor);
        let mut present = spans(self.new.connection(), "groups")?;
        present.extend(state.losses.iter().map(|loss| (loss.first, loss.last)));
        let lost = holes(floor, tail, present);
        for &(first, last) in &lost {
            state.losses.push(Loss { first, last, found_at: now, reason: reason.to_owned() });
        }
        state.losses.sort_by_key(|loss| loss.first);
        Ok(lost)
    }

    /// Every sequence from the floor on gets a row of ids, if need be an empty one; how many events' ids are gone.
    ///
    /// An event that is lost and may be wanted still has to be a new one when it comes again: its id goes with it.
    fn bring_ids_to_order(
        &self,
        state: &StoreState,
        tail: u64,
        lost: &[(u64, u64)],
        now: u64,
    ) -> Result<u64, StoreError> {
        let new = self.new.connection();
        let mut wanted = HashSet::new();
        for &(first, last) in lost {
            let rows = "SELECT first, last, at, checksum, ids FROM ids WHERE first <= ?2 AND last >= ?1";
            let rows: Vec<Row> =
                new.prepare(rows)?.query_map([first, last], sqlite::read_row)?.collect::<Result<_, _>>()?;
            for row in rows.into_iter().filter(|row| !row.block.is_empty()) {
                let had = |place: &Place| place.has_settled(row.first, row.last);
                if self.names.is_some() && !self.places.is_empty() && self.places.values().all(had) {
                    continue;
                }
                let mut own = row.last - row.first + 1;
                let _ = Ids::read(&row.block, |id, _| {
                    if own > 0 {
                        own -= 1;
                        wanted.insert(id.to_owned());
                    }
                });
                new.execute("DELETE FROM ids WHERE first = ?1", [row.first])?;
            }
        }
        if !wanted.is_empty() {
            self.forget_touches(&wanted)?;
        }
        let mut without = new.prepare(
            "SELECT first, last, at, checksum, block FROM groups WHERE first >= ?1 AND first NOT IN (SELECT first FROM ids)",
        )?;
        let mut rows = without.query([state.ids_floor])?;
        while let Some(row) = rows.next()? {
            let row = sqlite::read_row(row)?;
            if let Some(ids) = ids_of(&row)
                && is_free(new, "ids", row.first, row.last)?
            {
                put_ids(new, row.first, row.last, row.at, ids.as_bytes())?;
            }
        }
        let mut gone = 0;
        for (first, last) in holes(state.ids_floor, tail, spans(new, "ids")?) {
            put_ids(new, first, last, now, &[])?;
            let of_lost = lost.iter().map(|&(low, high)| (high.min(last) + 1).saturating_sub(low.max(first)));
            gone += last - first + 1 - of_lost.sum::<u64>();
        }
        Ok(gone)
    }

    /// Takes ids out that stand in a row because they were seen again, not because the event is in its group.
    fn forget_touches(&self, wanted: &HashSet<String>) -> Result<(), StoreError> {
        let new = self.new.connection();
        let mut rows = new.prepare("SELECT first, last, at, checksum, ids FROM ids")?;
        let mut rows = rows.query([])?;
        let mut changed = Vec::new();
        while let Some(row) = rows.next()? {
            let row = sqlite::read_row(row)?;
            let (mut own, mut left, mut ids) = (row.last - row.first + 1, true, Ids::default());
            let _ = Ids::read(&row.block, |id, digest| {
                if own == 0 && wanted.contains(id) {
                    left = false;
                    return;
                }
                own = own.saturating_sub(1);
                ids.push(id, digest);
            });
            if !left {
                changed.push((row, ids));
            }
        }
        for (row, ids) in changed {
            new.execute("DELETE FROM ids WHERE first = ?1", [row.first])?;
            put_ids(new, row.first, row.last, row.at, ids.as_bytes())?;
        }
        Ok(())
    }
}

/// A row's last sequence and time, if they can be any.
fn span(first: u64, last: i64, at: i64) -> Option<(u64, u64)> {
    let (last, at) = (u64::try_from(last).ok()?, u64::try_from(at).ok()?);
    (1 <= first && first <= last && last < i64::MAX.cast_unsigned()).then_some((last, at))
}

/// Whether no row of the table holds any of `first..=last`.
fn is_free(connection: &Connection, table: &str, first: u64, last: u64) -> Result<bool, StoreError> {
    let query = format!("SELECT last FROM {table} WHERE first <= ?1 ORDER BY first DESC LIMIT 1");
    let before: Option<u64> = connection.prepare_cached(&query)?.query_row([last], |row| row.get(0)).optional()?;
    Ok(before.is_none_or(|before| before < first))
}

fn number(connection: &Connection, query: &str) -> Result<Option<u64>, StoreError> {
    Ok(connection.query_row(query, [], |row| row.get(0))?)
}

fn spans(connection: &Connection, table: &str) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut rows = connection.prepare(&format!("SELECT first, last FROM {table} ORDER BY first"))?;
    // Neighbours become one, so that this stays short.
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for row in rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (first, last): (u64, u64) = row?;
        match spans.last_mut() {
            Some(before) if before.1 + 1 == first => before.1 = last,
            _ => spans.push((first, last)),
        }
    }
    Ok(spans)
}

/// What of `from..=to` none of the spans covers.
fn holes(from: u64, to: u64, mut spans: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    spans.sort_unstable();
    let mut holes = Vec::new();
    let mut next = from;
    for (first, last) in spans {
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

/// The ids of a group, from its events.
fn ids_of(group: &Row) -> Option<Ids> {
    let events = std::sync::Arc::new(group.group()?).events(group.first).ok()?;
    let mut ids = Ids::default();
    for event in &events {
        ids.push(event.event_id(), digest(event.body()));
    }
    Some(ids)
}

/// A row of the table as it was found, over an earlier copy.
fn put_as_it_was(
    connection: &Connection,
    table: &str,
    id: u64,
    about: &str,
    bytes: &[u8],
    sum: i64,
) -> Result<(), StoreError> {
    let insert = format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3, ?4)");
    connection.prepare_cached(&insert)?.execute(params![id, about, bytes, sum])?;
    Ok(())
}

fn put_ids(connection: &Connection, first: u64, last: u64, at: u64, ids: &[u8]) -> rusqlite::Result<()> {
    let sum = checksum(first, last, at, ids).cast_signed();
    connection
        .prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![first, last, at, sum, ids])?;
    Ok(())
}
