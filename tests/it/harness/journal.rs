//! Journals in this process, opened through [`Journal`]; a copy of one's files while nothing is written is what SIGKILL
//! leaves.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use asapp_receiver::admission::{Admission, Admitted, Outcome};
use asapp_receiver::config::Config;
use asapp_receiver::envelope::Envelope;
use asapp_receiver::journal::{
    Account, Appended, Cursor, Event, Journal, NewEvent, OpenError, Quarantined, Refused, Report,
};
use asapp_receiver::telemetry::Metrics;
use asapp_receiver::tls::{PeerIdentity, ServerTls};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::PATIENCE;
use super::pki::PKI;
use super::wire::Wire;

pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Only a handshake makes one.
pub(crate) static PEER: LazyLock<PeerIdentity> = LazyLock::new(|| {
    let tls = ServerTls::load(&config(Path::new("/nowhere"), &[]).tls).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || Wire::connect(address, &PKI.client).unwrap());
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let accept = async move {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        tls.accept(stream, false, deadline).await.unwrap().peer
    };
    // On a thread of its own: who asks first may be within the runtime.
    let peer = std::thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(accept)).join().unwrap());
    drop(client.join().unwrap());
    peer
});

/// Settings for the journal at `path`, with the sinks `early`, which had some of it, and `late`, which had nothing of
/// what is left.
pub(crate) fn config(path: &Path, more: &[(&str, &str)]) -> Config {
    let (certificate, key) = (PKI.server.chain.display().to_string(), PKI.server.key.display().to_string());
    let (ca, path) = (PKI.ca.certificate.display().to_string(), path.display().to_string());
    let settings = [
        ("TLS__CERTIFICATE", &*certificate),
        ("TLS__PRIVATE_KEY", &key),
        ("TLS__CLIENT_CA", &ca),
        ("TLS__ALLOW_ANY_CLIENT", "true"),
        ("JOURNAL__PATH", &path),
        // A busy machine takes its time; who asks for less waits less.
        ("LISTEN__ANSWER_WITHIN", "15s"),
        ("DEDUP__CAPACITY", "10000"),
        ("SINKS__EARLY__TYPE", "stdout"),
        ("SINKS__LATE__TYPE", "stdout"),
    ];
    let settings = settings.iter().chain(more);
    let env = settings.map(|(key, value)| (format!("ASAPP_RECEIVER__{key}"), (*value).to_owned()));
    Config::from_sources(&[], env).unwrap().0
}

/// An open journal and what a test needs around it.
pub(crate) struct Open {
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) journal: Journal,
    pub(crate) cursors: BTreeMap<String, Cursor>,
    pub(crate) report: Report,
}

impl Open {
    pub(crate) fn new(path: &Path) -> Result<Self, OpenError> {
        Self::with(config(path, &[]))
    }

    pub(crate) fn with(config: Config) -> Result<Self, OpenError> {
        let metrics = Arc::new(Metrics::new());
        let opened = Journal::open(&config, Arc::clone(&metrics))?;
        Ok(Self::of(config, metrics, opened))
    }

    /// The same on any engine.
    #[cfg(feature = "nats")]
    pub(crate) async fn start(config: Config) -> Result<Self, OpenError> {
        let metrics = Arc::new(Metrics::new());
        let opened = Journal::start(Arc::new(config.clone()), Arc::clone(&metrics)).await?;
        Ok(Self::of(config, metrics, opened))
    }

    fn of(config: Config, metrics: Arc<Metrics>, opened: (Journal, Vec<Cursor>, Report)) -> Self {
        let (journal, cursors, report) = opened;
        let admission = Admission::new(&config.listen, Arc::clone(&metrics));
        let cursors = cursors.into_iter().map(|cursor| (cursor.sink().to_owned(), cursor)).collect();
        Self { config, metrics, admission, journal, cursors, report }
    }

    pub(crate) fn admit(&self) -> Admitted {
        self.admission.admit(self.admission.receive(), 1).unwrap()
    }

    pub(crate) async fn append(&self, body: &[u8]) -> Appended {
        self.try_append(body).await.unwrap()
    }

    pub(crate) async fn try_append(&self, body: &[u8]) -> Result<Appended, Refused> {
        let event = NewEvent {
            envelope: Envelope::parse(body.to_vec().into()).unwrap(),
            received_at: SystemTime::now(),
            peer: PEER.clone(),
            endpoint: Arc::new(self.config.endpoints[0].clone()),
            traceparent: None,
        };
        self.journal.append(event, self.admit()).await
    }

    pub(crate) async fn quarantine(&self, body: &[u8]) {
        let kept = Quarantined {
            reason: "malformed",
            detail: "a test".to_owned(),
            received_at: SystemTime::now(),
            peer: PEER.clone(),
            endpoint: Arc::new(self.config.endpoints[0].clone()),
            body: body.to_vec().into(),
        };
        self.journal.quarantine(kept, self.admit(), Outcome::Rejected("malformed")).await.unwrap();
    }

    /// Everything this sink is still to have, but for retried dead letters, which only `early` has.
    pub(crate) async fn read(&mut self, sink: &str) -> Vec<Event> {
        let retrying = if sink == "early" { self.journal.status().dead_letters.retrying } else { 0 };
        let pending = usize::try_from(self.account(sink).pending - retrying).unwrap();
        let cursor = self.cursors.get_mut(sink).unwrap();
        let mut events = Vec::new();
        while events.len() < pending {
            events.extend(tokio::time::timeout(PATIENCE, cursor.read()).await.expect("more events").unwrap().events());
        }
        // A journal that ends in a hole has nothing to read there, now.
        while !cursor.caught_up()
            && let Ok(more) = tokio::time::timeout(Duration::from_millis(3), cursor.read()).await
        {
            events.extend(more.unwrap().events());
        }
        events
    }

    pub(crate) fn account(&self, sink: &str) -> Account {
        let status = self.journal.status();
        status.sinks.iter().find(|found| &*found.name == sink).unwrap().account.clone()
    }
}

pub(crate) fn scratch() -> TempDir {
    let in_ram = Path::new("/dev/shm");
    if in_ram.is_dir() { TempDir::new_in(in_ram).unwrap() } else { TempDir::new().unwrap() }
}

/// What a journal consists of. The ballast is only as long, not as heavy.
pub(crate) fn copy(from: &Path, to: &Path) {
    for name in ["journal.db", "journal.db-wal", "journal.db-shm", "mark"] {
        match fs::read(from.join(name)) {
            Ok(bytes) => fs::write(to.join(name), bytes).unwrap(),
            Err(_) => drop(fs::remove_file(to.join(name))),
        }
    }
    fs::File::create(to.join("ballast")).unwrap().set_len(8 << 20).unwrap();
}
