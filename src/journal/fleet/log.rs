//! Which log the stream of events holds: the record `log`, by which a place is known to be of it or of an earlier one.
//!
//! A sequence means an event in one log only. The stream may be deleted and made again, restored from a backup, cut short by
//! a power loss or purged by hand, and gives the same sequences to other events then. So the record keeps when the stream was
//! made, and **marks**: some events that were in it, by sequence and time of storing. A stream that was made at another time,
//! has another event at a mark, or ends before what is known of it, holds another log. That begins a new **epoch**, of which
//! the record says up to where the log is still the one before. A place of an earlier epoch counts up to there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream::stream::Info;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes that are kept one by one.
const CHANGES: usize = 32;
/// Marks of this age, in nanoseconds, and younger are all kept.
const YOUNG: u64 = 2_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Log {
    /// Of this log among all logs; another one whenever sequences are given again.
    pub(crate) identity: String,
    /// Grows whenever the stream turns out not to be what it was; 0 before the first time.
    pub(crate) epoch: u64,
    /// When the stream was made, as it says: nanoseconds since 1970.
    created: u64,
    /// Events that were in it, the oldest first.
    marks: Vec<Mark>,
    /// Receivers have purged everything below.
    purged: u64,
    /// Messages that are missing between the others.
    deleted: u64,
    /// How the epochs began, the oldest first.
    changes: Vec<Change>,
    /// Events that were acknowledged and that some sink can never have.
    pub(crate) lost: u64,
    /// How many sinks were ever given a record.
    pub(crate) sinks: u64,
    /// Those that have one: it is lost, if it is not there. `None`: an earlier version made this, and did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    names: Option<BTreeSet<String>>,
    /// Whose sinks are not known: every sink may have to have what is stored up to here.
    owed_through: u64,
    /// What a newer receiver wrote.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// An event that was in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    /// When it was stored, nanoseconds since 1970.
    pub(crate) time: u64,
}

/// How an epoch began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    epoch: u64,
    /// Up to here it is still the log of the epoch before; `None`: all of it, but events were purged by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<u64>,
    /// Up to where the stream was known before…
    #[serde(default)]
    end: u64,
    /// …and up to where it seems to be the same, by the times of its events. For accounts alone: clocks may be wrong.
    #[serde(default)]
    same: u64,
    /// What was purged by hand, both ends included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gap: Option<(u64, u64)>,
}

/// The stream as its leader describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) created: u64,
    /// One more than the last when there is no event.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// When the last was stored, if it is there.
    pub(crate) last_time: u64,
    pub(crate) deleted: u64,
}

/// What a look at the marks showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The newest mark that is in the stream.
    pub(crate) verified: u64,
    /// At another mark, there is another event or none.
    pub(crate) differs: bool,
    /// The last event that was stored before the newest mark.
    pub(crate) same: u64,
}

impl Sight {
    pub(crate) fn of(info: &Info) -> Self {
        let state = &info.state;
        let first = if state.messages == 0 { state.last_sequence + 1 } else { state.first_sequence };
        Self {
            created: nanoseconds(info.created.into()),
            first,
            last: state.last_sequence,
            last_time: nanoseconds(state.last_timestamp.into()),
            deleted: state.deleted_count.unwrap_or(0),
        }
    }

    fn mark(&self) -> Option<Mark> {
        (self.first <= self.last).then_some(Mark { sequence: self.last, time: self.last_time })
    }
}

pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

impl Log {
    /// Of streams that have just been made.
    pub(crate) fn fresh(seen: &Sight, now: SystemTime) -> Self {
        Self { epoch: after(0, now), ..Self::found(seen, BTreeSet::new()) }
    }

    /// Of a stream beside which there are records of the sinks `names` without a log's: of an earlier version, or it is lost.
    pub(crate) fn found(seen: &Sight, names: BTreeSet<String>) -> Self {
        Self {
            identity: new_identity(),
            epoch: 0,
            created: seen.created,
            marks: seen.mark().into_iter().collect(),
            purged: seen.first,
            deleted: seen.deleted,
            changes: Vec::new(),
            lost: 0,
            sinks: names.len() as u64,
            names: Some(names),
            owed_through: 0,
            more: BTreeMap::new(),
        }
    }

    /// Of a stream with events beside which all records are gone: nobody knows who has had what.
    pub(crate) fn orphaned(seen: &Sight, now: SystemTime) -> Self {
        let found = Self::found(seen, BTreeSet::new());
        let epoch = after(0, now);
        let nothing = Change { epoch, kept: Some(0), end: 0, same: 0, gap: None };
        Self { epoch, changes: vec![nothing], owed_through: seen.last, ..found }
    }

    pub(crate) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The same with other events or records beside it: places of the one are not of the other without [`kept`](Self::kept).
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.epoch, &self.identity) == (other.epoch, &other.identity)
    }

    /// Up to where this is the log of that epoch; `u64::MAX` for all of it.
    pub(crate) fn kept(&self, epoch: u64) -> u64 {
        if epoch > self.epoch {
            // Of records that are gone.
            return 0;
        }
        self.since(epoch).filter_map(|change| change.kept).min().unwrap_or(u64::MAX)
    }

    /// How many sequences beyond [`kept`](Self::kept) have been given again since that epoch.
    pub(crate) fn replaced(&self, epoch: u64) -> u64 {
        self.since(epoch).map(Change::replaced).sum()
    }

    /// If only one thing has happened since that epoch: up to where the log was known before, and up to where it is still the
    /// same, as far as anybody can tell. `None` for the end of a stream that has lost none.
    pub(crate) fn one_change(&self, epoch: u64) -> Option<(Option<u64>, u64)> {
        let mut since = self.since(epoch);
        let (Some(change), None) = (since.next(), since.next()) else { return None };
        Some(match change.kept {
            Some(_) => (Some(change.end), change.same),
            None => (None, u64::MAX),
        })
    }

    /// Whether an event that is not in the stream should be: no receiver has purged it.
    pub(crate) fn misses(&self, sequence: u64) -> bool {
        let mut gaps = self.changes.iter().filter_map(|change| change.gap);
        sequence >= self.purged || gaps.any(|(first, last)| (first..=last).contains(&sequence))
    }

    /// Whether a sink without a record may be one whose record is gone. It has to have everything then.
    pub(crate) fn owes(&self, first: u64) -> bool {
        first <= self.owed_through
    }

    /// Whether all records, or the newest of them, were lost.
    pub(crate) fn has_lost_records(&self) -> bool {
        self.owed_through > 0
    }

    /// The marks, the newest first.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.marks.iter().rev().copied()
    }

    pub(crate) fn newest_mark(&self) -> u64 {
        self.marks.last().map_or(0, |mark| mark.sequence)
    }

    /// Whether the stream is as it should be, as far as that shows without a look at its events. `floor` is the last
    /// sequence that is known to have been given.
    pub(crate) fn agrees(&self, seen: &Sight, floor: u64) -> bool {
        let is_one = seen.created == self.created && seen.last >= floor.max(self.newest_mark());
        is_one && seen.first <= self.purged && seen.deleted <= self.deleted
    }

    /// The log from now on, if it is not what it was. `floor` as in [`agrees`](Self::agrees).
    pub(crate) fn judge(&self, seen: &Sight, floor: u64, checked: Checked, now: SystemTime) -> Option<Self> {
        let end = floor.max(self.newest_mark());
        let is_another = seen.created != self.created || checked.differs || end > seen.last;
        let epoch = after(self.epoch, now);
        let mut log = Self { epoch, purged: seen.first, deleted: seen.deleted, ..self.clone() };
        if is_another {
            // What lies before the first event is gone in any case.
            let kept = checked.verified.max(seen.first - 1).min(seen.last);
            log.identity = new_identity();
            log.created = seen.created;
            log.marks.retain(|mark| mark.sequence <= kept);
            log.marks.extend(seen.mark().filter(|mark| mark.sequence > kept));
            let same = checked.same.clamp(kept, end.max(kept));
            log.changes.push(Change { epoch, kept: Some(kept), end, same, gap: None });
        } else if seen.first > self.purged || seen.deleted > self.deleted {
            let gap = (seen.first > self.purged).then_some((self.purged, seen.first - 1));
            log.changes.push(Change { epoch, kept: None, end: 0, same: 0, gap });
        } else {
            return None;
        }
        log.forget_old_changes();
        Some(log)
    }

    /// The same log with a mark at its end, if it has grown.
    pub(crate) fn marked(&self, seen: &Sight) -> Option<Self> {
        let mark = seen.mark().filter(|mark| mark.sequence > self.newest_mark())?;
        let mut log = Self { deleted: seen.deleted.min(self.deleted), ..self.clone() };
        log.marks.retain(|mark| mark.sequence >= seen.first);
        log.marks.push(mark);
        log.thin_out();
        Some(log)
    }

    /// The same log, of which receivers purge everything below.
    pub(crate) fn purged_below(&self, below: u64) -> Option<Self> {
        (below > self.purged).then(|| Self { purged: below, ..self.clone() })
    }

    /// The same log with records of so many sinks more.
    pub(crate) fn with_sink(&self) -> Self {
        Self { sinks: self.sinks + 1, ..self.clone() }
    }

    /// The sinks that have a record, or had one that is lost.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    /// Whether it is said which they are.
    pub(crate) fn tells_names(&self) -> bool {
        self.names.is_some()
    }

    pub(crate) fn has_sink(&self, name: &str) -> bool {
        self.names.as_ref().is_some_and(|names| names.contains(name))
    }

    /// The same log, in which it is said which sinks have a record, if it was not.
    pub(crate) fn with_names(&self, names: &BTreeSet<String>) -> Option<Self> {
        self.names.is_none().then(|| Self { names: Some(names.clone()), ..self.clone() })
    }

    /// The same log, with a sink that has a record from now on.
    pub(crate) fn with_name(&self, name: &str) -> Option<Self> {
        let mut log = self.clone();
        log.names.as_mut()?.insert(name.to_owned()).then_some(log)
    }

    /// The same log, with a sink that has none any more, for an operator has dropped it.
    pub(crate) fn without_name(&self, name: &str) -> Option<Self> {
        let mut log = self.clone();
        log.names.as_mut()?.remove(name).then_some(log)
    }

    /// The same log when events say that there were more sinks than the records do: those are older than the log.
    pub(crate) fn with_sinks_unknown(&self, sinks: u64, seen: &Sight) -> Option<Self> {
        (sinks > self.sinks).then(|| Self { sinks, owed_through: seen.last, ..self.clone() })
    }

    /// The same log with so many lost events more.
    pub(crate) fn with_lost(&self, lost: u64) -> Self {
        Self { lost: self.lost + lost, ..self.clone() }
    }

    fn since(&self, epoch: u64) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.epoch > epoch)
    }

    /// Makes one of the oldest two: whoever is of the epoch between them has less kept than could be.
    fn forget_old_changes(&mut self) {
        while self.changes.len() > CHANGES {
            let oldest = self.changes.remove(0);
            let next = &mut self.changes[0];
            let replaced = oldest.replaced() + next.replaced();
            // Also what lies between: of a retry of that, rather a copy too many is stored than none.
            next.gap = match (oldest.gap, next.gap) {
                (Some((first, last)), Some((from, to))) => Some((first.min(from), last.max(to))),
                (gap, None) | (None, gap) => gap,
            };
            next.kept = oldest.kept.into_iter().chain(next.kept).min();
            next.end = next.kept.map_or(0, |kept| kept + replaced);
        }
    }

    /// Leaves of three marks in a row the outer two, unless the oldest is twice as old as the newest: so there are few, and
    /// one close to every age.
    fn thin_out(&mut self) {
        let Some(newest) = self.marks.last().map(|mark| mark.time) else { return };
        let age = |mark: &Mark| newest.saturating_sub(mark.time);
        let mut at = self.marks.len();
        while at >= 3 {
            let (older, newer) = (self.marks[at - 3], self.marks[at - 1]);
            if age(&older) > YOUNG && age(&older) <= 2 * age(&newer) {
                self.marks.remove(at - 2);
            }
            at -= 1;
        }
    }
}

impl Change {
    fn replaced(&self) -> u64 {
        self.kept.map_or(0, |kept| self.end.saturating_sub(kept))
    }
}

/// The next epoch. It grows with time, so that one after the loss of all records is another one too.
fn after(epoch: u64, now: SystemTime) -> u64 {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds.max(epoch + 1)
}

fn new_identity() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn seen(created: u64, first: u64, last: u64, time: u64) -> Sight {
        Sight { created, first, last, last_time: time * SECOND, deleted: 0 }
    }

    /// With marks at every tenth sequence up to 100, one each second.
    fn log() -> Log {
        let mut log = Log::fresh(&seen(7, 1, 0, 0), UNIX_EPOCH + Duration::from_secs(50));
        for tenth in 1..=10 {
            log = log.marked(&seen(7, 1, tenth * 10, tenth)).unwrap();
        }
        log
    }

    fn judge(log: &Log, seen: &Sight, floor: u64, checked: (u64, bool)) -> Option<Log> {
        let checked = Checked { verified: checked.0, differs: checked.1, same: checked.0 };
        log.judge(seen, floor, checked, UNIX_EPOCH + Duration::from_secs(60))
    }

    #[test]
    fn a_log_that_only_grows_stays_the_same() {
        let log = log();
        for grown in [seen(7, 1, 100, 10), seen(7, 1, 130, 13)] {
            assert!(log.agrees(&grown, 100));
            assert_eq!(judge(&log, &grown, 100, (100, false)), None);
        }
        // Purged by receivers, all of it.
        let purged = log.purged_below(101).unwrap();
        assert!(purged.agrees(&seen(7, 101, 100, 10), 100));
        assert_eq!(judge(&purged, &seen(7, 101, 100, 10), 100, (0, false)), None);
        assert_eq!(purged.purged_below(90), None);
    }

    #[test]
    fn a_stream_made_again_keeps_nothing() {
        let log = log();
        for again in [seen(8, 1, 0, 0), seen(8, 1, 40, 20), seen(8, 1, 400, 20)] {
            assert!(!log.agrees(&again, 100));
            let after = judge(&log, &again, 105, (0, again.last > 0)).unwrap();
            assert!(!after.is(&log) && after.epoch > log.epoch);
            assert_eq!((after.kept(log.epoch), after.replaced(log.epoch)), (0, 105));
            assert_eq!((after.kept(after.epoch), after.replaced(after.epoch)), (u64::MAX, 0));
            assert!(after.agrees(&again, 0), "{after:?}");
        }
    }

    #[test]
    fn a_stream_cut_short_keeps_what_was_verified() {
        let log = log();
        // It ends before what is known of it, or has grown again.
        for (cut, floor) in [(seen(7, 1, 57, 5), 100), (seen(7, 1, 130, 30), 100), (seen(7, 1, 101, 11), 105)] {
            let after = judge(&log, &cut, floor, (50, cut.last != 101)).unwrap();
            assert_eq!((after.kept(log.epoch), after.replaced(log.epoch)), (50, floor - 50));
            assert_eq!(after.newest_mark(), cut.last);
        }
        // Of what was purged nothing can come back.
        let purged = log.purged_below(61).unwrap();
        let after = judge(&purged, &seen(7, 61, 70, 7), 100, (0, true)).unwrap();
        assert_eq!(after.kept(purged.epoch), 60);
    }

    #[test]
    fn a_purge_by_hand_keeps_the_places() {
        let log = log();
        let after = judge(&log, &seen(7, 101, 100, 10), 100, (0, false)).unwrap();
        assert_eq!((after.kept(log.epoch), after.replaced(log.epoch)), (u64::MAX, 0));
        assert!(after.misses(1) && after.misses(100) && after.purged_below(130).unwrap().misses(100));
        assert!(!after.purged_below(130).unwrap().misses(120) && !log.purged_below(101).unwrap().misses(100));
        assert_eq!(after.identity, log.identity, "sequences are not given again");
        // By subject, so that the first one stays.
        let some = Sight { deleted: 12, ..seen(7, 1, 100, 10) };
        assert!(!log.agrees(&some, 100));
        assert!(judge(&log, &some, 100, (100, false)).unwrap().agrees(&some, 100));
    }

    #[test]
    fn changes_add_up_over_epochs_however_many_there_were() {
        let mut log = log();
        let first = log.epoch;
        for change in 0..100 {
            let kept = 90 - change % 40;
            log = judge(&log, &seen(7, 1, kept, 100 + change), 100, (kept, false)).unwrap();
            assert!(log.changes.len() <= CHANGES);
        }
        assert_eq!((log.kept(first), log.replaced(first)), (51, (0..100).map(|change| 10 + change % 40).sum()));
        assert_eq!(log.kept(log.epoch + 1), 0, "of records that are gone");
    }

    #[test]
    fn marks_are_few_and_close_to_every_age() {
        let mut log = Log::fresh(&seen(7, 1, 0, 0), UNIX_EPOCH);
        for second in 1..=100_000 {
            log = log.marked(&seen(7, 1, second, second)).unwrap();
        }
        assert!(log.marks.len() < 48, "{}", log.marks.len());
        for age in (0..16).map(|power| 1 << power) {
            let wanted = 100_000 - age;
            let mark = log.marks().find(|mark| mark.sequence <= wanted).unwrap();
            assert!(100_000 - mark.sequence <= 4 * age + 4, "{age}: {mark:?}");
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_kept() {
        let json = serde_json::to_string(&log()).unwrap().replacen('{', "{\"later\":1,", 1);
        let read = Log::read(json.as_bytes()).unwrap();
        assert!(serde_json::to_string(&read).unwrap().contains("\"later\":1"));
    }
}
