//! The end of the writer: in order, or after a failure that is final.

use super::mailbox::turn_away;
use super::{Command, Writer};
use crate::journal::local::mark;
use crate::journal::local::mark::FoundMark;
use crate::journal::local::memory::MemoryStore;
use crate::journal::local::store::StoreError;
use crate::journal::outcome::{Refused, State};

impl Writer {
    /// Writes what is left and syncs.
    pub(crate) fn close(&mut self) -> Result<(), String> {
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
    pub(crate) fn fail(&mut self, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", "io")]).inc();
        tracing::error!(reason, "the journal has failed: the process must end, recovery starts from the files");
        self.shared.state.send_replace(State::Failed);
        let store = std::mem::replace(&mut self.recovered.store, Box::new(MemoryStore::default()));
        store.abandon();
        self.leave_mark();
    }

    /// Refuses what comes until the failed journal is closed. Then leaves the mark once more if it is missing: somebody was
    /// deleting the folder.
    pub(crate) fn wait_for_close(&mut self) {
        while !self.closing
            && let Ok(posted) = self.inbox.recv()
        {
            match posted.take() {
                Some(Command::Close) => self.closing = true,
                Some(command) => turn_away(command, Refused::Failed),
                None => {}
            }
        }
        if !self.has_left_mark() {
            self.leave_mark();
        }
        self.turn_away(Refused::Failed);
    }

    /// Whether the next start finds the mark of this journal.
    fn has_left_mark(&self) -> bool {
        let Some(folder) = &self.recovered.lock else { return true };
        matches!(FoundMark::of(folder.name()), FoundMark::Found(found) if found.log == self.mark().log)
    }

    /// Lets the next start count what it does not find, also where it finds another folder, or none.
    fn leave_mark(&mut self) {
        let (mark, Some(folder)) = (self.mark(), &self.recovered.lock) else { return };
        if folder.is_in_place() {
            return self.write_mark();
        }
        let (folder, first, last) = (folder.name().to_owned(), mark.floor, mark.last);
        match mark::leave(&folder, mark) {
            Ok(true) => {
                tracing::error!(folder = %folder.display(), first, last, "the next start counts what the journal held as lost: move its folder back first, if it is still somewhere");
            }
            Ok(false) => {
                tracing::error!(folder = %folder.display(), first, last, "another journal stands in its place: what this one held is lost there, and not counted");
            }
            Err(error) => {
                tracing::error!(folder = %folder.display(), first, last, %error, "no mark can be left where the journal was: the next start does not know what it held");
            }
        }
    }

    fn turn_away(&self, why: Refused) {
        while let Ok(posted) = self.inbox.try_recv() {
            if let Some(command) = posted.take() {
                turn_away(command, why);
            }
        }
    }
}
