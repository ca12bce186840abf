//! Dead letters: how operators see, retry and discard them, and how a lane gets the retried ones.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::engine::Local;
use super::reads::Reading;
use super::store::{DeadLetter, Pick, Reader, StoreError};
use super::writer::{Command, Operation, Step};
use crate::journal::event::{Event, from_millis};
use crate::journal::lane::Gone;
use crate::journal::letters::{Letter, LetterState, LettersOf, MAX_LIST, Which};
use crate::journal::outcome::{Handled, Refused, State};

/// Bytes of dead letters that a lane is given at a time, about.
const BYTES_AT_A_TIME: usize = 4 << 20;
/// The retried dead letters of one sink, for its lane.
pub struct Letters {
    inner: Arc<Local>,
    sink: Arc<str>,
    changed: watch::Receiver<u64>,
    state: watch::Receiver<State>,
    reading: Reading<Letting>,
}

impl Local {
    /// The dead letters of `query`, oldest first. A list may end early, for its bytes: an empty one is the end.
    ///
    /// # Errors
    /// [`Refused`] when they cannot be read.
    pub(crate) async fn dead_letters(&self, query: LettersOf) -> Result<Vec<Letter>, Refused> {
        let LettersOf { sink, after, limit } = query;
        let mut pick = Pick { after, sink, limit: limit.min(MAX_LIST), whole: true };
        loop {
            let wanted = pick.clone();
            let page = self.look_up(move |reader| reader.letters(&wanted)).await?;
            match page.next {
                Some(next) if page.rows.is_empty() => pick.after = next,
                _ => return page.rows.into_iter().map(|letter| self.letter(letter)).collect(),
            }
        }
    }

    /// One dead letter, if there is one of this id.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be read.
    pub(crate) async fn dead_letter(&self, id: u64) -> Result<Option<Letter>, Refused> {
        let found = self.look_up(move |reader| reader.letter(id)).await?;
        found.map(|letter| self.letter(letter)).transpose()
    }

    /// Makes dead letters pending again: their sinks' lanes get them once more. In steps, between which events are taken
    /// in; dropped, it stops between two of them. Those of a sink that is gone or switched off are skipped.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub(crate) async fn retry_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        self.change_letters(which, Operation::RetryLetters).await
    }

    /// Deletes dead letters, as [`retry_dead_letters`](Self::retry_dead_letters) retries them. Their sinks' accounts go on
    /// counting them as dead-lettered. Those that are being retried are skipped.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub(crate) async fn discard_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        self.change_letters(which, Operation::DiscardLetters).await
    }
}

/// A reply to one step of an operation.
pub(crate) type Reply = oneshot::Sender<Result<Step, Refused>>;

impl Local {
    async fn change_letters(
        &self,
        which: Which,
        change: impl Fn(Vec<u64>, Reply) -> Operation,
    ) -> Result<Handled, Refused> {
        let mut handled = Handled::default();
        let sink = match which {
            Which::Ids(ids) => {
                self.change_ids(ids, &change, &mut handled).await?;
                return Ok(handled);
            }
            Which::Sink(sink) => Some(sink),
            Which::All => None,
        };
        let mut pick = Pick { after: 0, sink, limit: MAX_LIST, whole: false };
        // What dies from now on is not meant: without this end, a sink that rejects everything would go round for ever.
        let end = self.shared.status().dead_letters.newest;
        loop {
            let wanted = pick.clone();
            let page = self.look_up(move |reader| reader.letters(&wanted)).await?;
            let ids = page.rows.iter().map(|letter| letter.id).filter(|&id| id <= end).collect();
            self.change_ids(ids, &change, &mut handled).await?;
            match page.next {
                Some(next) if next < end => pick.after = next,
                _ => return Ok(handled),
            }
        }
    }

    /// Has the writer do something to these ids, step by step.
    pub(crate) async fn change_ids(
        &self,
        mut ids: Vec<u64>,
        change: &impl Fn(Vec<u64>, Reply) -> Operation,
        handled: &mut Handled,
    ) -> Result<(), Refused> {
        ids.sort_unstable();
        ids.dedup();
        let mut left = &ids[..];
        while !left.is_empty() {
            let (reply, answer) = oneshot::channel();
            let some = left[..left.len().min(MAX_LIST)].to_vec();
            self.mailbox.send_from_operator(Command::Operate(change(some, reply))).await;
            let step = answer.await.unwrap_or(Err(Refused::Closed))?;
            handled.done += step.changed;
            for (id, why) in step.skipped {
                handled.skip(id, || why.to_owned());
            }
            // A step takes at least one.
            left = &left[step.taken.clamp(1, left.len())..];
        }
        Ok(())
    }

    fn letter(&self, letter: DeadLetter) -> Result<Letter, Refused> {
        read(letter).map_err(|error| {
            self.damaged(error);
            Refused::Failed
        })
    }
}

fn read(letter: DeadLetter) -> Result<Letter, StoreError> {
    let DeadLetter { id, sink, sequence, reason, attempts, at, retrying, event } = letter;
    let event = Event::read_single(sequence, event);
    let event = event.map_err(|_| StoreError::Fatal(format!("the event of dead letter {id} is damaged")))?;
    let state = if retrying.is_some() { LetterState::Retrying } else { LetterState::Dead };
    Ok(Letter { id, sink, sequence, reason, attempts, at: from_millis(at), state, event })
}

impl Letters {
    pub(crate) fn new(inner: Arc<Local>, sink: Arc<str>) -> Self {
        let (changed, state) = (inner.shared.retries.changed(), inner.shared.state.subscribe());
        Self { inner, sink, changed, state, reading: Reading::with(None) }
    }

    /// Retried dead letters that were not handed out yet in this process, at most 64 and never none. Waits for them.
    /// Each is to be ended by [`letter_delivered`](crate::journal::Settler::letter_delivered) or
    /// [`letter_failed`](crate::journal::Settler::letter_failed); while 1,024 are not, there are no more. Dropped before it is
    /// done, it has handed out nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn next(&mut self) -> Result<Vec<Letter>, Gone> {
        loop {
            self.changed.borrow_and_update();
            let ids = self.inner.shared.retries.first(&self.sink);
            let is_over = |state: &State| matches!(state, State::Closed | State::Failed);
            if ids.is_empty() {
                tokio::select! {
                    changed = self.changed.changed() => changed.map_err(|_| Gone)?,
                    _ = self.state.wait_for(is_over) => return Err(Gone),
                }
                continue;
            }
            let read = move |reader: &mut dyn Reader| read_some(reader, &ids);
            let letters = self.inner.read(&self.sink, &mut self.reading, read).await?;
            let Letting { letters, through } = letters;
            self.inner.shared.retries.hand_out(&self.sink, &through, letters.len());
            if !letters.is_empty() {
                return Ok(letters);
            }
        }
    }
}

/// Letters on their way to a lane, and the ids that were looked up for them.
struct Letting {
    letters: Vec<Letter>,
    through: Vec<u64>,
}

fn read_some(reader: &mut dyn Reader, ids: &[u64]) -> Result<Letting, StoreError> {
    let mut some = Letting { letters: Vec::new(), through: Vec::new() };
    let mut bytes = 0;
    for &id in ids {
        if bytes >= BYTES_AT_A_TIME {
            break;
        }
        some.through.push(id);
        if let Some(letter) = reader.letter(id)?.filter(|letter| letter.retrying.is_some()) {
            bytes += letter.event.len();
            some.letters.push(read(letter)?);
        }
    }
    Ok(some)
}
