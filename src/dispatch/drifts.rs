//! The deviations from ASAPP's documentation that were seen, by name: for the log, and for `status`.
//!
//! A name is what a sender calls a field, a type of event or a feed; values are not kept. How many are kept, and how long
//! each is, has a bound, whatever senders make up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::envelope::{Drift, Kind, Path};

/// Deviations that are kept; a new one takes the place of the one seen longest ago.
const KEPT: usize = 50;
/// Characters of a name.
const LONGEST: usize = 64;

/// Those that were seen. Cheap to clone; the observer writes it, `status` reads it.
#[derive(Debug, Clone, Default)]
pub struct Drifts(Arc<Mutex<Vec<Seen>>>);

/// One deviation.
#[derive(Debug, Clone)]
pub struct Seen {
    pub feed: &'static str,
    pub kind: Kind,
    pub path: Path,
    name: Option<Name>,
    /// How often, of the events that were looked at.
    pub count: u64,
    /// When its first event came in, and its last.
    pub first: SystemTime,
    pub last: SystemTime,
}

/// As far as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clipped<'a> {
    text: &'a str,
    /// There was more.
    cut: bool,
}

#[derive(Debug, Clone)]
struct Name {
    text: Box<str>,
    cut: bool,
}

impl Drifts {
    /// Counts it; gives it if it was not among those kept.
    pub(super) fn note(&self, feed: &'static str, drift: Drift<'_>, at: SystemTime) -> Option<Seen> {
        let Drift { kind, path, name } = drift;
        let name = name.map(Clipped::of);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |seen: &&mut Seen| {
            let of_same_name = seen.name.as_ref().map(Name::clipped) == name;
            of_same_name && (seen.feed, seen.kind, seen.path) == (feed, kind, path)
        };
        if let Some(seen) = all.iter_mut().find(is_it) {
            seen.count += 1;
            seen.last = seen.last.max(at);
            return None;
        }
        if all.len() == KEPT
            && let Some((oldest, _)) = all.iter().enumerate().min_by_key(|(_, seen)| seen.last)
        {
            all.swap_remove(oldest);
        }
        let name = name.map(|name| Name { text: name.text.into(), cut: name.cut });
        let new = Seen { feed, kind, path, name, count: 1, first: at, last: at };
        all.push(new.clone());
        Some(new)
    }

    /// The newest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Seen> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_by_key(|seen| std::cmp::Reverse((seen.last, seen.first)));
        all
    }
}

impl Seen {
    /// What is not documented, for people; `None` where it is a value that is odd, and not a name. Nothing in it steers a
    /// terminal, or looks like something else.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let name = self.name.as_ref()?;
        let mut shown = String::new();
        for c in name.text.chars() {
            if (c.is_ascii_graphic() && c != '\\') || c == ' ' {
                shown.push(c);
            } else {
                shown.extend(c.escape_unicode());
            }
        }
        if name.cut {
            shown.push_str("...");
        }
        Some(shown)
    }
}

impl<'a> Clipped<'a> {
    fn of(name: &'a str) -> Self {
        match name.char_indices().nth(LONGEST) {
            Some((end, _)) => Self { text: name.get(..end).unwrap_or_default(), cut: true },
            None => Self { text: name, cut: false },
        }
    }
}

impl Name {
    fn clipped(&self) -> Clipped<'_> {
        Clipped { text: &self.text, cut: self.cut }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn field(name: &str) -> Drift<'_> {
        Drift { kind: Kind::Field, path: Path::default(), name: Some(name) }
    }

    fn after(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn each_is_new_once_and_counted_from_then_on() {
        let drifts = Drifts::default();
        assert!(drifts.note("queue", field("new"), after(1)).is_some());
        assert!(drifts.note("queue", field("new"), after(3)).is_none());
        assert!(drifts.note("journey", field("new"), after(2)).is_some(), "of another feed");
        let value = Drift { kind: Kind::Value, name: None, ..field("") };
        assert!(drifts.note("queue", value, after(4)).is_some());
        let shown: Vec<_> = drifts.recent().iter().map(|seen| (seen.feed, seen.name(), seen.count)).collect();
        let name = || Some("new".to_owned());
        assert_eq!(shown, [("queue", None, 1), ("queue", name(), 2), ("journey", name(), 1)]);
        let [_, new, _] = drifts.recent().try_into().unwrap();
        assert_eq!((new.first, new.last), (after(1), after(3)));
    }

    #[test]
    fn names_are_bounded_and_escaped() {
        let drifts = Drifts::default();
        let shown = |name: &str| drifts.note("queue", field(name), after(1)).unwrap().name().unwrap();
        assert_eq!(shown("a\u{1b}[2J\u{202e}\\\u{e9}\n"), "a\\u{1b}[2J\\u{202e}\\u{5c}\\u{e9}\\u{a}");
        assert_eq!(shown(&"x".repeat(64)), "x".repeat(64));
        assert_eq!(shown(&"x".repeat(65)), "x".repeat(64) + "...");
        assert!(drifts.note("queue", field(&"x".repeat(1_000_000)), after(1)).is_none(), "as far as it is kept");
        assert_eq!(shown(""), "");
    }

    #[test]
    fn however_many_names_are_made_up_few_are_kept_and_the_busy_ones_stay() {
        let drifts = Drifts::default();
        for number in 0..1_000 {
            drifts.note("queue", field("steady"), after(number));
            drifts.note("queue", field(&number.to_string()), after(number));
        }
        let recent = drifts.recent();
        assert_eq!(recent.len(), KEPT);
        assert!(recent.iter().any(|seen| seen.name().as_deref() == Some("steady") && seen.count == 1_000));
    }
}
