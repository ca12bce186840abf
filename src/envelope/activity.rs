//! Agents: who they are, their status, their load.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::read::{Number, open, record};

record! {
    /// An agent.
    pub struct Data<'a> {
        /// ASAPP's identifier of an agent.
        rep_id: Cow<'a, str>,
        desk_mode: DeskMode<'a>,
        rep_name: Cow<'a, str>,
        agent_given_name: Cow<'a, str>,
        agent_family_name: Cow<'a, str>,
        agent_display_name: Cow<'a, str>,
        external_rep_id: Cow<'a, str>,
        max_slots: Number<'a>,
        queue_ids: Vec<Cow<'a, str>>,
        queue_names: Vec<Cow<'a, str>>,
    }
}

record! {
    /// Whatever is known of the agent so far.
    pub struct Details<'a> {
        status_updated_ts: OffsetDateTime,
        status_description: Cow<'a, str>,
        routing_status_updated_ts: OffsetDateTime,
        routing_status: RoutingStatus<'a>,
        assignment_load_updated_ts: OffsetDateTime,
        assigned_customer_ct: Number<'a>,
        previous_routing_status_updated_ts: OffsetDateTime,
        previous_routing_status: RoutingStatus<'a>,
        previous_routing_status_duration_sec: Number<'a>,
        previous_routing_status_start_ts: OffsetDateTime,
        utilization_5_min_updated_ts: OffsetDateTime,
        utilization_5_min_window_start_ts: OffsetDateTime,
        utilization_5_min_window_end_ts: OffsetDateTime,
        utilization_5_min_any_status: Utilization<'a>,
        utilization_5_min_active: Utilization<'a>,
        utilization_5_min_away: Utilization<'a>,
        utilization_5_min_offline: Utilization<'a>,
        utilization_5_min_wrapping_up: Utilization<'a>,
    }
}

record! {
    /// Seconds within the window.
    pub struct Utilization<'a> {
        linear_sec: Number<'a>,
        linear_utilized_sec: Number<'a>,
        cumulative_sec: Number<'a>,
        cumulative_utilized_sec: Number<'a>,
    }
}

open! {
    /// `UNKNOWN` is in the sample; the others are named by the utilization fields.
    pub enum RoutingStatus<'a> {
        Unknown = "UNKNOWN",
        Active = "ACTIVE",
        Away = "AWAY",
        Offline = "OFFLINE",
        WrappingUp = "WRAPPING_UP",
    }
}

open! {
    pub enum DeskMode<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum Type<'a>: EventType {
        Unknown = "UNKNOWN",
        AgentActivityIdentityUpdated = "agent_activity_identity_updated",
        AgentActivityStatusUpdated = "agent_activity_status_updated",
        AgentActivityCapacityUpdated = "agent_activity_capacity_updated",
        AgentActivityAssignmentLoadUpdated = "agent_activity_assignment_load_updated",
        AgentActivityRoutingStatusUpdated = "agent_activity_routing_status_updated",
        AgentActivityPreviousRoutingStatus = "agent_activity_previous_routing_status",
        AgentActivityQueueMembership = "agent_activity_queue_membership",
        AgentActivityUtilization5Min = "agent_activity_utilization_5_min",
    }
}
