//! The operators' port: probes, metrics, and what operators see and change. Plain HTTP, on loopback unless the settings
//! say otherwise.

pub(crate) mod api;
mod call;
mod exposition;
mod gate;
mod letters;
mod replay;
mod sinks;
mod status;
mod tail;
mod view;

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};

pub use gate::{Gate, GateError};
pub use status::{Certificate, Cluster, DeadLetters, Disk, Drift, Journal, Process, Quarantine, Reload, Sink, Status};
use view::View;
pub use view::{Insight, Phase};

use crate::journal::Refused;
use crate::problem::{Kind, Problem};
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The routes of the operators' port, behind `gate`.
pub fn router(gate: Gate, metrics: Arc<Metrics>, phase: watch::Receiver<Phase>) -> Router {
    let (tails, writing) = (Arc::new(Semaphore::new(tail::PLACES)), Arc::new(Semaphore::new(1)));
    let view = View { metrics, phase, tails, writing, started: SystemTime::now() };
    let gated = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", get(status_json))
        .route("/api/v1/sinks/{name}", get(sinks::show).delete(sinks::forget))
        .route("/api/v1/tail", get(tail::tail))
        .route("/api/v1/dead-letters", get(letters::list))
        .route("/api/v1/dead-letters/retry", post(letters::retry))
        .route("/api/v1/dead-letters/discard", post(letters::discard))
        .route("/api/v1/dead-letters/{id}", get(letters::show))
        .route("/api/v1/quarantine", get(letters::list_bodies))
        .route("/api/v1/quarantine/retry", post(letters::retry_bodies))
        .route("/api/v1/quarantine/discard", post(letters::discard_bodies))
        .route("/api/v1/quarantine/{id}", get(letters::show_body))
        .route("/api/v1/quarantine/{id}/body", get(letters::raw_body))
        .route("/api/v1/replay", get(replay::list).post(replay::start))
        .route("/api/v1/replay/{id}", get(replay::show).delete(replay::cancel))
        .route("/api/v1/replay/{id}/pause", post(replay::pause))
        .route("/api/v1/replay/{id}/resume", post(replay::resume))
        .method_not_allowed_fallback(no_such_method)
        .fallback(async || Problem::new(Kind::NotFound, "the admin port has no such path"))
        .layer(middleware::from_fn_with_state(Arc::new(gate), gate::guard));
    let probes = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(no_such_method);
    probes.merge(gated).with_state(view)
}

/// The router adds which methods there are.
async fn no_such_method() -> Problem {
    Problem::new(Kind::MethodNotAllowed, "this path has other methods: see Allow")
}

async fn live() -> Response {
    json(StatusCode::OK, r#"{"live":true}"#.to_owned())
}

async fn ready(State(view): State<View>) -> Response {
    match view.unready() {
        None => json(StatusCode::OK, r#"{"ready":true}"#.to_owned()),
        Some(reason) => {
            let reason = reason.words();
            json(StatusCode::SERVICE_UNAVAILABLE, format!(r#"{{"ready":false,"reason":"{reason}"}}"#))
        }
    }
}

async fn metrics_text(State(view): State<View>) -> Result<Response, Problem> {
    let seen = view.clone();
    let text = move || {
        let status = seen.insight().ok().map(|insight| (insight.status)());
        let more = exposition::registry(status.as_ref(), seen.unready(), seen.started);
        seen.metrics.encode_with(&more)
    };
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], view.write(text).await?).into_response())
}

async fn status_json(State(view): State<View>) -> Result<Response, Problem> {
    let insight = view.insight()?;
    view.write(move || call::answer(&(insight.status)())).await
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let kind = if refused == Refused::TooLarge { Kind::TooLarge } else { Kind::Unavailable };
        Self::new(kind, refused.to_string())
    }
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::config::{Config, PREFIX};
    use crate::dispatch::Lanes;
    use crate::journal;
    use crate::traces::Traces;

    async fn answer(router: &Router, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn insight(state: &watch::Sender<journal::State>) -> Insight {
        let (journal, config) = journal();
        let metrics = Arc::new(Metrics::new());
        let lanes =
            Lanes::start(Vec::new(), &config.sinks, &watch::channel(Arc::default()).1, &metrics, &Traces::none())
                .unwrap();
        let replays = lanes.replays(journal.clone());
        Insight { state: state.subscribe(), journal, status: Arc::new(Status::empty), replays }
    }

    /// One that touches no disk.
    fn journal() -> (journal::Journal, Config) {
        let settings = [
            ("TLS__CERTIFICATE", "none"),
            ("TLS__PRIVATE_KEY", "none"),
            ("TLS__CLIENT_CA", "none"),
            ("TLS__ALLOW_ANY_CLIENT", "true"),
            ("JOURNAL__ENGINE", "memory"),
            ("JOURNAL__ALLOW_LOSS", "true"),
        ];
        let env = settings.map(|(key, value)| (format!("{}{key}", PREFIX), value.to_owned()));
        let (config, _) = Config::from_sources(&[], env.into_iter()).unwrap();
        (journal::Journal::open(&config, Arc::new(Metrics::new())).unwrap().0, config)
    }

    #[tokio::test]
    async fn ready_follows_phase_and_journal_and_live_does_not() {
        let (journal, _) = watch::channel(journal::State::Open);
        let (phase, seen) = watch::channel(Phase::Starting);
        let router = router(Gate::Loopback { token: None }, Arc::new(Metrics::new()), seen);
        let local = [("host", "localhost")];
        assert_eq!(answer(&router, "/livez", &[]).await.0, StatusCode::OK);
        let starting = (StatusCode::SERVICE_UNAVAILABLE, r#"{"ready":false,"reason":"starting"}"#.to_owned());
        assert_eq!(answer(&router, "/readyz", &[]).await, starting);
        assert_eq!(answer(&router, "/api/v1/status", &local).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(&router, "/metrics", &local).await.0, StatusCode::OK);

        phase.send_replace(Phase::Serving(insight(&journal)));
        assert_eq!(answer(&router, "/readyz", &[]).await, (StatusCode::OK, r#"{"ready":true}"#.to_owned()));
        let (status, text) = answer(&router, "/api/v1/status", &local).await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            text.contains(
                r#""journal":{"state":"open","reason":null,"engine":"memory","identity":null,"first_sequence":null"#
            ),
            "{text}"
        );
        for (state, reason) in [
            (journal::State::Full, "journal full"),
            (journal::State::WriteError, "journal write error"),
            (journal::State::Busy, "journal busy"),
            (journal::State::Unreachable, "journal unreachable"),
            (journal::State::Unfit, "journal unfit"),
            (journal::State::Failed, "journal failed"),
            (journal::State::Closed, "journal closed"),
        ] {
            journal.send_replace(state);
            let (status, text) = answer(&router, "/readyz", &[]).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(text.contains(reason), "{text}");
        }

        journal.send_replace(journal::State::Open);
        phase.send_replace(Phase::Draining(insight(&journal)));
        let (status, text) = answer(&router, "/readyz", &[]).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("draining"), "{text}");
        assert_eq!(answer(&router, "/livez", &[]).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn off_loopback_only_the_probes_need_no_token() {
        let (_phase, seen) = watch::channel(Phase::Starting);
        let gate = Gate::Open { token: b"secret".as_slice().into() };
        let router = router(gate, Arc::new(Metrics::new()), seen);
        assert_eq!(answer(&router, "/livez", &[]).await.0, StatusCode::OK);
        assert_eq!(answer(&router, "/readyz", &[]).await.0, StatusCode::SERVICE_UNAVAILABLE);
        for wrong in ["secre", "secrets", "Secret", ""] {
            let bearer = format!("Bearer {wrong}");
            let headers = [("authorization", bearer.as_str())];
            assert_eq!(answer(&router, "/metrics", &headers).await.0, StatusCode::UNAUTHORIZED, "{wrong:?}");
        }
        for path in ["/metrics", "/api/v1/status", "/nowhere"] {
            assert_eq!(answer(&router, path, &[]).await.0, StatusCode::UNAUTHORIZED, "{path}");
        }
        assert_eq!(answer(&router, "/metrics", &[("authorization", "bearer secret")]).await.0, StatusCode::OK);
        let status = answer(&router, "/nowhere", &[("authorization", "Bearer secret")]).await.0;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn on_loopback_another_host_name_is_refused() {
        let (_phase, seen) = watch::channel(Phase::Starting);
        let router = router(Gate::Loopback { token: None }, Arc::new(Metrics::new()), seen);
        for host in ["localhost", "localhost:8081", "127.0.0.1:8081", "127.1.2.3", "[::1]:8081", "LOCALHOST:1"] {
            assert_eq!(answer(&router, "/metrics", &[("host", host)]).await.0, StatusCode::OK, "{host}");
        }
        for host in ["evil.example", "evil.example:8081", "10.0.0.1", "localhost.evil.example", ""] {
            assert_eq!(answer(&router, "/metrics", &[("host", host)]).await.0, StatusCode::FORBIDDEN, "{host}");
        }
        assert_eq!(answer(&router, "/metrics", &[]).await.0, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_changing_call_from_another_site_is_refused() {
        let (_phase, seen) = watch::channel(Phase::Starting);
        let router = router(Gate::Loopback { token: None }, Arc::new(Metrics::new()), seen);
        let status = async |name: &str, value: &str| {
            let request = Request::post("/api/v1/status").header("host", "localhost:8081").header(name, value);
            router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
        };
        assert_eq!(status("origin", "https://evil.example").await, StatusCode::FORBIDDEN);
        assert_eq!(status("origin", "null").await, StatusCode::FORBIDDEN);
        assert_eq!(status("sec-fetch-site", "cross-site").await, StatusCode::FORBIDDEN);
        assert_eq!(status("sec-fetch-site", "same-site").await, StatusCode::FORBIDDEN);
        assert_eq!(status("origin", "http://localhost:8081").await, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status("x-none", "").await, StatusCode::METHOD_NOT_ALLOWED);

        // Nor may it look: no script, image, frame, window or link of another site.
        let ask = async |name: &str, value: &str| {
            answer(&router, "/metrics", &[("host", "localhost:8081"), ("sec-fetch-dest", "document"), (name, value)])
                .await
                .0
        };
        for (name, value, wanted) in [
            ("sec-fetch-site", "cross-site", StatusCode::FORBIDDEN),
            ("sec-fetch-site", "same-site", StatusCode::FORBIDDEN),
            ("origin", "https://evil.example", StatusCode::FORBIDDEN),
            ("origin", "null", StatusCode::FORBIDDEN),
            ("sec-fetch-site", "none", StatusCode::OK),
            ("sec-fetch-site", "same-origin", StatusCode::OK),
            ("origin", "http://localhost:8081", StatusCode::OK),
        ] {
            assert_eq!(ask(name, value).await, wanted, "{name}: {value}");
        }
    }
}
