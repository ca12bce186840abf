//! What operators are woken by: the alerts, the dashboard and the runbook, against promtool and a running receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::event::{event, new_event, new_id};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;

const PREFIX: &str = "asapp_receiver_";
/// What Grafana puts in place of its variables, in a way that promtool understands.
const VARIABLES: [(&str, &str); 3] = [("$__rate_interval", "5m"), ("$instance", ".*"), ("$job", ".*")];

#[test]
fn the_alert_rules_are_sound_and_fire_when_they_should() {
    promtool(&["check", "rules", "deploy/prometheus/alerts.yml"]);
    promtool(&["test", "rules", "tests/prometheus/alerts_test.yml"]);
}

#[test]
fn every_alert_is_told_in_full_and_has_its_place_in_the_runbook() {
    let runbook = anchors(&text("docs/runbook.md"));
    let alerts = alerts();
    assert!(alerts.len() > 30, "{alerts:?}");
    for (name, lines) in &alerts {
        let is_there = |key: &str| lines.iter().any(|line| line.trim_start().starts_with(key));
        for key in ["summary: ", "description: ", "labels: { severity: "] {
            assert!(is_there(key), "{name} has no {key}");
        }
        let anchor = name.to_lowercase();
        assert!(is_there(&format!("runbook_url: \"docs/runbook.md#{anchor}\"")), "{name}");
        assert!(runbook.contains(&anchor), "docs/runbook.md has no section {name}");
    }
    let known: BTreeSet<String> = alerts.keys().map(|name| name.to_lowercase()).collect();
    for section in runbook.iter().filter(|anchor| anchor.starts_with("asappreceiver")) {
        assert!(known.contains(section), "docs/runbook.md has a section {section}, but there is no such alert");
    }
}

#[test]
fn every_reason_not_to_be_ready_has_its_place_in_the_runbook() {
    let receiver = Setup::new().start();
    let metrics = receiver.metrics();
    let reasons: Vec<&str> =
        metrics.keys().filter_map(|series| series.strip_prefix("asapp_receiver_unready{reason=\"")).collect();
    assert_eq!(reasons.len(), 9, "{reasons:?}");
    let runbook = anchors(&text("docs/runbook.md"));
    for reason in reasons {
        let anchor = format!("not-ready-{}", reason.trim_end_matches("\"}").replace(' ', "-"));
        assert!(runbook.contains(&anchor), "docs/runbook.md has no section {anchor}");
    }
    wait_for("it to be ready, for no reason not to be", || {
        let metrics = receiver.metrics();
        let has_none =
            metrics.iter().all(|(series, value)| !series.starts_with("asapp_receiver_unready") || *value == 0.0);
        (metrics["asapp_receiver_ready"] == 1.0 && has_none).then_some(())
    });
    receiver.finish();
}

#[test]
fn the_dashboard_is_sound_and_explains_each_panel() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/asapp-receiver.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for (x, y) in (place("x")..place("x") + place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            assert!(x < 24 && taken.insert((x, place("y") + y)), "{title} lies over another panel");
        }
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title} is not explained");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(variables, ["datasource", "job", "instance"]);

    // promtool reads expressions in rules only.
    let rules = expressions(&dashboard).into_iter().enumerate().map(|(number, expression)| {
        let expression = VARIABLES.iter().fold(expression, |text, (name, value)| text.replace(name, value));
        assert!(!expression.contains('$'), "{expression}");
        format!("      - {{ record: 'panel:{number}', expr: {} }}\n", Value::from(expression))
    });
    let rules = format!("groups:\n  - name: dashboard\n    rules:\n{}", rules.collect::<String>());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.yml");
    fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()]);
    for alert in alerts().keys() {
        assert!(alert.starts_with("AsappReceiver"), "{alert}");
    }
    let text = text("deploy/grafana/asapp-receiver.json");
    for named in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.starts_with("AsappReceiver")) {
        assert!(alerts().contains_key(named), "the dashboard names {named}, which is no alert");
    }
}

/// Two receivers: with journals of their own what they say of a sink adds up, with a shared one both say it of the fleet.
#[test]
fn the_dashboard_adds_up_what_is_each_receivers_own_and_nothing_else() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/asapp-receiver.json")).unwrap();
    let of_fleet = ["stored_total", "delivered_total", "filtered_total", "evicted_total", "dead_lettered", "pending"];
    let of_fleet: Vec<String> = of_fleet.iter().map(|name| format!("{PREFIX}sink_{name}{{")).collect();
    let fleet_wide = |expression: &str| {
        of_fleet.iter().any(|name| expression.contains(name)) || expression.contains("quarantine_dropped_total{")
    };
    let asked: Vec<String> = expressions(&dashboard).into_iter().filter(|asked| fleet_wide(asked)).collect();
    assert_eq!(asked.len(), 8, "{asked:#?}");
    let mut cases = String::new();
    for (engine, receivers) in [("nats", 1), ("sqlite", 2), ("memory", 2)] {
        let mut series = String::new();
        for instance in ["a", "b"] {
            let of = format!("job=\"asapp-receiver\", instance=\"{instance}\"");
            let mut add = |name: &str, labels: &str, values: &str| {
                let shown = format!("{name}{{{of}{labels}}}");
                series += &format!("      - {{ series: {}, values: {values} }}\n", Value::from(shown));
            };
            add("asapp_receiver_journal_info", &format!(", engine=\"{engine}\""), "1x20");
            add("asapp_receiver_quarantine_dropped_total", "", "0+60x20");
            of_fleet.iter().for_each(|name| add(name.trim_end_matches('{'), ", sink=\"crm\"", "0+60x20"));
        }
        let mut wanted = String::new();
        for expression in &asked {
            // Per second, or after ten minutes; of one metric, or of the five that the account adds up.
            let each = match expression {
                rate if rate.contains("rate(") || rate.contains("deriv(") => 1,
                _ => 600 * expression.split(" unless ").next().unwrap().matches(PREFIX).count(),
            };
            let labels = if expression.contains("sink") {
                "{job=\"asapp-receiver\", sink=\"crm\"}"
            } else {
                "{job=\"asapp-receiver\"}"
            };
            let expression = VARIABLES.iter().fold(expression.clone(), |text, (name, value)| text.replace(name, value));
            wanted += &format!(
                "      - expr: {}\n        eval_time: 10m\n        exp_samples: [{{ labels: '{labels}', value: {} }}]\n",
                Value::from(expression),
                each * receivers
            );
        }
        cases += &format!("  - interval: 1m\n    input_series:\n{series}    promql_expr_test:\n{wanted}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard_test.yml");
    fs::write(&file, format!("rule_files: []\nevaluation_interval: 1m\ntests:\n{cases}")).unwrap();
    promtool(&["test", "rules", file.to_str().unwrap()]);
}

/// What the alerts are written for is what the Prometheus Operator is told, by the files that are shipped for it.
#[test]
fn the_operators_rules_are_the_alerts() {
    let rules = text("deploy/prometheus-operator/rules.yaml");
    let (head, groups) = rules.split_once("spec:\n").unwrap();
    assert!(head.contains("kind: PrometheusRule\n"), "{head}");
    let alerts = text("deploy/prometheus/alerts.yml");
    let (_, wanted) = alerts.split_once("\ngroups:\n").unwrap();
    let wanted = format!("groups:\n{wanted}");
    let wanted: String =
        wanted.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect();
    let update = head.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
    assert!(groups == wanted, "the alerts have changed: run in the project's folder\n{update}");
    // The command that is printed does what it says.
    let folder = tempfile::tempdir().unwrap();
    for file in ["deploy/prometheus/alerts.yml", "deploy/prometheus-operator/rules.yaml"] {
        fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
        fs::copy(root().join(file), folder.path().join(file)).unwrap();
    }
    let ran = Command::new("sh").args(["-ec", update]).current_dir(folder.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(fs::read_to_string(folder.path().join("deploy/prometheus-operator/rules.yaml")).unwrap(), rules);
}

#[test]
fn every_metric_that_is_asked_for_is_there_and_every_one_that_is_there_is_explained() {
    let rejecting = Target::start(|_| Reply::status(422));
    let receiver = Setup::new()
        .set("sinks.stdout.type", "stdout")
        .set("sinks.rejecting.type", "http")
        .set("sinks.rejecting.url", &*rejecting.url("/"))
        .start();
    provoke(&receiver);
    let metrics = receiver.metrics();
    let exposed: BTreeSet<&str> = metrics.keys().map(|series| series.split('{').next().unwrap()).collect();

    // Of a journal that has a disk of this machine.
    let has_disk = receiver.setup().engine() == "sqlite";
    let is_there = |name: &str| has_disk || !["journal_disk_", "journal_wal_"].iter().any(|part| name.contains(part));
    let dashboard = serde_json::from_str(&text("deploy/grafana/asapp-receiver.json")).unwrap();
    let asked: String = expressions(&dashboard).join("\n") + &text("deploy/prometheus/alerts.yml");
    for name in names(&asked).into_iter().filter(|name| is_there(name)) {
        assert!(exposed.contains(&*name), "{name} is asked for by an alert or a panel, but not exposed: {exposed:#?}");
    }

    let page = text("docs/metrics.md");
    let documented: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next())
        .flat_map(|names| names.split('`').filter(|name| name.chars().all(|c| c != ' ')))
        .filter_map(|name| name.split('{').next().filter(|name| !name.is_empty() && is_there(name)))
        .collect();
    let families: BTreeSet<&str> = exposed.iter().map(|name| family(name.strip_prefix(PREFIX).unwrap())).collect();
    let unexplained: Vec<_> = families.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&families).collect();
    assert!(unexplained.is_empty() && gone.is_empty(), "docs/metrics.md: missing {unexplained:?}, gone {gone:?}");
    receiver.finish();
}

#[test]
fn when_a_feed_spoke_last_holds_over_a_restart() {
    let last = r#"feed_last_event_timestamp_seconds{feed="journey"}"#;
    let receiver = Setup::new().durable().start();
    assert_eq!(receiver.metric("feed_last_event_timestamp_seconds"), 0, "no series says 1970");
    let before = now();
    receiver.store(3);
    // By then the last of them was noted.
    receiver.wait_metric(r#"feed_event_lag_seconds_count{feed="journey"}"#, 3);
    let told = receiver.metric(last);
    assert!((before..=now()).contains(&told), "{before} {told} {}", now());
    // The tests' events happened in May 2026.
    assert!(receiver.metric(r#"feed_event_lag_seconds_sum{feed="journey"}"#) > 86_400);
    assert_eq!(receiver.metric(r#"feed_event_lag_seconds_count{feed="queue"}"#), 0);

    let setup = receiver.setup().clone();
    receiver.finish();
    // Long enough for another time to be another second.
    wait_for("the second to be over", || (now() > told).then_some(()));
    let receiver = setup.start();
    wait_for("the same second, neither 1970 nor now", || (receiver.metric(last) == told).then_some(()));
    receiver.finish();
}

#[test]
fn what_no_sink_has_had_holds_the_journal() {
    let failing = Target::start(|_| Reply::status(503));
    let receiver = Setup::new()
        .set("sinks.stdout.type", "stdout")
        .set("sinks.failing.type", "http")
        .set("sinks.failing.url", &*failing.url("/"))
        .set("sinks.failing.retry.max_backoff", "200ms")
        .start();
    receiver.store(10);
    receiver.wait_metric(r#"sink_delivered_total{sink="stdout"}"#, 10);
    // A fleet's are counted every second.
    let all = wait_for("all to be held", || {
        let (held, all) = (receiver.metric("journal_held_bytes"), receiver.metric("journal_bytes"));
        (held == all && held > 1_000).then_some(all)
    });
    receiver.wait_metric(r#"sink_state{sink="failing",state="failing"}"#, 1);
    failing.answer(|_| Reply::status(200));
    wait_for("nothing to be held", || (receiver.metric("journal_held_bytes") == 0).then_some(()));
    // They are looked at once a second, so the first sight may have been of fewer.
    assert!(receiver.metric("journal_bytes") >= all, "delivered events are kept for replays");
    wait_for("the sink to be well", || {
        (receiver.metric(r#"sink_state{sink="failing",state="ok"}"#) == 1).then_some(())
    });
    receiver.finish();
}

#[test]
fn requests_for_what_there_is_not_are_counted() {
    let receiver = Setup::new().start();
    let ask = |head: &str| {
        let mut wire = receiver.connect();
        wire.send(format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).unwrap();
        wire.answer().status
    };
    assert_eq!((ask("POST /event"), ask("GET /events")), (404, 405));
    assert_eq!(receiver.metric(r#"unrouted_total{reason="not-found"}"#), 1);
    assert_eq!(receiver.metric(r#"unrouted_total{reason="method-not-allowed"}"#), 1);
    assert_eq!(receiver.metric("received_total"), 0);
    receiver.finish();
}

/// The first one that is counted is no increase otherwise.
#[test]
fn every_count_that_an_alert_names_begins_at_zero() {
    let receiver = Setup::new().set("sinks.stdout.type", "stdout").start();
    let metrics = receiver.metrics();
    let alerts = text("deploy/prometheus/alerts.yml");
    let mut looked_at = 0;
    for selector in alerts.split(PREFIX).skip(1) {
        let Some((name, labels)) = selector.split_once('{') else { continue };
        if !name.ends_with("_total") || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            continue;
        }
        for matcher in labels.split('}').next().unwrap().split(", ") {
            let Some((label, values)) = matcher.split_once('=').filter(|(label, _)| !label.ends_with('!')) else {
                continue;
            };
            for value in values.trim_matches(['~', '"']).split('|') {
                let begins = format!("{label}=\"{}", value.trim_end_matches(".*"));
                let series = metrics
                    .iter()
                    .find(|(series, _)| series.starts_with(&format!("{PREFIX}{name}{{")) && series.contains(&begins));
                assert!(series.is_some_and(|(_, count)| *count == 0.0), "{name} with {begins} does not begin at 0");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 15, "{looked_at}");
    receiver.finish();
}

/// Makes every kind of count appear that does not begin at zero.
fn provoke(receiver: &Receiver) {
    let (id, event_) = new_event();
    receiver.post(&event_).assert_durable("stored", &id);
    receiver.post(event(&id).replace("hello", "other")).assert_durable("duplicate", &id);
    assert_eq!(receiver.post(format!("{{{}", new_id())).status, 400);
    drop(TcpStream::connect(receiver.events));
    receiver.wait_metric("connections_closed_total", 1);
    receiver.wait_metric("sink_failures_total", 1);
    receiver.wait_metric("feed_last_event_timestamp_seconds", 1);
    receiver.wait_metric("feed_event_lag_seconds_count", 1);
}

/// A histogram's name, of its samples; any other name as it is.
fn family(name: &str) -> &str {
    let ends = ["_bucket", "_sum", "_count"];
    ends.iter().find_map(|end| name.strip_suffix(end).filter(|base| base.ends_with("_seconds"))).unwrap_or(name)
}

/// Runs promtool in the project's root.
#[track_caller]
fn promtool(arguments: &[&str]) {
    // Put there by tests/run.
    let promtool = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("promtool").join("promtool");
    assert!(promtool.exists(), "{} is missing: tests/run gets it", promtool.display());
    let output = Command::new(promtool).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "promtool {arguments:?}: {output:#?}");
}

/// The alerts, each with the lines of its rule.
fn alerts() -> BTreeMap<String, Vec<String>> {
    let mut alerts = BTreeMap::new();
    let mut current = String::new();
    for line in text("deploy/prometheus/alerts.yml").lines() {
        if let Some(name) = line.trim_start().strip_prefix("- alert: ") {
            name.clone_into(&mut current);
            assert!(alerts.insert(current.clone(), Vec::new()).is_none(), "{name} comes twice");
        }
        if let Some(lines) = alerts.get_mut(&current) {
            lines.push(line.to_owned());
        }
    }
    alerts
}

/// Every PromQL expression of a dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(members) => {
            let own = members.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(members.values().flat_map(expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// The receiver's metrics that a text names.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(PREFIX)).map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
