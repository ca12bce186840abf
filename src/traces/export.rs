//! How spans get to the collector: sampled as the environment says, over a bounded queue, by a task of its own.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::Uri;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample, Span, SpanData, SpanExporter as _,
    SpanProcessor,
};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::outbound::{self, Client, trust};
use crate::telemetry::LineLimit;

/// Lost spans are logged no more often than this.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// A connection is kept no longer; the next one looks up the collector's name again.
const CONNECTION_AGE: Duration = Duration::from_secs(300);

/// Why what the environment says cannot be used, with the variable's name.
type Unusable = Box<dyn Error + Send + Sync>;

/// Where spans go, and how: what the environment says of it.
#[derive(Debug)]
pub(super) struct Settings {
    endpoint: Uri,
    timeout: Duration,
    sampler: Sampler,
    resource: Resource,
    tls: ClientConfig,
    /// Spans that wait at most, and that a request has at most; and how long one waits for others.
    queue: usize,
    batch: usize,
    delay: Duration,
}

/// The task that exports, and the way to it.
#[derive(Debug)]
pub(super) struct Export {
    provider: SdkTracerProvider,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Settings {
    /// `None` unless an endpoint is named.
    pub(super) fn from_environment() -> Result<Option<Self>, Unusable> {
        if variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let Some(endpoint) = endpoint()? else { return Ok(None) };
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(_) => return Err("OTEL_TRACES_EXPORTER: only otlp and none are known here".into()),
        }
        if of_traces("PROTOCOL").is_some_and(|(_, protocol)| protocol != "http/protobuf") {
            let endpoint = endpoint.host().unwrap_or_default();
            tracing::warn!(
                endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL: traces go as http/protobuf, the only one known here"
            );
        }
        Ok(Some(Self {
            endpoint,
            timeout: Duration::from_millis(of_traces("TIMEOUT").map_or(Ok(10_000), |(key, text)| parse(&key, &text))?),
            sampler: sampler()?,
            resource: resource(),
            tls: client_config()?,
            queue: number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?.max(1),
            batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?.max(1),
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5_000)?),
        }))
    }
}

impl Export {
    /// Starts the task. Connects to nobody yet.
    pub(super) fn start(settings: Settings) -> Result<Self, Unusable> {
        let Settings { endpoint, timeout, sampler, resource, tls, queue, batch, delay } = settings;
        let host = endpoint.host().unwrap_or_default().to_owned();
        let collector = Collector::new(&endpoint, tls, timeout)?;
        let cause = Arc::clone(&collector.cause);
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(endpoint.to_string())
            .with_timeout(timeout)
            .build()?;
        exporter.set_resource(&resource);
        let (sender, spans) = mpsc::channel(queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Linked(sampler))
            .with_resource(resource)
            .with_span_processor(Queue { sender, dropped: Arc::clone(&dropped) })
            .build();
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let losses = Losses { host: host.clone(), cause, dropped, lost: 0, log: LineLimit::new(1, LOGGED_EVERY) };
        let task = Exporting { exporter, spans, waiting: Vec::new(), batch, delay, losses };
        tracker.spawn(task.run(stop.clone()));
        tracing::info!(collector = host, "traces are exported");
        Ok(Self { provider, tracker, stop })
    }

    pub(super) fn provider(&self) -> &SdkTracerProvider {
        &self.provider
    }

    /// Exports what waits, until `end` at the latest.
    pub(super) async fn finish(&self, end: Instant) {
        self.stop.cancel();
        self.tracker.close();
        if timeout_at(end, self.tracker.wait()).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time; they are lost");
        }
    }
}

/// Samples as the environment says. A batch that hangs below no event, but is linked to several, is sampled as one of
/// their children would be: whoever follows an event finds its delivery.
#[derive(Debug, Clone)]
struct Linked(Sampler);

impl ShouldSample for Linked {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let judge =
            |parent: Option<&Context>, trace_id| self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        let children = links.iter().map(|link| {
            let linked = Context::new().with_remote_span_context(link.span_context.clone());
            let found = judge(Some(&linked), link.span_context.trace_id());
            // The others' state is not this trace's.
            SamplingResult { trace_state: TraceState::NONE, ..found }
        });
        let sampled = children.into_iter().find(|found| found.decision == SamplingDecision::RecordAndSample);
        match (sampled, links) {
            (Some(sampled), _) => sampled,
            (None, []) => judge(parent, trace_id),
            (None, _) => Sampler::AlwaysOff.should_sample(None, trace_id, name, kind, attributes, links),
        }
    }
}

/// Where ended spans wait. A full queue drops them.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Never asked for: [`Export::finish`] does it, and does not block.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Takes spans from the queue to the collector. The SDK's own processor has a thread, which a drain would have to block for,
/// and does not tell how many spans it dropped.
struct Exporting {
    exporter: opentelemetry_otlp::SpanExporter,
    spans: mpsc::Receiver<SpanData>,
    waiting: Vec<SpanData>,
    batch: usize,
    delay: Duration,
    losses: Losses,
}

impl Exporting {
    async fn run(mut self, stop: CancellationToken) {
        let mut due = Instant::now();
        loop {
            let room = self.batch - self.waiting.len();
            let was_empty = self.waiting.is_empty();
            tokio::select! {
                () = stop.cancelled() => break,
                taken = self.spans.recv_many(&mut self.waiting, room) => match taken {
                    0 => break,
                    _ if was_empty => due = Instant::now() + self.delay,
                    _ => {}
                },
                () = sleep_until(due), if !was_empty => self.export().await,
            }
            if self.waiting.len() >= self.batch {
                self.export().await;
            }
        }
        self.spans.close();
        loop {
            let room = self.batch - self.waiting.len();
            if self.spans.recv_many(&mut self.waiting, room).await == 0 && self.waiting.is_empty() {
                return;
            }
            self.export().await;
        }
    }

    async fn export(&mut self) {
        let spans = std::mem::take(&mut self.waiting);
        let count = spans.len() as u64;
        let outcome = self.exporter.export(spans).await;
        self.losses.exported(count, outcome);
    }
}

/// Counts and logs lost spans.
struct Losses {
    host: String,
    /// What the collector did last.
    cause: Arc<Mutex<Option<String>>>,
    dropped: Arc<AtomicU64>,
    /// Since the last line.
    lost: u64,
    log: LineLimit,
}

impl Losses {
    fn exported(&mut self, count: u64, outcome: OTelSdkResult) {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).take();
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let reason = match outcome {
            Err(error) => {
                self.lost += count;
                cause.unwrap_or_else(|| error.to_string())
            }
            Ok(()) => "it is too slow for so many".to_owned(),
        };
        self.lost += dropped;
        if self.lost > 0 && self.log.take().is_some() {
            let (collector, lost) = (&*self.host, self.lost);
            tracing::warn!(collector, lost, reason, "the collector does not take all spans; events go on without them");
            self.lost = 0;
        }
    }
}

/// The collector, over the HTTP client of the sinks: no proxies, no redirects.
struct Collector {
    client: Client,
    timeout: Duration,
    cause: Arc<Mutex<Option<String>>>,
}

impl Collector {
    fn new(endpoint: &Uri, tls: ClientConfig, timeout: Duration) -> Result<Self, Unusable> {
        Ok(Self { client: Client::new(endpoint, tls, timeout, CONNECTION_AGE)?, timeout, cause: Arc::default() })
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, outbound::Error> {
        let end = Instant::now() + self.timeout;
        let mut answer = self.client.send(request.map(Full::new), end).await?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = answer.status;
        *response.headers_mut() = std::mem::take(&mut answer.headers);
        // It says how many spans were not liked, if any. Without it the status stands all the same.
        *response.body_mut() = answer.body(end).await.unwrap_or_default();
        Ok(response)
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async {
            let answer = self.exchange(request).await;
            let cause = match &answer {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(format!("it answered {}", answer.status())),
                Err(error) => Some(error.cause()),
            };
            *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
            Ok(answer?)
        })
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

/// `None` for a variable that is not set, or empty, which means the same.
fn variable(key: &str) -> Option<String> {
    std::env::var(key).ok().filter(|text| !text.is_empty())
}

/// The variable for traces, or else the one for all signals; with its name.
fn of_traces(what: &str) -> Option<(String, String)> {
    ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
        let key = format!("{prefix}{what}");
        variable(&key).map(|text| (key, text))
    })
}

fn parse<T: FromStr>(key: &str, text: &str) -> Result<T, Unusable> {
    text.trim().parse().map_err(|_| format!("{key} is no number of the kind it should be").into())
}

fn number<T: FromStr>(key: &str, default: T) -> Result<T, Unusable> {
    variable(key).map_or(Ok(default), |text| parse(key, &text))
}

/// The one for traces as it is, or the one for all signals with the path of traces.
fn endpoint() -> Result<Option<Uri>, Unusable> {
    let Some((key, mut text)) = of_traces("ENDPOINT") else { return Ok(None) };
    if key == "OTEL_EXPORTER_OTLP_ENDPOINT" {
        text = format!("{}/v1/traces", text.trim_end_matches('/'));
    }
    let url = text.parse().ok();
    let url = url.filter(|url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some());
    url.map(Some).ok_or_else(|| format!("{key} is no address of HTTP: write http or https, and a host").into())
}

fn sampler() -> Result<Sampler, Unusable> {
    let ratio = || number("OTEL_TRACES_SAMPLER_ARG", 1.0).map(Sampler::TraceIdRatioBased);
    let below_parents = |root: Sampler| Sampler::ParentBased(Box::new(root));
    Ok(match variable("OTEL_TRACES_SAMPLER").as_deref() {
        Some("always_on") => Sampler::AlwaysOn,
        Some("always_off") => Sampler::AlwaysOff,
        Some("traceidratio") => ratio()?,
        None | Some("parentbased_always_on") => below_parents(Sampler::AlwaysOn),
        Some("parentbased_always_off") => below_parents(Sampler::AlwaysOff),
        Some("parentbased_traceidratio") => below_parents(ratio()?),
        Some(_) => {
            return Err("OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, or one of them after \
                        parentbased_"
                .into());
        }
    })
}

/// What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say; a name and a version of our own where they say none.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name="));
    let mut own = vec![];
    if !is_named {
        own.push(KeyValue::new("service.name", env!("CARGO_PKG_NAME")));
    }
    if said.get(&Key::from_static_str("service.version")).is_none() {
        own.push(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    Resource::builder().with_attributes(own).build()
}

/// TLS towards the collector: the system's CAs, or those of `…_CERTIFICATE`; with a client certificate where one is named.
fn client_config() -> Result<ClientConfig, Unusable> {
    let text = |unusable: trust::Unusable<'_>| unusable.to_string();
    let roots = match of_traces("CERTIFICATE") {
        Some((key, file)) => trust::roots(&key, &[file]).map_err(text)?,
        None => trust::system_roots(),
    };
    let shown = match (of_traces("CLIENT_CERTIFICATE"), of_traces("CLIENT_KEY")) {
        (Some((key, chain)), Some((of_key, private))) => {
            Some(trust::shown((&key, Path::new(&chain)), (&of_key, Path::new(&private))).map_err(text)?)
        }
        _ => None,
    };
    Ok(trust::client_config(roots, shown)?)
}
