//! What operators want changed: each step a commit of its own, so that events go in between.

use super::Writer;
use super::mailbox::{Operation, Step};
use crate::journal::local::rows::SINKS;
use crate::journal::local::store::{Commit, Note, StoreError};
use crate::journal::outcome::Refused;

/// Bodies that one commit deletes, at most.
const STEP_ROWS: usize = 1000;
/// Notes there can be, and bytes of each.
const NOTES: usize = 64;
const NOTE_BYTES: usize = 64 << 10;

impl Writer {
    pub(crate) fn operate(&mut self, operation: Operation) -> Result<(), String> {
        let needs_room = matches!(operation, Operation::RetryLetters(..) | Operation::Note(..));
        if self.is_blocked() && needs_room {
            // What little room a full disk has belongs to the cursors.
            operation.refuse(self.refusal());
            return Ok(());
        }
        let operation = match operation {
            Operation::Note(key, text, reply) if !self.can_keep(key, text.as_deref()) => {
                tracing::warn!(key, "a note is over {NOTE_BYTES} bytes, or one too many");
                // The request may have been dropped.
                let _ = reply.send(Err(Refused::TooLarge));
                return Ok(());
            }
            operation => operation,
        };
        match operation {
            Operation::RetryLetters(ids, reply) => {
                let done = self.retry_letters(&ids);
                self.answer(done, reply)
            }
            Operation::DiscardLetters(ids, reply) => {
                let done = self.discard_letters(&ids);
                self.answer(done, reply)
            }
            Operation::DiscardKept(ids, reply) => {
                let done = self.discard_kept(&ids);
                self.answer(done, reply)
            }
            Operation::Note(key, text, reply) => {
                let done = self.put_note(key, text);
                self.answer(done, reply)
            }
            Operation::Forget(sink, reply) => {
                let done = self.forget(&sink);
                self.answer(done, reply)
            }
            Operation::Answer(reply) => self.answer(Ok(()), reply),
        }
    }

    fn answer<T>(
        &mut self,
        done: Result<T, StoreError>,
        reply: tokio::sync::oneshot::Sender<Result<T, Refused>>,
    ) -> Result<(), String> {
        let (answer, fatal) = match done {
            Ok(done) => (Ok(done), Ok(())),
            Err(error) => match self.obstacle_of(0, error) {
                Ok((obstacle, reason)) => {
                    tracing::warn!(reason, "what an operator asked for cannot be written");
                    (Err(obstacle.refused()), Ok(()))
                }
                Err(fatal) => (Err(Refused::Failed), Err(fatal)),
            },
        };
        // Before the answer: whoever asks for the status after it finds the change in it.
        self.publish();
        let _ = reply.send(answer);
        fatal
    }

    fn discard_kept(&mut self, ids: &[u64]) -> Result<Step, StoreError> {
        let ids = &ids[..ids.len().min(STEP_ROWS)];
        let (gone, unknown): (Vec<u64>, Vec<u64>) = ids.iter().partition(|id| self.recovered.quarantine.holds(**id));
        let mut state = self.recovered.state.clone();
        let dropped = self.recovered.quarantine.change(&gone, &mut [], &mut state);
        let commit = Commit {
            kept_gone: gone,
            quarantine_through: dropped.through,
            state: state.changed_from(&self.recovered.state),
            ..Commit::default()
        };
        if let Err(error) = self.recovered.store.commit(&commit) {
            self.recovered.quarantine.put_back(&[], dropped);
            return Err(error);
        }
        let changed = commit.kept_gone.len() as u64;
        drop(commit);
        self.recovered.state = state;
        let skipped = unknown.into_iter().map(|id| (id, "there is no body of this id")).collect();
        Ok(Step { changed, skipped, taken: ids.len() })
    }

    fn can_keep(&self, key: &str, text: Option<&str>) -> bool {
        let notes = &self.recovered.notes;
        let is_new = notes.iter().all(|note| note.note != key);
        text.is_none_or(|text| text.len() <= NOTE_BYTES) && (!is_new || notes.len() < NOTES)
    }

    fn put_note(&mut self, key: &str, text: Option<String>) -> Result<(), StoreError> {
        let notes = &self.recovered.notes;
        let at = notes.iter().position(|note| note.note == key).unwrap_or(notes.len());
        let id = notes.get(at).map_or(SINKS + 1 + at as u64, |note| note.id);
        let revision = notes.get(at).map_or(0, |note| note.revision) + 1;
        let note = Note { id, note: key.to_owned(), text, revision };
        let mut state = self.recovered.state.clone();
        state.notes = state.notes.max(at as u64 + 1);
        let state_changed = state.changed_from(&self.recovered.state);
        self.recovered.store.commit(&Commit { note: Some(&note), state: state_changed, ..Commit::default() })?;
        self.recovered.state = state;
        self.shared.note(&note);
        match self.recovered.notes.get_mut(at) {
            Some(known) => *known = note,
            None => self.recovered.notes.push(note),
        }
        Ok(())
    }
}
