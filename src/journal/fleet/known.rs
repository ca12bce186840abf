//! What is known of retried dead letters: the fleet's records of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cluster::records::{Record, Records};
use super::once::foreign;
use crate::journal::progress::Retrying;

/// What the last attempt said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) reason: String,
    /// All there were.
    pub(crate) attempts: u32,
    /// When it became a dead letter, in milliseconds since 1970.
    pub(crate) at: u64,
}

/// The record of a letter that was retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Later {
    pub(crate) sink: String,
    /// It is pending again; `None`: dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retrying: Option<Retrying>,
    /// The receiver whose lane has it, for as long as that one lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) claimed_by: Option<String>,
    /// Instead of what its message says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told: Option<Told>,
    /// When its message was stored, nanoseconds since 1970: another message may have been given the same id since. `None`:
    /// an older receiver did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stored_at: Option<u64>,
}

impl Later {
    /// Whether it is of the letter whose message was stored then.
    pub(crate) fn is_of(&self, stored_at: u64) -> bool {
        self.stored_at.is_none_or(|at| at == stored_at)
    }
}

/// What retries came to at a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retried {
    /// Dead letters that the sink took after all.
    pub(crate) delivered: u64,
    /// Those counted whose messages and records may still be there: to be deleted, and not to be counted again.
    pub(crate) ids: BTreeSet<u64>,
    /// When the messages of those were stored, as far as it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) stored_at: BTreeMap<u64, u64>,
    /// Letters with smaller ids are of an earlier sink of that name, in whose account they are…
    #[serde(default)]
    pub(crate) letters_from: u64,
    /// …if their messages were stored until then: ids may be given again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) letters_through: Option<u64>,
}

impl Retried {
    /// Notes a letter as counted; false if it was before.
    pub(crate) fn adds(&mut self, id: u64, stored_at: Option<u64>) -> bool {
        let before = stored_at.and_then(|at| self.stored_at.insert(id, at));
        let is_another = before.is_some() && before != stored_at;
        self.ids.insert(id) || is_another
    }
}

/// The records of letters as they are known; never older than [`Retried`] in it.
#[derive(Default)]
pub(crate) struct Known {
    /// The version of the records that this was read from.
    at: u64,
    pub(crate) retried: BTreeMap<String, (u64, Retried)>,
    /// By id, with their revisions.
    letters: BTreeMap<u64, (u64, Arc<Later>)>,
    of_sinks: BTreeMap<String, BTreeSet<u64>>,
}

/// Follows the records of letters, change by change.
#[derive(Default)]
pub(crate) struct Reader(Mutex<Known>);

impl Reader {
    /// What is known now. Held for lookups only, as others wait for it.
    pub(crate) fn read(&self, records: &Records) -> MutexGuard<'_, Known> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.follow(records);
        known
    }
}

const LETTER: &str = "letter.";
pub(crate) const RETRIED: &str = "retried.";

pub(crate) fn key(id: u64) -> String {
    format!("{LETTER}{id}")
}

impl Known {
    /// Takes in what has changed. Of [`Retried`] first: every letter in one was there before it.
    fn follow(&mut self, records: &Records) {
        let (at, changes) = records.changes_since(self.at);
        match changes {
            Some(keys) => {
                let (retried, letters): (Vec<_>, Vec<_>) = keys.iter().partition(|key| key.starts_with(RETRIED));
                for key in retried.into_iter().chain(letters) {
                    self.take(key, records.last_known(key));
                }
            }
            None => {
                *self = Self::default();
                for prefix in [RETRIED, LETTER] {
                    records.known(prefix).into_iter().for_each(|(key, record)| self.take(&key, Some(record)));
                }
            }
        }
        self.at = at;
    }

    fn take(&mut self, key: &str, record: Option<Record>) {
        if let Some(sink) = key.strip_prefix(RETRIED) {
            self.retried.remove(sink);
            if let Some((revision, retried)) = record.and_then(|record| read(key, &record)) {
                self.retried.insert(sink.to_owned(), (revision, retried));
            }
        } else if let Some(id) = key.strip_prefix(LETTER).and_then(|id| id.parse().ok()) {
            if self.letters.get(&id).map(|(revision, _)| *revision) == record.as_ref().map(|record| record.revision) {
                return;
            }
            if let Some((_, later)) = self.letters.remove(&id)
                && let Some(ids) = self.of_sinks.get_mut(&later.sink)
            {
                ids.remove(&id);
            }
            if let Some((revision, later)) = record.and_then(|record| read::<Later>(key, &record)) {
                self.of_sinks.entry(later.sink.clone()).or_default().insert(id);
                self.letters.insert(id, (revision, Arc::new(later)));
            }
        }
    }

    /// A letter's record and its revision.
    pub(crate) fn get(&self, id: u64) -> Option<&(u64, Arc<Later>)> {
        self.letters.get(&id)
    }

    /// The records of a sink's letters, by id, with their revisions.
    pub(crate) fn of(&self, sink: &str) -> impl Iterator<Item = (u64, u64, &Arc<Later>)> {
        let ids = self.of_sinks.get(sink).into_iter().flatten();
        ids.filter_map(|id| self.letters.get(id).map(|(revision, later)| (*id, *revision, later)))
    }

    /// How many letters are pending again.
    pub(crate) fn retrying(&self) -> usize {
        self.letters.iter().filter(|(id, (_, later))| self.is_retried(**id, later)).count()
    }

    /// Whether the letter whose message was stored then is delivered and counted, and only its remains are left.
    pub(crate) fn is_counted(&self, id: u64, sink: &str, stored_at: Option<u64>) -> bool {
        let Some((_, retried)) = self.retried.get(sink) else { return false };
        let same = match (retried.stored_at.get(&id), stored_at) {
            (Some(counted), Some(at)) => *counted == at,
            _ => true,
        };
        same && retried.ids.contains(&id)
    }

    /// Whether a letter is pending again.
    pub(crate) fn is_retried(&self, id: u64, later: &Later) -> bool {
        later.retrying.is_some() && !self.is_counted(id, &later.sink, later.stored_at)
    }

    /// Whether the letter whose message was stored then stands in its sink's account.
    pub(crate) fn counts(&self, id: u64, sink: &str, stored_at: u64) -> Retrying {
        let is_earlier = |retried: &Retried| {
            id < retried.letters_from && retried.letters_through.is_none_or(|through| stored_at <= through)
        };
        match self.retried.get(sink) {
            Some((_, retried)) if is_earlier(retried) => Retrying::Uncounted,
            _ => Retrying::Counted,
        }
    }
}

fn read<T: DeserializeOwned>(key: &str, record: &Record) -> Option<(u64, T)> {
    let value = serde_json::from_slice(&record.value).map_err(|_| foreign(key)).ok()?;
    Some((record.revision, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_given_again_is_another_letters() {
        let retried = Retried {
            delivered: 2,
            ids: BTreeSet::from([4, 5]),
            stored_at: BTreeMap::from([(5, 50)]),
            letters_from: 8,
            letters_through: Some(80),
        };
        let known = Known { retried: BTreeMap::from([("web".to_owned(), (1, retried))]), ..Known::default() };
        assert!(known.is_counted(5, "web", Some(50)) && !known.is_counted(5, "web", Some(90)));
        assert!(known.is_counted(4, "web", Some(90)), "of an older receiver");
        assert!(!known.is_counted(6, "web", Some(60)) && !known.is_counted(5, "other", Some(50)));
        assert_eq!(known.counts(3, "web", 30), Retrying::Uncounted);
        assert_eq!(known.counts(3, "web", 90), Retrying::Counted);
        let later: Later = serde_json::from_str(r#"{"sink":"web","retrying":null,"later":1}"#).unwrap();
        assert!(later.is_of(7) && Later { stored_at: Some(7), ..later.clone() }.is_of(7));
        assert!(!Later { stored_at: Some(8), ..later }.is_of(7));
    }
}
