//! Agents: who they are, their status, their load.

use super::description::Type::{Id, List, Number, Object, OneOf, Text, Time};
use super::description::{Description, Field, Group, field};

pub(super) const FEED: Description = Description::new(["data", "rep_id"], EVENT_TYPES, DATA, DETAILS);

const EVENT_TYPES: &[&str] = &[
    "UNKNOWN",
    "agent_activity_identity_updated",
    "agent_activity_status_updated",
    "agent_activity_capacity_updated",
    "agent_activity_assignment_load_updated",
    "agent_activity_routing_status_updated",
    "agent_activity_previous_routing_status",
    "agent_activity_queue_membership",
    "agent_activity_utilization_5_min",
];

const STATUS: Group = Group::new("status", Some("status_updated_ts"));
const ROUTING: Group = Group::new("routing", Some("routing_status_updated_ts"));
const LOAD: Group = Group::new("load", Some("assignment_load_updated_ts"));
const PREVIOUS_ROUTING: Group = Group::new("previous_routing", Some("previous_routing_status_updated_ts"));
const UTILIZATION: Group = Group::new("utilization", Some("utilization_5_min_updated_ts"));

/// An agent.
const DATA: &[Field] = &[
    // ASAPP's identifier of an agent.
    field("rep_id", Id),
    field("desk_mode", OneOf(&["UNKNOWN"])),
    field("rep_name", Text),
    field("agent_given_name", Text),
    field("agent_family_name", Text),
    field("agent_display_name", Text),
    field("external_rep_id", Id),
    field("max_slots", Number),
    field("queue_ids", List(&Id)),
    field("queue_names", List(&Text)),
];

/// Whatever is known of the agent so far.
const DETAILS: &[Field] = &[
    STATUS.field("status_updated_ts", Time),
    STATUS.field("status_description", Text),
    ROUTING.field("routing_status_updated_ts", Time),
    ROUTING.field("routing_status", OneOf(ROUTING_STATUS)),
    LOAD.field("assignment_load_updated_ts", Time),
    LOAD.field("assigned_customer_ct", Number),
    PREVIOUS_ROUTING.field("previous_routing_status_updated_ts", Time),
    PREVIOUS_ROUTING.field("previous_routing_status", OneOf(ROUTING_STATUS)),
    PREVIOUS_ROUTING.field("previous_routing_status_duration_sec", Number),
    PREVIOUS_ROUTING.field("previous_routing_status_start_ts", Time),
    UTILIZATION.field("utilization_5_min_updated_ts", Time),
    UTILIZATION.field("utilization_5_min_window_start_ts", Time),
    UTILIZATION.field("utilization_5_min_window_end_ts", Time),
    UTILIZATION.field("utilization_5_min_any_status", Object(WINDOW)),
    UTILIZATION.field("utilization_5_min_active", Object(WINDOW)),
    UTILIZATION.field("utilization_5_min_away", Object(WINDOW)),
    UTILIZATION.field("utilization_5_min_offline", Object(WINDOW)),
    UTILIZATION.field("utilization_5_min_wrapping_up", Object(WINDOW)),
];

/// Seconds within the window.
const WINDOW: &[Field] = &[
    field("linear_sec", Number),
    field("linear_utilized_sec", Number),
    field("cumulative_sec", Number),
    field("cumulative_utilized_sec", Number),
];

/// `UNKNOWN` is in the sample; the others are named by the utilization fields.
const ROUTING_STATUS: &[&str] = &["UNKNOWN", "ACTIVE", "AWAY", "OFFLINE", "WRAPPING_UP"];
