//! Faults on request: which events they hit, and in which order and how often events then are sent.
//!
//! All of it is drawn before anything is sent, each fault by dice of its own: the seed alone decides which events a
//! fault hits, whatever becomes of them and whatever other faults there are.

mod bodies;
#[cfg(test)]
mod tests;

use std::mem;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::model::Event;

/// How many events later one that was held back is sent, at most: enough to pass others of its entity.
const HELD: u64 = 40;

/// Fractions of the events, from 0 to 1, that each fault hits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Sent a second time, the same bytes: along with the first, right after its answer, or some events later.
    pub duplicates: f64,
    /// Held back, and sent some events later.
    pub reorder: f64,
    /// What ASAPP may bring along tomorrow: new fields, event types, feeds and versions. Still an event.
    pub drift: f64,
    /// The first attempt, at times the second too, is broken off mid-request or before its answer.
    pub abort: f64,
    /// No event any more: damaged JSON, or without proper routing members.
    pub malformed: f64,
}

/// One event, once on its way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sending {
    pub(super) event_id: String,
    pub(super) body: Bytes,
    pub(super) hit: Hit,
    pub(super) breaks: Option<Break>,
    /// The same bytes are sent again once this has been settled.
    pub(super) again: bool,
}

/// What has been done to a sending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hit {
    /// Not the first sending of its event.
    pub(super) duplicate: bool,
    pub(super) reorder: bool,
    pub(super) drift: bool,
    pub(super) malformed: bool,
}

/// How an attempt is broken off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Break {
    /// So many attempts, from the first.
    pub(super) attempts: u32,
    pub(super) place: Place,
    /// Between this and the end of the connection.
    pub(super) pause: Duration,
    /// Ends the connection by a reset rather than properly.
    pub(super) reset: bool,
    /// Where within the place, from 0 to 1.
    at: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Head,
    Body,
    /// After the whole request, before the answer has been read: the receiver may have taken the event.
    Answer,
}

/// Applies faults to events, in their order.
pub(super) struct Saboteur {
    duplicates: Dice,
    reorder: Dice,
    drift: Dice,
    abort: Dice,
    malformed: Dice,
    /// Events taken so far.
    taken: u64,
    /// Each with the number of events after which it is due.
    held: Vec<(u64, Sending)>,
}

/// Draws as much from its source whether it hits or not.
struct Dice {
    fraction: f64,
    random: Rng,
}

impl Faults {
    /// Whether all of them are fractions.
    #[must_use]
    pub fn are_fractions(&self) -> bool {
        let Self { duplicates, reorder, drift, abort, malformed } = self;
        [duplicates, reorder, drift, abort, malformed].into_iter().all(|fraction| (0.0..=1.0).contains(fraction))
    }
}

impl Saboteur {
    pub(super) fn new(faults: Faults, seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed ^ 0x5AB0_7E0A_5AB0_7E0A);
        let mut dice = |fraction| Dice { fraction, random: seeds.fork() };
        Self {
            duplicates: dice(faults.duplicates),
            reorder: dice(faults.reorder),
            drift: dice(faults.drift),
            abort: dice(faults.abort),
            malformed: dice(faults.malformed),
            taken: 0,
            held: Vec::new(),
        }
    }

    /// What is to be sent when `event` is due: seldom anything but that.
    pub(super) fn take(&mut self, event: Event) -> Vec<Sending> {
        self.taken += 1;
        let drift = self.drift.roll();
        let malformed = self.malformed.roll();
        let abort = self.abort.roll();
        let duplicate = self.duplicates.roll();
        let reorder = self.reorder.roll();

        let mut body = event.body;
        let hit = Hit { drift: drift.is_some(), malformed: malformed.is_some(), ..Hit::default() };
        if let Some(random) = drift {
            body = bodies::drift(&body, random);
        }
        if let Some(random) = malformed {
            body = bodies::malform(&body, random);
        }
        let mut first = Sending { event_id: event.event_id, body, hit, breaks: abort.map(Break::draw), again: false };

        let mut now = Vec::with_capacity(2);
        let mut copy = None;
        if let Some(mut random) = duplicate {
            match random.u8(..3) {
                0 => copy = Some(first.copy()),
                1 => first.again = true,
                _ => self.hold(first.copy(), random),
            }
        }
        match reorder {
            Some(random) => {
                first.hit.reorder = true;
                self.hold(first, random);
            }
            None => now.push(first),
        }
        now.extend(copy);
        let (due, held) = mem::take(&mut self.held).into_iter().partition(|(after, _)| *after <= self.taken);
        self.held = held;
        now.extend(Vec::into_iter(due).map(|(_, sending)| sending));
        now
    }

    /// What is still held back when there are no more events.
    pub(super) fn rest(self) -> impl Iterator<Item = Sending> {
        self.held.into_iter().map(|(_, sending)| sending)
    }

    fn hold(&mut self, sending: Sending, mut random: Rng) {
        self.held.push((self.taken + random.u64(1..=HELD), sending));
    }
}

impl Sending {
    /// Another one of the same bytes.
    pub(super) fn copy(&self) -> Self {
        let hit = Hit { duplicate: true, ..Hit::default() };
        Self { event_id: self.event_id.clone(), body: self.body.clone(), hit, breaks: None, again: false }
    }
}

impl Dice {
    /// On a hit, the randomness to spend on it.
    fn roll(&mut self) -> Option<Rng> {
        let (drawn, seed) = (self.random.f64(), self.random.u64(..));
        (drawn < self.fraction).then(|| Rng::with_seed(seed))
    }
}

impl Break {
    fn draw(mut random: Rng) -> Self {
        Self {
            attempts: if random.u8(..4) == 0 { 2 } else { 1 },
            // What the receiver may have taken is what matters most.
            place: [Place::Head, Place::Body, Place::Answer, Place::Answer][random.usize(..4)],
            pause: Duration::from_micros(random.u64(..5_000)),
            reset: random.bool(),
            at: random.f64(),
        }
    }

    /// A length from `least` to one below `whole`.
    pub(super) fn cut(&self, least: usize, whole: usize) -> usize {
        let room = u32::try_from(whole.saturating_sub(least)).unwrap_or(u32::MAX);
        // Within the room, which is a u32's.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let part = (f64::from(room) * self.at) as usize;
        least + part
    }
}
