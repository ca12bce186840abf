//! What went from the streams of dead letters and of the quarantine without a receiver having taken it out: purged by hand,
//! gone with the stream, or, of the quarantine, let go to make room.
//!
//! A record says how many messages receivers have taken out of a stream. They say so before they do, so that a message that
//! is missing beyond those went by itself.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::jetstream::stream::Info;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::records::{PutError, Records};
use super::log::nanoseconds;

/// So often a stream is looked at until it holds still for a moment.
const LOOKS: u32 = 20;

pub(crate) const DEAD_LETTERS: &str = "stock.dead-letters";
pub(crate) const QUARANTINE: &str = "stock.quarantine";

/// A stream's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stock {
    /// When the stream was made, as it says: nanoseconds since 1970.
    created: u64,
    /// Its last sequence, when the last message was stored, and how many there were, as of the last look.
    last: u64,
    last_time: u64,
    count: u64,
    /// Messages that receivers have taken out of this stream.
    taken: u64,
    /// Those that went by themselves: out of this stream, and out of all that were there before it.
    gone: u64,
    gone_before: u64,
    /// What a newer receiver wrote.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// A stream as its leader describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    created: u64,
    last: u64,
    last_time: u64,
    count: u64,
}

/// What a look at the messages themselves showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Checked {
    /// The last message of the last look is another one now.
    differs: bool,
    /// How many were stored after that one.
    newer: u64,
}

impl Sight {
    pub(crate) fn of(info: &Info) -> Self {
        let state = &info.state;
        Self {
            created: nanoseconds(info.created.into()),
            last: state.last_sequence,
            last_time: nanoseconds(state.last_timestamp.into()),
            count: state.messages,
        }
    }
}

impl Stock {
    /// Of a stream of which nothing was noted before: what is missing was taken out.
    fn found(seen: &Sight) -> Self {
        let Sight { created, last, last_time, count, .. } = *seen;
        Self { created, last, last_time, count, taken: last.saturating_sub(count), ..Self::default() }
    }

    /// How many went by themselves, ever.
    pub(crate) fn gone(&self) -> u64 {
        self.gone_before + self.gone
    }

    /// Whether it is the stream that it was.
    fn is_of(&self, seen: &Sight, checked: Checked) -> bool {
        seen.created == self.created && seen.last >= self.last && !checked.differs
    }

    /// The record as of a look at the stream. Where `older` receivers are there, who take out without a word, nothing has
    /// gone by itself.
    fn after(&self, seen: &Sight, checked: Checked, older: bool) -> Self {
        let Sight { created, last, last_time, count } = *seen;
        let missing = last.saturating_sub(count);
        let mut stock = Self { created, last, last_time, count, ..self.clone() };
        if self.is_of(seen, checked) {
            if older {
                stock.taken = stock.taken.max(missing.saturating_sub(self.gone));
            }
            stock.gone = self.gone.max(missing.saturating_sub(stock.taken));
            return stock;
        }
        // Another stream, or this one as it was before: of what it holds, only what is old was there.
        let kept = count.saturating_sub(checked.newer);
        stock.gone_before = self.gone() + self.count.saturating_sub(kept);
        (stock.taken, stock.gone) = (missing, 0);
        stock
    }
}

/// The record, as far as is known.
pub(crate) fn known(records: &Records, key: &str) -> Option<Stock> {
    serde_json::from_slice(&records.last_known(key)?.value).ok()
}

/// Compares the record with the stream, whose messages `filter` matches; how many have gone by themselves since it was done
/// last.
///
/// # Errors
/// When that could not be read or written, and has to be done again.
pub(crate) async fn look(
    (link, records): (&Link, &Records),
    (key, stream, filter): (&str, &str, &str),
    seen: &Sight,
    older: bool,
) -> Result<u64, NatsError> {
    let (known, mut seen) = (known(records, key), *seen);
    if known.as_ref().is_some_and(|stock| stock.after(&seen, Checked::default(), older) == *stock) {
        return Ok(0);
    }
    let mut checked = Checked::default();
    if let Some(stock) = &known {
        let mut looks = 0;
        loop {
            checked = check(link, stream, filter, stock).await?;
            if stock.is_of(&seen, checked) {
                break;
            }
            // Of another stream it is counted what is new: what comes or goes between the two looks would count as gone.
            let now = Sight::of(&link.info(stream).await?);
            if std::mem::replace(&mut seen, now) == now {
                break;
            }
            looks += 1;
            if looks == LOOKS {
                return Err(NatsError::Unavailable(format!("{stream} changes all the time")));
            }
        }
    }
    let after = |stock: Option<&Stock>| match stock {
        Some(stock) => stock.after(&seen, checked, older),
        None => Stock::found(&seen),
    };
    let (before, after) = change(records, key, after).await?;
    Ok(before.map_or(0, |before| after.gone().saturating_sub(before.gone())))
}

/// Looks at the messages themselves.
async fn check(link: &Link, stream: &str, filter: &str, stock: &Stock) -> Result<Checked, NatsError> {
    if stock.last == 0 {
        return Ok(Checked::default());
    }
    // Where it is gone, nothing can be said.
    let last = link.get(stream, stock.last).await?;
    let differs = last.is_some_and(|last| nanoseconds(last.time) != stock.last_time);
    let after = UNIX_EPOCH + Duration::from_nanos(stock.last_time.saturating_add(1));
    let newer = link.read(stream, filter, From::Time(after), 1, 1).await?;
    Ok(Checked { differs, newer: newer.messages.len() as u64 + newer.pending })
}

/// Says that so many messages are about to be taken out.
///
/// # Errors
/// When that could not be written: they have to stay.
pub(crate) async fn take(records: &Records, key: &str, count: u64) -> Result<(), NatsError> {
    if count == 0 {
        return Ok(());
    }
    let take = |stock: Option<&Stock>| {
        let stock = stock.cloned().unwrap_or_default();
        Stock { taken: stock.taken + count, ..stock }
    };
    change(records, key, take).await.map(drop)
}

async fn change(
    records: &Records,
    key: &str,
    change: impl Fn(Option<&Stock>) -> Stock,
) -> Result<(Option<Stock>, Stock), NatsError> {
    loop {
        let record = records.get(key).await?;
        let unreadable = |error| NatsError::Unfit(vec![format!("the record {key} cannot be read: {error}")]);
        let before: Option<Stock> =
            record.as_ref().map(|record| serde_json::from_slice(&record.value)).transpose().map_err(unreadable)?;
        let after = change(before.as_ref());
        let json = serde_json::to_vec(&after).map_err(|error| NatsError::Unavailable(error.to_string()))?;
        match records.put(key, record.map_or(0, |record| record.revision), json.into()).await {
            Ok(_) => return Ok((before, after)),
            Err(PutError::Stale) => {}
            Err(PutError::Unavailable(reason)) => return Err(NatsError::Unavailable(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(created: u64, last: u64, count: u64) -> Sight {
        Sight { created, last, last_time: last, count }
    }

    fn after(stock: &Stock, seen: &Sight) -> Stock {
        stock.after(seen, Checked::default(), false)
    }

    #[test]
    fn what_receivers_take_out_has_not_gone_by_itself() {
        let stock = Stock::found(&seen(1, 10, 4));
        assert_eq!((stock.taken, stock.gone()), (6, 0));
        // Said before it is done.
        let taking = Stock { taken: stock.taken + 2, ..stock };
        for count in [4, 3, 2] {
            assert_eq!(after(&taking, &seen(1, 10, count)).gone(), 0);
        }
        assert_eq!(after(&taking, &seen(1, 12, 1)).gone(), 3);
        let older = taking.after(&seen(1, 12, 1), Checked::default(), true);
        assert_eq!(older.gone(), 0, "an older receiver may have");
    }

    #[test]
    fn what_goes_with_its_stream_is_counted_once() {
        let stock = Stock::found(&seen(1, 10, 4));
        let purged = after(&stock, &seen(1, 10, 0));
        assert_eq!((purged.gone(), after(&purged, &seen(1, 10, 0)).gone()), (4, 4));
        // Made again, with a message already; and once more.
        let again = stock.after(&seen(2, 1, 1), Checked { differs: false, newer: 1 }, false);
        assert_eq!((again.gone(), after(&again, &seen(2, 3, 3)).gone()), (4, 4));
        assert_eq!(after(&again, &seen(3, 0, 0)).gone(), 5);
        // As it was before, two messages ago; and when it has grown again.
        for created in [1, 2] {
            let older = after(&stock, &seen(created, 8, 2));
            assert_eq!((older.gone(), older.taken), (2, 6));
            assert_eq!(after(&older, &seen(created, 9, 3)).gone(), 2);
            let grown = stock.after(&seen(created, 12, 6), Checked { differs: true, newer: 4 }, false);
            assert_eq!((grown.gone(), grown.taken), (2, 6));
        }
    }
}
