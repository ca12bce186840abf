//! Why there is no journal, whatever its engine.

#[cfg(feature = "nats")]
use super::fleet;
use super::local;

/// Why there is no journal. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Local(#[from] local::OpenError),
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Cluster(#[from] fleet::NatsError),
}

impl OpenError {
    /// The settings that it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Local(_) => "journal.path",
            #[cfg(feature = "nats")]
            Self::Cluster(_) => "journal.nats",
        }
    }
}
