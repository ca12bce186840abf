//! Where an event comes from.

use super::description::Description;
use super::{activity, journey, queue};

/// Where an event comes from, by its exact `name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feed {
    Activity,
    Journey,
    Queue,
    /// One that ASAPP has added since.
    Other,
}

impl Feed {
    /// The feeds that ASAPP documents.
    pub const DOCUMENTED: [Self; 3] = [Self::Activity, Self::Journey, Self::Queue];

    /// The feed of this full name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::DOCUMENTED.into_iter().find(|feed| feed.full() == Some(name)).unwrap_or(Self::Other)
    }

    /// A word for settings and metrics.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Activity => "activity",
            Self::Journey => "journey",
            Self::Queue => "queue",
            Self::Other => "other",
        }
    }

    /// The feed's name as ASAPP sends it; another feed's name is only in its [`Envelope`](super::Envelope).
    #[must_use]
    pub fn full(self) -> Option<&'static str> {
        match self {
            Self::Activity => Some("com.asapp.event.activity"),
            Self::Journey => Some("com.asapp.event.journey"),
            Self::Queue => Some("com.asapp.event.queue"),
            Self::Other => None,
        }
    }

    /// The event types that ASAPP lists for the feed, in its order.
    pub fn event_types(self) -> impl Iterator<Item = &'static str> {
        // A placeholder of ASAPP's samples.
        self.description().event_types.iter().copied().filter(|&name| name != "UNKNOWN")
    }

    /// The field that says which agent, issue or queue an event is about: its section, and its name in there.
    pub(super) fn entity(self) -> Option<[&'static str; 2]> {
        self.description().entity
    }

    pub(super) fn description(self) -> &'static Description {
        match self {
            Self::Activity => &activity::FEED,
            Self::Journey => &journey::FEED,
            Self::Queue => &queue::FEED,
            Self::Other => &Description::UNKNOWN,
        }
    }
}
