//! When each event is due.

use std::time::Duration;

use super::model::ISSUES_PER_MINUTE;

/// One of two: a rate that is asked for, or the traffic of a company of some size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Events a second, evenly spaced, however fast the simulated company has to live for it.
    Rate(f64),
    /// Issues of the company begin at random, so many a minute on average; its clock, and with it the events' own times,
    /// runs `speed` times as fast as the real one.
    Company { issues_per_minute: f64, speed: f64 },
}

/// Both count from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// When to send it.
    pub(super) sent: Duration,
    /// When it happens, by the events' own times.
    pub(super) happens: Duration,
}

impl Pace {
    /// How busy the company is. At a rate this changes only what is made up, not how much.
    pub(super) fn issues_per_minute(self) -> f64 {
        match self {
            Self::Rate(_) => ISSUES_PER_MINUTE,
            Self::Company { issues_per_minute, .. } => issues_per_minute,
        }
    }

    /// When the event after `before` others is due, which happens at `at` by the company's clock; `None` is never.
    pub(super) fn due(self, before: u64, at: Duration) -> Option<Due> {
        match self {
            Self::Rate(rate) => {
                let due = Duration::try_from_secs_f64(count(before) / rate).ok()?;
                Some(Due { sent: due, happens: due })
            }
            Self::Company { speed, .. } => {
                let due = Duration::try_from_secs_f64(at.as_secs_f64() / speed).ok()?;
                Some(Due { sent: due, happens: at })
            }
        }
    }

    /// Events a second that are asked for, when `events` of them were due, the last one `last` after the start.
    pub(super) fn asked(self, events: u64, last: Duration) -> f64 {
        match self {
            Self::Rate(rate) => rate,
            Self::Company { .. } => per_second(events, last),
        }
    }
}

/// 0 when there was no time.
pub(super) fn per_second(events: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count(events) / time.as_secs_f64() }
}

/// Exact for as many events as anyone will wait for.
#[allow(clippy::cast_precision_loss)]
fn count(events: u64) -> f64 {
    events as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_even_and_exact_to_the_end() {
        let pace = Pace::Rate(30_000.0);
        let due = |before| pace.due(before, Duration::from_secs(7)).unwrap().sent;
        assert_eq!(due(0), Duration::ZERO);
        assert_eq!(due(3), Duration::from_micros(100));
        // Ten days on, not a microsecond has been lost.
        assert_eq!(due(30_000 * 864_000), Duration::from_secs(864_000));
        assert_eq!(pace.due(9, Duration::ZERO).unwrap().happens, due(9));
        assert_eq!(pace.asked(10, Duration::ZERO), 30_000.0);
    }

    #[test]
    fn a_company_s_clock_may_run_faster_than_the_real_one() {
        let pace = Pace::Company { issues_per_minute: 60.0, speed: 20.0 };
        let due = pace.due(99, Duration::from_secs(60)).unwrap();
        assert_eq!((due.sent, due.happens), (Duration::from_secs(3), Duration::from_secs(60)));
        assert_eq!(pace.issues_per_minute(), 60.0);
        assert_eq!(pace.asked(30, due.sent), 10.0);
    }
}
