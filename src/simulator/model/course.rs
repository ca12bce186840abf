//! The courses an issue can take: tables of journey events, with the pauses between them.

use fastrand::Rng;

/// By which an issue comes. Each has queues and agents of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Chat,
    Voice,
}

/// A stretch of a course.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) steps: &'static [&'static str],
    /// How often they are gone through, from and to.
    pub(super) times: (u16, u16),
    /// Mean pause before each step, in seconds.
    pub(super) pause: f64,
}

#[derive(Debug)]
pub(super) struct Course {
    pub(super) channel: Channel,
    /// How many of [`PER_DECK`] issues take it.
    share: usize,
    pub(super) parts: &'static [Part],
}

/// The courses of the next issues, shuffled like cards: each comes as often as it should, and soon.
#[derive(Debug)]
pub(super) struct Deck {
    cards: Vec<&'static Course>,
    /// Whether the first cards, one of each course, are still being dealt.
    first: bool,
}

/// Assignments of one channel in a deck, and the slot-seconds each takes. They follow from the tables below.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) assignments: f64,
    pub(super) seconds: f64,
}

/// Issues in a deck.
pub(super) const PER_DECK: f64 = 15.0;

impl Channel {
    pub(super) const ALL: [Self; 2] = [Self::Chat, Self::Voice];

    pub(super) fn work(self) -> Work {
        match self {
            Self::Chat => Work { assignments: 3.0, seconds: 150.0 },
            Self::Voice => Work { assignments: 5.0, seconds: 320.0 },
        }
    }
}

impl Deck {
    pub(super) fn new(random: &mut Rng) -> Self {
        let mut cards: Vec<_> = COURSES.iter().collect();
        random.shuffle(&mut cards);
        Self { cards, first: true }
    }

    /// A course, and whether it is the first issue to take it.
    pub(super) fn deal(&mut self, random: &mut Rng) -> (&'static Course, bool) {
        if self.cards.is_empty() {
            self.first = false;
            self.cards.extend(COURSES.iter().flat_map(|course| std::iter::repeat_n(course, course.share)));
            random.shuffle(&mut self.cards);
        }
        (self.cards.pop().unwrap_or(&COURSES[0]), self.first)
    }
}

const fn once(pause: f64, steps: &'static [&'static str]) -> Part {
    Part { steps, times: (1, 1), pause }
}

const fn repeated(from: u16, to: u16, pause: f64, steps: &'static [&'static str]) -> Part {
    Part { steps, times: (from, to), pause }
}

/// After these an issue waits for an agent, if it is an agent that comes next.
const QUEUE: Part = once(0.3, &["QUEUED", "ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED"]);
const TAKEN: Part = once(0.4, &["ASSIGNED", "QUEUED_DURATION", "ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED"]);
const TALK: &[&str] = &["AGENT_RESPONSE_BY_OPPORTUNITY", "CUSTOMER_RESPONSE_BY_OPPORTUNITY"];

/// Of one that is no longer willing to wait.
pub(super) const GIVEN_UP: &[Part] = &[once(0.5, &["QUEUE_ABANDONED", "OPPORTUNITY_ENDED", "ISSUE_ENDED"])];
/// Of one that finds the queue closed.
pub(super) const TURNED_AWAY: &[Part] = &[once(0.5, &["OPPORTUNITY_ENDED", "ISSUE_ENDED"])];

/// In a deck: 10 chats of 11 events on average, 5 calls of 100.
const COURSES: &[Course] = &[
    // A link answers the question.
    Course {
        channel: Channel::Chat,
        share: 2,
        parts: &[
            once(2.0, &["ISSUE_CREATED", "FIRST_INTENT_UPDATED"]),
            repeated(1, 2, 6.0, &["NODE_VISITED"]),
            once(15.0, &["LINK_RESOLVED", "ISSUE_ENDED"]),
        ],
    },
    // A flow does it.
    Course {
        channel: Channel::Chat,
        share: 2,
        parts: &[
            once(0.5, &["ISSUE_CREATED", "ISSUE_SESSION_UPDATED", "JOURNEY_CUSTOMER_PARAMETERS"]),
            once(3.0, &["FIRST_INTENT_UPDATED", "INTENT_PATH_UPDATED"]),
            repeated(1, 3, 8.0, &["NODE_VISITED"]),
            once(6.0, &["LAST_FLOW_ACTION_CALLED", "FLOW_SUCCESS"]),
            once(12.0, &["SURVEY_SUBMITTED", "ISSUE_ENDED"]),
        ],
    },
    // An answer found by search does it.
    Course {
        channel: Channel::Chat,
        share: 2,
        parts: &[
            once(3.0, &["ISSUE_CREATED", "TEXT_MESSAGE", "FIRST_INTENT_UPDATED", "END_SRS_RESPONSE"]),
            once(20.0, &["CUSTOMER_ENDED", "ISSUE_ENDED"]),
        ],
    },
    // The customer leaves the queue.
    Course {
        channel: Channel::Chat,
        share: 1,
        parts: &[
            once(1.5, &["ISSUE_CREATED", "TEXT_MESSAGE", "FIRST_INTENT_UPDATED"]),
            once(5.0, &["FLOW_SUCCESS_NEGATED", "FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            once(12.0, &["QUEUE_ABANDONED"]),
            once(0.5, &["OPPORTUNITY_ENDED", "ISSUE_ENDED"]),
        ],
    },
    // An agent solves it.
    Course {
        channel: Channel::Chat,
        share: 2,
        parts: &[
            once(1.0, &["ISSUE_CREATED", "ISSUE_SESSION_UPDATED", "JOURNEY_CUSTOMER_PARAMETERS"]),
            once(5.0, &["TEXT_MESSAGE", "FIRST_INTENT_UPDATED", "INTENT_CHANGE"]),
            once(1.0, &["DETECTED", "FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            TAKEN,
            once(12.0, &["AGENT_FIRST_RESPONDED"]),
            repeated(0, 2, 25.0, TALK),
            once(20.0, &["FILE_UPLOAD_DETECTED", "AGENT_RESPONSE_BY_OPPORTUNITY", "CONVERSATION_ENDED"]),
            once(4.0, &["ASSIGNMENT_ENDED", "OPPORTUNITY_ENDED", "LAST_ASSIGNMENT_SUMMARY", "DISPOSITION"]),
            repeated(0, 1, 15.0, &["SURVEY_SUBMITTED"]),
            once(5.0, &["ISSUE_ENDED"]),
        ],
    },
    // The customer falls silent.
    Course {
        channel: Channel::Chat,
        share: 1,
        parts: &[
            once(3.0, &["ISSUE_CREATED", "TEXT_MESSAGE", "FIRST_INTENT_UPDATED"]),
            once(1.0, &["FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            TAKEN,
            once(15.0, &["AGENT_FIRST_RESPONDED"]),
            repeated(1, 2, 25.0, TALK),
            once(90.0, &["TIMED_OUT"]),
            once(0.5, &["ASSIGNMENT_ENDED", "OPPORTUNITY_ENDED", "ISSUE_ENDED"]),
        ],
    },
    // A call that an agent settles.
    Course {
        channel: Channel::Voice,
        share: 3,
        parts: &[
            once(1.0, &["ISSUE_CREATED", "ISSUE_SESSION_UPDATED", "JOURNEY_CUSTOMER_PARAMETERS"]),
            repeated(2, 6, 4.0, &["NODE_VISITED"]),
            once(2.0, &["FIRST_INTENT_UPDATED", "INTENT_PATH_UPDATED", "LAST_FLOW_ACTION_CALLED"]),
            once(1.0, &["FLOW_SUCCESS_NEGATED", "DETECTED", "FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            TAKEN,
            once(2.0, &["AGENT_FIRST_RESPONDED"]),
            repeated(28, 62, 3.5, TALK),
            once(2.0, &["CONVERSATION_ENDED", "ASSIGNMENT_ENDED", "OPPORTUNITY_ENDED"]),
            once(8.0, &["LAST_ASSIGNMENT_SUMMARY", "DISPOSITION", "SURVEY_SUBMITTED", "ISSUE_ENDED"]),
        ],
    },
    // A call handed on from one agent to another.
    Course {
        channel: Channel::Voice,
        share: 1,
        parts: &[
            once(1.0, &["ISSUE_CREATED", "ISSUE_SESSION_UPDATED", "JOURNEY_CUSTOMER_PARAMETERS"]),
            repeated(2, 4, 4.0, &["NODE_VISITED"]),
            once(1.0, &["FIRST_INTENT_UPDATED", "DETECTED", "FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            TAKEN,
            once(2.0, &["AGENT_FIRST_RESPONDED"]),
            repeated(8, 20, 3.5, TALK),
            once(5.0, &["SUPERVISOR_UTTERANCE_BY_OPPORTUNITY", "INTENT_CHANGE", "ASSIGNMENT_ENDED"]),
            once(1.0, &["OPPORTUNITY_ESCALATED"]),
            QUEUE,
            TAKEN,
            repeated(15, 45, 3.5, TALK),
            once(2.0, &["CUSTOMER_ENDED", "CONVERSATION_ENDED", "ASSIGNMENT_ENDED", "OPPORTUNITY_ENDED"]),
            once(8.0, &["LAST_ASSIGNMENT_SUMMARY", "DISPOSITION", "ISSUE_ENDED"]),
        ],
    },
    // A caller who hangs up in the queue.
    Course {
        channel: Channel::Voice,
        share: 1,
        parts: &[
            once(1.0, &["ISSUE_CREATED", "ISSUE_SESSION_UPDATED", "JOURNEY_CUSTOMER_PARAMETERS"]),
            repeated(2, 8, 4.0, &["NODE_VISITED"]),
            once(1.0, &["FIRST_INTENT_UPDATED", "DETECTED", "FIRST_OPPORTUNITY", "OPPORTUNITY_ESCALATED"]),
            QUEUE,
            once(25.0, &["QUEUE_ABANDONED"]),
            once(0.5, &["OPPORTUNITY_ENDED", "ISSUE_ENDED"]),
        ],
    },
];
