//! A commit group: the events that became durable together, and how they stand in one block of bytes.
//!
//! The block is what the ring holds in RAM and, compressed with LZ4, what a row of the `groups` table holds. Per event:
//! the time of receipt, endpoint, peer, traceparent, event_id, name, event_type and the exact body, each preceded by its
//! length as a LEB128 number. A lane reads events out of it without copying.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::config::Endpoint;
use crate::envelope::Envelope;
use crate::tls::PeerIdentity;

/// A durable event, as a lane reads it. Cheap to clone; it shares its group's block.
#[derive(Clone)]
pub struct Event {
    sequence: u64,
    received_at: SystemTime,
    replayed: bool,
    block: Arc<Group>,
    fields: [Span; FIELDS],
}

type Span = (u32, u32);
const FIELDS: usize = 7;

impl Event {
    /// The event's place in the journal's order. Larger is later; never used twice.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the body had been read, to the millisecond.
    #[must_use]
    pub fn received_at(&self) -> SystemTime {
        self.received_at
    }

    /// The name of the endpoint it came in at.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.text(0)
    }

    /// The client certificate's subject (RFC 4514).
    #[must_use]
    pub fn peer(&self) -> &str {
        self.text(1)
    }

    /// The request's `traceparent`, if one came.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        Some(self.text(2)).filter(|text| !text.is_empty())
    }

    #[must_use]
    pub fn event_id(&self) -> &str {
        self.text(3)
    }

    /// The feed's full name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text(4)
    }

    #[must_use]
    pub fn event_type(&self) -> &str {
        self.text(5)
    }

    /// The exact bytes received.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes(6)
    }

    /// The same, sharing the group's block.
    #[must_use]
    pub fn body_bytes(&self) -> Bytes {
        let (start, end) = self.fields[6];
        self.block.block.slice(start as usize..end as usize)
    }

    /// Delivered once more on an operator's demand.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }

    /// Marks it as delivered once more.
    #[must_use]
    pub fn replay(self) -> Self {
        Self { replayed: true, ..self }
    }

    /// What to write to have it once more.
    pub(crate) fn parts<'a>(&'a self, envelope: &'a Envelope) -> Parts<'a> {
        Parts {
            received_at: self.received_at,
            endpoint: self.endpoint(),
            peer: self.peer(),
            traceparent: self.traceparent(),
            envelope,
        }
    }

    /// Reads what [`single`] wrote.
    pub(crate) fn read_single(sequence: u64, block: Bytes) -> Result<Self, Damaged> {
        let group = Group { first: sequence, last: sequence, at: UNIX_EPOCH, block };
        Arc::new(group).events(sequence)?.pop().ok_or(Damaged)
    }

    fn bytes(&self, field: usize) -> &[u8] {
        let (start, end) = self.fields[field];
        &self.block.block[start as usize..end as usize]
    }

    fn text(&self, field: usize) -> &str {
        // Written from a str, and the block's checksum was verified when it was read.
        std::str::from_utf8(self.bytes(field)).unwrap_or_default()
    }
}

/// Shows routing metadata only: a body holds personal data.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("sequence", &self.sequence)
            .field("event_id", &self.event_id())
            .field("name", &self.name())
            .field("event_type", &self.event_type())
            .field("bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// An event on its way in.
#[derive(Debug)]
pub struct NewEvent {
    pub envelope: Envelope,
    pub received_at: SystemTime,
    pub peer: PeerIdentity,
    pub endpoint: Arc<Endpoint>,
    pub traceparent: Option<Box<str>>,
}

impl NewEvent {
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            received_at: self.received_at,
            endpoint: &self.endpoint.name,
            peer: self.peer.subject(),
            traceparent: self.traceparent.as_deref(),
            envelope: &self.envelope,
        }
    }
}

/// Events `first..=last` in one block.
pub(crate) struct Group {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// When it was written.
    pub(crate) at: SystemTime,
    pub(crate) block: Bytes,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("first", &self.first).field("last", &self.last).finish_non_exhaustive()
    }
}

/// A block that does not hold the events it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged;

impl Group {
    /// The events from sequence `from` on.
    pub(crate) fn events(self: &Arc<Self>, from: u64) -> Result<Vec<Event>, Damaged> {
        // `from` may lie far before this group, when what was between is gone.
        let wanted = (self.last + 1).saturating_sub(from.max(self.first));
        let mut events = Vec::with_capacity(usize::try_from(wanted).map_err(|_| Damaged)?);
        let mut reader = Reader { block: &self.block, at: 0 };
        for sequence in self.first..=self.last {
            let received_at = from_millis(reader.number()?);
            let mut fields = [(0, 0); FIELDS];
            for field in &mut fields {
                *field = reader.span()?;
            }
            if sequence >= from {
                events.push(Event { sequence, received_at, replayed: false, block: Arc::clone(self), fields });
            }
        }
        if reader.at == self.block.len() { Ok(events) } else { Err(Damaged) }
    }

    /// Bytes the ring and `journal.max_bytes` count for it.
    pub(crate) fn size(&self) -> u64 {
        self.block.len() as u64
    }
}

/// An event on its way into a block.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) received_at: SystemTime,
    pub(crate) endpoint: &'a str,
    pub(crate) peer: &'a str,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) envelope: &'a Envelope,
}

/// Writes one event to the end of a block under construction.
pub(crate) fn encode(block: &mut Vec<u8>, event: &Parts) {
    let envelope = event.envelope;
    let fields: [&[u8]; FIELDS] = [
        event.endpoint.as_bytes(),
        event.peer.as_bytes(),
        event.traceparent.unwrap_or_default().as_bytes(),
        envelope.event_id().as_bytes(),
        envelope.name().as_bytes(),
        envelope.event_type().as_bytes(),
        envelope.body(),
    ];
    number(block, millis(event.received_at));
    for field in fields {
        number(block, field.len() as u64);
        block.extend_from_slice(field);
    }
}

/// An event that stands alone, outside a group: a dead letter keeps one.
pub(crate) fn single(event: &Event) -> Vec<u8> {
    let mut block = Vec::with_capacity(event.body().len() + 256);
    number(&mut block, millis(event.received_at));
    for field in 0..FIELDS {
        let bytes = event.bytes(field);
        number(&mut block, bytes.len() as u64);
        block.extend_from_slice(bytes);
    }
    block
}

/// What `encode` needs for an event beyond its body, at most, to reserve room.
pub(crate) const ENCODED_OVERHEAD: usize = 256;

/// Covers everything a group's row says, so that no bit of it can change unnoticed.
pub(crate) fn checksum(first: u64, last: u64, at: u64, stored: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    for number in [first, last, at] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(stored);
    hasher.digest()
}

/// The ids row of a group: every new id with the digest of its bytes, then the known ids seen again since the last group.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    bytes: Vec<u8>,
}

impl Ids {
    pub(crate) fn push(&mut self, id: &str, digest: u32) {
        number(&mut self.bytes, id.len() as u64);
        self.bytes.extend_from_slice(id.as_bytes());
        self.bytes.extend_from_slice(&digest.to_le_bytes());
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Calls `each` with every id and digest, in the order they were pushed.
    pub(crate) fn read(bytes: &[u8], mut each: impl FnMut(&str, u32)) -> Result<(), Damaged> {
        let mut reader = Reader { block: bytes, at: 0 };
        while reader.at < bytes.len() {
            let (start, end) = reader.span()?;
            let id = std::str::from_utf8(&bytes[start as usize..end as usize]).map_err(|_| Damaged)?;
            let digest = reader.take(4)?;
            let digest = <[u8; 4]>::try_from(digest).map_err(|_| Damaged)?;
            each(id, u32::from_le_bytes(digest));
        }
        Ok(())
    }
}

/// Tells two bodies under one event_id apart.
pub(crate) fn digest(body: &[u8]) -> u32 {
    // The low half; a conflict that it misses is answered as the duplicate it claims to be.
    let [a, b, c, d, ..] = xxh3_64(body).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Milliseconds since 1970; a clock before that counts as 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The time `millis` means; an absurd number becomes 1970.
pub(crate) fn from_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

fn number(block: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return block.push(low & 0x7f);
        }
        block.push(low | 0x80);
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let end = self.at.checked_add(count).ok_or(Damaged)?;
        let bytes = self.block.get(self.at..end).ok_or(Damaged)?;
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, Damaged> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged)
    }

    fn span(&mut self) -> Result<Span, Damaged> {
        let length = usize::try_from(self.number()?).map_err(|_| Damaged)?;
        let start = self.at;
        self.take(length)?;
        let offset = |at| u32::try_from(at).map_err(|_| Damaged);
        Ok((offset(start)?, offset(self.at)?))
    }
}
