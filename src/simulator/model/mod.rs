//! A company's traffic, seeded and repeatable: a simulation, event by event, on a clock of its own.
//!
//! Issues arrive as a Poisson process. Two thirds are chats of about 10 events, one third are calls of about 100; each
//! takes one of a few [courses](course). Those that need an agent are queued, wait until one who serves the queue has a
//! free slot, are talked over and end; the customer gives up when that takes too long, or is turned away from a queue
//! that is closed. Agents log in, take breaks and log out; every message of an agent or a queue tells of what really
//! went on. As with ASAPP, a message holds every field known so far of its issue, agent or queue. Names are invented.
//!
//! **Size.** There are as many [agents](staff) as the load takes. At most 30,000 issues are under way (some 170 MB): beyond that, the
//! next one waits until one ends. So from some 6,000 issues a minute on, fewer arrive than asked for.
//!
//! **A quick start.** However fast issues arrive, the first 2,000 events hold every documented event type: courses are
//! dealt from a shuffled deck, the first issue of each course runs hurried, with all its pauses cut so that it ends when
//! some 15 more have arrived, and so do the first agents' logins and what the queues first tell. The very first issue
//! arrives at once.
//!
//! **Two clocks.** What happens, and in which order, depends on the model's clock alone, utilization too. Stamps, and
//! durations between them, are those of the times given to [`Model::next`]. Where these keep up with [`Model::at`] both
//! clocks agree.

mod agenda;
mod agent;
mod chance;
mod course;
mod issue;
mod message;
mod queue;
mod routing;
#[cfg(test)]
mod tests;
mod utilization;
mod words;

use std::time::Duration;

use fastrand::Rng;
use time::OffsetDateTime;

use agenda::{Agenda, AgentAct, Entry, Ticket, Turn};
use agent::Agent;
use chance::{exponential, seconds};
use course::{Channel, Deck};
use issue::Issue;
pub use message::Event;
use message::Moment;
use queue::Queue;

/// Of a company whose events are sent at a rate of their own: a dozen and a half agents.
pub const ISSUES_PER_MINUTE: f64 = 4.0;

const MOST_UNDER_WAY: usize = 30_000;
/// A hurried issue ends when about so many more have arrived.
const HURRIED_ISSUES: f64 = 15.0;
/// What the longest course takes when not hurried, in seconds.
const COURSE: f64 = 450.0;

/// A company's traffic.
#[derive(Debug)]
pub struct Model {
    random: Rng,
    agenda: Agenda,
    /// What happens next.
    due: Entry,
    /// The start of the model's clock, once an event has told it.
    start: Option<OffsetDateTime>,
    /// Mean time between two arrivals, in seconds.
    gap: f64,
    /// Factor of the pauses of what is hurried.
    hurry: f64,
    deck: Deck,
    issues: Vec<Issue>,
    /// Which of the issues are over; others take their places.
    over: Vec<usize>,
    /// An issue waits for its arrival until one that is under way ends.
    held: bool,
    agents: Vec<Agent>,
    queues: Vec<Queue>,
}

impl Model {
    /// The same seed and rate make the same events, ids included, but for their times. The rate is from 0.1 to 100,000
    /// issues a minute; beyond these, it is the nearest of them.
    #[must_use]
    pub fn new(seed: u64, issues_per_minute: f64) -> Self {
        // Not `clamp`: whatever is no number is the least.
        #[allow(clippy::manual_clamp)]
        let gap = 60.0 / issues_per_minute.max(0.1).min(100_000.0);
        let mut random = Rng::with_seed(seed);
        let mut model = Self {
            agenda: Agenda::default(),
            due: Entry { at: Duration::ZERO, ticket: Ticket::default(), turn: Turn::Arrival },
            start: None,
            gap,
            hurry: (HURRIED_ISSUES * gap / COURSE).min(1.0),
            deck: Deck::new(&mut random),
            issues: Vec::new(),
            over: Vec::new(),
            held: false,
            agents: Vec::new(),
            queues: Vec::new(),
            random,
        };
        for channel in Channel::ALL {
            model.open(channel);
        }
        model.agenda.after(Duration::ZERO, Turn::Arrival);
        model.due = model.take();
        model
    }

    /// When the next event happens, since the start.
    #[must_use]
    pub fn at(&self) -> Duration {
        self.due.at
    }

    /// Makes the next event happen. Its message is made `now`, it happened a few milliseconds before.
    pub fn next(&mut self, now: OffsetDateTime) -> Event {
        let happened = now - Duration::from_millis(self.random.u64(2..40));
        let start = *self.start.get_or_insert(now - self.due.at);
        let moment = Moment { at: self.due.at, now, happened: happened.truncate_to_millisecond(), start };
        let event = match self.due.turn {
            Turn::Arrival => self.arrive(moment),
            Turn::Issue(issue) => self.step(issue, moment),
            Turn::Agent(agent, act) => {
                if act == AgentAct::Turn {
                    self.turn(agent, moment);
                }
                let Self { random, agenda, agents, queues, .. } = self;
                agents[agent].tell(act, random, agenda, moment, queues)
            }
            Turn::Queue(queue, act) => self.queues[queue].tell(act, &mut self.random, &mut self.agenda, moment),
        };
        self.due = self.take();
        event
    }

    /// The next entry of the agenda that still counts, and with which an event happens.
    fn take(&mut self) -> Entry {
        while let Some(entry) = self.agenda.take() {
            let counts = match entry.turn {
                Turn::Arrival if self.issues.len() - self.over.len() >= MOST_UNDER_WAY => {
                    self.held = true;
                    false
                }
                Turn::Issue(issue) => self.issues[issue].ticket == entry.ticket,
                Turn::Agent(agent, AgentAct::Turn) => self.agents[agent].turn == Some(entry.ticket),
                _ => true,
            };
            if counts {
                return entry;
            }
        }
        // Not reached: an arrival is always to come, or held by issues that are.
        Entry { at: self.agenda.now(), ticket: self.agenda.ticket(), turn: Turn::Arrival }
    }

    fn arrive(&mut self, moment: Moment) -> Event {
        self.await_arrival();
        let (course, first) = self.deck.deal(&mut self.random);
        let pace = if first { self.hurry } else { 1.0 };
        let issue = Issue::new(&mut self.random, course, first, pace);
        let place = match self.over.pop() {
            Some(place) => {
                self.issues[place] = issue;
                place
            }
            None => {
                self.issues.push(issue);
                self.issues.len() - 1
            }
        };
        self.step(place, moment)
    }

    fn await_arrival(&mut self) {
        let gap = seconds(self.gap * exponential(&mut self.random));
        self.agenda.after(gap, Turn::Arrival);
    }

    /// The queues and the staff of a channel.
    fn open(&mut self, channel: Channel) {
        let Self { random, agenda, agents, queues, hurry, gap, .. } = self;
        let (count, slots) = staff(channel, *gap);
        let names = words::queues(channel);
        let first = queues.len();
        for (place, name) in names.into_iter().enumerate() {
            let expected = count * slots / names.len() as u64;
            let mut queue = Queue::new(random, queues.len(), name, place == 0, expected);
            queue.begin(random, agenda, *hurry);
            queues.push(queue);
        }
        for number in 0..count {
            // The first two serve all queues, so that none is ever without anyone.
            let early = number < 2;
            let serves = if early { names.len() } else { random.usize(1..names.len()) };
            let from = random.usize(..names.len());
            let serves = (from..from + serves).map(|place| first + place % names.len()).collect();
            let pace = if early { *hurry } else { 1.0 };
            let agent = agents.len();
            agents.push(Agent::new(random, agent, channel, serves, pace));
            // They come within five minutes.
            let login = seconds(0.3 + 300.0 / count as f64 * (number as f64 + random.f64())).mul_f64(pace);
            agenda.after(login, Turn::Agent(agent, AgentAct::Introduce));
        }
    }
}

/// How many agents a channel has for arrivals that are `gap` seconds apart, and slots per agent: as many as the work in
/// hand takes on average, and its square root more (as Erlang's formula does), over the share of the time that agents
/// are neither on a break nor off. From 3 to 5,000.
fn staff(channel: Channel, gap: f64) -> (u64, u64) {
    const THERE: f64 = 0.7;
    let work = channel.work();
    let slots = match channel {
        Channel::Chat => 3,
        Channel::Voice => 1,
    };
    let in_hand = work.assignments / course::PER_DECK / gap * work.seconds / slots as f64;
    (seconds((in_hand + in_hand.sqrt()) / THERE).as_secs().clamp(3, 5_000), slots)
}
