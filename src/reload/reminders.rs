//! When the log says that certificates and revocation lists end: once a day from some time before, and when they have
//! ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::tls::Expiry;

const EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was logged of each, and when.
#[derive(Debug, Default)]
pub(super) struct Reminders(BTreeMap<Meant, Logged>);

/// Key, file and subject of a certificate or list, and its end: its successor is another matter, and of one subject there
/// may be several.
type Meant = (String, PathBuf, String, SystemTime);

#[derive(Debug, Clone, Copy)]
struct Logged {
    was_over: bool,
    at: SystemTime,
}

impl Reminders {
    /// Those of `all` that are to be logged `now`. What is not among `all` any more is forgotten.
    pub(super) fn due(&mut self, all: Vec<Expiry>, now: SystemTime) -> Vec<Expiry> {
        let mut kept = BTreeMap::new();
        let mut due = Vec::new();
        for expiry in all.into_iter().filter(|expiry| expiry.ends_soon(now)) {
            let key = (expiry.key.clone(), expiry.file.clone(), expiry.subject.clone(), expiry.at);
            let new = Logged { was_over: expiry.is_over(now), at: now };
            let last = self.0.get(&key).filter(|last| last.was_over == new.was_over);
            // A clock that was set back begins anew.
            let recent = last.filter(|last| now.duration_since(last.at).is_ok_and(|passed| passed < EVERY));
            kept.insert(key, recent.copied().unwrap_or(new));
            if recent.is_none() {
                due.push(expiry);
            }
        }
        self.0 = kept;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn ending(subject: &str, at: SystemTime) -> Expiry {
        let soon = 14 * DAY;
        Expiry { key: "tls.certificate".to_owned(), file: PathBuf::new(), subject: subject.to_owned(), at, soon }
    }

    #[test]
    fn an_end_is_logged_once_a_day_and_when_it_has_come() {
        let end = SystemTime::UNIX_EPOCH + 100 * DAY;
        let mut reminders = Reminders::default();
        let mut logged = |now: SystemTime| reminders.due(vec![ending("one", end)], now).len();
        assert_eq!(logged(end - 15 * DAY), 0);
        assert_eq!(logged(end - 14 * DAY), 1);
        let hours = (1..24 * 14).map(|hour| logged(end - 14 * DAY + hour * HOUR)).sum::<usize>();
        assert_eq!(hours, 13, "one a day");
        assert_eq!(logged(end), 1, "at the end");
        assert_eq!(logged(end + HOUR), 0);
        assert_eq!(logged(end + DAY), 1, "and daily after it");
        assert_eq!(logged(end - DAY), 1, "a clock that was set back");
    }

    #[test]
    fn each_is_logged_for_itself_and_a_successor_anew() {
        let end = SystemTime::UNIX_EPOCH + 100 * DAY;
        let now = end - DAY;
        let mut reminders = Reminders::default();
        let due = |reminders: &mut Reminders, all: &[(&str, SystemTime)]| {
            reminders.due(all.iter().map(|(name, at)| ending(name, *at)).collect(), now).len()
        };
        assert_eq!(due(&mut reminders, &[("one", end), ("two", end)]), 2);
        assert_eq!(due(&mut reminders, &[("one", end), ("two", end + HOUR)]), 1);
        assert_eq!(due(&mut reminders, &[("one", end + 30 * DAY), ("two", end + HOUR)]), 0);
        assert_eq!(due(&mut reminders, &[("one", end), ("two", end + HOUR)]), 1);
        assert_eq!(due(&mut reminders, &[("one", end), ("one", end + HOUR)]), 1, "as two lists of one CA");
        assert_eq!(due(&mut reminders, &[("one", end), ("one", end + HOUR)]), 0);
    }
}
