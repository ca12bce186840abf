use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use super::*;
use crate::envelope::{Envelope, Feed, inspect};

/// Issues a minute, from the fewest to the most.
const RATES: [f64; 9] = [0.1, 1.0, ISSUES_PER_MINUTE, 15.0, 60.0, 300.0, 1_000.0, 10_000.0, 100_000.0];

fn start() -> OffsetDateTime {
    time::macros::datetime!(2026-03-04 09:30:15.250 UTC)
}

/// Events of a run whose stamps keep up with the model's clock, and when they happened on it.
fn run(seed: u64, issues_per_minute: f64) -> impl Iterator<Item = (Duration, Event)> {
    let mut model = Model::new(seed, issues_per_minute);
    std::iter::from_fn(move || {
        let at = model.at();
        Some((at, model.next(start() + at)))
    })
}

/// As [`run`], of these event types only.
fn only<'a>(seed: u64, issues_per_minute: f64, events: usize, types: &'a [&str]) -> impl Iterator<Item = Seen> + 'a {
    let wanted = |event: &Event| types.contains(&Envelope::parse(event.body.clone()).unwrap().event_type());
    let events = run(seed, issues_per_minute).take(events);
    events.filter(move |(_, event)| wanted(event)).map(|(at, event)| Seen::read(at, &event))
}

/// An event as its receiver reads it.
struct Seen {
    at: Duration,
    event_type: String,
    body: Value,
}

impl Seen {
    fn read(at: Duration, event: &Event) -> Self {
        let body: Value = serde_json::from_slice(&event.body).unwrap();
        Self { at, event_type: text(&body["event_type"]).to_owned(), body }
    }

    fn feed(&self) -> Feed {
        Feed::of(text(&self.body["name"]))
    }

    fn entity(&self) -> &str {
        text(match self.feed() {
            Feed::Activity => &self.body["data"]["rep_id"],
            Feed::Journey => &self.body["meta_data"]["issue_id"],
            _ => &self.body["data"]["queue_id"],
        })
    }

    fn detail(&self, name: &str) -> &Value {
        &self.body["details"][name]
    }

    fn number(&self, name: &str) -> i64 {
        self.detail(name).as_i64().unwrap_or_else(|| panic!("{name} of {}", self.body))
    }

    fn time(&self, name: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text(self.detail(name)), &Rfc3339).unwrap()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn seen(seed: u64, issues_per_minute: f64, events: usize) -> impl Iterator<Item = Seen> {
    run(seed, issues_per_minute).take(events).map(|(at, event)| Seen::read(at, &event))
}

#[test]
fn the_first_2000_events_are_documented_ones_of_every_type() {
    for (rate, seed) in RATES.into_iter().flat_map(|rate| (0..6).map(move |seed| (rate, seed))) {
        let mut types: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (_, event) in run(seed, rate).take(2_000) {
            assert!(!event.body.iter().any(|byte| b"\r\n".contains(byte)), "an event is a line");
            let envelope = Envelope::parse(event.body).unwrap();
            if seed == 0 {
                inspect(&envelope, |drift| panic!("{drift} in {}", String::from_utf8_lossy(envelope.body())));
            }
            assert_eq!(envelope.event_id(), event.event_id);
            assert!(ids.insert(event.event_id), "an id came twice");
            types.entry(envelope.feed().short()).or_default().insert(envelope.event_type().to_owned());
        }
        for feed in Feed::DOCUMENTED {
            let missing: Vec<_> = feed.event_types().filter(|&name| !types[feed.short()].contains(name)).collect();
            assert!(missing.is_empty(), "seed {seed} at {rate} a minute has no {missing:?}");
        }
    }
}

#[test]
fn a_short_run_shows_all_feeds_and_whole_stories() {
    for seed in 0..20 {
        let mut feeds = BTreeMap::<_, usize>::new();
        seen(seed, ISSUES_PER_MINUTE, 50).for_each(|event| *feeds.entry(event.feed().short()).or_default() += 1);
        assert!(feeds.len() == 3, "seed {seed}: {feeds:?}");
        let ended = seen(seed, ISSUES_PER_MINUTE, 400).filter(|event| event.event_type == "ISSUE_ENDED").count();
        assert!(ended > 0, "seed {seed}");
    }
}

#[test]
fn every_field_of_the_samples_occurs() {
    let samples: [&[u8]; 3] = [
        include_bytes!("../../../tests/samples/activity.json"),
        include_bytes!("../../../tests/samples/journey.json"),
        include_bytes!("../../../tests/samples/queue.json"),
    ];
    let fields = |body: &[u8]| {
        let event: Value = serde_json::from_slice(body).unwrap();
        let mut fields = BTreeSet::new();
        for section in ["meta_data", "data", "details"] {
            let members = event[section].as_object().into_iter().flatten();
            fields.extend(members.map(|member| format!("{} {section}.{}", event["name"], member.0)));
        }
        fields
    };
    let occurring: BTreeSet<String> =
        run(3, ISSUES_PER_MINUTE).take(2_000).flat_map(|(_, event)| fields(&event.body)).collect();
    let mut documented: BTreeSet<String> = samples.into_iter().flat_map(fields).collect();
    documented.extend(["rep_id", "group_id"].map(|field| format!("\"com.asapp.event.journey\" data.{field}")));
    // Nothing of a customer's session is in an event of an agent or a queue.
    documented.retain(|field| {
        let session = ["session_id", "issue_id", "client_id", "client_type"].map(|name| format!("meta_data.{name}"));
        field.contains(".journey") || !session.iter().any(|name| field.ends_with(name.as_str()))
    });
    let missing: Vec<_> = documented.difference(&occurring).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_seed_repeats_itself() {
    let events = |seed, now: OffsetDateTime| {
        let mut model = Model::new(seed, ISSUES_PER_MINUTE);
        (0..2_000).map(|_| (model.at(), model.next(now))).collect::<Vec<_>>()
    };
    let bodies = |seed| events(seed, start()).into_iter().map(|(_, event)| event.body).collect::<Vec<_>>();
    assert_eq!(bodies(5), bodies(5));
    assert_ne!(bodies(5), bodies(6));
    // The time of day changes neither what happens nor when, on the model's clock.
    let ids = |now| events(5, now).into_iter().map(|(at, event)| (at, event.event_id)).collect::<Vec<_>>();
    assert_eq!(ids(start()), ids(start() + Duration::from_secs(100_000)));
}

#[test]
fn issues_arrive_as_a_poisson_process() {
    for rate in [ISSUES_PER_MINUTE, 600.0] {
        let arrivals: Vec<f64> =
            only(11, rate, 60_000, &["ISSUE_CREATED"]).map(|event| event.at.as_secs_f64()).collect();
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]) * rate / 60.0).collect();
        assert!(gaps.len() > 1_000, "{} arrivals", gaps.len());
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let spread = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!((mean - 1.0).abs() < 0.1, "mean {mean}");
        assert!((spread - 1.0).abs() < 0.15, "spread {spread}");
        let long = gaps.iter().filter(|&&gap| gap > 1.0).count() as f64 / count;
        assert!((long - 0.368).abs() < 0.05, "{long} are longer than the mean");
    }
}

#[test]
fn a_chat_has_some_10_events_and_a_call_some_100() {
    let mut issues = BTreeMap::<String, (usize, bool, bool)>::new();
    let mut bytes = (0, 0);
    for event in seen(12, ISSUES_PER_MINUTE, 20_000).filter(|event| event.feed() == Feed::Journey) {
        let call = text(&event.body["meta_data"]["client_id"]).starts_with("voice");
        let issue = issues.entry(event.entity().to_owned()).or_default();
        assert!(!issue.2, "an event after the end");
        *issue = (issue.0 + 1, call, event.event_type == "ISSUE_ENDED");
        bytes = (bytes.0 + event.body.to_string().len(), bytes.1 + 1);
    }
    for (calls, usual) in [(false, 10), (true, 100)] {
        let sizes: Vec<_> = issues.values().filter(|issue| issue.2 && issue.1 == calls).map(|issue| issue.0).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!(sizes.len() > 100 && (usual * 7..=usual * 13).contains(&(mean * 10)), "{mean} a piece");
    }
    assert!((1_500..2_500).contains(&(bytes.0 / bytes.1)), "{} bytes", bytes.0 / bytes.1);
}

#[test]
fn what_is_known_of_an_entity_stays_known() {
    // The second is faster than the milliseconds of stamps tell apart.
    for rate in [ISSUES_PER_MINUTE, 20_000.0] {
        let mut known = BTreeMap::<String, Seen>::new();
        for event in seen(13, rate, 10_000) {
            let entity = event.entity().to_owned();
            if let Some(before) = known.remove(&entity) {
                assert!(before.at <= event.at);
                let time = |event: &Seen| text(&event.body["meta_data"]["event_time"]).to_owned();
                assert!(time(&before) <= time(&event));
                for section in ["meta_data", "data", "details"] {
                    for (field, _) in before.body[section].as_object().into_iter().flatten() {
                        assert!(!event.body[section][field].is_null(), "{} forgot {field}", event.event_type);
                    }
                }
                for once in ["issue_start_ts", "detected_ts", "customer_params_field_04"] {
                    let told = before.detail(once);
                    assert!(told.is_null() || told == event.detail(once), "{once} changed");
                }
            }
            known.insert(entity, event);
        }
    }
}

#[test]
fn durations_are_those_between_stamps() {
    let mut told = BTreeMap::<&str, usize>::new();
    for event in seen(14, ISSUES_PER_MINUTE, 20_000) {
        let (field, from, to) = match event.event_type.as_str() {
            "QUEUED_DURATION" => ("queued_ms", "queued_ts", "assigned_ts"),
            "AGENT_FIRST_RESPONDED" => ("agent_first_response_ms", "assigned_ts", "last_agent_utterance_ts"),
            "ASSIGNMENT_ENDED" => ("handle_ms", "assigned_ts", "assigment_ended_ts"),
            "agent_activity_previous_routing_status" => (
                "previous_routing_status_duration_sec",
                "previous_routing_status_start_ts",
                "routing_status_updated_ts",
            ),
            _ => continue,
        };
        let passed = event.time(to) - event.time(from);
        let passed = if field.ends_with("_ms") { passed.whole_milliseconds() } else { passed.whole_seconds().into() };
        assert_eq!(i128::from(event.number(field)), passed, "{field}");
        *told.entry(field).or_default() += 1;
    }
    assert!(told.len() == 4 && told.values().all(|&count| count > 50), "{told:?}");
}

#[test]
fn a_queue_is_as_long_as_issues_are_queued() {
    let mut queued = BTreeMap::<String, i64>::new();
    let mut longest = 0;
    let types = ["QUEUED", "ASSIGNED", "QUEUE_ABANDONED", "queue_size_updated"];
    for event in only(15, ISSUES_PER_MINUTE, 30_000, &types) {
        let change = match event.event_type.as_str() {
            "QUEUED" => 1,
            "ASSIGNED" | "QUEUE_ABANDONED" => -1,
            "queue_size_updated" => {
                let size = queued.get(event.entity()).copied().unwrap_or_default();
                assert_eq!(event.number("last_queue_size"), size);
                longest = longest.max(size);
                continue;
            }
            _ => continue,
        };
        *queued.entry(text(&event.body["data"]["queue_id"]).to_owned()).or_default() += change;
    }
    assert!(longest >= 3, "no more than {longest} in a queue");
}

#[test]
fn a_queue_tells_why_it_is_closed_and_takes_nothing() {
    let mut closed = BTreeMap::<String, bool>::new();
    let mut reasons = BTreeMap::<String, usize>::new();
    let types = ["queue_availability_updated", "QUEUED"];
    // A long run; and one with more issues than agents.
    for event in only(16, ISSUES_PER_MINUTE, 100_000, &types).chain(only(17, 30_000.0, 60_000, &types)) {
        match event.event_type.as_str() {
            "queue_availability_updated" => {
                let is_closed = &event.body["details"]["queue_availability_is_closed"];
                let by = event.body["details"].as_object().unwrap().iter().filter(|(name, value)| {
                    name.starts_with("queue_availability_is_closed_by_") && **value == Value::Bool(true)
                });
                let by: Vec<_> = by.map(|(name, _)| name.replace("queue_availability_is_closed_by_", "")).collect();
                assert_eq!(*is_closed, Value::Bool(!by.is_empty()));
                if by.iter().any(|by| by == "size_cap") {
                    assert!(
                        event.number("last_queue_size") >= event.body["data"]["queue_capping_size"].as_i64().unwrap()
                    );
                }
                closed.insert(event.entity().to_owned(), !by.is_empty());
                by.into_iter().for_each(|by| *reasons.entry(by).or_default() += 1);
            }
            "QUEUED" => {
                let queue = text(&event.body["data"]["queue_id"]);
                assert!(closed.get(queue) != Some(&true), "{queue} is closed");
            }
            _ => {}
        }
    }
    println!("{reasons:?}");
    assert_eq!(reasons.len(), 5, "{reasons:?}");
}

#[derive(Default)]
struct Worker {
    status: String,
    slots: i64,
    load: i64,
    /// Until when it is accounted for, in whole seconds, and what for, since the last window.
    until: u64,
    spent: BTreeMap<String, [i64; 4]>,
    logged_in: bool,
}

impl Worker {
    fn spend(&mut self, at: Duration) {
        let seconds = (at.as_secs() - self.until).cast_signed();
        self.until = at.as_secs();
        let utilized = if self.load > 0 { seconds } else { 0 };
        for status in [self.status.clone(), "any_status".to_owned()] {
            let spent = self.spent.entry(status).or_default();
            for (sum, more) in spent.iter_mut().zip([seconds, utilized, seconds * self.slots, seconds * self.load]) {
                *sum += more;
            }
        }
    }
}

/// Works out from the other events of a run what each agent does.
#[test]
fn agents_do_what_they_tell() {
    let mut agents = BTreeMap::<String, Worker>::new();
    let mut windows = 0;
    for event in seen(18, ISSUES_PER_MINUTE, 30_000) {
        let worker = agents.entry(event.body["data"]["rep_id"].as_str().unwrap_or_default().to_owned()).or_default();
        worker.spend(event.at);
        match event.event_type.as_str() {
            "ASSIGNED" => {
                assert!(worker.logged_in && worker.status != "offline", "{} is not there", event.body["data"]);
                worker.load += 1;
                assert!(worker.load <= worker.slots, "{} of {}", worker.load, worker.slots);
            }
            "ASSIGNMENT_ENDED" => worker.load -= 1,
            "agent_activity_capacity_updated" => {
                assert_eq!(worker.load, 0);
                worker.slots = event.body["data"]["max_slots"].as_i64().unwrap();
            }
            "agent_activity_routing_status_updated" => {
                worker.status = text(event.detail("routing_status")).to_lowercase();
                assert!(worker.status != "offline" || worker.load == 0);
                worker.logged_in = true;
            }
            "agent_activity_assignment_load_updated" => assert_eq!(event.number("assigned_customer_ct"), worker.load),
            "agent_activity_utilization_5_min" => {
                let window =
                    event.time("utilization_5_min_window_end_ts") - event.time("utilization_5_min_window_start_ts");
                assert_eq!(window.whole_seconds(), 300);
                let told = |status: &str| {
                    ["linear_sec", "linear_utilized_sec", "cumulative_sec", "cumulative_utilized_sec"]
                        .map(|name| event.detail(&format!("utilization_5_min_{status}"))[name].as_i64().unwrap())
                };
                let any = told("any_status");
                assert_eq!(any[0], 300);
                let by_status = ["active", "away", "wrapping_up", "offline"].map(told);
                for sum in 0..4 {
                    assert_eq!(by_status.iter().map(|seconds| seconds[sum]).sum::<i64>(), any[sum]);
                }
                // Not the first one, part of which lies before the login.
                let spent = std::mem::take(&mut worker.spent);
                if by_status[3][0] == 0 && spent["any_status"][0] == 300 {
                    for status in ["active", "away", "wrapping_up", "any_status"] {
                        assert_eq!(told(status), spent.get(status).copied().unwrap_or_default(), "{status}");
                    }
                    windows += 1;
                }
            }
            _ => {}
        }
    }
    assert!(windows > 300, "{windows} windows");
}

#[test]
fn what_is_under_way_is_bounded() {
    // In a thirtieth of the time, a model of few agents is as crowded as a large one.
    let mut model = Model::new(19, 100_000.0);
    for _ in 0..150_000 {
        model.next(start());
        assert!(model.issues.len() <= MOST_UNDER_WAY);
    }
}
