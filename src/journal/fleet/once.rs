//! Messages that are stored once, and what is in them besides their bytes.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::cluster::error::{NatsError, NotStored};
use super::cluster::link::Link;
use crate::journal::outcome::Refused;

/// How long a message is tried to be stored…
const WITHIN: Duration = Duration::from_secs(10);
/// …each time so long…
const TRY: Duration = Duration::from_secs(2);
/// …and so long after the time before.
const PAUSE: Duration = Duration::from_millis(50);

/// Stores a message unless its subject has one already; whether it was stored now. However often it has to be repeated,
/// it is stored once: by its id while its outcome is not known, and by its subject for good.
pub(crate) async fn store_once(link: &Link, stream: &str, subject: &str, payload: Bytes) -> Result<bool, Refused> {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, uuid::Uuid::new_v4().simple().to_string());
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    let end = Instant::now() + WITHIN;
    loop {
        match link.publish(stream, subject, headers.clone(), payload.clone(), TRY).await {
            Ok(_) => return Ok(true),
            Err(NotStored::Stale(_)) => return Ok(false),
            Err(NotStored::Full(_)) => return Err(Refused::Full),
            Err(NotStored::TooLarge(reason)) => {
                tracing::warn!(stream, reason, "the servers take no message of this size: raise their max_payload");
                return Err(Refused::TooLarge);
            }
            Err(NotStored::Refused(reason)) => {
                tracing::error!(stream, reason, "the cluster does not take a message");
                return Err(Refused::Unfit);
            }
            Err(error) if Instant::now() >= end => return Err(unavailable(&error.to_string())),
            Err(NotStored::Busy | NotStored::Unavailable(_)) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A head as JSON, its length before it, and then the rest.
pub(crate) fn framed(head: &impl Serialize, rest: &[u8]) -> Result<Bytes, Refused> {
    let head = json(head)?;
    let length = u32::try_from(head.len()).map_err(|_| Refused::Failed)?;
    Ok([&length.to_le_bytes()[..], &head, rest].concat().into())
}

/// Reads what [`framed`] wrote.
pub(crate) fn unframed<T: DeserializeOwned>(payload: &Bytes) -> Option<(T, Bytes)> {
    let (length, _) = payload.split_first_chunk()?;
    let end = usize::try_from(u32::from_le_bytes(*length)).ok()?.checked_add(length.len())?;
    let head = serde_json::from_slice(payload.get(length.len()..end)?).ok()?;
    Some((head, payload.slice(end..)))
}

pub(crate) fn json(value: &impl Serialize) -> Result<Bytes, Refused> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| Refused::Failed)
}

/// What an operator or a lane is told of an error of the cluster.
pub(crate) fn refused(error: &NatsError) -> Refused {
    unavailable(&error.to_string())
}

pub(crate) fn unavailable(reason: &str) -> Refused {
    tracing::warn!(reason, "the cluster did not do what was asked");
    Refused::Late
}

/// Says that a record is none of a receiver's of this version.
pub(crate) fn foreign(key: &str) -> Refused {
    tracing::error!(key, "a record cannot be read: another program wrote it, or a newer receiver");
    Refused::Failed
}
