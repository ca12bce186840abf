//! Queues: how long they are, how long they take, when they are open.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::read::{Number, open, record};

record! {
    /// A queue and its settings.
    pub struct Data<'a> {
        /// ASAPP's identifier of the queue.
        queue_id: Cow<'a, str>,
        queue_name: Cow<'a, str>,
        business_hours_time_zone_offset_minutes: Number<'a>,
        business_hours_time_zone_name: Cow<'a, str>,
        /// Minutes from Sunday, 0:00, at which the queue opens.
        business_hours_start_minutes: Vec<Number<'a>>,
        /// Minutes from Sunday, 0:00, at which the queue closes.
        business_hours_end_minutes: Vec<Number<'a>>,
        holiday_closed_dates: Vec<OffsetDateTime>,
        queue_capping_enabled: bool,
        /// Zero is no threshold.
        queue_capping_estimated_wait_time_seconds: Number<'a>,
        /// Zero is no threshold; applies whatever the estimated wait time.
        queue_capping_size: Number<'a>,
        /// Zero is no threshold; applies while there is no estimated wait time.
        queue_capping_fallback_size: Number<'a>,
        mitigation_status: MitigationStatus<'a>,
        queue_availability_last_scheduled_open_ts: OffsetDateTime,
        queue_availability_last_scheduled_close_ts: OffsetDateTime,
        queue_availability_next_scheduled_open_ts: OffsetDateTime,
        queue_availability_next_scheduled_close_ts: OffsetDateTime,
    }
}

record! {
    /// The state of the queue.
    pub struct Details<'a> {
        last_queue_size: Number<'a>,
        last_queue_size_ts: OffsetDateTime,
        last_queue_size_update_type: SizeUpdateType<'a>,
        estimated_wait_time_updated_ts: OffsetDateTime,
        /// What a customer at the end of the queue can expect to wait.
        estimated_wait_time_seconds: Number<'a>,
        /// Whether there is enough data for an estimate.
        estimated_wait_time_is_available: bool,
        queue_availability_is_closed: bool,
        queue_availability_is_closed_by_business_hours: bool,
        queue_availability_is_closed_by_holiday_settings: bool,
        queue_availability_is_closed_by_estimated_wait_time_cap: bool,
        queue_availability_is_closed_by_size_cap: bool,
        queue_availability_is_closed_by_fallback_size_cap: bool,
        queue_availability_is_closed_by_mitigation: bool,
        queue_availability_is_estimated_wait_time_after_closed_hours: bool,
    }
}

open! {
    pub enum MitigationStatus<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum SizeUpdateType<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum Type<'a>: EventType {
        Unknown = "UNKNOWN",
        QueueInfoUpdated = "queue_info_updated",
        QueueSizeUpdated = "queue_size_updated",
        QueueEstimatedWaitTimeUpdated = "queue_estimated_wait_time_updated",
        BusinessHoursSettingsUpdated = "business_hours_settings_updated",
        HolidaySettingsUpdated = "holiday_settings_updated",
        QueueCappingSettingsUpdated = "queue_capping_settings_updated",
        QueueMitigationUpdated = "queue_mitigation_updated",
        QueueAvailabilityUpdated = "queue_availability_updated",
    }
}
