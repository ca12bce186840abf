//! What the cluster refuses, in its own numbers, and what that means here.

use serde::Deserialize;

/// What kept a request from its answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// May be different in a moment.
    #[error("the NATS cluster does not answer: {0}")]
    Unavailable(String),
    /// The server's own words.
    #[error("the NATS cluster refuses: {text} ({code})")]
    Refused { code: u64, text: String },
    /// Settings, here or there, that do not keep what the journal promises; each with its remedy.
    #[error("{}", .0.join("; "))]
    Unfit(Vec<String>),
}

/// Why a message may not be in its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotStored {
    /// The id is not used up.
    #[error("no room: {0}")]
    Full(String),
    /// Another copy with the same id is being written: the same again in a moment.
    #[error("a message of the same id is being written")]
    Busy,
    /// It is larger than the servers take now.
    #[error("too large: {0}")]
    TooLarge(String),
    /// Not the expected sequence, but this one.
    #[error("something else was written: its sequence is {0}")]
    Stale(u64),
    /// Nobody knows whether it is stored: the same id again.
    #[error("no answer: {0}")]
    Unavailable(String),
    /// The same would be refused again.
    #[error("refused: {0}")]
    Refused(String),
}

#[derive(Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// As servers number it: they end the connection for it, so the client looks first.
pub(crate) const OVER_MAX_PAYLOAD: u64 = 10054;
/// No stream of that name.
pub(crate) const NO_STREAM: u64 = 10059;
/// No message of that sequence or subject.
pub(crate) const NO_MESSAGE: u64 = 10037;
pub(crate) const NO_SEQUENCE: u64 = 10043;
pub(crate) const NOT_DELETED: u64 = 10057;

impl ApiError {
    pub(crate) fn not_stored(self) -> NotStored {
        match self.err_code {
            // The stream's limit, the account's, the servers' disks.
            10077 | 10023 | 10002 | 10047 => NotStored::Full(self.description),
            OVER_MAX_PAYLOAD => NotStored::TooLarge(self.description),
            10158 => NotStored::Busy,
            10071 => {
                let last = self.description.rsplit(' ').next().and_then(|last| last.parse().ok());
                last.map_or(NotStored::Unavailable(self.description), NotStored::Stale)
            }
            // 10164: another comes first, whose outcome is not known yet.
            10008 | 10164 | 10167 => NotStored::Unavailable(self.description),
            _ => NotStored::Refused(format!("{} ({})", self.description, self.err_code)),
        }
    }
}

impl From<ApiError> for NatsError {
    fn from(error: ApiError) -> Self {
        match error.err_code {
            // The cluster has no leader now, or too much to do.
            10007 | 10008 | 10009 | 10167 => Self::Unavailable(error.description),
            code => Self::Refused { code, text: error.description },
        }
    }
}
