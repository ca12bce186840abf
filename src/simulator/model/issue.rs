//! An issue runs its course: it is solved by a flow, given up in a queue, or talked over with an agent.

use fastrand::Rng;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::agent::Agent;
use super::queue::Queue;
use super::{Fields, Message, clock, identifier, pick};
use crate::envelope::Feed;

const BEGIN: &[&str] = &[
    "ISSUE_CREATED",
    "ISSUE_SESSION_UPDATED",
    "JOURNEY_CUSTOMER_PARAMETERS",
    "TEXT_MESSAGE",
    "FIRST_INTENT_UPDATED",
    "INTENT_PATH_UPDATED",
    "NODE_VISITED",
    "LAST_FLOW_ACTION_CALLED",
];
const SOLVED_BY_FLOW: &[&str] =
    &["LINK_RESOLVED", "FLOW_SUCCESS", "END_SRS_RESPONSE", "SURVEY_SUBMITTED", "CUSTOMER_ENDED", "ISSUE_ENDED"];
const ESCALATED: &[&str] = &[
    "FLOW_SUCCESS_NEGATED",
    "INTENT_CHANGE",
    "DETECTED",
    "FIRST_OPPORTUNITY",
    "OPPORTUNITY_ESCALATED",
    "QUEUED",
    "ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED",
];
const ABANDONED: &[&str] = &["QUEUE_ABANDONED", "OPPORTUNITY_ENDED", "ISSUE_ENDED"];
const ASSIGNED: &[&str] =
    &["QUEUED_DURATION", "ASSIGNED", "ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED", "AGENT_FIRST_RESPONDED"];
const TALK: &[&str] = &[
    "CUSTOMER_RESPONSE_BY_OPPORTUNITY",
    "AGENT_RESPONSE_BY_OPPORTUNITY",
    "CUSTOMER_RESPONSE_BY_OPPORTUNITY",
    "AGENT_RESPONSE_BY_OPPORTUNITY",
    "FILE_UPLOAD_DETECTED",
    "SUPERVISOR_UTTERANCE_BY_OPPORTUNITY",
];
const ENDED: &[&str] = &[
    "CONVERSATION_ENDED",
    "ASSIGNMENT_ENDED",
    "OPPORTUNITY_ENDED",
    "LAST_ASSIGNMENT_SUMMARY",
    "DISPOSITION",
    "SURVEY_SUBMITTED",
    "ISSUE_ENDED",
];
const TIMED_OUT: &[&str] = &["TIMED_OUT", "ASSIGNMENT_ENDED", "OPPORTUNITY_ENDED", "ISSUE_ENDED"];

const INTENTS: [(&str, &str); 4] = [
    ("BILL_TOO_HIGH", "Billing question"),
    ("NO_INTERNET", "Fibre fault"),
    ("MOVE_HOUSE", "Order change"),
    ("CANCEL_CONTRACT", "Cancellation"),
];
const PARAMETERS: [(&str, &str, &str); 10] = [
    ("customer_params_key_name_01", "customer_params_field_01", "plan"),
    ("customer_params_key_name_02", "customer_params_field_02", "region"),
    ("customer_params_key_name_03", "customer_params_field_03", "tenure_years"),
    ("customer_params_key_name_04", "customer_params_field_04", "contract_no"),
    ("customer_params_key_name_05", "customer_params_field_05", "router"),
    ("customer_params_key_name_06", "customer_params_field_06", "language"),
    ("customer_params_key_name_07", "customer_params_field_07", "open_orders"),
    ("customer_params_key_name_08", "customer_params_field_08", "open_tickets"),
    ("customer_params_key_name_09", "customer_params_field_09", "page"),
    ("customer_params_key_name_10", "customer_params_field_10", "campaign"),
];

#[derive(Debug)]
pub(super) struct Issue {
    /// The steps that are left, the next one last.
    steps: Vec<&'static str>,
    session: Fields,
    data: Fields,
    details: Fields,
    intent: (&'static str, &'static str),
    customer_utterances: u32,
    agent_utterances: u32,
    files: Vec<Value>,
    queued: Option<OffsetDateTime>,
    assigned: Option<OffsetDateTime>,
}

impl Issue {
    pub(super) fn new(random: &mut Rng) -> Self {
        let mut session = Fields::default();
        session.set("session_id", identifier(random));
        session.set("issue_id", identifier(random));
        session.set("client_id", pick(random, &["web/4.2.0", "ios/7.1.3", "android/7.1.0"]));
        session.set("client_type", pick(random, &["SMS", "UNKNOWN"]));
        let mut data = Fields::default();
        data.set("customer_id", identifier(random));
        Self {
            steps: course(random),
            session,
            data,
            details: Fields::default(),
            intent: pick(random, &INTENTS),
            customer_utterances: 0,
            agent_utterances: 0,
            files: Vec::new(),
            queued: None,
            assigned: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn happen(
        &mut self,
        random: &mut Rng,
        now: OffsetDateTime,
        queues: &[Queue],
        agents: &[Agent],
    ) -> Message<'_> {
        let event_type = self.steps.pop().unwrap_or("ISSUE_ENDED");
        self.step(event_type, random, now, queues, agents);
        let Self { session, data, details, .. } = self;
        Message { feed: Feed::Journey, event_type, session: Some(session), data, details }
    }

    fn step(&mut self, step: &str, random: &mut Rng, now: OffsetDateTime, queues: &[Queue], agents: &[Agent]) {
        let at = clock(now);
        let Self { data, details, .. } = self;
        match step {
            "ISSUE_CREATED" => details.set("issue_start_ts", at),
            "ISSUE_SESSION_UPDATED" => {
                data.set("session_id", identifier(random));
                data.set("session_type", "chat");
                data.set("user_id", identifier(random));
                data.set("user_type", "customer");
                data.set("session_update_ts", at);
            }
            "JOURNEY_CUSTOMER_PARAMETERS" => {
                for (key, field, name) in PARAMETERS {
                    details.set(key, name);
                    details.set(field, format!("{name}-{}", random.u32(1..500)));
                }
            }
            "FIRST_INTENT_UPDATED" | "INTENT_CHANGE" => {
                self.intent = pick(random, &INTENTS);
                details.set("intent_code", self.intent.0);
                details.set("business_intent_code", self.intent.1);
            }
            "INTENT_PATH_UPDATED" => {
                details.set("intent_code_path", format!("WELCOME/{}", self.intent.0));
                details.set("business_intent_code_path", format!("Welcome/{}", self.intent.1));
                details.set("flow_name_path", "welcome_flow/help_flow");
                details.set("business_flow_name_path", "Welcome/Help");
            }
            "NODE_VISITED" => {
                details.set("flow_node_type", pick(random, &["message", "question", "api_call"]));
                details.set("flow_node_name", format!("node_{}", random.u32(1..40)));
            }
            "LAST_FLOW_ACTION_CALLED" => {
                let input = |value: String| json!({ "value": value, "value_type": "VALUE_TYPE_UNKNOWN" });
                details.set("last_flow_action_called_ts", at);
                details.set("last_flow_action_called_node_name", "look_up_account");
                details.set("last_flow_action_called_action_id", identifier(random));
                details.set("last_flow_action_called_version", "3");
                let inputs =
                    json!({ "account": input(identifier(random)), "line": input(random.u32(1..5).to_string()) });
                details.set("last_flow_action_called_inputs", inputs);
            }
            "LINK_RESOLVED" | "FLOW_SUCCESS" | "END_SRS_RESPONSE" => details.set("is_resolved", true),
            "FLOW_SUCCESS_NEGATED" => details.set("is_resolved", false),
            "TEXT_MESSAGE" | "CUSTOMER_RESPONSE_BY_OPPORTUNITY" => {
                self.customer_utterances += 1;
                details.set("last_customer_utterance_ts", at);
                details.set("customer_utterance_ct", self.customer_utterances);
                details.set("is_ghost_customer", false);
            }
            "DETECTED" => details.set("detected_ts", at),
            "FIRST_OPPORTUNITY" => {
                data.set("opportunity_origin", "UNKNOWN");
                data.set("opportunity_id", identifier(random));
            }
            "OPPORTUNITY_ESCALATED" => details.set("escalated_ts", at),
            "QUEUED" => {
                let queue = &queues[random.usize(..queues.len())];
                self.queued = Some(now);
                data.set("queue_id", queue.id.as_str());
                data.set("group_id", queue.id.as_str());
                data.set("queue_name", queue.name);
                details.set("queued_ts", at);
            }
            "QUEUED_DURATION" => details.set("queued_ms", millis(self.queued, now)),
            "QUEUE_ABANDONED" => {
                details.set("abandoned_ts", at);
                details.set("is_ghost_customer", true);
                details.set("ended_type", "abandoned");
            }
            "ASSIGNED" => {
                let agent = &agents[random.usize(..agents.len())];
                self.assigned = Some(now);
                data.set("rep_id", agent.id.as_str());
                data.set("agent_id", agent.id.as_str());
                data.set("agent_name", agent.name());
                data.set("agent_given_name", agent.given_name);
                data.set("agent_family_name", agent.family_name);
                data.set("agent_display_name", agent.display_name());
                data.set("external_agent_id", agent.external_id.as_str());
                details.set("assigned_ts", at);
            }
            "AGENT_FIRST_RESPONDED" => details.set("agent_first_response_ms", millis(self.assigned, now)),
            "AGENT_RESPONSE_BY_OPPORTUNITY" | "SUPERVISOR_UTTERANCE_BY_OPPORTUNITY" => {
                self.agent_utterances += 1;
                details.set("last_agent_utterance_ts", at);
                details.set("agent_utterance_ct", self.agent_utterances);
            }
            "FILE_UPLOAD_DETECTED" => {
                self.files.push(json!({
                    "file_upload_event_id": identifier(random),
                    "file_upload_ts": at,
                    "file_name": format!("photo_{}.jpg", random.u32(1..900)),
                    "file_mime_type": "UNKNOWN",
                    "file_size_mb": f64::from(random.u32(1..80)) / 10.0,
                    "file_image_width": 1280,
                    "file_image_height": 960,
                }));
                details.set("uploaded_files_list", self.files.clone());
            }
            "TIMED_OUT" => {
                details.set("timeout_ts", at);
                details.set("ended_type", "timed_out");
            }
            "CUSTOMER_ENDED" => details.set("customer_ended_ts", at),
            "CONVERSATION_ENDED" => details.set("ended_type", "resolved"),
            "ASSIGNMENT_ENDED" => {
                details.set("assigment_ended_ts", at);
                details.set("handle_ms", millis(self.assigned, now));
            }
            "OPPORTUNITY_ENDED" => details.set("opportunity_ended_ts", at),
            "LAST_ASSIGNMENT_SUMMARY" => {
                details.set("last_assignment_summary_ts", at);
                let summary = format!("Customer asked about \"{}\".\nAgent explained and closed.", self.intent.1);
                details.set("last_assignment_summary_text", summary);
            }
            "DISPOSITION" => {
                details.set("disposition_ts", at);
                let field = |name: &str, value: &str| json!({ "field_type": "UNKNOWN", "field_name": name, "field_value": value });
                details.set("disposition_fields", vec![field("outcome", "solved"), field("follow_up", "no")]);
            }
            "SURVEY_SUBMITTED" => {
                let answers: Vec<Value> = ["How did we do?", "Was your question answered?"]
                    .into_iter()
                    .enumerate()
                    .map(|(ordering, question)| {
                        json!({
                            "question": question,
                            "question_category": "satisfaction",
                            "question_type": "rating",
                            "answer": random.u32(1..=5).to_string(),
                            "ordering": ordering,
                        })
                    })
                    .collect();
                details.set("survey_responses", answers);
                details.set("survey_submit_ts", at);
            }
            "ISSUE_ENDED" => details.set("issue_ended_ts", at),
            // `ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED` and `ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED`: told already.
            _ => {}
        }
    }
}

/// The steps of an issue, the first one last.
fn course(random: &mut Rng) -> Vec<&'static str> {
    let mut parts = vec![BEGIN];
    match random.u8(..10) {
        0..4 => parts.push(SOLVED_BY_FLOW),
        4..6 => parts.extend([ESCALATED, ABANDONED]),
        outcome => {
            parts.extend([ESCALATED, ASSIGNED]);
            parts.extend((0..random.u8(1..4)).map(|_| TALK));
            parts.push(if outcome == 9 { TIMED_OUT } else { ENDED });
        }
    }
    parts.into_iter().flatten().rev().copied().collect()
}

fn millis(since: Option<OffsetDateTime>, now: OffsetDateTime) -> i64 {
    let passed = now - since.unwrap_or(now);
    i64::try_from(passed.whole_milliseconds().max(0)).unwrap_or(i64::MAX)
}
