//! The durable order of events: dedup, progress of sinks, dead letters, quarantine. One interface, two engines below it; the
//! only code that touches the data folder or the cluster.
//!
//! A [`Journal`] takes events in ([`append`](Journal::append)) and gives each lane a [`Cursor`] to read them by. Operators
//! see through it what was not delivered ([`letters`]) or not accepted ([`quarantine`]), and try it again.
//!
//! - The words that both engines speak: [`event`], [`outcome`], [`lane`], [`letters`], [`quarantine`], [`progress`],
//!   [`status`], [`identity`], [`disk`] and [`opening`].
//! - The engines: [`local`], a writer thread that owns the tail over one SQLite database; and `fleet`, a NATS JetStream
//!   cluster that several receivers share, in builds that have it.
//! - Above both: [`handles`], which hand on to the one or the other, and `migrate`, which moves a journal between them.

mod disk;
mod event;
#[cfg(feature = "nats")]
mod fleet;
mod handles;
mod identity;
mod lane;
mod letters;
mod local;
#[cfg(feature = "nats")]
mod migrate;
mod open_error;
mod opening;
mod outcome;
mod progress;
mod quarantine;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

#[cfg(feature = "nats")]
use futures_util::FutureExt;
use tokio::sync::watch;

pub use disk::{Disk, Mount};
pub use event::{Event, NewEvent};
pub(crate) use event::{from_millis, millis};
#[cfg(feature = "nats")]
pub use fleet::{ClusterFindings, examine_cluster};
pub use handles::{Cursor, Letters, Scan, Settler, Watch};
pub use identity::LogIdentity;
pub use lane::{Gone, Lost, Read};
pub use letters::{Letter, LetterState, LettersOf, MAX_LIST, Which};
pub use local::{
    FolderError, OpenError as LocalOpenError, denied, foreign_journal, holder, unusable_files, volatile_file_system,
};
#[cfg(feature = "nats")]
pub use migrate::{MigrateError, Moved};
pub use open_error::OpenError;
pub use opening::{Replaced, Report};
pub use outcome::{Appended, Handled, Receipt, Refused, Settled, State};
pub use progress::Account;
pub use quarantine::{Bodies, Quarantined, QuarantinedBody};
pub use status::{ClusterStatus, DeadLettersStatus, QuarantineStatus, SinkStatus, Status};

use crate::admission::{Admitted, Outcome};
use crate::blocking::joined;
use crate::config::{self, Config};
use crate::telemetry::Metrics;
#[cfg(feature = "nats")]
use fleet::Cluster;
use local::Local;

/// A handle to the journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    held: Held,
}

/// One of the engines.
#[derive(Debug, Clone)]
enum Held {
    Local(Arc<Local>),
    #[cfg(feature = "nats")]
    Cluster(Arc<Cluster>),
}

impl Journal {
    /// Opens or makes the journal that the settings ask for; the rest as [`open`](Self::open), without blocking.
    ///
    /// # Errors
    /// [`OpenError`], by what an operator has to do.
    pub async fn start(config: Arc<Config>, metrics: Arc<Metrics>) -> Result<(Self, Vec<Cursor>, Report), OpenError> {
        #[cfg(feature = "nats")]
        if let Some(settings) = &config.journal.nats {
            let (cluster, cursors, report) = Cluster::open(&config, settings, metrics).await?;
            let cursors = cursors.into_iter().map(Cursor::Cluster).collect();
            return Ok((Self { held: Held::Cluster(cluster) }, cursors, report));
        }
        let opened = tokio::task::spawn_blocking(move || Self::open(&config, metrics)).await;
        let ending = || local::OpenError::Thread { source: std::io::Error::other("the runtime is ending") };
        joined(opened).ok_or_else(ending)?
    }

    /// Opens or makes an embedded journal and brings it to order: nothing is listened for before this is back. Blocks.
    /// Gives a cursor for every enabled sink.
    ///
    /// # Errors
    /// [`OpenError`], by what an operator has to do.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<(Self, Vec<Cursor>, Report), OpenError> {
        let (local, cursors, report) = local::open(config, metrics)?;
        let cursors = cursors.into_iter().map(Cursor::Local).collect();
        Ok((Self { held: Held::Local(local) }, cursors, report))
    }

    /// Makes an event durable, or finds it durable already. It is on its way when this is back; dropping the future changes
    /// nothing of that.
    ///
    /// # Errors
    /// [`Refused`]; `admitted` is settled either way, by the writer.
    pub fn append(
        &self,
        event: NewEvent,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Appended, Refused>> + use<> {
        match &self.held {
            #[cfg(not(feature = "nats"))]
            Held::Local(local) => local.append(event, admitted),
            #[cfg(feature = "nats")]
            Held::Local(local) => local.append(event, admitted).left_future(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.append(event, admitted).right_future(),
        }
    }

    /// Keeps a body in the quarantine, once however often it comes; `outcome` is what to count when it is kept.
    ///
    /// # Errors
    /// [`Refused`] when it could not be kept.
    pub async fn quarantine(&self, body: Quarantined, admitted: Admitted, outcome: Outcome) -> Result<(), Refused> {
        match &self.held {
            Held::Local(local) => local.quarantine(body, admitted, outcome).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.quarantine(body, admitted, outcome).await,
        }
    }

    /// Drops the place of a sink that is not in the settings any more; false if there is no such sink.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be written.
    pub async fn forget(&self, sink: &str) -> Result<bool, Refused> {
        match &self.held {
            Held::Local(local) => local.forget(sink).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.forget(sink).await,
        }
    }

    /// Keeps a text with the journal under this key, durably; none takes it back. At most 64 KiB, for 64 keys.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be written; [`Refused::TooLarge`] when it is too long, or one too many.
    pub async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        match &self.held {
            Held::Local(local) => local.note(key, text).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.note(key, text).await,
        }
    }

    /// Back once the writer has come to it. Nothing is written, so that it works on a full disk too.
    ///
    /// # Errors
    /// [`Refused`] when the journal has failed or is closed.
    pub async fn answers(&self) -> Result<(), Refused> {
        match &self.held {
            Held::Local(local) => local.answers().await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.answers().await,
        }
    }

    /// Every text kept by [`note`](Self::note), by key. Never waits.
    #[must_use]
    pub fn notes(&self) -> BTreeMap<String, String> {
        match &self.held {
            Held::Local(local) => local.notes(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.notes(),
        }
    }

    /// The text kept under this key. Never waits.
    #[must_use]
    pub fn read_note(&self, key: &str) -> Option<String> {
        match &self.held {
            Held::Local(local) => local.read_note(key),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.read_note(key),
        }
    }

    /// The next number of a series that all receivers of a fleet share, from 1 on; `None` where there is no fleet.
    ///
    /// # Errors
    /// [`Refused`] when the cluster cannot say.
    #[cfg_attr(not(feature = "nats"), expect(unused_variables, reason = "a build without fleets"))]
    pub async fn number(&self, series: &'static str) -> Result<Option<u64>, Refused> {
        match &self.held {
            Held::Local(_) => Ok(None),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.number(series).await.map(Some),
        }
    }

    /// The next note, and its key, of a receiver of the fleet that does not live any more. Waits for one. To ask for another
    /// one says that the one before is in a note of this receiver. `None` once there can be no more.
    pub async fn adopted(&self) -> Option<(String, String)> {
        match &self.held {
            Held::Local(_) => None,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.adopted().await,
        }
    }

    /// The first sequence of the first commit group written at `time` or later; one more than the last sequence when there
    /// is none. Where the clock was set back, it is the first one after one of the moments that come into question.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be read.
    pub async fn sequence_at(&self, time: SystemTime) -> Result<u64, Refused> {
        match &self.held {
            Held::Local(local) => local.sequence_at(time).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.sequence_at(time).await,
        }
    }

    /// The oldest sequence that is kept and the newest one ever given; with none kept, the first is one more than the
    /// last.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match &self.held {
            Held::Local(local) => local.range(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.range(),
        }
    }

    /// Of the log whose sequences these are, in a cluster: another one once sequences are given again.
    #[must_use]
    pub fn log_identity(&self) -> Option<String> {
        match &self.held {
            Held::Local(_) => None,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => Some(cluster.log_identity()),
        }
    }

    /// Waits until the log is another one than this.
    pub async fn log_changed(&self, identity: Option<&str>) {
        match (&self.held, identity) {
            #[cfg(feature = "nats")]
            (Held::Cluster(cluster), Some(identity)) => cluster.log_changed(identity).await,
            _ => std::future::pending().await,
        }
    }

    /// Whether events can be stored, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        match &self.held {
            Held::Local(local) => local.state(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.state(),
        }
    }

    /// What is in it, as of the last commit. Never waits.
    #[must_use]
    pub fn status(&self) -> Status {
        match &self.held {
            Held::Local(local) => local.status(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.status(),
        }
    }

    /// The largest body that is certain to be kept, as an event and as a dead letter. Never waits.
    #[must_use]
    pub fn largest_body(&self) -> usize {
        match &self.held {
            Held::Local(_) => usize::MAX,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.largest_body(),
        }
    }

    #[must_use]
    pub fn engine(&self) -> config::Engine {
        match &self.held {
            Held::Local(local) => local.engine(),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.engine(),
        }
    }

    /// Every event that this process stores from now on, for whoever only looks.
    #[must_use]
    pub fn watch_own(&self) -> Watch {
        match &self.held {
            Held::Local(local) => Watch::Local(local::Watch::new(Arc::clone(local))),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => Watch::Cluster(cluster.watch_own()),
        }
    }

    /// Every event from now on, for whoever only looks.
    #[must_use]
    pub fn watch(&self) -> Watch {
        match &self.held {
            Held::Local(local) => Watch::Local(local::Watch::new(Arc::clone(local))),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => Watch::Cluster(cluster.watch()),
        }
    }

    /// Reads every event that is still kept from this sequence on, in order, and goes on with what comes.
    #[must_use]
    pub fn scan(&self, from: u64) -> Scan {
        match &self.held {
            Held::Local(local) => Scan::Local(local::Scan::new(Arc::clone(local), Arc::from("scan"), from)),
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => Scan::Cluster(cluster.scan(from)),
        }
    }

    /// Writes and syncs what waits, and closes; a journal that has failed leaves its mark for the next start. Back when
    /// nothing is left to do. What comes later is refused.
    pub async fn close(&self) {
        match &self.held {
            Held::Local(local) => local.close().await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.close().await,
        }
    }

    /// The dead letters of `query`, oldest first. A list may end early, for its bytes: an empty one is the end.
    ///
    /// # Errors
    /// [`Refused`] when they cannot be read.
    pub async fn dead_letters(&self, query: LettersOf) -> Result<Vec<Letter>, Refused> {
        match &self.held {
            Held::Local(local) => local.dead_letters(query).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.dead_letters(query).await,
        }
    }

    /// One dead letter, if there is one of this id.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be read.
    pub async fn dead_letter(&self, id: u64) -> Result<Option<Letter>, Refused> {
        match &self.held {
            Held::Local(local) => local.dead_letter(id).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.dead_letter(id).await,
        }
    }

    /// Makes dead letters pending again: their sinks' lanes get them once more. In steps, between which events are taken
    /// in; dropped, it stops between two of them. Those of a sink that is gone or switched off are skipped.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub async fn retry_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        match &self.held {
            Held::Local(local) => local.retry_dead_letters(which).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.retry_dead_letters(which).await,
        }
    }

    /// Deletes dead letters, as [`retry_dead_letters`](Self::retry_dead_letters) retries them. Their sinks' accounts go on
    /// counting them as dead-lettered. Those that are being retried are skipped.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub async fn discard_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        match &self.held {
            Held::Local(local) => local.discard_dead_letters(which).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.discard_dead_letters(which).await,
        }
    }

    /// At most `limit` bodies with ids beyond `after`, oldest first. A list may end early, for its bytes: an empty one is
    /// the end.
    ///
    /// # Errors
    /// [`Refused`] when they cannot be read.
    pub async fn quarantined(&self, after: u64, limit: usize) -> Result<Vec<QuarantinedBody>, Refused> {
        match &self.held {
            Held::Local(local) => local.quarantined(after, limit).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.quarantined(after, limit).await,
        }
    }

    /// One body, if there is one of this id.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be read.
    pub async fn quarantined_body(&self, id: u64) -> Result<Option<QuarantinedBody>, Refused> {
        match &self.held {
            Held::Local(local) => local.quarantined_body(id).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.quarantined_body(id).await,
        }
    }

    /// Deletes bodies, in steps between which events are taken in; dropped, it stops between two of them.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub async fn discard_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        match &self.held {
            Held::Local(local) => local.discard_quarantined(which).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.discard_quarantined(which).await,
        }
    }

    /// Takes bodies in as events, as if they came now, each with its peer, its endpoint and the time it was received. One
    /// that is an event leaves the quarantine in the commit that stores it, or finds it stored already. What is still no
    /// event stays, and so does one whose id is known with other bytes. Feeds that its endpoint does not take pass: that
    /// is the operator's decision. Dropped, it stops between two bodies.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub async fn retry_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        match &self.held {
            Held::Local(local) => local.retry_quarantined(which).await,
            #[cfg(feature = "nats")]
            Held::Cluster(cluster) => cluster.retry_quarantined(which).await,
        }
    }
}
