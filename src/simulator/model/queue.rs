//! Queues grow and shrink, open and close, get capped; now and then their settings change.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use time::OffsetDateTime;

use super::agenda::{Agenda, QueueAct, Ticket, Turn};
use super::chance::{between, pause};
use super::message::{Clock, Event, Moment, Story, identifier};
use crate::envelope::Feed;

const DAY: u64 = 86_400;
const ZONES: [(&str, i64); 3] = [("Europe/Berlin", 60), ("Etc/UTC", 0), ("America/Halifax", -240)];
/// Fewer assignments than this are not enough data for an estimate.
const ENOUGH: u32 = 3;

#[derive(Debug)]
pub(super) struct Queue {
    me: usize,
    pub(super) id: String,
    pub(super) name: &'static str,
    size: u64,
    /// Slots of the agents that serve it now.
    pub(super) slots: u64,
    /// Those of them with a free slot, the least busy and longest idle first.
    pub(super) free: BTreeSet<(u32, Ticket, usize)>,
    /// Issues that an agent may take, the one that waits longest first, among them some that have left.
    pub(super) waiting: VecDeque<(Ticket, usize)>,
    handled: u32,
    mean_handle: Duration,
    /// Without them it is always open.
    hours: Option<Hours>,
    caps: Caps,
    mitigated: bool,
    /// What was told last of what is told when it changes.
    told: (Option<u64>, Closed),
    size_due: bool,
    estimate_due: bool,
    availability_due: bool,
    zone: (&'static str, i64),
    story: Story,
}

/// It opens once a day.
#[derive(Debug)]
struct Hours {
    /// For how long it was open at the start, in seconds.
    before: u64,
    /// For how long it is open, in seconds.
    open: u64,
}

#[derive(Debug)]
struct Caps {
    enabled: bool,
    wait_seconds: u64,
    size: u64,
    fallback_size: u64,
}

/// Why a queue is closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Closed {
    hours: bool,
    wait: bool,
    size: bool,
    fallback: bool,
    mitigation: bool,
}

impl Queue {
    /// `slots` is what the staff can be expected to have for it.
    pub(super) fn new(random: &mut Rng, me: usize, name: &'static str, always_open: bool, slots: u64) -> Self {
        let id = identifier(random);
        let mut story = Story::new(Feed::Queue);
        story.data.set("queue_id", &id);
        story.data.set("queue_name", name);
        let hours = Hours { before: random.u64(3600..6 * 3600), open: 60 * random.u64(9 * 60..14 * 60) };
        let mut queue = Self {
            me,
            id,
            name,
            size: 0,
            slots: 0,
            free: BTreeSet::new(),
            waiting: VecDeque::new(),
            handled: 0,
            mean_handle: Duration::ZERO,
            hours: (!always_open).then_some(hours),
            caps: Caps { enabled: true, wait_seconds: 0, size: slots.max(5), fallback_size: (slots * 2 / 3).max(3) },
            mitigated: false,
            told: (None, Closed::default()),
            size_due: false,
            estimate_due: false,
            availability_due: false,
            zone: ZONES[me % ZONES.len()],
            story,
        };
        queue.caps.wait_seconds = 60 * random.u64(8..15);
        queue
    }

    /// Lets the queue tell all there is of it once, at this pace, and begin its days.
    pub(super) fn begin(&mut self, random: &mut Rng, agenda: &mut Agenda, pace: f64) {
        let acts = [
            QueueAct::Info,
            QueueAct::Size,
            QueueAct::Hours,
            QueueAct::Capping,
            QueueAct::Availability,
            QueueAct::Estimate,
            QueueAct::Holidays,
            QueueAct::Mitigation(false),
        ];
        let mut delay = Duration::from_secs(2 + 40 * self.me as u64);
        for act in acts {
            agenda.after(delay.mul_f64(pace), Turn::Queue(self.me, act));
            delay += pause(random, 10.0);
        }
        agenda.after(between(random, 20, 60), Turn::Queue(self.me, QueueAct::Upkeep));
        self.await_boundary(agenda);
    }

    /// Whether it takes no issues. It holds to what it told last.
    pub(super) fn is_closed(&self) -> bool {
        self.told.1 != Closed::default()
    }

    pub(super) fn entered(&mut self, agenda: &mut Agenda) {
        self.size += 1;
        self.size_changed(agenda);
    }

    pub(super) fn left(&mut self, agenda: &mut Agenda) {
        self.size -= 1;
        self.size_changed(agenda);
    }

    /// An issue of this queue took an agent so long.
    pub(super) fn handled(&mut self, time: Duration) {
        self.mean_handle = if self.handled == 0 { time } else { (self.mean_handle * 7 + time) / 8 };
        self.handled = self.handled.saturating_add(1);
    }

    pub(super) fn tell(&mut self, act: QueueAct, random: &mut Rng, agenda: &mut Agenda, moment: Moment) -> Event {
        let moment = self.story.moment(moment);
        let at = Clock(moment.happened);
        let event_type = match act {
            QueueAct::Info => "queue_info_updated",
            QueueAct::Hours => {
                self.tell_hours(moment);
                "business_hours_settings_updated"
            }
            QueueAct::Holidays => {
                let midnight = moment.start.replace_time(time::Time::MIDNIGHT);
                let days = [20, 21, 90].map(|days| Clock(midnight + time::Duration::days(days)));
                self.story.data.set("holiday_closed_dates", days);
                "holiday_settings_updated"
            }
            QueueAct::Capping => {
                self.tell_capping();
                "queue_capping_settings_updated"
            }
            QueueAct::Mitigation(closes) => {
                self.mitigated = closes;
                self.story.data.set("mitigation_status", "UNKNOWN");
                self.story.details.set("queue_availability_is_closed_by_mitigation", closes);
                "queue_mitigation_updated"
            }
            QueueAct::Size => {
                self.size_due = false;
                self.story.details.set("last_queue_size", self.size);
                self.story.details.set("last_queue_size_ts", at);
                self.story.details.set("last_queue_size_update_type", "UNKNOWN");
                "queue_size_updated"
            }
            QueueAct::Estimate => {
                self.tell_estimate(at);
                "queue_estimated_wait_time_updated"
            }
            QueueAct::Availability => {
                self.tell_availability(agenda, moment);
                "queue_availability_updated"
            }
            QueueAct::Upkeep => {
                agenda.after(between(random, 20, 60), Turn::Queue(self.me, QueueAct::Upkeep));
                return self.upkeep(random, agenda, moment);
            }
        };
        self.tell_what_follows(agenda);
        self.story.event(event_type, random, moment)
    }

    fn upkeep(&mut self, random: &mut Rng, agenda: &mut Agenda, moment: Moment) -> Event {
        let act = match random.u8(..6) {
            0 => QueueAct::Info,
            1 => QueueAct::Hours,
            2 => QueueAct::Holidays,
            3 | 4 => {
                self.caps.enabled = random.u8(..8) > 0;
                self.caps.wait_seconds = 60 * random.u64(8..15);
                QueueAct::Capping
            }
            // Of the queues that are always open none is ever wholly closed, so that issues always find one.
            _ if self.hours.is_none() => QueueAct::Info,
            _ => {
                agenda.after(between(random, 4, 12), Turn::Queue(self.me, QueueAct::Mitigation(false)));
                QueueAct::Mitigation(true)
            }
        };
        self.tell(act, random, agenda, moment)
    }

    fn tell_hours(&mut self, moment: Moment) {
        let (zone, offset) = self.zone;
        let day = 1440;
        let (starts, ends) = match &self.hours {
            None => (vec![0], vec![7 * day]),
            Some(hours) => {
                let opens = moment.start - Duration::from_secs(hours.before);
                let minute = i64::from(opens.hour()) * 60 + i64::from(opens.minute()) + offset;
                let length = i64::try_from(hours.open / 60).unwrap_or_default();
                let week = |minute: i64| {
                    let mut minutes: Vec<_> = (0..7).map(|n| (n * day + minute).rem_euclid(7 * day)).collect();
                    minutes.sort_unstable();
                    minutes
                };
                (week(minute), week(minute + length))
            }
        };
        let data = &mut self.story.data;
        data.set("business_hours_time_zone_offset_minutes", offset);
        data.set("business_hours_time_zone_name", zone);
        data.set("business_hours_start_minutes", starts);
        data.set("business_hours_end_minutes", ends);
    }

    fn tell_capping(&mut self) {
        let (data, caps) = (&mut self.story.data, &self.caps);
        data.set("queue_capping_enabled", caps.enabled);
        data.set("queue_capping_estimated_wait_time_seconds", caps.wait_seconds);
        data.set("queue_capping_size", caps.size);
        data.set("queue_capping_fallback_size", caps.fallback_size);
    }

    fn tell_estimate(&mut self, at: Clock) {
        self.estimate_due = false;
        let estimate = self.estimate();
        self.told.0 = estimate;
        let details = &mut self.story.details;
        details.set("estimated_wait_time_updated_ts", at);
        details.set("estimated_wait_time_is_available", estimate.is_some());
        if let Some(seconds) = estimate {
            details.set("estimated_wait_time_seconds", seconds);
        }
    }

    fn tell_availability(&mut self, agenda: &mut Agenda, moment: Moment) {
        self.availability_due = false;
        let now = agenda.now();
        let closed = self.closed(now);
        let mut too_late = false;
        if let Some(hours) = &self.hours {
            let into_day = Duration::from_secs((now.as_secs() + hours.before) % DAY);
            let (day, open) = (Duration::from_secs(DAY), Duration::from_secs(hours.open));
            let opened = moment.happened - into_day;
            let closes = if into_day < open { opened + open } else { opened + open + day };
            let data = &mut self.story.data;
            data.set("queue_availability_last_scheduled_open_ts", minute(opened));
            data.set("queue_availability_last_scheduled_close_ts", minute(closes - day));
            data.set("queue_availability_next_scheduled_open_ts", minute(opened + day));
            data.set("queue_availability_next_scheduled_close_ts", minute(closes));
            let wait = Duration::from_secs(self.estimate().unwrap_or_default());
            too_late = moment.happened + wait > closes;
            if self.told.1.hours != closed.hours {
                self.await_boundary(agenda);
            }
        }
        self.told.1 = closed;
        let details = &mut self.story.details;
        for (field, value) in [
            ("queue_availability_is_closed", closed != Closed::default()),
            ("queue_availability_is_closed_by_business_hours", closed.hours),
            ("queue_availability_is_closed_by_holiday_settings", false),
            ("queue_availability_is_closed_by_estimated_wait_time_cap", closed.wait),
            ("queue_availability_is_closed_by_size_cap", closed.size),
            ("queue_availability_is_closed_by_fallback_size_cap", closed.fallback),
            ("queue_availability_is_closed_by_mitigation", closed.mitigation),
            ("queue_availability_is_estimated_wait_time_after_closed_hours", too_late),
        ] {
            details.set(field, value);
        }
    }

    /// Seconds that a customer at the end can expect to wait, if there is enough data for an estimate.
    fn estimate(&self) -> Option<u64> {
        let enough = self.handled >= ENOUGH && self.slots > 0;
        enough.then(|| self.mean_handle.as_secs() * self.size / self.slots)
    }

    fn closed(&self, now: Duration) -> Closed {
        let Caps { enabled, wait_seconds, size, fallback_size } = self.caps;
        let estimate = self.estimate();
        Closed {
            hours: self.hours.as_ref().is_some_and(|hours| (now.as_secs() + hours.before) % DAY >= hours.open),
            wait: enabled && estimate.is_some_and(|seconds| seconds > wait_seconds),
            size: enabled && self.size >= size,
            fallback: enabled && estimate.is_none() && self.size >= fallback_size,
            mitigation: self.mitigated,
        }
    }

    fn size_changed(&mut self, agenda: &mut Agenda) {
        if !std::mem::replace(&mut self.size_due, true) {
            agenda.after(Duration::from_millis(10), Turn::Queue(self.me, QueueAct::Size));
        }
    }

    /// An estimate that has changed by a tenth, and a queue that has opened or closed.
    fn tell_what_follows(&mut self, agenda: &mut Agenda) {
        let estimate = self.estimate();
        let changed = match (self.told.0, estimate) {
            (Some(told), Some(estimate)) => told.abs_diff(estimate) * 10 > told,
            (told, estimate) => told.is_some() != estimate.is_some(),
        };
        if changed && !std::mem::replace(&mut self.estimate_due, true) {
            agenda.after(Duration::from_millis(200), Turn::Queue(self.me, QueueAct::Estimate));
        }
        if self.told.1 != self.closed(agenda.now()) && !std::mem::replace(&mut self.availability_due, true) {
            agenda.after(Duration::from_millis(20), Turn::Queue(self.me, QueueAct::Availability));
        }
    }

    /// Tells when it opens or closes next.
    fn await_boundary(&self, agenda: &mut Agenda) {
        let Some(hours) = &self.hours else { return };
        let now = agenda.now();
        let into_day = (now.as_secs() + hours.before) % DAY;
        let boundary = if into_day < hours.open { hours.open } else { DAY };
        let at = Duration::from_secs(now.as_secs() + boundary - into_day);
        agenda.after(at.saturating_sub(now), Turn::Queue(self.me, QueueAct::Availability));
    }
}

/// The nearest full minute.
fn minute(time: OffsetDateTime) -> Clock {
    let half = time + Duration::from_secs(30);
    Clock(half.truncate_to_minute())
}
