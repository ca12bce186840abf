//! A journal, and all that an event needs on its way into it. Shared by the benchmarks of its parts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use asapp_receiver::admission::Admission;
use asapp_receiver::config::Config;
use asapp_receiver::envelope::Envelope;
use asapp_receiver::journal::{Appended, Cursor, Journal, NewEvent};
use asapp_receiver::telemetry::Metrics;
use asapp_receiver::tls::{PeerIdentity, ServerTls};
use tokio::net::TcpListener;

use crate::pki::{self, Pki};

pub(crate) struct Door {
    pub(crate) journal: Journal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Config,
    admission: Admission,
    peer: PeerIdentity,
}

impl Door {
    /// Opens the journal; with a cursor for every sink of the settings.
    pub(crate) async fn open(config: Config, pki: &Pki) -> (Self, Vec<Cursor>) {
        let metrics = Arc::new(Metrics::new());
        let (journal, cursors, _) = Journal::open(&config, Arc::clone(&metrics)).unwrap();
        let admission = Admission::new(&config.listen, Arc::clone(&metrics));
        let peer = handshake(&config, pki).await;
        (Self { journal, metrics, config, admission, peer }, cursors)
    }

    pub(crate) async fn append(&self, envelope: Envelope) -> Appended {
        let admitted = self.admission.admit(self.admission.receive(), envelope.body().len()).unwrap();
        let event = NewEvent {
            envelope,
            received_at: SystemTime::now(),
            peer: self.peer.clone(),
            endpoint: Arc::new(self.config.endpoints[0].clone()),
            traceparent: None,
        };
        self.journal.append(event, admitted).await.unwrap()
    }
}

/// A client that was judged by the real thing: there is no other way to an identity.
async fn handshake(config: &Config, pki: &Pki) -> PeerIdentity {
    let tls = ServerTls::load(&config.tls).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connector, address) = (pki.connector(), listener.local_addr().unwrap());
    let (_client, session) = tokio::join!(pki::connect(&connector, address), async {
        let (stream, _) = listener.accept().await.unwrap();
        tls.accept(stream, false, tokio::time::Instant::now() + Duration::from_secs(10)).await.unwrap()
    });
    session.peer
}

/// Processor time of this process.
pub(crate) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let (user, system): (u32, u32) = (fields[11].parse().unwrap(), fields[12].parse().unwrap());
    // A tick of /proc is a hundredth of a second whatever the kernel's own are.
    Duration::from_millis(10) * (user + system)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
