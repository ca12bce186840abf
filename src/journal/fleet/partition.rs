//! A sink's partition, as one receiver sees it: waits for it, owns it, loses it.
//!
//! The record `place.<sink>.<partition>`, a [`Share`], is the truth. Whoever is pinned at the [consumer](super::cluster::consumer)
//! takes the partition over by writing it, which fences the owner before: that one's next write is refused, and it lets go.
//! The owner reads the partition from the record's cursor on, in order, as there is room; what the lane says became of the
//! events is gathered, written into the record, and acknowledged only then. So an owner that does not know yet that it is
//! none repeats deliveries at worst, in order, and settles nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cluster::consumer;
use super::cluster::consumer::{Heard, PIN_TIMEOUT, Pulls};
use super::cluster::error::NatsError;
use super::cluster::link::Link;
use super::cluster::replies::Batch;
use super::cursor::Outcome;
use super::lease::{AGAIN, Common, Done, GATHER, NOT_THERE, Tenure, take_over, tend};
use super::share::Share;
use crate::journal::event::Event;
use crate::journal::outcome::Settled;

/// How often the stream is looked at though nothing rings.
const LOOK: Duration = Duration::from_secs(2);
/// And how often when nothing can ring, for so many events are not acknowledged.
const NO_RING: Duration = Duration::from_millis(100);
const RINGS: usize = consumer::MAX_ACK_PENDING / 2;
/// A partition that is given back waits so long for what is under way in the lane…
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// …and is left to others for so long: whoever else is there has a pull waiting.
const AWAY: Duration = Duration::from_secs(4);
/// At the end: what has rung for nobody after so long is not there, or another's.
const LISTEN: Duration = Duration::from_millis(300);
/// At the end, for the last write.
const LAST: Duration = Duration::from_secs(5);

pub(crate) struct Partition {
    common: Arc<Common>,
    at: u16,
    pulls: Pulls,
    /// What the cluster calls this receiver's turn, and until when it lasts at least.
    pin: Option<(String, Instant)>,
    /// It was said to be pinned so, perhaps long ago: to be asked for.
    claim: Option<String>,
    tenure: Option<Tenure>,
    /// The epoch of the log whose sequences are here.
    epoch: u64,
    /// How often all records had been looked at when it was last seen to.
    looks: u64,
    /// Tells tenures apart.
    tenures: u64,
    /// What became of events, and is in no record as far as is known. Outlasts tenures: what was delivered here need not
    /// be delivered again.
    unwritten: BTreeMap<u64, Settled>,
    /// How to acknowledge what rang and is not settled in the record.
    replies: BTreeMap<u64, Subject>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    /// It is being taken over, or the consumer is looked after.
    busy: bool,
    /// A tenure that is over, of which something is still being written.
    parting: Option<u64>,
    not_before: Instant,
    /// At the end: until when it is listened.
    listening: Option<Instant>,
}

impl Partition {
    pub(crate) async fn new(common: Arc<Common>, at: u16) -> Result<Self, NatsError> {
        let pulls = Pulls::of(&common.link, common.shelf.sink(), at).await?;
        let epoch = common.keeper.current().epoch;
        Ok(Self {
            common,
            at,
            epoch,
            looks: 0,
            pulls,
            pin: None,
            claim: None,
            tenure: None,
            tenures: 0,
            unwritten: BTreeMap::new(),
            replies: BTreeMap::new(),
            jobs: FuturesUnordered::new(),
            busy: false,
            parting: None,
            not_before: Instant::now(),
            listening: None,
        })
    }

    /// Runs until `end`; then writes what is known, and lets others have it.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        let mut log = self.common.keeper.subscribe();
        while !end.is_cancelled() {
            log.mark_unchanged();
            self.act().await;
            let wake = self.wake();
            tokio::select! {
                heard = self.pulls.next() => self.hear(heard),
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                () = self.common.shelf.called(self.at) => {}
                _ = log.changed() => {}
                () = sleep_until(wake) => {}
                () = end.cancelled() => {}
            }
        }
        let _ = tokio::time::timeout(LAST, self.finish()).await;
        self.common.shelf.lose(self.at);
    }

    /// Starts whatever may start now.
    async fn act(&mut self) {
        let now = Instant::now();
        self.follow_log();
        self.follow_records(now);
        if self.pin.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.lose("the cluster did not confirm it in time");
        }
        if self.common.shelf.is_finishing() && self.listening.is_none() {
            self.listening = Some(now + LISTEN);
        }
        if self.is_to_pull(now) {
            let pin = self.pin.as_ref().map(|(pin, _)| pin).or(self.claim.as_ref());
            self.pulls.go_on(pin.map(String::as_str)).await;
        }
        for outcome in self.common.shelf.outcomes(self.at) {
            self.settle(outcome);
        }
        self.evict();
        if let Some(tenure) = &mut self.tenure {
            if tenure.is_to_write(now) {
                self.jobs.push(tenure.write(&self.common, self.at));
            }
            if tenure.is_to_read(now, &self.common.shelf, self.at) {
                self.jobs.push(tenure.read(&self.common, self.at));
            }
            self.leave(now).await;
        } else if self.is_to_take_over(now) {
            self.busy = true;
            self.jobs.push(Box::pin(take_over(Arc::clone(&self.common), self.at)));
        }
        let caught_up = match &self.tenure {
            Some(tenure) if self.common.shelf.is_finishing() => tenure.finished,
            Some(tenure) => tenure.has_read_all(),
            None if self.listening.is_some() => self.has_listened(now),
            None => self.pin.is_none() && self.common.link.is_connected(),
        };
        self.common.shelf.set_caught_up(self.at, caught_up);
    }

    /// When to act again at the latest.
    fn wake(&self) -> Instant {
        let far = Instant::now() + LOOK;
        let later = |at: Instant| if at > Instant::now() { at } else { far };
        let mut times = vec![far];
        times.extend(
            self.is_to_pull(self.not_before.max(Instant::now())).then(|| self.pulls.due().max(self.not_before)),
        );
        times.extend(self.pin.as_ref().map(|(_, until)| *until));
        times.extend(self.listening.map(later));
        times.push(later(self.not_before));
        if let Some(tenure) = &self.tenure {
            times.push(later(tenure.read_at));
            times.extend(tenure.gathered_since.filter(|_| !tenure.writing).map(|since| since + GATHER));
            times.extend(tenure.leave_until);
        }
        times.into_iter().min().unwrap_or(far)
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Bell { sequence, reply, pin, asked } => {
                if self.tenure.is_none() && self.has_listened(Instant::now()) {
                    return;
                }
                match asked {
                    Some(asked) => self.pinned(pin, asked),
                    None if self.pin.is_none() => self.claim = Some(pin),
                    None => {}
                }
                match &mut self.tenure {
                    Some(tenure) if tenure.share.is_settled(sequence) && !self.unwritten.contains_key(&sequence) => {
                        acknowledge(&self.common.link, [reply]);
                        return;
                    }
                    Some(tenure) if tenure.heard < sequence => {
                        (tenure.heard, tenure.not_there) = (sequence, NOT_THERE.0);
                    }
                    _ => {}
                }
                self.replies.insert(sequence, reply);
            }
            Heard::Pinned { pin, asked } => {
                if self.pin.as_ref().map(|(own, _)| own).or(self.claim.as_ref()) == Some(&pin) {
                    self.pinned(pin, asked);
                }
            }
            Heard::NotPinned { pin } => {
                self.claim = None;
                if self.pin.as_ref().is_some_and(|(own, _)| *own == pin) {
                    self.lose("another receiver has it");
                }
            }
            Heard::Nobody if !self.busy && self.common.link.is_connected() => {
                self.busy = true;
                self.jobs.push(Box::pin(tend(Arc::clone(&self.common), self.at)));
            }
            Heard::Nobody | Heard::Nothing => {}
        }
    }

    /// The pin was this receiver's, some time after `asked`.
    fn pinned(&mut self, pin: String, asked: Instant) {
        let until = asked + PIN_TIMEOUT;
        self.claim = None;
        match &mut self.pin {
            Some((own, fresh)) if *own == pin => *fresh = (*fresh).max(until),
            other => {
                *other = Some((pin, until));
                // Whether somebody else had it in between shows when it is written.
                self.tenure.iter_mut().for_each(|tenure| tenure.gathered_since = Some(Instant::now()));
            }
        }
        self.hold();
    }

    /// Lets the lane know how long it may go on.
    fn hold(&self) {
        if let (Some(_), Some((_, until))) = (&self.tenure, &self.pin) {
            self.common.shelf.hold(self.at, *until);
        }
    }

    /// What is here of an earlier log means other events in this one.
    fn follow_log(&mut self) {
        let log = self.common.keeper.current();
        if self.epoch == log.epoch {
            return;
        }
        // It stays this receiver's turn.
        let is_another = log.kept(self.epoch) != u64::MAX;
        self.let_go("the log has changed");
        if is_another {
            self.unwritten.clear();
            self.common.evict.store(0, Ordering::Relaxed);
            self.common.shelf.start_over(log.epoch);
        }
        self.epoch = log.epoch;
    }

    /// Where the records are older than what is known here, they are written again.
    fn follow_records(&mut self, now: Instant) {
        let looks = self.common.records.looks();
        if std::mem::replace(&mut self.looks, looks) != looks
            && let Some(tenure) = &mut self.tenure
        {
            tenure.gathered_since = Some(now);
        }
    }

    fn lose(&mut self, why: &str) {
        self.pin = None;
        self.let_go(why);
    }

    fn let_go(&mut self, why: &str) {
        self.replies.clear();
        if let Some(mut tenure) = self.tenure.take() {
            if !tenure.writing && !tenure.fresh.is_empty() {
                // As long as nobody has taken it over, what was delivered counts.
                self.jobs.push(tenure.write(&self.common, self.at));
            }
            self.parting = tenure.writing.then_some(tenure.number);
            tracing::debug!(
                sink = &**self.common.shelf.sink(),
                partition = self.at,
                why,
                "a partition is not delivered here any more"
            );
            tenure.end.cancel();
            self.common.shelf.lose(self.at);
        }
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::TakenOver(taken) => {
                self.busy = false;
                let of_this_log = |(share, _): &(Share, u64)| share.log() == self.epoch && self.common.shelf.is_clear();
                let Some((share, revision)) = taken.filter(of_this_log).filter(|_| self.pin.is_some()) else {
                    self.not_before = now + AGAIN;
                    return;
                };
                tracing::debug!(
                    sink = &**self.common.shelf.sink(),
                    partition = self.at,
                    cursor = share.cursor(),
                    "a partition is delivered here now"
                );
                self.unwritten.retain(|sequence, _| !share.is_settled(*sequence));
                let settled = self.replies.extract_if(.., |sequence, _| share.is_settled(*sequence));
                acknowledge(&self.common.link, settled.map(|(_, reply)| reply));
                self.tenures += 1;
                let heard = self.replies.last_key_value().map_or(0, |(sequence, _)| *sequence);
                self.tenure = Some(Tenure::new(self.tenures, share, revision, heard));
                self.hold();
            }
            Done::Tended => {
                self.busy = false;
                self.not_before = now + AGAIN;
            }
            Done::Read(number, batch) => match batch {
                Ok(batch) => self.take_in(number, batch),
                Err(error) => {
                    tracing::debug!(sink = &**self.common.shelf.sink(), partition = self.at, %error, "events cannot be read");
                    if let Some(tenure) = self.tenure_of(number) {
                        (tenure.reading, tenure.read_at) = (false, now + AGAIN);
                        tenure.failed = true;
                    }
                }
            },
            Done::Written(number, sequences, result) => {
                self.parting = self.parting.filter(|parting| *parting != number);
                let revision = result.ok();
                if let Some(tenure) = self.tenure_of(number) {
                    tenure.writing = false;
                    tenure.revision = revision.unwrap_or(tenure.revision);
                    if revision.is_none() {
                        // What it has settled since would be refused as well.
                        tenure.fresh.clear();
                        self.lose("another receiver took it over");
                    }
                }
                if revision.is_some() {
                    self.written(&sequences);
                }
            }
        }
    }

    /// Puts what was read before the lane, in order.
    fn take_in(&mut self, number: u64, batch: Batch) {
        let evict = self.common.evict.load(Ordering::Relaxed);
        let finishing = self.common.shelf.is_finishing();
        let Some(tenure) = self.tenure.as_mut().filter(|tenure| tenure.number == number) else { return };
        if tenure.leave_until.is_some() {
            // It is the next owner's to deliver.
            tenure.reading = false;
            return;
        }
        (tenure.reading, tenure.failed, tenure.more) = (false, false, batch.pending > 0);
        let now = Instant::now();
        // While so many are not acknowledged, nothing rings soon.
        tenure.read_at = now + if self.replies.len() < RINGS { LOOK } else { NO_RING };
        let mut events = Vec::new();
        for stored in batch.messages {
            let (sequence, previous) = (stored.sequence, tenure.read);
            if sequence <= previous {
                continue;
            }
            tenure.read = sequence;
            let known = self.unwritten.get(&sequence).copied();
            let known = known.or((sequence <= evict).then_some(Settled::Evicted));
            if tenure.share.is_settled(sequence) {
                tenure.share.cover(previous, sequence);
                acknowledge(&self.common.link, self.replies.remove(&sequence));
                continue;
            }
            // A copy of its own: what comes from the connection holds on to all that came with it.
            let event = match known {
                Some(how) => Err(how),
                None => Event::read_single(sequence, Bytes::copy_from_slice(&stored.payload)).map_err(|_| {
                    tracing::error!(sequence, "a message in the stream is no event: only receivers may publish there");
                    Settled::Evicted
                }),
            };
            tenure.in_hand.insert(sequence, previous);
            match event {
                Ok(event) => events.push(event),
                Err(how) => tenure.settle(sequence, how, &mut self.unwritten),
            }
        }
        if tenure.read >= tenure.heard {
            tenure.not_there = NOT_THERE.0;
        } else if !tenure.more {
            tenure.read_at = now + tenure.not_there;
            tenure.not_there = (tenure.not_there * 2).min(NOT_THERE.1);
        }
        tenure.finished = finishing && tenure.has_read_all();
        self.common.shelf.put(self.at, self.epoch, events);
    }

    /// An event's outcome, whenever it comes.
    fn settle(&mut self, Outcome { sequence, how, told }: Outcome) {
        let Some(tenure) = &mut self.tenure else {
            self.unwritten.insert(sequence, how);
            return;
        };
        if tenure.share.is_settled(sequence) {
            // Another owner did.
            return;
        }
        self.unwritten.insert(sequence, how);
        if tenure.in_hand.contains_key(&sequence) {
            tenure.settle(sequence, how, &mut self.unwritten);
            if let Some(told) = told {
                tenure.told.push((sequence, told));
            }
        }
    }

    fn written(&mut self, sequences: &[u64]) {
        let mut replies = Vec::new();
        for sequence in sequences {
            self.unwritten.remove(sequence);
            replies.extend(self.replies.remove(sequence));
        }
        acknowledge(&self.common.link, replies);
        let Some(tenure) = &mut self.tenure else { return };
        let written: HashSet<u64> = sequences.iter().copied().collect();
        for (sequence, told) in tenure.told.extract_if(.., |(sequence, _)| written.contains(sequence)) {
            self.common.shelf.written(sequence);
            // The lane may have ended.
            let _ = told.send(());
        }
    }

    /// Settles what has to yield.
    fn evict(&mut self) {
        let through = self.common.evict.load(Ordering::Relaxed);
        let Some(tenure) = &mut self.tenure else { return };
        let gone: HashSet<u64> = tenure.in_hand.range(..=through).map(|(sequence, _)| *sequence).collect();
        if gone.is_empty() {
            return;
        }
        for sequence in &gone {
            tenure.settle(*sequence, Settled::Evicted, &mut self.unwritten);
        }
        self.common.shelf.take_back(self.at, &gone);
    }

    /// Gives the partition back, when it was asked to: another is to have it.
    async fn leave(&mut self, now: Instant) {
        let common = Arc::clone(&self.common);
        let Common { link, shelf, .. } = &*common;
        let Some(tenure) = self.tenure.as_mut().filter(|_| shelf.leaves(self.at)) else { return };
        let until = *tenure.leave_until.get_or_insert_with(|| {
            shelf.withdraw(self.at);
            now + LEAVE_WITHIN
        });
        let is_done = shelf.is_done(self.at) && tenure.fresh.is_empty() && !tenure.writing;
        if !is_done && now < until {
            return;
        }
        // Where it does not work, its time runs out.
        let _ = consumer::unpin(link, shelf.sink(), self.at).await;
        self.lose("another receiver has fewer");
        self.not_before = Instant::now() + AWAY;
    }

    /// Writes what is known, acknowledges it, and lets go.
    async fn finish(&mut self) {
        for outcome in self.common.shelf.outcomes(self.at) {
            self.settle(outcome);
        }
        while let Some(tenure) = &mut self.tenure {
            if !tenure.fresh.is_empty() && !tenure.writing {
                self.jobs.push(tenure.write(&self.common, self.at));
            }
            if !tenure.writing {
                break;
            }
            match self.jobs.next().await {
                Some(Done::Written(number, sequences, result)) => self.done(Done::Written(number, sequences, result)),
                Some(_) => {}
                None => break,
            }
        }
        if self.pin.is_some() {
            let _ = self.common.link.client().flush().await;
            let _ = consumer::unpin(&self.common.link, self.common.shelf.sink(), self.at).await;
        }
    }

    fn tenure_of(&mut self, number: u64) -> Option<&mut Tenure> {
        self.tenure.as_mut().filter(|tenure| tenure.number == number)
    }

    fn is_to_take_over(&self, now: Instant) -> bool {
        let is_free = !self.busy && self.parting.is_none() && self.common.shelf.is_clear();
        self.pin.is_some() && is_free && self.not_before <= now
    }

    fn is_to_pull(&self, now: Instant) -> bool {
        self.not_before <= now && (self.tenure.is_some() || !self.has_listened(now))
    }

    /// At the end, without the partition: whether it can be taken for another's.
    fn has_listened(&self, now: Instant) -> bool {
        let (Some(until), None) = (self.listening, &self.pin) else { return false };
        until <= now || self.common.shelf.leaves(self.at) || !self.common.link.is_connected()
    }
}

/// What is lost of it comes again, and is acknowledged then.
fn acknowledge(link: &Link, replies: impl IntoIterator<Item = Subject>) {
    let client = link.client();
    for reply in replies {
        // Its room counts, not how long this task has run.
        let _ = tokio::task::unconstrained(client.publish(reply, Bytes::from_static(b"+ACK"))).now_or_never();
    }
}
