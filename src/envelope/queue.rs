//! Queues: how long they are, how long they take, when they are open.

use super::description::Type::{Boolean, Id, List, Number, OneOf, Text, Time};
use super::description::{Description, Field, Group, field};

pub(super) const FEED: Description = Description::new(["data", "queue_id"], EVENT_TYPES, DATA, DETAILS);

const EVENT_TYPES: &[&str] = &[
    "UNKNOWN",
    "queue_info_updated",
    "queue_size_updated",
    "queue_estimated_wait_time_updated",
    "business_hours_settings_updated",
    "holiday_settings_updated",
    "queue_capping_settings_updated",
    "queue_mitigation_updated",
    "queue_availability_updated",
];

const SIZE: Group = Group::new("size", Some("last_queue_size_ts"));
const WAIT: Group = Group::new("wait", Some("estimated_wait_time_updated_ts"));
const AVAILABILITY: Group = Group::new("availability", None);

/// A queue and its settings.
const DATA: &[Field] = &[
    // ASAPP's identifier of the queue.
    field("queue_id", Id),
    field("queue_name", Text),
    field("business_hours_time_zone_offset_minutes", Number),
    field("business_hours_time_zone_name", Text),
    // Minutes from Sunday, 0:00, at which the queue opens.
    field("business_hours_start_minutes", List(&Number)),
    // Minutes from Sunday, 0:00, at which the queue closes.
    field("business_hours_end_minutes", List(&Number)),
    field("holiday_closed_dates", List(&Time)),
    field("queue_capping_enabled", Boolean),
    // Zero is no threshold.
    field("queue_capping_estimated_wait_time_seconds", Number),
    // Zero is no threshold; applies whatever the estimated wait time.
    field("queue_capping_size", Number),
    // Zero is no threshold; applies while there is no estimated wait time.
    field("queue_capping_fallback_size", Number),
    field("mitigation_status", OneOf(&["UNKNOWN"])),
    field("queue_availability_last_scheduled_open_ts", Time),
    field("queue_availability_last_scheduled_close_ts", Time),
    field("queue_availability_next_scheduled_open_ts", Time),
    field("queue_availability_next_scheduled_close_ts", Time),
];

/// The state of the queue.
const DETAILS: &[Field] = &[
    SIZE.field("last_queue_size", Number),
    SIZE.field("last_queue_size_ts", Time),
    SIZE.field("last_queue_size_update_type", OneOf(&["UNKNOWN"])),
    WAIT.field("estimated_wait_time_updated_ts", Time),
    // What a customer at the end of the queue can expect to wait.
    WAIT.field("estimated_wait_time_seconds", Number),
    // Whether there is enough data for an estimate.
    WAIT.field("estimated_wait_time_is_available", Boolean),
    AVAILABILITY.field("queue_availability_is_closed", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_business_hours", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_holiday_settings", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_estimated_wait_time_cap", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_size_cap", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_fallback_size_cap", Boolean),
    AVAILABILITY.field("queue_availability_is_closed_by_mitigation", Boolean),
    AVAILABILITY.field("queue_availability_is_estimated_wait_time_after_closed_hours", Boolean),
];
