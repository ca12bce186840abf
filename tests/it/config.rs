//! Settings: layers, every problem at once, and the shipped files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use asapp_receiver::config::{
    AllowedClients, Compress, Config, Engine, FileSink, Format, HttpSink, Ordering, Problem, Sink, SinkKind, Start,
    Sync, TlsVersion, Warning,
};
use hyper::Method;

/// What every start needs.
const GOOD: &str = r#"
[tls]
certificate = "server.pem"
private_key = "server-key.pem"
client_ca = ["ca.pem"]
allowed_clients = [{ common_name = "asapp" }]
"#;

#[test]
fn defaults_are_those_of_the_specification() {
    let (config, warnings) = load(&[GOOD], &[]).unwrap();
    assert_eq!(warnings, []);
    let listen = &config.listen;
    assert_eq!(listen.address, "0.0.0.0:8443".parse().unwrap());
    assert_eq!((listen.max_connections, listen.max_in_flight), (4096, 4096));
    assert_eq!((listen.max_in_flight_bytes, listen.max_body_bytes), (256 << 20, 1 << 20));
    let seconds = [
        listen.handshake_timeout,
        listen.header_timeout,
        listen.body_timeout,
        listen.idle_timeout,
        listen.max_connection_age,
        listen.answer_within,
        listen.drain_timeout,
        listen.pre_drain,
    ];
    assert_eq!(seconds.map(|d| d.as_secs()), [10, 10, 10, 90, 3600, 4, 25, 5]);
    assert!(!listen.http2);

    assert_eq!(config.endpoints.len(), 1);
    assert_eq!((config.endpoints[0].name.as_str(), config.endpoints[0].path.as_str()), ("events", "/events"));
    assert_eq!((config.endpoints[0].timeout_ms, config.endpoints[0].retries), (5000, 3));
    assert!(config.endpoints[0].feeds.is_empty());

    assert_eq!(config.tls.min_version, TlsVersion::Tls13);
    assert_eq!(config.tls.reload_interval, Duration::from_secs(5));
    assert!(!config.tls.allow_extra_key_usage);
    assert_eq!((config.dedup.capacity, config.dedup.window), (1_000_000, Duration::from_secs(86_400)));
    assert_eq!(config.journal.engine, Engine::Sqlite);
    assert_eq!((config.journal.max_bytes, config.journal.retention), (10 << 30, Duration::from_secs(86_400)));

    assert_eq!(config.sinks.len(), 1);
    let sink = &config.sinks[0];
    assert_eq!((sink.name.as_str(), sink.enabled, sink.required, sink.start), ("stdout", true, true, Start::Latest));
    assert_eq!((sink.retry.initial_backoff, sink.retry.max_backoff), (ms(200), ms(60_000)));
    assert_eq!((sink.retry.max_attempts, sink.retry.max_age), (None, None));

    assert_eq!((config.quarantine.max_bytes, config.dead_letters.max_bytes), (64 << 20, 1 << 30));
    assert_eq!(config.admin.address, "127.0.0.1:8081".parse().unwrap());
}

#[test]
fn the_default_file_alone_lacks_nothing_but_what_has_no_default() {
    let problems = Config::from_sources(&[shipped("default.toml")], std::iter::empty()).unwrap_err().0;
    let mut keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "sinks.file.path",
            "sinks.http.url",
            "tls.allowed_clients, tls.allow_any_client",
            "tls.certificate",
            "tls.client_ca",
            "tls.private_key"
        ]
    );
}

#[test]
fn the_production_file_loads_without_a_warning() {
    let env =
        [("ASAPP_RECEIVER__ADMIN__TOKEN_FILE", "/run/secrets/token"), ("ASAPP_RECEIVER__ADMIN__ADDRESS", "[::]:9")];
    let (config, warnings) = Config::from_sources(&[shipped("production.toml")], variables(&env)).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.sinks.len(), 1);
    assert_eq!(config.admin.token_file.as_deref(), Some(Path::new("/run/secrets/token")));
    assert_eq!(config.journal.path, Path::new("/var/lib/asapp-receiver/journal"));
}

#[cfg(feature = "nats")]
#[test]
fn the_fleets_file_loads_without_a_warning() {
    let (config, warnings) = Config::from_sources(&[shipped("cluster.toml")], variables(&[])).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.journal.engine, Engine::Nats);
    let nats = config.journal.nats.unwrap();
    assert_eq!((nats.servers.len(), nats.replicas, nats.partitions), (3, 3, 16));
    // What may be said of the server that goes with it is tried in nats.rs.
    assert!(config.listen.max_body_bytes + (64 << 10) < 2_000_000);
}

#[test]
fn the_examples_of_the_production_file_load_without_a_warning() {
    let text = std::fs::read_to_string(shipped("production.toml")).unwrap();
    let (before, example) = text.split_once("# Examples of other sinks.\n").unwrap();
    let (example, after) = example.split_once("\n\n[admin]").unwrap();
    let example: String = example.lines().map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line))).collect();
    let (config, warnings) = load(&[&format!("{before}{example}\n[admin]{after}")], &[]).unwrap();
    assert_eq!(warnings, []);
    let names: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    assert_eq!(names, ["archive", "crm", "stdout"]);
    assert!(matches!(config.sinks[0].kind, SinkKind::File(_)));
    assert!(matches!(config.sinks[1].kind, SinkKind::Http(_)));
}

#[test]
fn a_file_sink_starts_from_the_defaults_of_its_type() {
    let sinks = sinks("[sinks.archive]\ntype = 'file'\npath = 'events.jsonl'", &[]);
    let file = file_sink(&sinks[0]);
    assert_eq!(file.path, Path::new("events.jsonl"));
    assert_eq!((file.rotate_bytes, file.rotate_every, file.keep_files), (None, None, None));
    assert_eq!((file.compress, file.sync), (Compress::None, Sync::Batch));

    let all = r#"
        [sinks.archive]
        type = "file"
        path = "events.jsonl"
        rotate_bytes = "1GiB"
        rotate_every = "24h"
        compress = "zstd"
        keep_files = 7
        sync = "interval"
        format = "envelope"
        redact = ["/data/rep_name", "/~0a~1b/0", "/"]
    "#;
    let (config, warnings) = load(&[GOOD, all], &[]).unwrap();
    assert_eq!(warnings, []);
    let file = file_sink(&config.sinks[0]);
    assert_eq!((file.rotate_bytes, file.rotate_every), (Some(1 << 30), Some(Duration::from_secs(86_400))));
    assert_eq!((file.keep_files, file.compress, file.sync), (Some(7), Compress::Zstd, Sync::Interval));
    assert_eq!(config.sinks[0].format, Format::Envelope);
    assert_eq!(config.sinks[0].redact, ["/data/rep_name", "/~0a~1b/0", "/"]);
}

#[test]
fn an_http_sink_starts_from_the_defaults_of_its_type() {
    let sinks = sinks("[sinks.crm]\ntype = 'http'\nurl = 'https://crm.example.com/events?kind=asapp'", &[]);
    assert!(sinks[0].enabled && sinks[0].required && sinks[0].format == Format::Raw && sinks[0].redact.is_empty());
    assert_eq!(sinks[0].retry.max_backoff, ms(60_000));
    let http = http_sink(&sinks[0]);
    assert_eq!(http.url, "https://crm.example.com/events?kind=asapp");
    assert_eq!((&http.method, http.timeout, http.concurrency), (&Method::POST, ms(10_000), 4));
    assert!(http.headers.is_empty() && http.bearer_token_file.is_none() && http.signing_secret_file.is_none());
    assert_eq!((http.batch.max_events, http.batch.max_bytes, http.batch.max_wait), (1, 1 << 20, Duration::ZERO));
    assert_eq!((http.ordering, http.max_ahead, http.compress), (Ordering::Entity, 10_000, Compress::None));
    assert!(http.tls.ca.is_empty() && http.tls.certificate.is_none() && http.tls.private_key.is_none());
}

#[test]
fn an_http_sink_can_come_from_the_environment_alone() {
    let env = [
        ("ASAPP_RECEIVER__SINKS__CRM__TYPE", "http"),
        ("ASAPP_RECEIVER__SINKS__CRM__URL", "http://[::1]:9000/"),
        ("ASAPP_RECEIVER__SINKS__CRM__METHOD", "PUT"),
        ("ASAPP_RECEIVER__SINKS__CRM__HEADERS__AUTHORIZATION", "Basic s3cret"),
        ("ASAPP_RECEIVER__SINKS__CRM__HEADERS__X-API-KEY", "s3cret"),
        ("ASAPP_RECEIVER__SINKS__CRM__HEADERS__CONTENT-TYPE", "application/vnd.asapp+json"),
        ("ASAPP_RECEIVER__SINKS__CRM__TIMEOUT", "250ms"),
        ("ASAPP_RECEIVER__SINKS__CRM__CONCURRENCY", "8"),
        ("ASAPP_RECEIVER__SINKS__CRM__BATCH__MAX_EVENTS", "100"),
        ("ASAPP_RECEIVER__SINKS__CRM__BATCH__MAX_BYTES", "64KiB"),
        ("ASAPP_RECEIVER__SINKS__CRM__BATCH__MAX_WAIT", "50ms"),
        ("ASAPP_RECEIVER__SINKS__CRM__ORDERING", "none"),
        ("ASAPP_RECEIVER__SINKS__CRM__MAX_AHEAD", "5"),
        ("ASAPP_RECEIVER__SINKS__CRM__SIGNING_SECRET_FILE", "signing"),
        ("ASAPP_RECEIVER__SINKS__CRM__COMPRESS", "gzip"),
        ("ASAPP_RECEIVER__SINKS__CRM__FORMAT", "envelope"),
        ("ASAPP_RECEIVER__SINKS__CRM__REDACT", "/data/rep_name,/details"),
    ];
    let (config, warnings) = load(&[GOOD], &env).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.sinks.len(), 1);
    let sink = &config.sinks[0];
    assert_eq!((sink.name.as_str(), sink.format), ("crm", Format::Envelope));
    assert_eq!(sink.redact, ["/data/rep_name", "/details"]);
    let http = http_sink(sink);
    assert_eq!((&http.method, http.timeout, http.concurrency), (&Method::PUT, ms(250), 8));
    assert_eq!((http.batch.max_events, http.batch.max_bytes, http.batch.max_wait), (100, 64 << 10, ms(50)));
    assert_eq!((http.ordering, http.max_ahead, http.compress), (Ordering::None, 5, Compress::Gzip));
    assert_eq!(http.signing_secret_file.as_deref(), Some(Path::new("signing")));
    assert_eq!(http.headers["authorization"], "Basic s3cret");
    assert_eq!(http.headers["x-api-key"], "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
}

/// The environment has the last word on the type too.
#[test]
fn a_sink_starts_from_the_type_of_the_last_layer() {
    let file = "[sinks.crm]\ntype = 'file'";
    let env = [
        ("ASAPP_RECEIVER__SINKS__CRM__TYPE", "http"),
        ("ASAPP_RECEIVER__SINKS__CRM__URL", "https://x/"),
        ("ASAPP_RECEIVER__SINKS__CRM__TLS__CA", "a.pem,b.pem"),
        ("ASAPP_RECEIVER__SINKS__CRM__TLS__CERTIFICATE", "c.pem"),
        ("ASAPP_RECEIVER__SINKS__CRM__TLS__PRIVATE_KEY", "k.pem"),
    ];
    let sinks = sinks(file, &env);
    let http = http_sink(&sinks[0]);
    assert_eq!(http.concurrency, 4);
    assert_eq!(http.tls.ca, [Path::new("a.pem"), Path::new("b.pem")]);
    assert_eq!(http.tls.certificate.as_deref(), Some(Path::new("c.pem")));
    assert_eq!(http.tls.private_key.as_deref(), Some(Path::new("k.pem")));
}

#[test]
fn a_sink_that_is_named_like_a_type_need_not_name_it() {
    let sinks = sinks("[sinks.file]\npath = 'a'\n[sinks.http]\nurl = 'https://x/'\n[sinks.stdout]", &[]);
    assert_eq!(file_sink(&sinks[0]).path, Path::new("a"));
    assert_eq!(http_sink(&sinks[1]).url, "https://x/");
    assert!(matches!(sinks[2].kind, SinkKind::Stdout(_)));
}

#[test]
fn secrets_of_sinks_are_never_quoted() {
    for settings in [
        "url = 'https://user:s3cret@x/'",
        "url = 'https://x:s3cret/'",
        "url = 'https://x/?token=s3cret#x'",
        "url = 'ftp://s3cret/'",
        "url = 's3cret'",
        "url = 'https://x/'\nheaders = { Authorization = \"s3cret\\n\" }",
        "url = 'https://x/'\nheaders = { Host = 's3cret' }",
        "url = 'https://x/'\nheaders = { X-Key = ['s3cret'] }",
        "url = 'https://x/'\nheaders = 's3cret'",
        "url = 'https://x/'\nheaders = { 'a b' = 's3cret' }",
        "url = 'https://x/'\nheaders = { X-Key = 's3cret', x-key = 's3cret' }",
    ] {
        let problems = load(&[GOOD, &format!("[sinks.a]\ntype = 'http'\n{settings}")], &[]).unwrap_err();
        assert_eq!(problems.len(), 1, "{settings}: {problems:?}");
        assert!(!problems[0].to_string().contains("s3cret"), "{settings}: {problems:?}");
    }
}

#[test]
fn keys_of_another_type_are_refused_with_those_of_the_sinks_own() {
    for (settings, key, what, remedy) in [
        ("type = 'http'\nurl = 'https://x'\npath = 'x'", "path", "\"file\", not \"http\"", "url"),
        ("type = 'http'\nurl = 'https://x'\nsync = 'batch'", "sync", "\"file\", not \"http\"", "url"),
        ("type = 'file'\npath = 'x'\ntls = { ca = [] }", "tls", "\"http\", not \"file\"", "rotate_bytes"),
        ("type = 'stdout'\nbatch.max_events = 5", "batch", "\"http\", not \"stdout\"", "redact"),
        ("type = 'stdout'\ncompress = 'gzip'", "compress", "not \"stdout\"", "redact"),
        ("type = 'http'\nurl = 'https://x'\nconcurency = 5", "concurency", "no key", "did you mean `concurrency`?"),
    ] {
        let problems = load(&[GOOD, &format!("[sinks.a]\n{settings}")], &[]).unwrap_err();
        let [problem] = &problems[..] else { panic!("one problem: {problems:?}") };
        assert_eq!((&*problem.key, &*problem.source), (&*format!("sinks.a.{key}"), "file second.toml"));
        assert!(problem.what.contains(what) && problem.remedy.contains(remedy), "{problem}");
    }
}

#[test]
fn later_layers_win_key_by_key() {
    let second = "[listen]\nmax_connections = 7\nmax_in_flight = 8\n[tls]\nclient_ca = ['a.pem', 'b.pem']";
    let env = [
        ("ASAPP_RECEIVER__LISTEN__MAX_IN_FLIGHT", "9"),
        ("ASAPP_RECEIVER__LISTEN__HTTP2", "true"),
        ("ASAPP_RECEIVER__LISTEN__IDLE_TIMEOUT", "250ms"),
        ("ASAPP_RECEIVER__LISTEN__MAX_BODY_BYTES", "2048"),
        ("ASAPP_RECEIVER__TLS__CLIENT_CA", "c.pem, d.pem"),
        ("ASAPP_RECEIVER__TLS__CERTIFICATE", "1234"),
        ("ASAPP_RECEIVER__SINKS__STDOUT__FILTER__FEEDS", "activity,com.asapp.event.queue"),
        ("ASAPP_RECEIVER__SINKS__STDOUT__RETRY__MAX_AGE", "1h 30m"),
        ("ASAPP_RECEIVER_SERVICE_HOST", "10.0.0.1"),
        ("ASAPP_RECEIVER_PORT", "tcp://10.0.0.1:8443"),
    ];
    let (config, _) = load(&[GOOD, second], &env).unwrap();
    assert_eq!((config.listen.max_connections, config.listen.max_in_flight), (7, 9));
    assert!(config.listen.http2);
    assert_eq!((config.listen.idle_timeout, config.listen.max_body_bytes), (ms(250), 2048));
    assert_eq!(config.tls.client_ca, [Path::new("c.pem"), Path::new("d.pem")]);
    assert_eq!(config.tls.certificate, Path::new("1234"));
    assert_eq!(config.tls.private_key, Path::new("server-key.pem"));
    assert_eq!(config.sinks[0].filter.feeds, ["com.asapp.event.activity", "com.asapp.event.queue"]);
    assert_eq!(config.sinks[0].retry.max_age, Some(Duration::from_secs(5400)));
}

#[test]
fn endpoints_and_sinks_of_the_users_take_the_place_of_the_default_ones() {
    let own = r#"
        [endpoints.a]
        path = "/a"
        feeds = ["journey"]
        [endpoints.b]
        path = "/b"
        retries = 0
        [sinks.one]
        type = "stdout"
        [sinks.two]
        type = "stdout"
        required = false
        start = "earliest"
        retry.max_attempts = 4
    "#;
    let (config, _) = load(&[GOOD, own], &[]).unwrap();
    let endpoints: Vec<_> = config.endpoints.iter().map(|e| (e.name.as_str(), e.timeout_ms, e.retries)).collect();
    assert_eq!(endpoints, [("a", 5000, 3), ("b", 5000, 0)]);
    assert_eq!(config.endpoints[0].feeds, ["com.asapp.event.journey"]);
    let sinks: Vec<_> = config.sinks.iter().map(|s| (s.name.as_str(), s.required, s.retry.max_attempts)).collect();
    assert_eq!(sinks, [("one", true, None), ("two", false, Some(4))]);
    assert_eq!(config.sinks[1].retry.max_backoff, ms(60_000));
}

#[test]
fn every_problem_of_every_layer_is_in_one_report() {
    let first = r#"
        colour = "red"
        [listen]
        adress = "127.0.0.1:1"
        max_connections = "many"
        idle_timeout = 90
        [tls]
        certificate = 5
        private_key = "k"
        client_ca = []
        min_version = 1.3
    "#;
    let second = "[listen]\nmax_body_bytes = '1 lot'\n[journal]\nengine = 'tape'\n[sinks.a]\nformat = 'xml'\n";
    let env = [
        ("ASAPP_RECEIVER__JOURNAL__RETENTION", "soon"),
        ("ASAPP_RECEIVER__JOURNAL__PTAH", "/tmp"),
        ("ASAPP_RECEIVER__LISTEN", "1"),
        ("ASAPP_RECEIVER__LOG__LEVEL__X", "1"),
    ];
    let problems = load(&[first, second], &env).unwrap_err();
    let report: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for (key, source, remedy) in [
        ("colour", "file first.toml", "the keys here are listen"),
        ("listen.adress", "file first.toml", "did you mean `address`?"),
        ("listen.max_connections", "file first.toml", "from 1 to 1000000"),
        ("listen.idle_timeout", "file first.toml", "\"250ms\""),
        ("listen.max_body_bytes", "file second.toml", "\"64MiB\""),
        ("tls.certificate", "file first.toml", "quotes"),
        ("tls.client_ca", "file first.toml", "CAs that sign"),
        ("tls.min_version", "file first.toml", "\"1.3\""),
        ("tls.allowed_clients, tls.allow_any_client", "not set, built-in default", "identifies ASAPP's certificate"),
        ("journal.engine", "file second.toml", "\"sqlite\" or \"memory\" or \"nats\""),
        ("journal.retention", "environment variable ASAPP_RECEIVER__JOURNAL__RETENTION", "\"24h\""),
        ("journal.ptah", "environment variable ASAPP_RECEIVER__JOURNAL__PTAH", "did you mean `path`?"),
        ("sinks.a.type", "not set", "\"stdout\""),
        ("sinks.a.format", "file second.toml", "\"raw\""),
        ("log.level", "environment variable ASAPP_RECEIVER__LOG__LEVEL__X", "\"info\""),
        ("ASAPP_RECEIVER__LISTEN", "environment", "SECTION__KEY"),
    ] {
        let found =
            problems.iter().find(|p| p.key == key).unwrap_or_else(|| panic!("no problem for {key}: {report:#?}"));
        assert!(found.source == source && found.remedy.contains(remedy), "{found}");
    }
    assert_eq!(problems.len(), 16, "{report:#?}");
}

#[test]
fn contradictions_are_refused() {
    for (settings, key) in [
        ("[tls]\nallow_any_client = true", "tls.allowed_clients, tls.allow_any_client"),
        ("[tls]\nallowed_clients = []", "tls.allowed_clients, tls.allow_any_client"),
        ("[tls]\nallowed_clients = [{}]", "tls.allowed_clients[0]"),
        ("[tls]\nallowed_clients = [{ dns = '' }]", "tls.allowed_clients[0].dns"),
        ("[tls]\nallowed_clients = [{ cn = 'x' }]", "tls.allowed_clients[0].cn"),
        ("[tls]\nallowed_clients = [{ certificate_sha256 = 'ab' }]", "tls.allowed_clients[0].certificate_sha256"),
        ("[tls]\nallowed_clients = ['asapp']", "tls.allowed_clients[0]"),
        ("[journal]\nengine = 'memory'", "journal.engine, journal.allow_loss"),
        ("[listen]\npre_drain = '25s'", "listen.pre_drain, listen.drain_timeout"),
        ("[listen]\nmax_in_flight_bytes = '1KiB'", "listen.max_body_bytes, listen.max_in_flight_bytes"),
        ("[listen]\nmax_in_flight = 0", "listen.max_in_flight"),
        ("[listen]\nproxy_protocol = 'required'", "listen.proxy_protocol, listen.trusted_proxies"),
        ("[listen]\nproxy_protocol = 'optional'", "listen.proxy_protocol"),
        ("[listen]\ntrusted_proxies = ['10.0.0.0/33']", "listen.trusted_proxies"),
        ("[listen]\naddress = 'localhost'", "listen.address"),
        ("[listen]\naddress = '127.0.0.1:8081'", "listen.address, admin.address"),
        ("[endpoints.a]\nfeeds = []", "endpoints.a.path"),
        ("[endpoints.a]\npath = 'events'", "endpoints.a.path"),
        ("[endpoints.a]\npath = '/{feed}'", "endpoints.a.path"),
        ("[endpoints.a]\npath = '/x'\n[endpoints.b]\npath = '/x'", "endpoints.a.path, endpoints.b.path"),
        ("[endpoints.a]\npath = '/x'\nfeeds = ['chat']", "endpoints.a.feeds"),
        ("[endpoints.a]\npath = '/x'\npublic_url = 'http://x/'", "endpoints.a.public_url"),
        ("[endpoints]\na = 5", "endpoints.a"),
        ("[sinks.a]\ntype = 'kafka'\nurl = 'https://x'", "sinks.a.type"),
        ("[sinks.a]\ntype = 'stdout'\nurl = 'https://x'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = '/events'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'ftp://x/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://:80/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x:0/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x:70000/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://[::1]:x/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/a b'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://me@x/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/#top'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nmethod = 'GET'", "sinks.a.method"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nconcurrency = 0", "sinks.a.concurrency"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\ncompress = 'zstd'", "sinks.a.compress"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nbatch.max_events = 0", "sinks.a.batch.max_events"),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nbatch.events = 2", "sinks.a.batch.events"),
        (
            "[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nheaders.Content-Length = '1'",
            "sinks.a.headers.Content-Length",
        ),
        (
            "[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nformat = 'cloudevents'\nheaders.Content-Type = 'x'",
            "sinks.a.headers.Content-Type",
        ),
        ("[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nheaders.CE-ID = 'x'", "sinks.a.headers.CE-ID"),
        (
            "[sinks.a]\ntype = 'http'\nurl = 'https://x/'\nheaders.authorization = 'x'\nbearer_token_file = 'x'",
            "sinks.a.headers.authorization",
        ),
        (
            "[sinks.a]\ntype = 'http'\nurl = 'https://x/'\ntls.certificate = 'x'",
            "sinks.a.tls.certificate, sinks.a.tls.private_key",
        ),
        ("[sinks.a]\ntype = 'file'", "sinks.a.path"),
        ("[sinks.a]\ntype = 'file'\npath = ''", "sinks.a.path"),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\ncompress = 'brotli'", "sinks.a.compress"),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\nsync = true", "sinks.a.sync"),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\nrotate_every = 'daily'", "sinks.a.rotate_every"),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\n[sinks.b]\ntype = 'file'\npath = './x'", "sinks.b.path, sinks.a.path"),
        ("[sinks.Archive]\ntype = 'stdout'", "sinks.Archive"),
        ("[sinks.stdout]\nredact = ['']", "sinks.stdout.redact"),
        ("[sinks.stdout]\nredact = ['data']", "sinks.stdout.redact"),
        ("[sinks.stdout]\nredact = ['/a~2b']", "sinks.stdout.redact"),
        ("[sinks.stdout]\nredact = ['/a~']", "sinks.stdout.redact"),
        ("[sinks.stdout]\nredact = '/a'", "sinks.stdout.redact"),
        ("[sinks.stdout]\nfilter = { event_types = ['[a'] }", "sinks.stdout.filter.event_types"),
        (
            &format!("[sinks.stdout]\nfilter = {{ exclude_event_types = ['{}'] }}", "{a,b}".repeat(60)),
            "sinks.stdout.filter.exclude_event_types",
        ),
        ("[sinks.stdout]\nfilter = { feed = ['queue'] }", "sinks.stdout.filter.feed"),
        (
            "[sinks.stdout]\nretry = { initial_backoff = '2m' }",
            "sinks.stdout.retry.initial_backoff, sinks.stdout.retry.max_backoff",
        ),
        ("[admin]\naddress = '0.0.0.0:8081'", "admin.address, admin.token_file"),
        ("[dedup]\ncapacity = 0", "dedup.capacity"),
        ("'listen.address' = '127.0.0.1:1'", "listen.address"),
        ("listen = 5", "listen"),
        ("[log\n", "TOML"),
    ] {
        let problems = load(&[GOOD, settings], &[]).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, [key], "{settings}: {problems:#?}");
    }
}

#[test]
fn files_that_cannot_be_understood_are_told_in_sentences() {
    let told = load(&[GOOD, "[log\n"], &[]).unwrap_err()[0].to_string();
    assert!(told.starts_with("TOML parse error at line 1, column 5: "), "{told}");
}

#[cfg(not(feature = "tls12"))]
#[test]
fn tls_1_2_needs_its_feature() {
    let problems = load(&[GOOD, "[tls]\nmin_version = '1.2'"], &[]).unwrap_err();
    assert_eq!(problems[0].key, "tls.min_version");
    assert!(problems[0].to_string().contains("cargo build --release --features tls12"), "{}", problems[0]);
}

#[cfg(not(feature = "nats"))]
#[test]
fn the_engine_nats_needs_its_feature() {
    let cluster = "[journal]\nengine = 'nats'\n[journal.nats]\nservers = ['nats://127.0.0.1:4222']";
    let problems = load(&[GOOD, cluster], &[]).unwrap_err();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let [told] = &told[..] else { panic!("{told:?}") };
    assert!(told.starts_with("journal.engine"), "{told}");
    assert!(
        told.contains("lacks the feature nats") && told.contains("cargo build --release --features nats"),
        "{told}"
    );
}

#[test]
fn what_is_odd_but_allowed_is_warned_about() {
    for (settings, key) in [
        ("[listen]\nanswer_within = '5s'", "listen.answer_within, endpoints.events.timeout_ms"),
        ("[listen]\ntrusted_proxies = ['10.0.0.0/8', '::1']", "listen.trusted_proxies"),
        ("[listen]\nproxy_protocol = 'required'\ntrusted_proxies = ['0.0.0.0/0']", "listen.trusted_proxies"),
        ("[tls]\nallowed_clients = []\nallow_any_client = true", "tls.allow_any_client"),
        ("[journal]\nengine = 'memory'\nallow_loss = true", "journal.engine"),
        ("[sinks.a]\ntype = 'http'\nurl = 'http://crm.example.com/'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'HTTP://10.0.0.1:8080'", "sinks.a.url"),
        ("[sinks.a]\ntype = 'http'\nurl = 'http://127.1.2.3/'\ntls.ca = ['x']", "sinks.a.tls.ca, sinks.a.url"),
        (
            "[sinks.a]\ntype = 'http'\nurl = 'http://localhost:1/'\nbatch.max_wait = '1s'",
            "sinks.a.batch.max_wait, sinks.a.batch.max_events",
        ),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\ncompress = 'gzip'", "sinks.a.compress"),
        ("[sinks.a]\ntype = 'file'\npath = 'x'\nkeep_files = 3", "sinks.a.keep_files"),
    ] {
        let (_, warnings) = load(&[GOOD, settings], &[]).unwrap();
        assert_eq!(warnings.iter().map(|w| w.key.as_str()).collect::<Vec<_>>(), [key]);
    }
}

#[test]
fn keys_of_an_engine_not_chosen_are_ignored_but_known() {
    load(&[GOOD, "[journal.nats]\nservers = 5\nmax_bytes = 'x'"], &[]).unwrap();
    let problems = load(&[GOOD, "[journal.nats]\nserver = 5"], &[]).unwrap_err();
    assert_eq!(problems[0].key, "journal.nats.server");
}

#[cfg(feature = "nats")]
#[test]
fn a_cluster_needs_its_servers_and_only_what_goes_together() {
    let load = |settings: &str| load(&[GOOD, &format!("[journal]\nengine = 'nats'\n[journal.nats]\n{settings}")], &[]);
    let good = "servers = ['tls://a.example.com:4222', 'nats://127.0.0.1:4222', 'nats://[::1]:4222']";
    let (config, warnings) = load(good).unwrap();
    assert_eq!(warnings, []);
    let nats = config.journal.nats.unwrap();
    assert_eq!(nats.servers.len(), 3);
    assert_eq!((nats.stream.as_str(), nats.replicas, nats.partitions), ("ASAPP_EVENTS", 3, 16));
    assert_eq!((nats.duplicate_window, nats.ack_timeout), (Duration::from_secs(900), Duration::from_secs(2)));
    assert_eq!((nats.max_bytes, nats.ca, nats.certificate, nats.monitor_url), (10 << 30, None, None, None));

    let servers = "journal.nats.servers";
    for (settings, key) in [
        ("", servers),
        ("servers = []", servers),
        ("servers = ['a.example.com:4222']", servers),
        ("servers = ['tls://a.example.com']", servers),
        ("servers = ['tls://:4222']", servers),
        ("servers = ['tls://a.example.com:4222/x']", servers),
        ("servers = ['wss://a.example.com:4222']", servers),
        ("servers = ['tls://joe:hunter2@a.example.com:4222']", servers),
        ("GOOD\nstream = 'a.b'", "journal.nats.stream"),
        ("GOOD\nstream = ''", "journal.nats.stream"),
        ("GOOD\nreplicas = 2", "journal.nats.replicas"),
        ("GOOD\nreplicas = 7", "journal.nats.replicas"),
        ("GOOD\npartitions = 0", "journal.nats.partitions"),
        ("GOOD\npartitions = 257", "journal.nats.partitions"),
        ("GOOD\nmonitor_url = 'nats.example.com:8222'", "journal.nats.monitor_url"),
        ("GOOD\nmonitor_url = 'http://nats.example.com:8222/varz'", "journal.nats.monitor_url"),
        ("GOOD\ncredentials_file = 'a'\nnkey_file = 'b'", "journal.nats.credentials_file, journal.nats.nkey_file"),
        ("GOOD\ncertificate = 'a'", "journal.nats.certificate, journal.nats.private_key"),
        ("GOOD\nprivate_key = 'a'", "journal.nats.certificate, journal.nats.private_key"),
        ("GOOD\nack_timeout = '4s'", "journal.nats.ack_timeout, listen.answer_within"),
        (
            "GOOD\n[sinks.a]\ntype = 'http'\nurl = 'https://x'\nordering = 'strict'",
            "sinks.a.ordering, journal.nats.partitions",
        ),
    ] {
        let problems = load(&settings.replace("GOOD", good)).unwrap_err();
        assert_eq!(problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(), [key], "{settings}");
        assert!(!problems[0].to_string().contains("hunter2"), "{}", problems[0]);
    }
    let strict = "partitions = 1\n[sinks.a]\ntype = 'http'\nurl = 'https://x'\nordering = 'strict'";
    load(&format!("{good}\n{strict}")).unwrap();
    for (settings, key) in [
        ("servers = ['nats://10.0.0.1:4222']", servers),
        ("GOOD\nmax_bytes = '64KiB'", "listen.max_body_bytes, journal.nats.max_bytes"),
    ] {
        let (_, warnings) = load(&settings.replace("GOOD", good)).unwrap();
        assert_eq!(warnings.iter().map(|w| w.key.as_str()).collect::<Vec<_>>(), [key]);
    }
}

#[test]
fn fingerprints_come_with_or_without_colons() {
    let colons = vec!["AB"; 32].join(":");
    let plain = "ab".repeat(32);
    let entry =
        format!("[tls]\nallowed_clients = [{{ certificate_sha256 = '{colons}', public_key_sha256 = '{plain}' }}]");
    let (config, _) = load(&[GOOD, &entry], &[]).unwrap();
    let AllowedClients::Listed(clients) = config.tls.clients else { panic!("a list") };
    assert_eq!((clients[0].certificate_sha256, clients[0].public_key_sha256), (Some([0xab; 32]), Some([0xab; 32])));
}

#[test]
fn variables_that_collide_are_refused() {
    for names in [
        ["ASAPP_RECEIVER__LOG__LEVEL", "ASAPP_RECEIVER__LOG__level"],
        ["ASAPP_RECEIVER__ENDPOINTS__EVENTS", "ASAPP_RECEIVER__ENDPOINTS__EVENTS__PATH"],
    ] {
        let problems = load(&[GOOD], &[(names[0], "info"), (names[1], "/x")]).unwrap_err();
        assert!(problems.iter().any(|p| p.key == names[1] && p.what.contains(names[0])), "{problems:?}");
    }
}

#[test]
fn a_broken_file_is_told_without_its_text() {
    let problems = load(&[GOOD, "[admin]\ntoken = s3cret"], &[]).unwrap_err();
    assert!(problems[0].what.contains("line 2"), "{problems:?}");
    assert!(!problems[0].to_string().contains("s3cret"), "{problems:?}");
    let missing = Config::from_sources(&[PathBuf::from("nowhere.toml")], variables(&[])).unwrap_err();
    assert!(missing.0[0].source == "file nowhere.toml", "{missing}");
}

/// The sinks of good settings without a warning.
#[track_caller]
fn sinks(settings: &str, env: &[(&str, &str)]) -> Vec<Sink> {
    let (config, warnings) = load(&[GOOD, settings], env).unwrap();
    assert_eq!(warnings, []);
    config.sinks
}

#[track_caller]
fn file_sink(sink: &Sink) -> &FileSink {
    if let SinkKind::File(file) = &sink.kind { file } else { panic!("{sink:?}") }
}

#[track_caller]
fn http_sink(sink: &Sink) -> &HttpSink {
    if let SinkKind::Http(http) = &sink.kind { http } else { panic!("{sink:?}") }
}

type Loaded = Result<(Config, Vec<Warning>), Vec<Problem>>;

/// Loads the texts as the files `first.toml` and `second.toml`.
fn load(texts: &[&str], env: &[(&str, &str)]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, text) in ["first.toml", "second.toml"].iter().zip(texts) {
        files.push(folder.path().join(name));
        std::fs::write(files.last().unwrap(), text).unwrap();
    }
    let prefix = format!("{}/", folder.path().display());
    Config::from_sources(&files, variables(env)).map_err(|problems| {
        let mut problems = problems.0;
        for problem in &mut problems {
            problem.source = problem.source.replace(&prefix, "");
        }
        problems
    })
}

fn variables(env: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
