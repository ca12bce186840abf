//! Conversations: milestones of a customer's journey.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::read::{Named, Number, open, record};

record! {
    /// The customer, and who deals with them.
    pub struct Data<'a> {
        /// ASAPP's identifier of the customer.
        customer_id: Cow<'a, str>,
        opportunity_origin: OpportunityOrigin<'a>,
        opportunity_id: Cow<'a, str>,
        /// ASAPP's identifier of the queue.
        queue_id: Cow<'a, str>,
        session_id: Cow<'a, str>,
        session_type: Cow<'a, str>,
        user_id: Cow<'a, str>,
        user_type: Cow<'a, str>,
        session_update_ts: OffsetDateTime,
        agent_id: Cow<'a, str>,
        agent_name: Cow<'a, str>,
        agent_given_name: Cow<'a, str>,
        agent_family_name: Cow<'a, str>,
        agent_display_name: Cow<'a, str>,
        queue_name: Cow<'a, str>,
        external_agent_id: Cow<'a, str>,
        /// ASAPP's identifier of an agent.
        rep_id: Cow<'a, str>,
        /// Of a company group or queue; `None` until the issue is routed to one.
        group_id: Cow<'a, str>,
    }
}

record! {
    /// Whatever is known of the issue so far.
    pub struct Details<'a> {
        issue_start_ts: OffsetDateTime,
        intent_code: Cow<'a, str>,
        business_intent_code: Cow<'a, str>,
        flow_node_type: Cow<'a, str>,
        flow_node_name: Cow<'a, str>,
        intent_code_path: Cow<'a, str>,
        business_intent_code_path: Cow<'a, str>,
        flow_name_path: Cow<'a, str>,
        business_flow_name_path: Cow<'a, str>,
        issue_ended_ts: OffsetDateTime,
        survey_responses: Vec<SurveyResponse<'a>>,
        survey_submit_ts: OffsetDateTime,
        last_flow_action_called_ts: OffsetDateTime,
        last_flow_action_called_node_name: Cow<'a, str>,
        last_flow_action_called_action_id: Cow<'a, str>,
        last_flow_action_called_version: Cow<'a, str>,
        last_flow_action_called_inputs: Named<'a, FlowInput<'a>>,
        detected_ts: OffsetDateTime,
        escalated_ts: OffsetDateTime,
        queued_ts: OffsetDateTime,
        assigned_ts: OffsetDateTime,
        abandoned_ts: OffsetDateTime,
        queued_ms: Number<'a>,
        opportunity_ended_ts: OffsetDateTime,
        ended_type: Cow<'a, str>,
        /// Spelt as ASAPP spells it.
        assigment_ended_ts: OffsetDateTime,
        handle_ms: Number<'a>,
        is_ghost_customer: bool,
        last_agent_utterance_ts: OffsetDateTime,
        agent_utterance_ct: Number<'a>,
        agent_first_response_ms: Number<'a>,
        timeout_ts: OffsetDateTime,
        last_customer_utterance_ts: OffsetDateTime,
        customer_utterance_ct: Number<'a>,
        is_resolved: bool,
        customer_ended_ts: OffsetDateTime,
        customer_params_field_01: Cow<'a, str>,
        customer_params_field_02: Cow<'a, str>,
        customer_params_field_03: Cow<'a, str>,
        customer_params_field_04: Cow<'a, str>,
        customer_params_field_05: Cow<'a, str>,
        customer_params_field_06: Cow<'a, str>,
        customer_params_field_07: Cow<'a, str>,
        customer_params_field_08: Cow<'a, str>,
        customer_params_field_09: Cow<'a, str>,
        customer_params_field_10: Cow<'a, str>,
        customer_params_key_name_01: Cow<'a, str>,
        customer_params_key_name_02: Cow<'a, str>,
        customer_params_key_name_03: Cow<'a, str>,
        customer_params_key_name_04: Cow<'a, str>,
        customer_params_key_name_05: Cow<'a, str>,
        customer_params_key_name_06: Cow<'a, str>,
        customer_params_key_name_07: Cow<'a, str>,
        customer_params_key_name_08: Cow<'a, str>,
        customer_params_key_name_09: Cow<'a, str>,
        customer_params_key_name_10: Cow<'a, str>,
        uploaded_files_list: Vec<UploadedFile<'a>>,
        last_assignment_summary_ts: OffsetDateTime,
        last_assignment_summary_text: Cow<'a, str>,
        disposition_ts: OffsetDateTime,
        disposition_fields: Vec<DispositionField<'a>>,
    }
}

record! {
    /// One answer of a survey.
    pub struct SurveyResponse<'a> {
        question: Cow<'a, str>,
        question_category: Cow<'a, str>,
        question_type: Cow<'a, str>,
        answer: Cow<'a, str>,
        ordering: Number<'a>,
    }
}

record! {
    /// What a flow handed to an action, under its name.
    pub struct FlowInput<'a> {
        value: Cow<'a, str>,
        value_type: ValueType<'a>,
    }
}

record! {
    /// A file the customer sent.
    pub struct UploadedFile<'a> {
        file_upload_event_id: Cow<'a, str>,
        file_upload_ts: OffsetDateTime,
        file_name: Cow<'a, str>,
        file_mime_type: FileMimeType<'a>,
        file_size_mb: Number<'a>,
        file_image_width: Number<'a>,
        file_image_height: Number<'a>,
    }
}

record! {
    /// What the agent filled in at the end.
    pub struct DispositionField<'a> {
        field_type: FieldType<'a>,
        field_name: Cow<'a, str>,
        field_value: Cow<'a, str>,
    }
}

open! {
    pub enum OpportunityOrigin<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum ValueType<'a> {
        Unknown = "VALUE_TYPE_UNKNOWN",
    }
}

open! {
    pub enum FileMimeType<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum FieldType<'a> {
        Unknown = "UNKNOWN",
    }
}

open! {
    pub enum Type<'a>: EventType {
        IssueCreated = "ISSUE_CREATED",
        IssueEnded = "ISSUE_ENDED",
        IntentChange = "INTENT_CHANGE",
        FirstIntentUpdated = "FIRST_INTENT_UPDATED",
        IntentPathUpdated = "INTENT_PATH_UPDATED",
        NodeVisited = "NODE_VISITED",
        LinkResolved = "LINK_RESOLVED",
        FlowSuccess = "FLOW_SUCCESS",
        FlowSuccessNegated = "FLOW_SUCCESS_NEGATED",
        EndSrsResponse = "END_SRS_RESPONSE",
        SurveySubmitted = "SURVEY_SUBMITTED",
        ConversationEnded = "CONVERSATION_ENDED",
        CustomerEnded = "CUSTOMER_ENDED",
        IssueSessionUpdated = "ISSUE_SESSION_UPDATED",
        Detected = "DETECTED",
        OpportunityEnded = "OPPORTUNITY_ENDED",
        OpportunityEscalated = "OPPORTUNITY_ESCALATED",
        Queued = "QUEUED",
        QueueAbandoned = "QUEUE_ABANDONED",
        TimedOut = "TIMED_OUT",
        TextMessage = "TEXT_MESSAGE",
        FirstOpportunity = "FIRST_OPPORTUNITY",
        QueuedDuration = "QUEUED_DURATION",
        CustomerResponseByOpportunity = "CUSTOMER_RESPONSE_BY_OPPORTUNITY",
        IssueOpportunityQueueInfoUpdated = "ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED",
        Assigned = "ASSIGNED",
        AssignmentEnded = "ASSIGNMENT_ENDED",
        AgentResponseByOpportunity = "AGENT_RESPONSE_BY_OPPORTUNITY",
        SupervisorUtteranceByOpportunity = "SUPERVISOR_UTTERANCE_BY_OPPORTUNITY",
        AgentFirstResponded = "AGENT_FIRST_RESPONDED",
        IssueAssignmentAgentInfoUpdated = "ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED",
        LastFlowActionCalled = "LAST_FLOW_ACTION_CALLED",
        JourneyCustomerParameters = "JOURNEY_CUSTOMER_PARAMETERS",
        FileUploadDetected = "FILE_UPLOAD_DETECTED",
        Disposition = "DISPOSITION",
        LastAssignmentSummary = "LAST_ASSIGNMENT_SUMMARY",
    }
}
