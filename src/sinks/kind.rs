//! What each kind of sink says of itself.

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::Uri;
use tokio::sync::watch;

use super::own::OwnFiles;
use super::plan::Plan;
use super::sink::Sink;
use crate::findings::Finding;
use crate::settings::Section;
use crate::shape::{Format, Shape};
use crate::tls::Expiry;

/// The settings of one kind of sink, with all that follows from them.
pub(crate) trait Kind: Send + Sync {
    /// Reads the keys of this kind, which stand beside those of all sinks.
    fn read(s: &mut Section<'_, '_>, format: Format) -> Self
    where
        Self: Sized;

    fn plan(&self) -> Plan;

    /// Its `max_ahead`, where the kind has this setting.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only a cluster's fitness depends on it"))]
    fn max_ahead(&self) -> Option<u64> {
        None
    }

    /// What `check` reports beyond the keys of all sinks. Changes nothing.
    fn check(&self, _: &Checked<'_>) -> Vec<Finding> {
        Vec::new()
    }

    /// Where the kind has a target: the key that names it, and a connection to it that sends nothing, with how it came
    /// about or why not.
    fn connect(&self) -> Option<(&'static str, BoxFuture<'_, Result<String, String>>)> {
        None
    }

    /// Of the certificates that are read when the sink is opened. `key` is the sink's.
    fn expiries(&self, _key: &str) -> Vec<Expiry> {
        Vec::new()
    }

    /// Where its requests go, for their spans.
    fn target(&self) -> Option<&Uri> {
        None
    }
}

/// Makes the sinks of a kind, as many as there may be deliveries at a time.
pub(crate) trait Open: Kind {
    type Sink: Sink;

    /// # Errors
    /// The sink cannot even be made.
    fn open(&self, opening: Opening<'_>) -> io::Result<Vec<Self::Sink>>;
}

/// A sink that `check` looks at.
pub(crate) struct Checked<'a> {
    /// `sinks.NAME`.
    pub(crate) key: &'a str,
    pub(crate) is_enabled: bool,
    pub(crate) shape: Shape,
    /// The folder of an embedded journal.
    pub(crate) journal: Option<&'a Path>,
}

/// What a sink is opened with, beside its settings.
pub(crate) struct Opening<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: Shape,
    /// The files that no sink may write to, at any time.
    pub(crate) own: &'a watch::Receiver<Arc<OwnFiles>>,
}

/// Takes the sinks of one kind, whichever it is.
pub(crate) trait Opened {
    fn take<S: Sink>(self, sinks: Vec<S>);
}
