//! What `feed-config` works out from the settings.

use std::process::Output;

use serde_json::{Value, json};

use crate::harness::receiver::Setup;

const URL: &str = "https://events.example.com/events";

#[test]
fn with_sinks_that_want_everything_every_feed_comes_whole() {
    let feeds = feeds(&Setup::new().set("endpoints.events.public_url", URL));
    let expected = ["activity", "journey", "queue"].map(|feed| {
        let feed = format!("com.asapp.event.{feed}");
        json!({ "feed": feed, "configure": true, "url": URL, "timeout_ms": 5000, "retries": 3 })
    });
    assert_eq!(feeds, expected);
}

#[test]
fn filters_of_all_sinks_that_are_on_make_the_event_list() {
    let setup = Setup::new()
        .set("endpoints.events.public_url", URL)
        .set("sinks.agents.type", "stdout")
        .set_toml(
            "sinks.agents.filter",
            "{ feeds = ['activity'], event_types = ['*_status_*'], company_ids = ['acme'] }",
        )
        .set("sinks.ends.type", "stdout")
        .set_toml("sinks.ends.filter", "{ event_types = ['*_ENDED'], exclude_event_types = ['CUSTOMER_*'] }")
        .set("sinks.off.type", "stdout")
        .set("sinks.off.enabled", false);
    let [activity, journey, queue] = feeds(&setup).try_into().unwrap();
    assert_eq!(activity["configure"], true);
    let expected = ["agent_activity_status_updated", "agent_activity_routing_status_updated"].map(str::to_owned);
    assert_eq!(texts(&activity["event_list"]), expected);
    let expected =
        ["ISSUE_ENDED", "CONVERSATION_ENDED", "OPPORTUNITY_ENDED", "ASSIGNMENT_ENDED"].map(str::to_owned).to_vec();
    assert_eq!(texts(&journey["event_list"]), expected);
    assert!(texts(&journey["warnings"])[0].contains("added to the feed later"), "{journey}");
    assert_eq!(queue["configure"], false, "a list of no types would mean all of them: {queue}");
    assert!(queue["reason"].is_string() && queue.get("url").is_none() && queue.get("event_list").is_none(), "{queue}");
}

#[test]
fn a_feed_goes_to_the_endpoint_that_is_bound_to_it_and_has_an_address() {
    let setup = Setup::new()
        .set("endpoints.all.path", "/all")
        .set("endpoints.all.public_url", "https://x.example/all")
        .set("endpoints.calls.path", "/calls")
        .set_toml("endpoints.calls.feeds", "['journey', 'com.asapp.event.voice']")
        .set("endpoints.calls.public_url", "https://x.example/calls")
        .set("endpoints.calls.timeout_ms", 9000)
        .set("endpoints.calls.retries", 7)
        .set("endpoints.queues.path", "/queues")
        .set_toml("endpoints.queues.feeds", "['queue']");
    let [activity, journey, queue, voice] = feeds(&setup).try_into().unwrap();
    assert_eq!(activity["url"], "https://x.example/all");
    assert!(activity.get("warnings").is_none(), "{activity}");
    for (feed, name) in [(journey, "com.asapp.event.journey"), (voice, "com.asapp.event.voice")] {
        assert_eq!(feed["feed"], name);
        assert_eq!(
            (&feed["url"], &feed["timeout_ms"], &feed["retries"]),
            (&json!("https://x.example/calls"), &json!(9000), &json!(7))
        );
        assert!(texts(&feed["warnings"])[0].contains("endpoints.all would take this feed too"), "{feed}");
    }
    assert_eq!(queue["url"], "https://x.example/all");
    assert!(texts(&queue["warnings"])[0].contains("endpoints.queues"), "{queue}");
}

#[test]
fn a_feed_with_nowhere_to_go_is_a_problem_unless_nobody_wants_it() {
    let setup = Setup::new()
        .set("endpoints.calls.path", "/calls")
        .set_toml("endpoints.calls.feeds", "['journey']")
        .set("sinks.out.type", "stdout")
        .set_toml("sinks.out.filter.feeds", "['journey', 'queue']");
    let output = run(&setup);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("2 problems") && text.contains("endpoints.calls.public_url is missing"), "{text}");
    assert!(text.contains("take no com.asapp.event.queue"), "{text}");
    assert!(!text.contains("activity"), "{text}");
    assert!(output.stdout.is_empty());

    let setup = setup
        .set("endpoints.calls.public_url", "https://x.example/calls")
        .set_toml("sinks.out.filter.feeds", "['journey']");
    let configured: Vec<bool> = feeds(&setup).iter().map(|feed| feed["configure"].as_bool().unwrap()).collect();
    assert_eq!(configured, [false, true, false]);
}

#[track_caller]
fn feeds(setup: &Setup) -> Vec<Value> {
    let output = run(setup);
    assert!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all["feeds"].as_array().unwrap().clone()
}

fn run(setup: &Setup) -> Output {
    setup.command().arg("feed-config").output().unwrap()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}
