//! What is known of retried dead letters: the fleet's records of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::once::foreign;
use super::records::Records;
use crate::journal::store::Retrying;

/// What the last attempt said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) reason: String,
    /// All there were.
    pub(super) attempts: u32,
    /// When it became a dead letter, in milliseconds since 1970.
    pub(super) at: u64,
}

/// The record of a letter that was retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Later {
    pub(super) sink: String,
    /// It is pending again; `None`: dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retrying: Option<Retrying>,
    /// The receiver whose lane has it, for as long as that one lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) claimed_by: Option<String>,
    /// Instead of what its message says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told: Option<Told>,
}

/// What retries came to at a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retried {
    /// Dead letters that the sink took after all.
    pub(super) delivered: u64,
    /// Those counted whose messages and records may still be there: to be deleted, and not to be counted again.
    pub(super) ids: BTreeSet<u64>,
    /// Letters with smaller ids are of an earlier sink of that name, in whose account they are.
    #[serde(default)]
    pub(super) letters_from: u64,
}

/// The records of letters as they were when this was read; never older than [`Retried`] in it.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Of all records, what this was read from.
    at: Option<u64>,
    pub(super) retried: Arc<BTreeMap<String, (u64, Retried)>>,
    /// By id, with their revisions.
    pub(super) letters: Arc<BTreeMap<u64, (u64, Arc<Later>)>>,
}

/// Reads the records anew when one of them has changed, and of those of letters the ones that have.
#[derive(Default)]
pub(super) struct Reader(Mutex<Known>);

impl Reader {
    pub(super) fn read(&self, records: &Records) -> Known {
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
pub(super) const RETRIED: &str = "retried.";

pub(super) fn key(id: u64) -> String {
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

    /// Whether a letter is delivered and counted, and only its remains are left.
    pub(super) fn is_counted(&self, id: u64, sink: &str) -> bool {
        self.retried.get(sink).is_some_and(|(_, retried)| retried.ids.contains(&id))
    }

    /// Whether a letter is pending again.
    pub(super) fn is_retried(&self, id: u64, later: &Later) -> bool {
        later.retrying.is_some() && !self.is_counted(id, &later.sink)
    }

    /// Whether a letter stands in its sink's account.
    pub(super) fn counts(&self, id: u64, sink: &str) -> Retrying {
        match self.retried.get(sink) {
            Some((_, retried)) if id < retried.letters_from => Retrying::Uncounted,
            _ => Retrying::Counted,
        }
    }
}
