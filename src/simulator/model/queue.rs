//! Queues grow and shrink; their settings and opening hours change now and then.

use fastrand::Rng;
use time::{Duration, OffsetDateTime};

use super::{Fields, Message, clock, identifier, pick};
use crate::envelope::Feed;

const NAMES: [&str; 4] = ["Billing", "Fibre faults", "Orders", "Cancellations"];
/// What happens how often, after every queue has told all there is of it once.
const OFTEN: [&str; 12] = [
    "queue_size_updated",
    "queue_size_updated",
    "queue_size_updated",
    "queue_size_updated",
    "queue_estimated_wait_time_updated",
    "queue_estimated_wait_time_updated",
    "queue_availability_updated",
    "queue_info_updated",
    "business_hours_settings_updated",
    "holiday_settings_updated",
    "queue_capping_settings_updated",
    "queue_mitigation_updated",
];

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) id: String,
    pub(super) name: &'static str,
    size: u32,
    told: usize,
    data: Fields,
    details: Fields,
}

impl Queue {
    pub(super) fn all(random: &mut Rng) -> Vec<Self> {
        NAMES
            .into_iter()
            .map(|name| {
                let id = identifier(random);
                let mut data = Fields::default();
                data.set("queue_id", id.as_str());
                data.set("queue_name", name);
                Self { id, name, size: 0, told: 0, data, details: Fields::default() }
            })
            .collect()
    }

    pub(super) fn happen(&mut self, random: &mut Rng, now: OffsetDateTime) -> Message<'_> {
        let first = Feed::Queue.event_types().nth(self.told);
        self.told += 1;
        let event_type = first.unwrap_or_else(|| pick(random, &OFTEN));
        let Self { size, data, details, .. } = self;
        match event_type {
            "queue_size_updated" => {
                *size = size.saturating_add_signed(random.i32(-3..=4)).min(60);
                details.set("last_queue_size", *size);
                details.set("last_queue_size_ts", clock(now));
                details.set("last_queue_size_update_type", "UNKNOWN");
            }
            "queue_estimated_wait_time_updated" => {
                details.set("estimated_wait_time_updated_ts", clock(now));
                details.set("estimated_wait_time_seconds", *size * random.u32(20..60));
                details.set("estimated_wait_time_is_available", random.u8(..10) > 0);
            }
            "business_hours_settings_updated" => {
                let opens: Vec<u32> = (1..6).map(|day| day * 1440 + 480).collect();
                let closes: Vec<u32> = (1..6).map(|day| day * 1440 + 1200).collect();
                data.set("business_hours_time_zone_offset_minutes", 60);
                data.set("business_hours_time_zone_name", "Europe/Berlin");
                data.set("business_hours_start_minutes", opens);
                data.set("business_hours_end_minutes", closes);
            }
            "holiday_settings_updated" => {
                let midnight = now.replace_time(time::Time::MIDNIGHT);
                let days: Vec<String> = [20, 21, 90].map(|days| clock(midnight + Duration::days(days))).into();
                data.set("holiday_closed_dates", days);
            }
            "queue_capping_settings_updated" => {
                data.set("queue_capping_enabled", true);
                data.set("queue_capping_estimated_wait_time_seconds", 60 * random.u32(10..40));
                data.set("queue_capping_size", random.u32(30..60));
                data.set("queue_capping_fallback_size", random.u32(20..40));
            }
            "queue_mitigation_updated" => {
                data.set("mitigation_status", "UNKNOWN");
                details.set("queue_availability_is_closed_by_mitigation", random.u8(..8) == 0);
            }
            "queue_availability_updated" => {
                for (field, hours) in [
                    ("queue_availability_last_scheduled_open_ts", -6),
                    ("queue_availability_last_scheduled_close_ts", -18),
                    ("queue_availability_next_scheduled_open_ts", 18),
                    ("queue_availability_next_scheduled_close_ts", 6),
                ] {
                    data.set(field, clock(now + Duration::hours(hours)));
                }
                let capped = *size > 40;
                details.set("queue_availability_is_closed", capped);
                details.set("queue_availability_is_closed_by_business_hours", false);
                details.set("queue_availability_is_closed_by_holiday_settings", false);
                details.set("queue_availability_is_closed_by_estimated_wait_time_cap", false);
                details.set("queue_availability_is_closed_by_size_cap", capped);
                details.set("queue_availability_is_closed_by_fallback_size_cap", false);
                details.set("queue_availability_is_estimated_wait_time_after_closed_hours", false);
            }
            // `queue_info_updated`: the name is always there.
            _ => {}
        }
        Message { feed: Feed::Queue, event_type, session: None, data, details }
    }
}
