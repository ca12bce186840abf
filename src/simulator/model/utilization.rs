//! What an agent did in the last five minutes.

use std::ops::AddAssign;
use std::time::Duration;

use serde::Serialize;

pub(super) const WINDOW: Duration = Duration::from_mins(5);

/// Seconds an agent spent. Linear seconds are those of the agent, cumulative ones those of the agent's slots; utilized
/// is the agent while at least one issue is assigned, a slot while one is assigned to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Seconds {
    linear_sec: u64,
    linear_utilized_sec: u64,
    cumulative_sec: u64,
    cumulative_utilized_sec: u64,
}

/// The window under way. A second belongs to what the agent did at its end, so sums are exact.
#[derive(Debug, Default)]
pub(super) struct Window {
    until: Duration,
    spent: [Seconds; 4],
}

impl Window {
    /// A window that ends `left` from now. What of it is past was spent in the status at this index.
    pub(super) fn opened(now: Duration, left: Duration, status: usize, slots: u32) -> Self {
        let mut window = Self { until: now, ..Self::default() };
        let end = (now + left).as_secs();
        window.spent[status] = Seconds::spent(WINDOW.as_secs().saturating_sub(end - now.as_secs()), slots, 0);
        window
    }

    /// Up to now, the agent was in the status at this index, with so many slots and issues.
    pub(super) fn spend(&mut self, now: Duration, status: usize, slots: u32, load: u32) {
        self.spent[status] += Seconds::spent(now.as_secs() - self.until.as_secs(), slots, load);
        self.until = now;
    }

    /// Ends the window: the seconds in each status, and in any. The next one begins.
    pub(super) fn end(&mut self) -> ([Seconds; 4], Seconds) {
        let spent = std::mem::take(&mut self.spent);
        let mut any = Seconds::default();
        spent.into_iter().for_each(|seconds| any += seconds);
        (spent, any)
    }
}

impl Seconds {
    fn spent(seconds: u64, slots: u32, load: u32) -> Self {
        Self {
            linear_sec: seconds,
            linear_utilized_sec: if load > 0 { seconds } else { 0 },
            cumulative_sec: seconds * u64::from(slots),
            cumulative_utilized_sec: seconds * u64::from(load),
        }
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.linear_sec += other.linear_sec;
        self.linear_utilized_sec += other.linear_utilized_sec;
        self.cumulative_sec += other.cumulative_sec;
        self.cumulative_utilized_sec += other.cumulative_utilized_sec;
    }
}
