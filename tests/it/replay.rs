//! `/api/v1/replay` and `replay`, before a stand-in for what does the replaying.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use asapp_receiver::admin::{
    self, Bound, Change, Gate, Insight, Phase, Progress, ReplayError, ReplayRequest, ReplayState, Replays,
};
use asapp_receiver::config::{Config, PREFIX};
use asapp_receiver::journal::Journal;
use asapp_receiver::server::{self, Limits, Transport};
use asapp_receiver::telemetry::Metrics;
use futures_util::future::{BoxFuture, FutureExt};
use serde_json::{Value, json};
use tokio::sync::watch;

#[test]
fn a_replay_is_begun_watched_and_changed() {
    let port = Port::open();
    let output = port.run(&[
        "replay",
        "--sink",
        "out",
        "--from",
        "3",
        "--to",
        "1h",
        "--feeds",
        "queue",
        "--event-types",
        "a*,b",
        "--rate",
        "5.5",
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("done") && text.contains("2026-11-22T10:00:00Z"), "{text}");
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains('\u{1b}'),
        "no bar where there is no terminal: {output:?}"
    );
    let asked = port.asked.lock().unwrap().take().unwrap();
    assert_eq!((&*asked.sink, asked.from, asked.rate), ("out", Bound::Sequence(3), Some(5.5)));
    assert_eq!(asked.filter.feeds, ["com.asapp.event.queue"]);
    assert_eq!(asked.filter.event_types, ["a*", "b"]);
    let Some(Bound::Time(to)) = asked.to else { panic!("{asked:?}") };
    assert_eq!(SystemTime::now().duration_since(to).unwrap().as_secs() / 60, 60);

    let output = port.run(&["replay", "list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["replays"][0]["id"], 7);
    assert!(String::from_utf8_lossy(&port.run(&["replay", "list"]).stdout).contains("replayed"));

    let output = port.run(&["replay", "--sink", "nobody", "--from", "2026-11-22T10:00:00Z", "--detach"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no such sink"), "{output:?}");
    for (verb, code, state) in
        [("pause", 0, "paused"), ("watch", 1, "paused"), ("resume", 0, "done"), ("cancel", 0, "cancelled")]
    {
        let output = port.run(&["replay", verb, "7", "--json"]);
        assert_eq!(output.status.code(), Some(code), "{verb}: {output:?}");
        let progress: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(progress["state"], state, "{verb}");
    }
    let output = port.run(&["replay", "resume", "7"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it is cancelled"), "{output:?}");
    assert_eq!(port.run(&["replay"]).status.code(), Some(2));
    assert_eq!(port.run(&["replay", "--sink", "out"]).status.code(), Some(2));
}

#[test]
fn calls_that_mean_nothing_are_refused() {
    let port = Port::open();
    let json = "application/json";
    for (kind, body, status, told) in [
        ("text/plain", r#"{"sink":"out","from":1}"#.to_owned(), 415, "application/json"),
        (json, "{".to_owned(), 400, "the body"),
        (json, r#"{"sink":"out"}"#.to_owned(), 400, "`from`"),
        (json, r#"{"sink":"out","from":"yesterday"}"#.to_owned(), 400, "a sequence, a time"),
        (json, r#"{"sink":"out","from":1,"rate":0}"#.to_owned(), 400, "`rate`"),
        (json, r#"{"sink":"out","from":1,"until":2}"#.to_owned(), 400, "`until`"),
        (json, r#"{"sink":"out","from":1,"filter":{"feeds":["x"]}}"#.to_owned(), 400, "`feeds`"),
        (json, format!(r#"{{"sink":"{}"}}"#, "x".repeat(70_000)), 413, "64 KiB"),
    ] {
        let (found, problem) = port.curl(&["--json", &body, "--header", &format!("content-type: {kind}")], "");
        assert_eq!(found, status, "{body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(told), "{body}: {problem}");
    }
    let (status, begun) = port.curl(&["--json", r#"{"sink":"out","from":"90m","to":12}"#], "");
    assert_eq!((status, &begun["id"]), (200, &json!(7)));
    assert_eq!(port.curl(&[], "/7").1["state"], "running");
    for (arguments, path, status) in [
        (&[][..], "/8", 404),
        (&[], "/x", 404),
        (&["--request", "POST"], "/8/pause", 404),
        (&["--request", "PATCH"], "/7", 405),
        (&["--request", "POST", "--header", "Origin: https://evil.example"], "/7/pause", 403),
    ] {
        let (found, problem) = port.curl(arguments, path);
        assert_eq!((found, &problem["status"]), (status, &json!(status)), "{path}");
    }
}

/// An admin port of its own, whose only replay has the id 7 and is done when it is looked at for the third time.
struct Port {
    address: SocketAddr,
    asked: Arc<Mutex<Option<ReplayRequest>>>,
    _runtime: tokio::runtime::Runtime,
    _server: watch::Sender<server::Phase>,
    _phase: watch::Sender<Phase>,
}

impl Port {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked = Arc::new(Mutex::new(None));
        let replays = Arc::new(StandIn { asked: asked.clone(), state: Mutex::new((ReplayState::Done, 0)) });
        let settings = [
            ("TLS__CERTIFICATE", "none"),
            ("TLS__PRIVATE_KEY", "none"),
            ("TLS__CLIENT_CA", "none"),
            ("TLS__ALLOW_ANY_CLIENT", "true"),
            ("JOURNAL__ENGINE", "memory"),
            ("JOURNAL__ALLOW_LOSS", "true"),
        ];
        let env = settings.map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()));
        let (config, _) = Config::from_sources(&[], env.into_iter()).unwrap();
        let metrics = Arc::new(Metrics::new());
        let (journal, ..) = Journal::open(&config, metrics.clone()).unwrap();
        let insight =
            Insight { state: journal.state(), journal, status: Arc::new(|| unreachable!()), replays: Some(replays) };
        let (phase, phases) = watch::channel(Phase::Serving(insight));
        let (server, serving) = watch::channel(server::Phase::Serving);
        let router = admin::router(Gate::Loopback { token: None }, metrics, phases);
        let guard = runtime.enter();
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        drop(guard);
        #[allow(clippy::disallowed_methods, reason = "it ends with the test")]
        runtime.spawn(server::serve(listener, Transport::Plain, router, Limits::admin(), None, serving));
        Self { address, asked, _runtime: runtime, _server: server, _phase: phase }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"));
        command.args(arguments).arg("--admin").arg(format!("http://{}", self.address)).env_clear().output().unwrap()
    }

    /// What curl got: the status and the JSON.
    fn curl(&self, arguments: &[&str], path: &str) -> (u16, Value) {
        let url = format!("http://{}/api/v1/replay{path}", self.address);
        let mut command = Command::new("curl");
        command.args(["--silent", "--noproxy", "*", "--write-out", "\n%{http_code}"]).args(arguments).arg(url);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let (body, status) = output.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap())
    }
}

struct StandIn {
    asked: Arc<Mutex<Option<ReplayRequest>>>,
    state: Mutex<(ReplayState, u64)>,
}

impl Replays for StandIn {
    fn start(&self, request: ReplayRequest) -> BoxFuture<'_, Result<u64, ReplayError>> {
        async move {
            if request.sink == "nobody" {
                return Err(ReplayError::Unknown("no such sink".to_owned()));
            }
            *self.asked.lock().unwrap() = Some(request);
            *self.state.lock().unwrap() = (ReplayState::Running, 0);
            Ok(7)
        }
        .boxed()
    }

    fn list(&self) -> Vec<Progress> {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        if state.0 == ReplayState::Running && state.1 > 2 {
            state.0 = ReplayState::Done;
        }
        vec![Progress {
            id: 7,
            sink: "out".to_owned(),
            state: state.0,
            first: 3,
            last: 12,
            next: 3 + state.1,
            replayed: state.1,
            filtered: 0,
            rate: None,
            started_at: "2026-11-22T10:00:00Z".to_owned(),
            reason: None,
        }]
    }

    fn change(&self, id: u64, change: Change) -> BoxFuture<'_, Result<(), ReplayError>> {
        async move {
            if id != 7 {
                return Err(ReplayError::Unknown("no replay has this id".to_owned()));
            }
            let mut state = self.state.lock().unwrap();
            if state.0 == ReplayState::Cancelled {
                return Err(ReplayError::Conflict("it is cancelled".to_owned()));
            }
            let changed = match change {
                Change::Pause => ReplayState::Paused,
                Change::Resume => ReplayState::Running,
                Change::Cancel => ReplayState::Cancelled,
            };
            *state = (changed, 0);
            Ok(())
        }
        .boxed()
    }
}
