//! Takes changed settings and TLS files into use while everything goes on, as one set or not at all.
//!
//! The files are read every `tls.reload_interval`, and on request (SIGHUP); their contents are compared with those of the
//! last look. Hints of the kernel would be faster, but network file systems give none. After every look, all connected
//! clients are judged anew: also time makes a client one that is not allowed any more.

mod reminders;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::sync::watch::{self as channel, Receiver};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::blocking::joined;
use crate::config::{Config, OwnFiles, Problems, Warning};
use crate::server::Phase;
use crate::telemetry::Metrics;
use crate::tls::{Expiry, Files, Finding, Fingerprint, ServerTls, Severity};
use reminders::Reminders;

/// Files that are being written are left alone until they hold still for so long,
const SETTLE: Duration = Duration::from_millis(50);
/// or so many looks were in vain.
const LOOKS: usize = 40;
/// A look that takes longer is reported as a failure, and waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are logged by name after one look.
const NAMED: usize = 20;
/// The settings whose changes apply without a restart.
const APPLIES: &str = "tls.";

/// Requests for a look now; each is answered when it is done.
pub type Asked = mpsc::Receiver<oneshot::Sender<()>>;

/// What `status` shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When the TLS files in use were taken.
    pub taken_at: SystemTime,
    /// Why the files as they are now cannot be used. Empty: they are in use.
    pub problems: Vec<String>,
    /// Keys whose values are others than at the start, and do not apply.
    pub restart_for: Vec<String>,
    /// The certificates that the receiver shows to others.
    pub shown: Vec<Expiry>,
}

/// Keeps the TLS files of a running receiver up to date.
#[derive(Debug)]
pub struct Reload {
    /// As the receiver started.
    started: Arc<Config>,
    tls: Arc<ServerTls>,
    metrics: Arc<Metrics>,
    /// What no sink may write to: the files of the start, and those of the set in use.
    own: channel::Sender<Arc<OwnFiles>>,
    report: channel::Sender<Report>,
    in_use: Used,
    /// What the last look found, taken or not.
    last: Look,
    /// The certificates that the receiver shows to others, besides those of the TLS set.
    others: Others,
    reminders: Reminders,
}

/// Reads files.
#[derive(Clone)]
struct Others(Arc<dyn Fn() -> Vec<Expiry> + Send + Sync>);

impl fmt::Debug for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Others")
    }
}

/// The settings whose `[tls]` is in use, and its files.
#[derive(Debug)]
struct Used {
    config: Arc<Config>,
    files: Fingerprint,
}

/// What the settings and the TLS files they name hold.
#[derive(Debug, Clone)]
struct Look {
    settings: Result<Arc<Config>, Problems>,
    /// Of the settings in use, where there are no others.
    files: Fingerprint,
}

/// A look with all that is needed to use what it found.
struct Found {
    look: Look,
    files: Files,
    warnings: Vec<Warning>,
}

impl Reload {
    /// Of a receiver that has just loaded `tls` as `config` says, and whose sinks look at `own`. `others` reads until when the certificates are good that
    /// it shows to others.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        tls: Arc<ServerTls>,
        metrics: Arc<Metrics>,
        own: channel::Sender<Arc<OwnFiles>>,
        others: impl Fn() -> Vec<Expiry> + Send + Sync + 'static,
    ) -> (Self, Receiver<Report>) {
        let first =
            Report { taken_at: SystemTime::now(), problems: Vec::new(), restart_for: Vec::new(), shown: others() };
        metrics.reload_last_good.set(seconds(first.taken_at));
        let (report, reports) = channel::channel(first);
        let files = tls.fingerprint();
        let last = Look { settings: Ok(Arc::clone(&config)), files: files.clone() };
        let in_use = Used { config: Arc::clone(&config), files };
        let (others, reminders) = (Others(Arc::new(others)), Reminders::default());
        (Self { started: config, tls, metrics, own, report, in_use, last, others, reminders }, reports)
    }

    /// Looks at intervals, and when asked to (and answers afterwards), until `phase` says that connections end.
    pub async fn run(mut self, mut asked: Asked, mut phase: Receiver<Phase>) {
        tokio::select! {
            () = self.go_on(&mut asked) => {}
            _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => {}
        }
    }

    /// A panic ends neither this loop, or no client would be cut off any more, nor the process: what is in use is good.
    async fn go_on(&mut self, asked: &mut Asked) {
        while AssertUnwindSafe(self.keep_up(asked)).catch_unwind().await.is_err() {
            tracing::error!("a bug in a reload: the TLS set taken last stays in use");
            self.metrics.reload_failures.inc();
            sleep(self.in_use.config.tls.reload_interval).await;
        }
    }

    async fn keep_up(&mut self, asked: &mut Asked) {
        let mut insist: Option<oneshot::Sender<()>> = None;
        loop {
            let found = self.found().await;
            self.decide(found, insist.is_some()).await;
            self.dismiss_clients().await;
            self.remind().await;
            // The asking task may have ended.
            let _ = insist.take().map(|asker| asker.send(()));
            insist = tokio::select! {
                Some(asker) = asked.recv() => Some(asker),
                () = sleep(self.in_use.config.tls.reload_interval) => None,
            };
        }
    }

    /// [`settled`](Self::settled), but a file that keeps its reader waiting does not do so in silence. There is no way to
    /// take a read back, so it is waited for: another one would hang as well.
    async fn found(&self) -> Found {
        let mut settled = pin!(self.settled());
        if let Ok(found) = timeout(PATIENCE, settled.as_mut()).await {
            return found;
        }
        let what = "reading the settings and the TLS files does not come to an end, and nothing is reloaded before: \
                    see whether one of them is a pipe or on a network file system that hangs";
        self.bad(vec![what.to_owned()], false);
        settled.await
    }

    /// What there is, once it holds still.
    async fn settled(&self) -> Found {
        let mut found = self.look().await;
        for _ in 0..LOOKS {
            if found.look.is(&self.last) {
                break;
            }
            sleep(SETTLE).await;
            let again = self.look().await;
            let still = again.look.is(&found.look);
            found = again;
            if still {
                break;
            }
        }
        found
    }

    async fn look(&self) -> Found {
        let in_use = Arc::clone(&self.in_use.config);
        blocking(move || {
            let (settings, warnings) = match in_use.reread() {
                Ok((config, warnings)) => (Ok(Arc::new(config)), warnings),
                Err(problems) => (Err(problems), Vec::new()),
            };
            let files = Files::read(&settings.as_ref().unwrap_or(&in_use).tls);
            Found { look: Look { settings, files: files.fingerprint() }, files, warnings }
        })
        .await
    }

    /// Takes what was found, unless it is what there was. With `insist`, the outcome is logged whatever it is.
    async fn decide(&mut self, found: Found, insist: bool) {
        let known = found.look.is(&self.last);
        let failing = !self.report.borrow().problems.is_empty();
        if known && !failing && !insist {
            return;
        }
        let outcome = match &found.look.settings {
            Err(problems) => Err(problems.0.iter().map(ToString::to_string).collect()),
            Ok(config) if self.uses(config, &found.look.files) => Ok(None),
            Ok(config) => self.take(config, found.files).await.map(|()| Some(Arc::clone(config))),
        };
        match outcome {
            Ok(taken) => self.good(taken, &found.look, &found.warnings, failing, insist),
            // Time may make files good that have not changed: they are tried anew, quietly.
            Err(problems) => self.bad(problems, known && !insist),
        }
        self.last = found.look;
    }

    fn uses(&self, config: &Config, files: &Fingerprint) -> bool {
        self.in_use.files == *files && !self.in_use.config.changes(config).iter().any(|key| key.starts_with(APPLIES))
    }

    async fn take(&self, config: &Arc<Config>, files: Files) -> Result<(), Vec<String>> {
        // The sinks learn of the set first, and forget nothing that is in use until it is taken: at no moment may one of
        // them open a file of either.
        let own = self.started.own_files().with_streams().with_tls_of(config.own_files());
        let before = self.own.send_replace(Arc::new(own.with_tls_of(self.in_use.config.own_files())));
        let (tls, config) = (Arc::clone(&self.tls), Arc::clone(config));
        let errors = |findings: Vec<Finding>| {
            let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
            errors.map(ToString::to_string).collect()
        };
        let (taken, own) = blocking(move || {
            // The new settings may name other sinks than those that are running.
            let clashes = own.problems();
            let taken = if clashes.is_empty() {
                tls.reload(&config.tls, &files).map_err(errors)
            } else {
                Err(clashes.iter().map(ToString::to_string).collect())
            };
            (taken, own)
        })
        .await;
        self.own.send_replace(if taken.is_ok() { Arc::new(own) } else { before });
        taken
    }

    fn good(&mut self, taken: Option<Arc<Config>>, look: &Look, warnings: &[Warning], failing: bool, insist: bool) {
        let Ok(config) = &look.settings else { return };
        let restart_for: Vec<String> =
            self.started.changes(config).into_iter().filter(|key| !key.starts_with(APPLIES)).collect();
        let pending = self.report.borrow().restart_for.clone();
        let mut taken_at = self.report.borrow().taken_at;
        if let Some(taken) = taken {
            taken_at = SystemTime::now();
            let keys: Vec<String> =
                self.in_use.config.changes(&taken).into_iter().filter(|key| key.starts_with(APPLIES)).collect();
            let files: Vec<_> = self.in_use.files.changed(&look.files).collect();
            tracing::info!(?keys, ?files, "reloaded: new connections get the new TLS set");
            for warning in warnings {
                tracing::warn!(key = warning.key, source = warning.source, "settings: {}", warning.what);
            }
            for finding in self.tls.findings().iter().filter(|finding| finding.severity == Severity::Warning) {
                tracing::warn!("tls: {finding}");
            }
            self.metrics.reloads.inc();
            self.metrics.reload_last_good.set(seconds(taken_at));
            self.in_use = Used { config: taken, files: look.files.clone() };
        } else if failing {
            tracing::info!("the settings and TLS files are again those in use");
        } else if insist && pending == restart_for {
            tracing::info!("nothing has changed in the settings and TLS files");
        }
        if pending != restart_for {
            if restart_for.is_empty() {
                tracing::info!("the settings are again as they were at the start: no restart is needed");
            } else {
                tracing::warn!(keys = ?restart_for, "settings have changed that apply after a restart only");
            }
        }
        self.metrics.reload_failing.set(0);
        self.report.send_modify(|report| {
            let shown = std::mem::take(&mut report.shown);
            *report = Report { taken_at, problems: Vec::new(), restart_for, shown };
        });
    }

    /// `known`: these files were tried before.
    fn bad(&self, problems: Vec<String>, known: bool) {
        if !known || self.report.borrow().problems != problems {
            tracing::error!(?problems, "not reloaded: the TLS set taken last stays in use");
            self.metrics.reload_failures.inc();
        }
        self.metrics.reload_failing.set(1);
        self.report.send_modify(|report| report.problems = problems);
    }

    /// Logs which certificates and lists end soon, or have ended.
    async fn remind(&mut self) {
        let (tls, others) = (Arc::clone(&self.tls), self.others.clone());
        let mut all = blocking(move || (others.0)()).await;
        self.report.send_if_modified(|report| {
            let is_new = report.shown != all;
            report.shown.clone_from(&all);
            is_new
        });
        all.extend(tls.expiries());
        let now = SystemTime::now();
        for expiry in self.reminders.due(all, now) {
            let Expiry { key, file, subject, at, .. } = &expiry;
            let (file, days_left) = (file.display(), expiry.days_left(now));
            let not_after = humantime::format_rfc3339_seconds(*at);
            if expiry.is_over(now) {
                tracing::error!(key, %file, subject, %not_after, days_left, "a certificate or revocation list has ended: replace it");
            } else {
                tracing::warn!(key, %file, subject, %not_after, days_left, "a certificate or revocation list ends soon: renew it");
            }
        }
    }

    async fn dismiss_clients(&self) {
        let tls = Arc::clone(&self.tls);
        let dismissed = blocking(move || tls.dismiss_clients()).await;
        if dismissed.len() > NAMED {
            tracing::warn!(clients = dismissed.len(), "many clients are not allowed any more: some of them follow");
        }
        for client in dismissed.into_iter().take(NAMED) {
            let (subject, reason, detail) = (client.peer.subject(), client.reason.word(), client.detail);
            tracing::warn!(%subject, reason, detail, "a client is not allowed any more: its connections are closed");
        }
    }
}

impl Look {
    /// Whether both found the same.
    fn is(&self, other: &Self) -> bool {
        let same_settings = match (&self.settings, &other.settings) {
            (Ok(one), Ok(other)) => one.changes(other).is_empty(),
            (Err(one), Err(other)) => one == other,
            _ => false,
        };
        same_settings && self.files == other.files
    }
}

/// Runs what waits for a disk or calculates for long off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match joined(tokio::task::spawn_blocking(work).await) {
        Some(done) => done,
        // The runtime is shutting down, and this task with it.
        None => std::future::pending().await,
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
