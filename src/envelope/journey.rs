//! Conversations: milestones of a customer's journey.

use super::description::Type::{Boolean, Id, List, Named, Number, Object, OneOf, Text, Time};
use super::description::{Description, Field, Group, field};

pub(super) const FEED: Description = Description::new(["meta_data", "issue_id"], EVENT_TYPES, DATA, DETAILS);

const EVENT_TYPES: &[&str] = &[
    "ISSUE_CREATED",
    "ISSUE_ENDED",
    "INTENT_CHANGE",
    "FIRST_INTENT_UPDATED",
    "INTENT_PATH_UPDATED",
    "NODE_VISITED",
    "LINK_RESOLVED",
    "FLOW_SUCCESS",
    "FLOW_SUCCESS_NEGATED",
    "END_SRS_RESPONSE",
    "SURVEY_SUBMITTED",
    "CONVERSATION_ENDED",
    "CUSTOMER_ENDED",
    "ISSUE_SESSION_UPDATED",
    "DETECTED",
    "OPPORTUNITY_ENDED",
    "OPPORTUNITY_ESCALATED",
    "QUEUED",
    "QUEUE_ABANDONED",
    "TIMED_OUT",
    "TEXT_MESSAGE",
    "FIRST_OPPORTUNITY",
    "QUEUED_DURATION",
    "CUSTOMER_RESPONSE_BY_OPPORTUNITY",
    "ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED",
    "ASSIGNED",
    "ASSIGNMENT_ENDED",
    "AGENT_RESPONSE_BY_OPPORTUNITY",
    "SUPERVISOR_UTTERANCE_BY_OPPORTUNITY",
    "AGENT_FIRST_RESPONDED",
    "ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED",
    "LAST_FLOW_ACTION_CALLED",
    "JOURNEY_CUSTOMER_PARAMETERS",
    "FILE_UPLOAD_DETECTED",
    "DISPOSITION",
    "LAST_ASSIGNMENT_SUMMARY",
];

const START: Group = Group::new("start", Some("issue_start_ts"));
const END: Group = Group::new("end", Some("issue_ended_ts"));
const SURVEY: Group = Group::new("survey", Some("survey_submit_ts"));
const FLOW_ACTION: Group = Group::new("flow_action", Some("last_flow_action_called_ts"));
const SUMMARY: Group = Group::new("summary", Some("last_assignment_summary_ts"));
const DISPOSITION: Group = Group::new("disposition", Some("disposition_ts"));
const INTENT: Group = Group::new("intent", None);
const RESOLUTION: Group = Group::new("resolution", None);
const PARAMS: Group = Group::new("params", None);
const FILES: Group = Group::new("files", None);
/// Of the present opportunity: an issue can have several, one after the other.
const OPPORTUNITY: Group = Group::new("opportunity", None);

/// The customer, and who deals with them.
const DATA: &[Field] = &[
    // ASAPP's identifier of the customer.
    field("customer_id", Id),
    field("opportunity_origin", OneOf(&["UNKNOWN"])),
    field("opportunity_id", Id),
    // ASAPP's identifier of the queue.
    field("queue_id", Id),
    field("session_id", Id),
    field("session_type", Text),
    field("user_id", Id),
    field("user_type", Text),
    field("session_update_ts", Time),
    field("agent_id", Id),
    field("agent_name", Text),
    field("agent_given_name", Text),
    field("agent_family_name", Text),
    field("agent_display_name", Text),
    field("queue_name", Text),
    field("external_agent_id", Id),
    // ASAPP's identifier of an agent.
    field("rep_id", Id),
    // Of a company group or queue; missing until the issue is routed to one.
    field("group_id", Id),
];

/// Whatever is known of the issue so far.
const DETAILS: &[Field] = &[
    START.field("issue_start_ts", Time),
    INTENT.field("intent_code", Text),
    INTENT.field("business_intent_code", Text),
    INTENT.field("flow_node_type", Text),
    INTENT.field("flow_node_name", Text),
    INTENT.field("intent_code_path", Text),
    INTENT.field("business_intent_code_path", Text),
    INTENT.field("flow_name_path", Text),
    INTENT.field("business_flow_name_path", Text),
    END.field("issue_ended_ts", Time),
    SURVEY.field("survey_responses", List(&Object(SURVEY_RESPONSE))),
    SURVEY.field("survey_submit_ts", Time),
    FLOW_ACTION.field("last_flow_action_called_ts", Time),
    FLOW_ACTION.field("last_flow_action_called_node_name", Text),
    FLOW_ACTION.field("last_flow_action_called_action_id", Id),
    FLOW_ACTION.field("last_flow_action_called_version", Text),
    FLOW_ACTION.field("last_flow_action_called_inputs", Named(&Object(FLOW_INPUT))),
    OPPORTUNITY.field("detected_ts", Time),
    OPPORTUNITY.field("escalated_ts", Time),
    OPPORTUNITY.field("queued_ts", Time),
    OPPORTUNITY.field("assigned_ts", Time),
    OPPORTUNITY.field("abandoned_ts", Time),
    OPPORTUNITY.field("queued_ms", Number),
    OPPORTUNITY.field("opportunity_ended_ts", Time),
    OPPORTUNITY.field("ended_type", Text),
    // Spelt as ASAPP spells it.
    OPPORTUNITY.field("assigment_ended_ts", Time),
    OPPORTUNITY.field("handle_ms", Number),
    OPPORTUNITY.field("is_ghost_customer", Boolean),
    OPPORTUNITY.field("last_agent_utterance_ts", Time),
    OPPORTUNITY.field("agent_utterance_ct", Number),
    OPPORTUNITY.field("agent_first_response_ms", Number),
    OPPORTUNITY.field("timeout_ts", Time),
    OPPORTUNITY.field("last_customer_utterance_ts", Time),
    OPPORTUNITY.field("customer_utterance_ct", Number),
    RESOLUTION.field("is_resolved", Boolean),
    OPPORTUNITY.field("customer_ended_ts", Time),
    PARAMS.field("customer_params_field_01", Text),
    PARAMS.field("customer_params_field_02", Text),
    PARAMS.field("customer_params_field_03", Text),
    PARAMS.field("customer_params_field_04", Text),
    PARAMS.field("customer_params_field_05", Text),
    PARAMS.field("customer_params_field_06", Text),
    PARAMS.field("customer_params_field_07", Text),
    PARAMS.field("customer_params_field_08", Text),
    PARAMS.field("customer_params_field_09", Text),
    PARAMS.field("customer_params_field_10", Text),
    PARAMS.field("customer_params_key_name_01", Text),
    PARAMS.field("customer_params_key_name_02", Text),
    PARAMS.field("customer_params_key_name_03", Text),
    PARAMS.field("customer_params_key_name_04", Text),
    PARAMS.field("customer_params_key_name_05", Text),
    PARAMS.field("customer_params_key_name_06", Text),
    PARAMS.field("customer_params_key_name_07", Text),
    PARAMS.field("customer_params_key_name_08", Text),
    PARAMS.field("customer_params_key_name_09", Text),
    PARAMS.field("customer_params_key_name_10", Text),
    FILES.field("uploaded_files_list", List(&Object(UPLOADED_FILE))),
    SUMMARY.field("last_assignment_summary_ts", Time),
    SUMMARY.field("last_assignment_summary_text", Text),
    DISPOSITION.field("disposition_ts", Time),
    DISPOSITION.field("disposition_fields", List(&Object(DISPOSITION_FIELD))),
];

/// One answer of a survey.
const SURVEY_RESPONSE: &[Field] = &[
    field("question", Text),
    field("question_category", Text),
    field("question_type", Text),
    field("answer", Text),
    field("ordering", Number),
];

/// What a flow handed to an action, under its name.
const FLOW_INPUT: &[Field] = &[field("value", Text), field("value_type", OneOf(&["VALUE_TYPE_UNKNOWN"]))];

/// A file the customer sent.
const UPLOADED_FILE: &[Field] = &[
    field("file_upload_event_id", Id),
    field("file_upload_ts", Time),
    field("file_name", Text),
    field("file_mime_type", OneOf(&["UNKNOWN"])),
    field("file_size_mb", Number),
    field("file_image_width", Number),
    field("file_image_height", Number),
];

/// What the agent filled in at the end.
const DISPOSITION_FIELD: &[Field] =
    &[field("field_type", OneOf(&["UNKNOWN"])), field("field_name", Text), field("field_value", Text)];
