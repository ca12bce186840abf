//! What is known of retried dead letters: the fleet's records of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cluster::records::Records;
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

/// The records of letters as they were when this was read; never older than [`Retried`] in it.
#[derive(Clone, Default)]
pub(crate) struct Known {
    /// Of all records, what this was read from.
    at: Option<u64>,
    pub(crate) retried: Arc<BTreeMap<String, (u64, Retried)>>,
    /// By id, with their revisions.
    pub(crate) letters: Arc<BTreeMap<u64, (u64, Arc<Later>)>>,
}

/// Reads the records anew when one of them has changed, and of those of letters the ones that have.
#[derive(Default)]
pub(crate) struct Reader(Mutex<Known>);

impl Reader {
    pub(crate) fn read(&self, records: &Records) -> Known {
        let at = *records.changed().borrow();
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if before.at == Some(at) {
            return before;
        }
        let now = before.renewed(at, records);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&now);
        now
    }
}

const LETTER: &str = "letter.";
pub(crate) const RETRIED: &str = "retried.";

pub(crate) fn key(id: u64) -> String {
    format!("{LETTER}{id}")
}

impl Known {
    /// What the records say now. `retried` is read first: every letter in it was there before it.
    fn renewed(&self, at: u64, records: &Records) -> Self {
        let retried = records.known(RETRIED).into_iter().filter_map(|(key, record)| {
            let retried = serde_json::from_slice(&record.value).map_err(|_| foreign(&key)).ok()?;
            Some((key.strip_prefix(RETRIED)?.to_owned(), (record.revision, retried)))
        });
        let retried = Arc::new(retried.collect());
        let letters = records.known(LETTER).into_iter().filter_map(|(key, record)| {
            let id = key.strip_prefix(LETTER)?.parse().ok()?;
            let later = match self.letters.get(&id) {
                Some((revision, later)) if *revision == record.revision => Arc::clone(later),
                _ => Arc::new(serde_json::from_slice(&record.value).map_err(|_| foreign(&key)).ok()?),
            };
            Some((id, (record.revision, later)))
        });
        Self { at: Some(at), retried, letters: Arc::new(letters.collect()) }
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
        let known = Known { retried: Arc::new(BTreeMap::from([("web".to_owned(), (1, retried))])), ..Known::default() };
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
