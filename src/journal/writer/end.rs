//! The end of the writer: in order, or after a failure that is final.

use super::mailbox::turn_away;
use super::{Command, Writer};
use crate::journal::memory::MemoryStore;
use crate::journal::store::StoreError;
use crate::journal::{Refused, State};

impl Writer {
    /// Writes what is left and syncs.
    pub(super) fn close(&mut self) -> Result<(), String> {
        self.commit_all_endings()?;
        self.commit_places()?;
        let store = std::mem::replace(&mut self.recovered.store, Box::new(MemoryStore::default()));
        match store.close() {
            Ok(()) => {}
            // Everything acknowledged is in the synced log; the next start carries it over.
            Err(StoreError::Passing { reason, .. }) => {
                tracing::warn!(reason, "the journal was closed without its last checkpoint; the next start makes it");
            }
            Err(StoreError::Fatal(reason)) => return Err(reason),
        }
        if let Some(mark) = &self.recovered.mark {
            // As above: only the next start's knowledge hangs on it.
            let _ = mark.sync();
        }
        self.recovered.lock = None;
        self.shared.state.send_replace(State::Closed);
        self.turn_away(Refused::Closed);
        Ok(())
    }

    /// After a failed sync nothing on this disk may be trusted again by this process: every event is refused from now on.
    pub(super) fn fail(mut self, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", "io")]).inc();
        tracing::error!(reason, "the journal has failed: the process must end, recovery starts from the files");
        self.shared.state.send_replace(State::Failed);
        let store = std::mem::replace(&mut self.recovered.store, Box::new(MemoryStore::default()));
        store.abandon();
        self.turn_away(Refused::Failed);
        while let Ok(posted) = self.inbox.recv() {
            match posted.take() {
                Some(Command::Close) => break,
                Some(command) => turn_away(command, Refused::Failed),
                None => {}
            }
        }
        self.turn_away(Refused::Failed);
    }

    fn turn_away(&self, why: Refused) {
        while let Ok(posted) = self.inbox.try_recv() {
            if let Some(command) = posted.take() {
                turn_away(command, why);
            }
        }
    }
}
