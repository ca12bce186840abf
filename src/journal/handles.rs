//! What lanes and operators hold of a journal, whatever its engine.

use super::event::Event;
#[cfg(feature = "nats")]
use super::fleet;
use super::lane::{Gone, Lost, Read};
use super::letters::Letter;
use super::local;
use super::outcome::{Refused, Settled};

/// How a lane reads the journal. Reading runs ahead of settling; what was settled in an earlier life is skipped.
pub enum Cursor {
    #[doc(hidden)]
    Local(local::Cursor),
    #[cfg(feature = "nats")]
    #[doc(hidden)]
    Cluster(fleet::Cursor),
}

/// How a lane says what became of its events. Cheap to clone.
#[derive(Clone)]
pub enum Settler {
    #[doc(hidden)]
    Local(local::Settler),
    #[cfg(feature = "nats")]
    #[doc(hidden)]
    Cluster(fleet::Settler),
}

/// Reads the journal from some sequence on, in order, and settles nothing.
pub enum Scan {
    #[doc(hidden)]
    Local(local::Scan),
    #[cfg(feature = "nats")]
    #[doc(hidden)]
    Cluster(fleet::Scan),
}

/// Sees every event from some moment on, settles nothing, and rather skips than falls behind.
pub enum Watch {
    #[doc(hidden)]
    Local(local::Watch),
    #[cfg(feature = "nats")]
    #[doc(hidden)]
    Cluster(fleet::Watch),
}

/// The retried dead letters of one sink, for its lane.
pub enum Letters {
    #[doc(hidden)]
    Local(local::Letters),
    #[cfg(feature = "nats")]
    /// None for whoever asks a second time.
    #[doc(hidden)]
    Cluster(Option<fleet::Letters>),
}

impl Cursor {
    #[must_use]
    pub fn sink(&self) -> &str {
        match self {
            Self::Local(cursor) => cursor.sink(),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.sink(),
        }
    }

    /// Whether everything durable now has been read.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        match self {
            Self::Local(cursor) => cursor.caught_up(),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.caught_up(),
        }
    }

    /// The smallest sequence that may be read next.
    #[must_use]
    pub fn next(&self) -> u64 {
        match self {
            Self::Local(cursor) => cursor.next(),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.next(),
        }
    }

    /// Whether deliveries of what was read may begin now. Where several receivers share a journal, not before this one
    /// knows that it is still its turn.
    #[must_use]
    pub fn may_deliver(&self) -> bool {
        match self {
            Self::Local(_) => true,
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.may_deliver(),
        }
    }

    /// A handle by which to settle what was read.
    #[must_use]
    pub fn settler(&self) -> Settler {
        match self {
            Self::Local(cursor) => Settler::Local(cursor.settler()),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => Settler::Cluster(cursor.settler()),
        }
    }

    /// The sink's dead letters that an operator has retried. For its lane alone, once.
    #[must_use]
    pub fn letters(&self) -> Letters {
        match self {
            Self::Local(cursor) => Letters::Local(cursor.letters()),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => Letters::Cluster(cursor.letters()),
        }
    }

    /// What comes next. Waits for it. Dropped before it is done, it has read nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn read(&mut self) -> Result<Read, Gone> {
        match self {
            Self::Local(cursor) => cursor.read().await.map(Read::Events),
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.read().await,
        }
    }

    /// What a lane without room for events has to know all the same. Waits for it. Dropped before it is done, it has told
    /// nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn lost(&mut self) -> Result<Lost, Gone> {
        match self {
            Self::Local(_) => std::future::pending().await,
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.lost().await,
        }
    }

    /// From now on nothing is read but what is durable now.
    pub fn finish(&mut self) {
        match self {
            // Nothing comes in any more.
            Self::Local(_) => {}
            #[cfg(feature = "nats")]
            Self::Cluster(cursor) => cursor.finish(),
        }
    }
}

impl Settler {
    #[must_use]
    pub fn sink(&self) -> &str {
        match self {
            Self::Local(settler) => settler.sink(),
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.sink(),
        }
    }

    /// Says what became of the events from `from` to `to`, neighbours among those that were read. Waits while the journal
    /// is behind.
    pub async fn settle(&self, from: u64, to: u64, how: Settled) {
        match self {
            Self::Local(settler) => settler.settle(from, to, how).await,
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.settle(from, to, how),
        }
    }

    /// Says that the lane has let go of events, as [`Lost`] bade it: nothing more will be heard of them.
    #[cfg_attr(not(feature = "nats"), expect(unused_variables, reason = "a build without fleets"))]
    pub fn release(&self, sequences: &[u64]) {
        match self {
            Self::Local(_) => {}
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.release(sequences),
        }
    }

    /// Puts an event into the dead letters, which settles it.
    ///
    /// # Errors
    /// [`Refused::Full`] when there is no room for it: the lane keeps it and comes again.
    pub async fn dead_letter(&self, event: &Event, reason: &str, attempts: u32) -> Result<(), Refused> {
        match self {
            Self::Local(settler) => settler.dead_letter(event, reason, attempts).await,
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.dead_letter(event, reason, attempts).await,
        }
    }

    /// Says that a retried dead letter was delivered, which ends it. Waits while the journal is behind. It is written soon:
    /// after a crash before that, the letter is tried once more.
    pub async fn letter_delivered(&self, id: u64) {
        match self {
            Self::Local(settler) => settler.letter_delivered(id).await,
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.letter_delivered(id).await,
        }
    }

    /// Says that a retried dead letter is one again, after so many attempts more. It always has room: it never left.
    pub async fn letter_failed(&self, id: u64, reason: &str, attempts: u32) {
        match self {
            Self::Local(settler) => settler.letter_failed(id, reason, attempts).await,
            #[cfg(feature = "nats")]
            Self::Cluster(settler) => settler.letter_failed(id, reason, attempts).await,
        }
    }
}

impl Scan {
    /// Whether everything durable now has been read.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        match self {
            Self::Local(scan) => scan.caught_up(),
            #[cfg(feature = "nats")]
            Self::Cluster(scan) => scan.caught_up(),
        }
    }

    /// The next sequence to read.
    #[must_use]
    pub fn next(&self) -> u64 {
        match self {
            Self::Local(scan) => scan.next(),
            #[cfg(feature = "nats")]
            Self::Cluster(scan) => scan.next(),
        }
    }

    /// Sees the same events from here on, but rather skips than falls behind.
    #[must_use]
    pub fn watch(&self) -> Watch {
        match self {
            Self::Local(scan) => Watch::Local(scan.watch()),
            #[cfg(feature = "nats")]
            Self::Cluster(scan) => Watch::Cluster(scan.watch()),
        }
    }

    /// The next events in order; none where those that were there are gone. Waits for them. Dropped before it is done, it
    /// has read nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn read(&mut self) -> Result<Vec<Event>, Gone> {
        match self {
            Self::Local(scan) => scan.read().await,
            #[cfg(feature = "nats")]
            Self::Cluster(scan) => scan.read().await,
        }
    }
}

impl Watch {
    /// The next events, and how many were skipped before them because they came too fast.
    ///
    /// # Errors
    /// [`Gone`] once there will be no more.
    pub async fn read(&mut self) -> Result<(Vec<Event>, u64), Gone> {
        match self {
            Self::Local(watch) => watch.read().await,
            #[cfg(feature = "nats")]
            Self::Cluster(watch) => watch.read().await,
        }
    }

    /// Passes over what is there now; says how many events that is.
    pub fn skip(&mut self) -> u64 {
        match self {
            Self::Local(watch) => watch.skip(),
            #[cfg(feature = "nats")]
            Self::Cluster(watch) => watch.skip(),
        }
    }
}

impl Letters {
    /// Retried dead letters that were not handed out yet in this process, some at a time and never none. Waits for them.
    /// Each is to be ended by [`Settler::letter_delivered`] or [`Settler::letter_failed`]; while many are not, there are no
    /// more. Dropped before it is done, it has handed out nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn next(&mut self) -> Result<Vec<Letter>, Gone> {
        match self {
            Self::Local(letters) => letters.next().await,
            #[cfg(feature = "nats")]
            Self::Cluster(Some(letters)) => letters.next().await,
            #[cfg(feature = "nats")]
            Self::Cluster(None) => std::future::pending().await,
        }
    }
}
