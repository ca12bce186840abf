//! Agents log in, change status and take load; every now and then their utilization is told.

use fastrand::Rng;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::queue::Queue;
use super::{Fields, Message, clock, identifier, pick};
use crate::envelope::Feed;

const GIVEN: [&str; 12] = [
    "Avelie", "Brunor", "Cerane", "Davick", "Elowith", "Fennimar", "Gisabel", "Horvane", "Ilmara", "Jorvin", "Kessaly",
    "Lorimond",
];
const FAMILY: [&str; 10] = [
    "Ambleforth",
    "Brackenry",
    "Coldmarsh",
    "Dunwhistle",
    "Elderquay",
    "Fernhollow",
    "Greywick",
    "Hartlemoor",
    "Inglebrand",
    "Juniperay",
];
const STATUSES: [(&str, &str); 4] =
    [("ACTIVE", "Available"), ("AWAY", "Lunch"), ("WRAPPING_UP", "Finishing up"), ("OFFLINE", "Logged out")];
/// What happens how often, after an agent has told all there is of it once.
const OFTEN: [&str; 10] = [
    "agent_activity_assignment_load_updated",
    "agent_activity_assignment_load_updated",
    "agent_activity_assignment_load_updated",
    "agent_activity_routing_status_updated",
    "agent_activity_routing_status_updated",
    "agent_activity_status_updated",
    "agent_activity_utilization_5_min",
    "agent_activity_utilization_5_min",
    "agent_activity_capacity_updated",
    "agent_activity_queue_membership",
];

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) id: String,
    pub(super) external_id: String,
    pub(super) given_name: &'static str,
    pub(super) family_name: &'static str,
    slots: u32,
    /// What the agent is routed by, and since when.
    status: (&'static str, &'static str),
    since: Option<OffsetDateTime>,
    /// The status before, where no one has been told of it yet.
    previous: Option<(&'static str, OffsetDateTime, Duration)>,
    told: usize,
    data: Fields,
    details: Fields,
}

impl Agent {
    pub(super) fn new(random: &mut Rng) -> Self {
        let id = identifier(random);
        let mut data = Fields::default();
        data.set("rep_id", id.as_str());
        Self {
            id,
            external_id: format!("ext-{:06}", random.u32(..1_000_000)),
            given_name: pick(random, &GIVEN),
            family_name: pick(random, &FAMILY),
            slots: random.u32(2..6),
            status: STATUSES[0],
            since: None,
            previous: None,
            told: 0,
            data,
            details: Fields::default(),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{} {}", self.given_name, self.family_name)
    }

    /// The name that customers see.
    pub(super) fn display_name(&self) -> String {
        format!("{} {}.", self.given_name, self.family_name.get(..1).unwrap_or_default())
    }

    pub(super) fn happen(&mut self, random: &mut Rng, now: OffsetDateTime, queues: &[Queue]) -> Message<'_> {
        let event_type = match (Feed::Activity.event_types().nth(self.told), self.previous) {
            (Some(first), _) => first,
            (None, Some(_)) => "agent_activity_previous_routing_status",
            (None, None) => pick(random, &OFTEN),
        };
        self.told += 1;
        match event_type {
            "agent_activity_identity_updated" => self.introduce(),
            "agent_activity_status_updated" => {
                self.details.set("status_updated_ts", clock(now));
                self.details.set("status_description", self.status.1);
            }
            "agent_activity_capacity_updated" => self.data.set("max_slots", self.slots),
            "agent_activity_assignment_load_updated" => {
                self.details.set("assignment_load_updated_ts", clock(now));
                self.details.set("assigned_customer_ct", random.u32(..=self.slots));
            }
            "agent_activity_routing_status_updated" => self.change_status(random, now),
            "agent_activity_previous_routing_status" => self.tell_previous_status(now),
            "agent_activity_queue_membership" => {
                let first = random.usize(..queues.len());
                let served: Vec<&Queue> = queues.iter().skip(first).take(2).collect();
                self.data.set("queue_ids", served.iter().map(|queue| queue.id.as_str()).collect::<Vec<_>>());
                self.data.set("queue_names", served.iter().map(|queue| queue.name).collect::<Vec<_>>());
            }
            _ => self.tell_utilization(random, now),
        }
        Message { feed: Feed::Activity, event_type, session: None, data: &self.data, details: &self.details }
    }

    fn introduce(&mut self) {
        let (name, display_name) = (self.name(), self.display_name());
        self.data.set("desk_mode", "UNKNOWN");
        self.data.set("rep_name", name);
        self.data.set("agent_given_name", self.given_name);
        self.data.set("agent_family_name", self.family_name);
        self.data.set("agent_display_name", display_name);
        self.data.set("external_rep_id", self.external_id.as_str());
    }

    fn change_status(&mut self, random: &mut Rng, now: OffsetDateTime) {
        let since = self.since.replace(now).unwrap_or(now);
        self.previous = Some((self.status.0, since, now - since));
        self.status = pick(random, &STATUSES);
        self.details.set("routing_status_updated_ts", clock(now));
        self.details.set("routing_status", self.status.0);
    }

    fn tell_previous_status(&mut self, now: OffsetDateTime) {
        let Some((status, since, duration)) = self.previous.take() else { return };
        self.details.set("previous_routing_status_updated_ts", clock(now));
        self.details.set("previous_routing_status", status);
        self.details.set("previous_routing_status_duration_sec", duration.whole_seconds());
        self.details.set("previous_routing_status_start_ts", clock(since));
    }

    fn tell_utilization(&mut self, random: &mut Rng, now: OffsetDateTime) {
        self.details.set("utilization_5_min_updated_ts", clock(now));
        self.details.set("utilization_5_min_window_start_ts", clock(now - Duration::minutes(5)));
        self.details.set("utilization_5_min_window_end_ts", clock(now));
        let mut left = 300;
        for (field, name) in [
            ("utilization_5_min_active", "ACTIVE"),
            ("utilization_5_min_away", "AWAY"),
            ("utilization_5_min_wrapping_up", "WRAPPING_UP"),
            ("utilization_5_min_offline", "OFFLINE"),
        ] {
            let seconds = if name == "OFFLINE" { left } else { random.u32(..=left) };
            left -= seconds;
            let utilized = if name == "ACTIVE" { seconds * 4 / 5 } else { 0 };
            self.details.set(field, self.utilization(seconds, utilized));
        }
        self.details.set("utilization_5_min_any_status", self.utilization(300, 200));
    }

    fn utilization(&self, seconds: u32, utilized: u32) -> serde_json::Value {
        json!({
            "linear_sec": seconds,
            "linear_utilized_sec": utilized,
            "cumulative_sec": seconds * self.slots,
            "cumulative_utilized_sec": utilized * self.slots,
        })
    }
}
