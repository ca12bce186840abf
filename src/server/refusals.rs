//! How often refused clients are told: anyone can make refusals by the thousand, and the log must outlive that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line in this time for each reason.
const EVERY: Duration = Duration::from_secs(10);

/// When each reason was told last, and how many refusals were not told since.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<&'static str, (Instant, u64)>>);

impl Refusals {
    /// How many refusals for this reason were kept quiet before this one; `None` if this one is to be, too.
    pub(super) fn tell(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((last, quiet)) = told.get_mut(reason) else {
            told.insert(reason, (now, 0));
            return Some(0);
        };
        if now.saturating_duration_since(*last) < EVERY {
            *quiet += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(quiet))
    }
}

#[cfg(test)]
mod tests {
    use super::{EVERY, Refusals};
    use std::time::{Duration, Instant};

    #[test]
    fn a_reason_is_told_once_in_a_while_with_what_came_between() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.tell("identity", start), Some(0));
        assert_eq!(refusals.tell("identity", start + Duration::from_secs(1)), None);
        assert_eq!(refusals.tell("no-certificate", start + Duration::from_secs(1)), Some(0));
        assert_eq!(refusals.tell("identity", start + EVERY - Duration::from_millis(1)), None);
        assert_eq!(refusals.tell("identity", start + EVERY), Some(2));
        assert_eq!(refusals.tell("identity", start + EVERY * 2), Some(0));
    }
}
