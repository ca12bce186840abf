//! An issue runs its course, one journey event after the other.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::agenda::Ticket;
use super::agent::Agent;
use super::chance::{pause, pick};
use super::course::{Channel, Course, Part};
use super::message::{Clock, Event, Fields, Moment, Story, identifier};
use super::queue::Queue;
use super::words::{self, Intent};
use crate::envelope::Feed;

#[derive(Debug)]
pub(super) struct Issue {
    /// The entry of the agenda that counts; all others of this issue are out of date.
    pub(super) ticket: Ticket,
    /// An agent may take it.
    pub(super) waiting: bool,
    pub(super) channel: Channel,
    pub(super) queue: usize,
    pub(super) agent: usize,
    pub(super) assigned_at: Duration,
    /// It is the first one of its course.
    pub(super) first: bool,
    /// Factor of all its pauses.
    pub(super) pace: f64,
    pub(super) intent: &'static Intent,
    parts: &'static [Part],
    /// The step that comes next, and how often its part is still to be gone through.
    step: usize,
    rounds: u16,
    session_id: String,
    customer_id: String,
    queued: OffsetDateTime,
    assigned: OffsetDateTime,
    customer_utterances: u32,
    agent_utterances: u32,
    files: Vec<Value>,
    story: Story,
}

impl Issue {
    pub(super) fn new(random: &mut Rng, course: &'static Course, first: bool, pace: f64) -> Self {
        let mut story = Story::new(Feed::Journey);
        let session_id = identifier(random);
        let session = &mut story.session;
        session.set("session_id", &session_id);
        session.set("issue_id", identifier(random));
        let client = match course.channel {
            Channel::Chat => pick(random, &words::CHAT_CLIENTS),
            Channel::Voice => pick(random, &words::VOICE_CLIENTS),
        };
        session.set("client_id", client);
        session.set("client_type", if client.starts_with("sms") { "SMS" } else { "UNKNOWN" });
        let customer_id = identifier(random);
        story.data.set("customer_id", &customer_id);
        let mut issue = Self {
            ticket: Ticket::default(),
            waiting: false,
            channel: course.channel,
            queue: 0,
            agent: 0,
            assigned_at: Duration::ZERO,
            first,
            pace,
            intent: pick(random, &INTENTS),
            parts: &[],
            step: 0,
            rounds: 0,
            session_id,
            customer_id,
            queued: OffsetDateTime::UNIX_EPOCH,
            assigned: OffsetDateTime::UNIX_EPOCH,
            customer_utterances: 0,
            agent_utterances: 0,
            files: Vec::new(),
            story,
        };
        issue.divert(random, course.parts);
        issue
    }

    /// Goes on with these parts instead of its own.
    pub(super) fn divert(&mut self, random: &mut Rng, parts: &'static [Part]) {
        self.parts = parts;
        self.begin_part(random);
    }

    /// The step that comes next; none when it is over.
    pub(super) fn next(&self) -> Option<&'static str> {
        self.parts.first().and_then(|part| part.steps.get(self.step)).copied()
    }

    /// The pause before the next step.
    pub(super) fn pause(&self, random: &mut Rng) -> Duration {
        let mean = self.parts.first().map_or(0.0, |part| part.pause);
        pause(random, mean * self.pace)
    }

    /// Frees what an issue that is over holds.
    pub(super) fn clear(&mut self) {
        self.story = Story::new(Feed::Journey);
        self.files = Vec::new();
    }

    /// Makes the next step happen.
    pub(super) fn happen(&mut self, random: &mut Rng, moment: Moment, queue: &Queue, agent: &Agent) -> Event {
        let step = self.next().unwrap_or("ISSUE_ENDED");
        let moment = self.story.moment(moment);
        self.tell(step, random, moment.happened, queue, agent);
        self.step += 1;
        if self.parts.first().is_some_and(|part| self.step == part.steps.len()) {
            self.step = 0;
            self.rounds -= 1;
            if self.rounds == 0 {
                self.parts = &self.parts[1..];
                self.begin_part(random);
            }
        }
        self.story.event(step, random, moment)
    }

    /// Passes over parts that are not to be gone through.
    fn begin_part(&mut self, random: &mut Rng) {
        self.step = 0;
        while let Some((part, rest)) = self.parts.split_first() {
            self.rounds = random.u16(part.times.0..=part.times.1);
            if self.rounds > 0 {
                break;
            }
            self.parts = rest;
        }
    }

    fn tell(&mut self, step: &str, random: &mut Rng, now: OffsetDateTime, queue: &Queue, agent: &Agent) {
        let at = Clock(now);
        let Story { session: _, data, details, .. } = &mut self.story;
        match step {
            "ISSUE_CREATED" => details.set("issue_start_ts", at),
            "ISSUE_SESSION_UPDATED" => {
                data.set("session_id", &self.session_id);
                data.set("session_type", if self.channel == Channel::Chat { "chat" } else { "voice" });
                data.set("user_id", &self.customer_id);
                data.set("user_type", "customer");
                data.set("session_update_ts", at);
            }
            "JOURNEY_CUSTOMER_PARAMETERS" => {
                for (key, field, name, values) in words::PARAMETERS {
                    details.set(key, name);
                    details.set(field, pick(random, values));
                }
            }
            "FIRST_INTENT_UPDATED" => tell_intent(details, self.intent),
            "INTENT_CHANGE" => {
                self.intent = pick(random, &INTENTS);
                tell_intent(details, self.intent);
            }
            "INTENT_PATH_UPDATED" => {
                let Intent { code, business, flow, business_flow, .. } = self.intent;
                details.set("intent_code_path", format!("WELCOME/{code}"));
                details.set("business_intent_code_path", format!("Welcome/{business}"));
                details.set("flow_name_path", format!("welcome/{flow}"));
                details.set("business_flow_name_path", format!("Welcome/{business_flow}"));
            }
            "NODE_VISITED" => {
                let (kind, name) = pick(random, &words::NODES);
                details.set("flow_node_type", kind);
                details.set("flow_node_name", name);
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
                self.queued = now;
                data.set("queue_id", &queue.id);
                data.set("group_id", &queue.id);
                data.set("queue_name", queue.name);
                details.set("queued_ts", at);
            }
            "QUEUE_ABANDONED" => {
                details.set("abandoned_ts", at);
                details.set("is_ghost_customer", true);
                details.set("ended_type", "abandoned");
            }
            "ASSIGNED" => {
                self.assigned = now;
                data.set("rep_id", &agent.id);
                data.set("agent_id", &agent.id);
                data.set("external_agent_id", &agent.external_id);
                details.set("assigned_ts", at);
            }
            "QUEUED_DURATION" => details.set("queued_ms", millis(self.queued, self.assigned)),
            "ISSUE_ASSIGNMENT_AGENT_INFO_UPDATED" => {
                data.set("agent_name", agent.name());
                data.set("agent_given_name", agent.given_name);
                data.set("agent_family_name", agent.family_name);
                data.set("agent_display_name", agent.display_name());
            }
            "AGENT_FIRST_RESPONDED" => {
                self.agent_utterances += 1;
                details.set("last_agent_utterance_ts", at);
                details.set("agent_utterance_ct", self.agent_utterances);
                details.set("agent_first_response_ms", millis(self.assigned, now));
            }
            "AGENT_RESPONSE_BY_OPPORTUNITY" => {
                self.agent_utterances += 1;
                details.set("last_agent_utterance_ts", at);
                details.set("agent_utterance_ct", self.agent_utterances);
            }
            "FILE_UPLOAD_DETECTED" => {
                let (name, width, height) = pick(random, &words::FILES);
                self.files.push(json!({
                    "file_upload_event_id": identifier(random),
                    "file_upload_ts": at,
                    "file_name": name.replace("{}", &random.u32(1..900).to_string()),
                    "file_mime_type": "UNKNOWN",
                    "file_size_mb": f64::from(random.u32(1..80)) / 10.0,
                    "file_image_width": width,
                    "file_image_height": height,
                }));
                details.set("uploaded_files_list", &self.files);
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
                details.set("last_assignment_summary_text", self.intent.summary);
            }
            "DISPOSITION" => {
                details.set("disposition_ts", at);
                let fields = words::DISPOSITION.map(|(name, values)| {
                    json!({ "field_type": "UNKNOWN", "field_name": name, "field_value": pick(random, values) })
                });
                details.set("disposition_fields", fields);
            }
            "SURVEY_SUBMITTED" => {
                let mut ordering = 0..;
                let answers = words::SURVEY.map(|(question, category, kind, answers)| {
                    json!({
                        "question": question,
                        "question_category": category,
                        "question_type": kind,
                        "answer": pick(random, answers),
                        "ordering": ordering.next(),
                    })
                });
                details.set("survey_responses", answers);
                details.set("survey_submit_ts", at);
            }
            "ISSUE_ENDED" => details.set("issue_ended_ts", at),
            // `ISSUE_OPPORTUNITY_QUEUE_INFO_UPDATED` tells what is told already, a supervisor's words change nothing.
            _ => {}
        }
    }
}

/// References, for picking.
const INTENTS: [&Intent; 6] = {
    let [a, b, c, d, e, f] = &words::INTENTS;
    [a, b, c, d, e, f]
};

fn tell_intent(details: &mut Fields, intent: &Intent) {
    details.set("intent_code", intent.code);
    details.set("business_intent_code", intent.business);
}

fn millis(since: OffsetDateTime, now: OffsetDateTime) -> i64 {
    i64::try_from((now - since).whole_milliseconds().max(0)).unwrap_or(i64::MAX)
}
