//! The whole receiver, put together: started in the order that keeps its promises, drained in the reverse one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::admin::{self, Gate, GateError, Insight};
use crate::admission::Admission;
use crate::config::{self, Config, Engine, Problems};
use crate::dispatch::{Drifts, Health, Lanes, Seen};
use crate::ingest::Ingest;
use crate::journal::{self, Journal, OpenError};
use crate::receiver::Receiver;
use crate::reload::{self, Reload};
use crate::server::{self, Limits, Phase, Transport};
use crate::telemetry::Metrics;
use crate::tls::{Expiry, Finding, ServerTls, Severity};
use crate::traces::Traces;

/// Kept of `listen.drain_timeout` for the lanes and the journal when connections use up all the rest; at most a fifth.
const LAST_STEPS: Duration = Duration::from_secs(3);
/// After the journal has failed: time for the answers that say so.
const FAILURE_GRACE: Duration = Duration::from_secs(1);
/// How long a failed journal may take to leave its mark.
const MARK_WITHIN: Duration = Duration::from_secs(10);
/// A sink with deliveries under way of which none has begun or ended for so long is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// A running receiver.
#[derive(Debug)]
pub struct Running {
    config: Arc<Config>,
    events: SocketAddr,
    admin: SocketAddr,
    journal: Journal,
    lanes: Lanes,
    metrics: Arc<Metrics>,
    traces: Traces,
    phase: watch::Sender<Phase>,
    admin_phase: watch::Sender<admin::Phase>,
    admin_server: watch::Sender<Phase>,
    insight: Insight,
    reload: mpsc::Sender<oneshot::Sender<()>>,
    connections: TaskTracker,
    operators: TaskTracker,
}

/// Why the receiver did not start. Nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Where standard output and error go is known only now.
    #[error(transparent)]
    Settings(Problems),
    #[error("the TLS files cannot be used:{}", lines(.0))]
    Tls(Vec<Finding>),
    #[error("cannot listen on {address} ({key}){}", remedy_of_listen(.source))]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("the admin port's token cannot be used")]
    Gate(#[from] GateError),
    #[error("the journal cannot be used ({})", .0.key())]
    Journal(#[from] OpenError),
    #[error("a sink cannot be started")]
    Sink(#[source] io::Error),
}

/// A sync failed: what is on disk is not certain, and the next start has to recover it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal has failed; start again to recover it")]
pub struct JournalFailed;

/// What helps, where the error has one cause only.
fn remedy_of_listen(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ", which another program has: end that, or choose another port",
        io::ErrorKind::AddrNotAvailable => ", which is no address of this machine: correct it, or listen on 0.0.0.0",
        io::ErrorKind::PermissionDenied => ", which this user may not: choose a port from 1024 on, or permit it",
        _ => "",
    }
}

fn lines(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| format!("\n  {finding}")).collect()
}

/// The receiver.
#[derive(Debug)]
pub struct Service;

impl Service {
    /// Starts everything: certificates are judged and the journal is in order before the event port listens.
    ///
    /// # Errors
    /// [`StartError`] says what stands in the way; nothing is left running.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        metrics.journal_max_bytes.set(config.journal.capacity().try_into().unwrap_or(i64::MAX));
        let own = config.own_files().with_streams();
        let problems = own.problems();
        if !problems.is_empty() {
            return Err(StartError::Settings(Problems(problems)));
        }
        let (own, not_for_sinks) = watch::channel(Arc::new(own));
        let tls = Arc::new(ServerTls::load(&config.tls).map_err(StartError::Tls)?);
        for finding in tls.findings().iter().filter(|finding| finding.severity == Severity::Warning) {
            tracing::warn!("tls: {finding}");
        }
        let gate = Gate::read(&config.admin)?;
        let (admin_phase, admin_phases) = watch::channel(admin::Phase::Starting);
        let (admin_server, admin_serving) = watch::channel(Phase::Serving);
        let (admin_listener, admin_address) = listen("admin.address", config.admin.address)?;
        let operators = TaskTracker::new();
        let router = admin::router(gate, Arc::clone(&metrics), admin_phases);
        let max_connections = server::connections_within_limits(config.listen.max_connections);
        let limits = Limits::admin(server::admin_connections_within_limits());
        operators.spawn(server::serve(admin_listener, Transport::Plain, router, limits, None, admin_serving));

        let traces = Traces::start();
        let (journal, cursors) = open_journal(&config, &metrics).await?;
        let lanes =
            Lanes::start(cursors, &config.sinks, &not_for_sinks, &metrics, &traces).map_err(StartError::Sink)?;
        let drifts = lanes.observe(&journal, &metrics);
        let connections = TaskTracker::new();

        let ingest = Ingest::new(journal.clone(), config.listen.answer_within);
        let admission = Admission::new(&config.listen, Arc::clone(&metrics));
        let endpoints = config.endpoints.iter().cloned().map(Arc::new).collect();
        let counted = Arc::clone(&metrics);
        let receiver = Receiver::new(endpoints, ingest, admission, &config.listen, counted, traces.clone());
        let (listener, events) = listen("listen.address", config.listen.address)?;
        let (phase, phases) = watch::channel(Phase::Serving);
        metrics.connections_max.set(max_connections.try_into().unwrap_or(i64::MAX));
        let limits = Limits { max_connections, ..Limits::of(&config.listen) };
        let counted = Some(Arc::clone(&metrics));
        connections.spawn(server::serve(listener, Transport::Tls(Arc::clone(&tls)), receiver, limits, counted, phases));

        let others = read_for_others(&config);
        let (reload, reports) = Reload::new(Arc::clone(&config), Arc::clone(&tls), Arc::clone(&metrics), own, others);
        let (ask, asked) = mpsc::channel(1);
        connections.spawn(reload.run(asked, phase.subscribe()));

        let insight = insight(&config, tls, &journal, (&lanes, drifts), &metrics, reports);
        admin_phase.send_replace(admin::Phase::Serving(insight.clone()));
        tracing::info!(%events, admin = %admin_address, "listening");
        Ok(Running {
            config,
            events,
            admin: admin_address,
            journal,
            lanes,
            metrics,
            traces,
            phase,
            admin_phase,
            admin_server,
            insight,
            reload: ask,
            connections,
            operators,
        })
    }
}

impl Running {
    /// Where events are taken.
    #[must_use]
    pub fn events(&self) -> SocketAddr {
        self.events
    }

    /// Where operators look.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The accounts as they are now.
    #[must_use]
    pub fn status(&self) -> admin::Status {
        (self.insight.status)()
    }

    /// What the process has counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Looks at the settings and TLS files now, and says what has become of them, even if nothing has changed. Back when
    /// all that is done, or when the connections end.
    pub async fn reload(&self) {
        let (done, wait) = oneshot::channel();
        // Both fail only once nothing is reloaded any more.
        let _ = self.reload.send(done).await;
        let _ = wait.await;
    }

    /// Where events are kept.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Back when the journal has failed: the process must end then, and recover in its next life.
    pub async fn failed(&self) {
        let mut state = self.journal.state();
        // The state's sender lives as long as the journal.
        let _ = state.wait_for(|state| *state == journal::State::Failed).await;
    }

    /// Not ready at once; takes requests for `pre_drain` more, telling each client to go elsewhere; finishes what is
    /// under way; lets the lanes deliver what is durable; closes the journal. Back within `drain_timeout`.
    ///
    /// # Errors
    /// When the journal failed meanwhile.
    pub async fn drain(self) -> Result<(), JournalFailed> {
        let listen = &self.config.listen;
        let start = Instant::now();
        let end = start + listen.drain_timeout;
        let last_steps = LAST_STEPS.min(listen.drain_timeout / 5);
        tracing::info!("draining");
        self.admin_phase.send_replace(admin::Phase::Draining(self.insight.clone()));
        self.phase.send_replace(Phase::Closing);
        tokio::time::sleep_until(start + listen.pre_drain).await;
        self.phase.send_replace(Phase::Stopping);
        self.end_connections(end - last_steps).await;
        // What a lane does not get done is delivered in its next life.
        let _ = timeout_at(end - last_steps / 2, self.lanes.finish()).await;
        let (closed, ()) = tokio::join!(timeout_at(end, self.journal.close()), self.traces.finish(end));
        if closed.is_err() {
            tracing::warn!("the journal did not close in time; the next start recovers it");
        }
        self.end_operators(end).await;
        if *self.journal.state().borrow() == journal::State::Failed {
            return Err(JournalFailed);
        }
        tracing::info!("drained");
        Ok(())
    }

    /// Ends after a failed journal: requests under way get their 503, and the journal leaves its mark for the next start.
    pub async fn abandon(self) {
        self.admin_phase.send_replace(admin::Phase::Draining(self.insight.clone()));
        self.phase.send_replace(Phase::Stopping);
        let end = Instant::now() + FAILURE_GRACE;
        tokio::join!(self.end_connections(end), self.traces.finish(end));
        // By now a folder that was being deleted is gone, most times, so a mark left from here on stays.
        tokio::time::sleep_until(end).await;
        if timeout(MARK_WITHIN, self.journal.close()).await.is_err() {
            tracing::error!("the disk of the failed journal is too slow: the next start may not know what it held");
        }
    }

    async fn end_connections(&self, end: Instant) {
        self.connections.close();
        if timeout_at(end, self.connections.wait()).await.is_err() {
            self.phase.send_replace(Phase::Aborting);
        }
    }

    async fn end_operators(&self, end: Instant) {
        self.admin_server.send_replace(Phase::Aborting);
        self.operators.close();
        let _ = timeout_at(end, self.operators.wait()).await;
    }
}

fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let error = |source| StartError::Listen { key, address, source };
    let listener = server::bind(address).map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

async fn open_journal(
    config: &Arc<Config>,
    metrics: &Arc<Metrics>,
) -> Result<(Journal, Vec<journal::Cursor>), StartError> {
    let (journal, cursors, report) = Journal::start(Arc::clone(config), Arc::clone(metrics)).await?;
    for warning in &report.warnings {
        tracing::warn!("journal: {warning}");
    }
    if let Some(damage) = &report.damage {
        let (reason, set_aside) = (&damage.reason, damage.set_aside.display());
        let lost = &damage.lost;
        tracing::error!(reason, %set_aside, lost_events = report.lost_events, ?lost, "the journal was damaged: what could be read was carried over, the damaged files are kept");
    }
    if let Some(replaced) = &report.replaced {
        let (expected, lost) = (replaced.expected, replaced.lost);
        let found = replaced.found.map_or_else(|| "unknown".to_owned(), String::from);
        tracing::error!(%expected, found, lost_events = report.lost_events, ?lost, "the journal is another log than the one that events were acknowledged in last: what that one held is lost here");
    }
    if config.journal.engine == Engine::Memory {
        tracing::warn!("journal.engine is memory: a restart loses every event not yet delivered");
    } else if config.journal.engine == Engine::Sqlite
        && let Some(kind) = journal::volatile_file_system(&config.journal.path)
    {
        tracing::warn!(path = %config.journal.path.display(), "not durable: the journal is on {kind}, which does not outlive the machine or the container");
    }
    for sink in journal.status().sinks.iter().filter(|sink| sink.gone) {
        tracing::warn!(sink = %sink.name, "a sink is gone from the settings, and its undelivered events hold the journal: put it back, or give it up with `sinks forget`");
    }
    tracing::info!(events = report.events, "journal open");
    Ok((journal, cursors))
}

fn insight(
    config: &Arc<Config>,
    tls: Arc<ServerTls>,
    journal: &Journal,
    (lanes, drifts): (&Lanes, Drifts),
    metrics: &Arc<Metrics>,
    reload: watch::Receiver<reload::Report>,
) -> Insight {
    let view = View {
        config: Arc::clone(config),
        tls,
        journal: journal.clone(),
        health: lanes.health().to_vec(),
        drifts,
        metrics: Arc::clone(metrics),
        reload,
    };
    let status = Arc::new(move || view.status());
    Insight { state: journal.state(), journal: journal.clone(), status, replays: lanes.replays(journal.clone()) }
}

/// The certificates that sinks show, and the CAs they trust: they are read once, at their start.
fn read_by_sinks(sinks: &[config::Sink]) -> Vec<Expiry> {
    let read = |sink: &config::Sink| sink.kind.settings().expiries(&format!("sinks.{}", sink.name));
    sinks.iter().filter(|sink| sink.enabled).flat_map(read).collect()
}

/// Those, and the ones for the cluster, of which the files are read at each connection.
fn read_for_others(config: &Config) -> impl Fn() -> Vec<Expiry> + Send + Sync + 'static {
    let of_sinks = read_by_sinks(&config.sinks);
    let nats = config.journal.nats.as_ref();
    let shown = nats.and_then(|nats| nats.certificate.clone());
    let trusted = nats.and_then(|nats| nats.ca.clone());
    move || {
        let shown = shown.iter().flat_map(|file| Expiry::of_chain("journal.nats.certificate", file));
        let trusted = trusted.iter().flat_map(|file| Expiry::of_authorities("journal.nats.ca", file));
        of_sinks.iter().cloned().chain(shown).chain(trusted).collect()
    }
}

/// What a status is put together from.
struct View {
    config: Arc<Config>,
    tls: Arc<ServerTls>,
    journal: Journal,
    health: Vec<(String, Health)>,
    drifts: Drifts,
    metrics: Arc<Metrics>,
    reload: watch::Receiver<reload::Report>,
}

impl View {
    fn status(&self) -> admin::Status {
        let found = self.journal.status();
        self.metrics.journal_bytes.set(found.bytes.try_into().unwrap_or(i64::MAX));
        self.metrics.dedup_ids.set(found.dedup_ids.try_into().unwrap_or(i64::MAX));
        let now = SystemTime::now();
        let (letters, kept) = (found.dead_letters, found.quarantine);
        let expiries = self.tls.expiries().into_iter().chain(self.reload.borrow().shown.clone());
        admin::Status {
            process: admin::Process::read(&self.metrics),
            journal: self.of_journal(&found, now),
            sinks: found.sinks.iter().map(|sink| self.of_sink(sink, now)).collect(),
            dead_letters: admin::DeadLetters {
                count: letters.count,
                retrying: letters.retrying,
                bytes: letters.bytes,
                max_bytes: letters.max_bytes,
            },
            quarantine: admin::Quarantine { count: kept.count, bytes: kept.bytes, max_bytes: kept.max_bytes },
            certificates: expiries.map(|expiry| certificate(&expiry, now)).collect(),
            reload: self.of_reload(),
            drift: self.drifts.recent().iter().map(drift).collect(),
        }
    }

    fn of_reload(&self) -> admin::Reload {
        let report = self.reload.borrow();
        admin::Reload {
            taken_at: humantime::format_rfc3339_seconds(report.taken_at).to_string(),
            reloads: self.metrics.reloads.get(),
            failures: self.metrics.reload_failures.get(),
            problems: report.problems.clone(),
            restart_for: report.restart_for.clone(),
        }
    }

    fn of_journal(&self, found: &journal::Status, now: SystemTime) -> admin::Journal {
        let state = match *self.journal.state().borrow() {
            journal::State::Open => "open",
            journal::State::Full => "full",
            journal::State::WriteError => "write-error",
            journal::State::Busy => "busy",
            journal::State::Unreachable => "unreachable",
            journal::State::Unfit => "unfit",
            journal::State::Failed => "failed",
            journal::State::Closed => "closed",
        };
        let engine = match self.journal.engine() {
            Engine::Sqlite => "sqlite",
            Engine::Memory => "memory",
            Engine::Nats => "nats",
        };
        let largest = self.journal.largest_body();
        admin::Journal {
            state,
            reason: found.hindered.clone(),
            engine,
            identity: found.identity.clone(),
            first_sequence: (found.first_sequence <= found.last_sequence).then_some(found.first_sequence),
            last_sequence: (found.last_sequence > 0).then_some(found.last_sequence),
            oldest_seconds: found.oldest.map(|oldest| seconds(oldest, now)),
            bytes: found.bytes,
            max_bytes: self.config.journal.capacity(),
            held_bytes: held_bytes(found),
            replay_limit_bytes: found.replay_limit,
            disk: found.disk.as_ref().map(disk),
            wal_bytes: found.log_bytes,
            largest_body_bytes: (largest < self.config.listen.max_body_bytes).then_some(largest as u64),
            lost_events: self.metrics.journal_lost.get(),
            dedup_ids: found.dedup_ids as u64,
            cluster: found.cluster.clone().map(|cluster| admin::Cluster {
                server: cluster.server,
                version: cluster.version,
                name: cluster.cluster,
                max_payload: cluster.max_payload as u64,
                sync_always: cluster.sync_always,
            }),
        }
    }

    fn of_sink(&self, sink: &journal::SinkStatus, now: SystemTime) -> admin::Sink {
        let health = self.health.iter().find(|(name, _)| **name == *sink.name);
        let mut condition = health.map(|(_, health)| health.condition()).unwrap_or_default();
        // Before what the sink itself has last complained of: it gets nothing to complain of.
        if let Some(reason) = &sink.hindered {
            (condition.last_error, condition.rejecting) = (Some(reason.clone()), false);
        }
        let stalled = condition.moved.is_some_and(|moved| moved.elapsed() > STALLED_AFTER);
        let state = match (sink.gone, sink.enabled, condition.waiting, &condition.last_error) {
            (true, ..) => "gone",
            (_, false, ..) => "disabled",
            (_, _, true, _) => "waiting",
            (.., Some(_)) if !condition.rejecting => "failing",
            _ if stalled => "stalled",
            _ if condition.rejecting => "rejecting",
            _ => "ok",
        };
        let account = &sink.account;
        admin::Sink {
            name: sink.name.to_string(),
            state,
            enabled: sink.enabled,
            required: sink.required,
            stored: account.stored,
            delivered: account.delivered,
            filtered: account.filtered,
            dead_lettered: account.dead_lettered,
            evicted: account.evicted,
            pending: account.pending,
            cursor: account.cursor,
            lag_seconds: condition.oldest.map_or(0.0, |oldest| seconds(oldest, now)),
            last_error: condition.last_error,
        }
    }
}

fn disk(found: &journal::Disk) -> admin::Disk {
    let mount = found.mount.as_ref();
    admin::Disk {
        mount: mount.map(|mount| mount.point.display().to_string()),
        device: mount.map(|mount| mount.device.clone()),
        file_system: mount.map(|mount| mount.file_system.clone()),
        free_bytes: found.free_bytes,
        total_bytes: found.total_bytes,
    }
}

/// The share of the journal's bytes that its least advanced sink has not had.
fn held_bytes(found: &journal::Status) -> u64 {
    let kept = (found.last_sequence + 1).saturating_sub(found.first_sequence);
    let settled = found.sinks.iter().map(|sink| sink.account.cursor).min().unwrap_or(found.last_sequence);
    let held = found.last_sequence.saturating_sub(settled).min(kept);
    u64::try_from(u128::from(found.bytes) * u128::from(held) / u128::from(kept.max(1))).unwrap_or(u64::MAX)
}

/// From `then` to `now`; none at all if the clock was set back meanwhile.
fn seconds(then: SystemTime, now: SystemTime) -> f64 {
    now.duration_since(then).unwrap_or_default().as_secs_f64()
}

fn drift(seen: &Seen) -> admin::Drift {
    let time = |at| humantime::format_rfc3339_seconds(at).to_string();
    admin::Drift {
        feed: seen.feed,
        kind: seen.kind.label(),
        at: seen.path.to_string(),
        name: seen.name(),
        count: seen.count,
        first_seen: time(seen.first),
        last_seen: time(seen.last),
    }
}

fn certificate(expiry: &Expiry, now: SystemTime) -> admin::Certificate {
    admin::Certificate {
        key: expiry.key.clone(),
        file: expiry.file.display().to_string(),
        subject: expiry.subject.clone(),
        not_after: humantime::format_rfc3339_seconds(expiry.at).to_string(),
        timestamp: expiry.timestamp(),
        days_left: expiry.days_left(now),
    }
}
