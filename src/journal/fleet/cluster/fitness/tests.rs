use serde_json::{Value, json};

use super::*;

struct Scene {
    config: Config,
    names: Names,
    server: ServerInfo,
}

impl Scene {
    fn new() -> Self {
        let env = [
            ("TLS__CERTIFICATE", "server.pem"),
            ("TLS__PRIVATE_KEY", "server-key.pem"),
            ("TLS__CLIENT_CA", "ca.pem"),
            ("TLS__ALLOW_ANY_CLIENT", "true"),
            ("JOURNAL__ENGINE", "nats"),
            ("JOURNAL__NATS__SERVERS", "nats://127.0.0.1:4222"),
        ];
        let env = env.map(|(key, value)| (format!("ASAPP_RECEIVER__{key}"), value.to_owned()));
        let (config, _) = Config::from_sources(&[], env.into_iter()).unwrap();
        let server = ServerInfo {
            server_name: "n1".to_owned(),
            version: "2.12.3".to_owned(),
            cluster: Some("asapp".to_owned()),
            jetstream: true,
            max_payload: 2 << 20,
            ..ServerInfo::default()
        };
        Self { config, names: Names::new("E"), server }
    }

    fn settings(&self) -> &config::Nats {
        self.config.journal.nats.as_ref().unwrap()
    }

    fn of_server(&self) -> Verdict {
        of_server(&self.server, &self.config, self.settings())
    }

    /// As the receiver made it, but for these members.
    fn of_stream(&self, kind: Kind, changes: Value) -> Verdict {
        let mut made = serde_json::to_value(kind.wanted(&self.names, &self.config, self.settings())).unwrap();
        for (member, value) in changes.as_object().unwrap() {
            made[member] = value.clone();
        }
        let found: Stream = serde_json::from_value(made).unwrap();
        super::of_stream(kind, &self.names, &found, &self.server, &self.config, self.settings())
    }
}

#[test]
fn what_the_receiver_makes_does() {
    let scene = Scene::new();
    assert_eq!(scene.of_server(), Verdict::default());
    for kind in Kind::ALL {
        // The server adds its own.
        let added = json!({ "max_msgs": -1, "max_msg_size": -1, "max_consumers": -1, "consumer_limits": {} });
        assert_eq!(scene.of_stream(kind, added), Verdict::default(), "{kind:?}");
    }
}

#[test]
fn a_server_that_breaks_a_promise_is_refused() {
    let refused = |change: fn(&mut Scene), what: &str| {
        let mut scene = Scene::new();
        change(&mut scene);
        let problems = scene.of_server().problems;
        assert!(problems.len() == 1 && problems[0].contains(what), "{problems:?}");
    };
    refused(|scene| "2.12.2".clone_into(&mut scene.server.version), "run 2.12.3 or newer");
    refused(|scene| "2.9.25".clone_into(&mut scene.server.version), "run 2.12.3 or newer");
    refused(|scene| scene.server.jetstream = false, "enable it");
    refused(|scene| scene.server.max_payload = 200 << 10, "set max_payload: 1114112");
    refused(|scene| scene.server.cluster = None, "write 1, or name the servers of a cluster");
    refused(|scene| scene.config.journal.nats.as_mut().unwrap().replicas = 1, "write 3");
    let mut scene = Scene::new();
    "2.14.0-RC.1".clone_into(&mut scene.server.version);
    assert_eq!(scene.of_server(), Verdict::default());
}

#[test]
fn a_server_with_its_default_settings_does_and_takes_smaller_events() {
    let mut scene = Scene::new();
    scene.server.max_payload = 1 << 20;
    let Verdict { problems, warnings } = scene.of_server();
    assert_eq!(problems, [""; 0]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("more than 983040 bytes are answered 413"), "{warnings:?}");
    // Who takes smaller ones only needs no more.
    scene.config.listen.max_body_bytes = 100 << 10;
    scene.server.max_payload = 200 << 10;
    assert_eq!(scene.of_server(), Verdict::default());
}

#[test]
fn a_stream_that_breaks_a_promise_is_refused() {
    let scene = Scene::new();
    let hour = 3_600_000_000_000_u64;
    let of_all = [
        json!({ "storage": "memory" }),
        json!({ "retention": "workqueue" }),
        json!({ "persist_mode": "async" }),
        json!({ "sealed": true }),
        json!({ "no_ack": true }),
        json!({ "num_replicas": 1 }),
        json!({ "num_replicas": 2 }),
        json!({ "max_age": hour }),
        json!({ "max_msgs": 1000 }),
        json!({ "max_msgs_per_subject": 1000 }),
        json!({ "max_msg_size": 1 << 20 }),
        json!({ "duplicate_window": 1_000_000_000 }),
        json!({ "mirror": { "name": "X" } }),
        json!({ "sources": [{ "name": "X" }] }),
        json!({ "subjects": ["X"] }),
        json!({ "subject_transform": { "src": "a", "dest": "b" } }),
        json!({ "allow_msg_counter": true }),
        json!({ "consumer_limits": { "inactive_threshold": hour } }),
    ];
    for kind in Kind::ALL {
        for change in &of_all {
            let problems = scene.of_stream(kind, change.clone()).problems;
            assert_eq!(problems.len(), 1, "{kind:?} {change}: {problems:?}");
            assert!(problems[0].contains(kind.name(&scene.names)), "{problems:?}");
        }
    }
    let of_some = [
        (Kind::Events, json!({ "discard": "old" })),
        (Kind::Events, json!({ "deny_purge": true })),
        (Kind::Events, json!({ "allow_direct": false })),
        (Kind::Events, json!({ "max_consumers": 15 })),
        (Kind::Events, json!({ "metadata": {} })),
        (Kind::Events, json!({ "metadata": { PARTITIONS: "8", FORMAT: "1" } })),
        (Kind::Events, json!({ "metadata": { PARTITIONS: "16", FORMAT: "2" } })),
        (Kind::State, json!({ "discard": "new" })),
        (Kind::State, json!({ "max_bytes": 1 << 20 })),
        (Kind::State, json!({ "allow_msg_ttl": false })),
        (Kind::DeadLetters, json!({ "discard": "old" })),
        (Kind::DeadLetters, json!({ "deny_delete": true })),
        (Kind::Quarantine, json!({ "discard": "new" })),
    ];
    for (kind, change) in of_some {
        let problems = scene.of_stream(kind, change.clone()).problems;
        assert_eq!(problems.len(), 1, "{kind:?} {change}: {problems:?}");
    }
}

#[test]
fn what_keeps_the_promises_otherwise_is_told() {
    let scene = Scene::new();
    let day = 86_400_000_000_000_u64;
    for (change, told) in [
        (json!({ "max_bytes": 1 << 20 }), "--max-bytes=10737418240"),
        (json!({ "num_replicas": 5 }), "E has 5, not 3"),
        (json!({ "duplicate_window": day }), "E remembers ids for 1day"),
    ] {
        let Verdict { problems, warnings } = scene.of_stream(Kind::Events, change);
        assert_eq!(problems, [""; 0]);
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{warnings:?}");
    }
    let harmless = json!({ "compression": "s2", "metadata": { PARTITIONS: "16", FORMAT: "1", "own": "x" } });
    assert_eq!(scene.of_stream(Kind::Events, harmless), Verdict::default());
}
