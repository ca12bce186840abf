//! Server TLS and the policy for client certificates; how servers are judged that the receiver connects to. The only maker
//! of [`PeerIdentity`], the only code that knows X.509.
//!
//! TLS 1.3 with a client certificate, always. [`verify`] judges it: webpki's verdict on chain, time and revocation, then
//! what webpki lets pass (usage, key, identity). Nothing is ever resumed, so every connection is judged anew.

mod chain;
mod digest;
mod expiry;
mod files;
mod finding;
mod identity;
mod load;
mod peers;
mod portrait;
pub mod profile;
mod refused;
mod revocation;
mod servers;
mod shown;
mod verify;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::expiry::Expiry;
pub use self::files::{Files, Fingerprint, names};
pub use self::finding::{Finding, Severity};
use self::load::Material;
pub use self::peers::PeerIdentity;
use self::peers::Peers;
pub use self::portrait::{Portrait, Vouched};
pub use self::refused::{Reason, Refused};
pub use self::servers::{Anchors, trusting, trusting_as_of_now};
pub use self::shown::shown_to_servers;
use self::verify::{Judge, Refusal};
use crate::config::Tls;

/// How long a refused client may take to fetch the alert.
const LINGER: Duration = Duration::from_secs(1);
/// What a refused client may send meanwhile.
const MOST_UNREAD: usize = 256 * 1024;

/// The server's side of TLS: one set of files, exchanged as a whole or not at all.
#[derive(Debug)]
pub struct ServerTls {
    /// Swapped by a reload, read by each new connection, which keeps the set it began with.
    current: RwLock<Arc<Material>>,
    peers: Peers,
    dismissals: Notify,
}

/// A client that was let in, and is not allowed any more.
#[derive(Debug)]
pub struct Dismissed {
    pub peer: PeerIdentity,
    pub reason: Reason,
    /// For the operator's log.
    pub detail: String,
}

/// The protocol that the client and the server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    Http1,
    Http2,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Session {
    pub stream: TlsStream<TcpStream>,
    pub peer: PeerIdentity,
    pub alpn: Alpn,
}

impl ServerTls {
    /// Reads all files of `[tls]` as one set.
    ///
    /// # Errors
    /// Everything that was found, when any of it makes the set unusable.
    pub fn load(tls: &Tls) -> Result<Self, Vec<Finding>> {
        let material = Material::load(tls, &Files::read(tls))?;
        Ok(Self { current: RwLock::new(Arc::new(material)), peers: Peers::default(), dismissals: Notify::new() })
    }

    /// Takes these files, read as `tls` names them: new connections get the new set, or, if it is unusable, the old one
    /// as before. Connections that are open stay, until [`dismiss_clients`](Self::dismiss_clients).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn reload(&self, tls: &Tls, files: &Files) -> Result<(), Vec<Finding>> {
        self.replace(Material::load(tls, files)?);
        Ok(())
    }

    /// Tells the files in use from others.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.current().fingerprint.clone()
    }

    /// Judges everyone who is connected anew, by the set in use and the time it is now, and marks those who would not be
    /// let in any more. A client costs about a handshake's verification, however many connections it has: not for a
    /// thread that serves.
    pub fn dismiss_clients(&self) -> Vec<Dismissed> {
        if let Some(rest) = self.current().without_expired(SystemTime::now()) {
            self.replace(rest);
        }
        let judged = |peer: PeerIdentity| match self.judge(&peer) {
            Ok(()) => None,
            Err(Refusal { reason, detail, .. }) => {
                self.peers.dismiss(&peer);
                Some(Dismissed { peer, reason, detail })
            }
        };
        let dismissed: Vec<Dismissed> = self.peers.all().into_iter().filter_map(judged).collect();
        if !dismissed.is_empty() {
            self.dismissals.notify_one();
        }
        dismissed
    }

    /// Back when clients were dismissed since the last time. For one waiter.
    pub async fn dismissal(&self) {
        self.dismissals.notified().await;
    }

    /// What is worth saying about the files in use: days left and warnings.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.current().findings.clone()
    }

    /// Until when the certificates and lists in use are good.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        self.current().expiries.clone()
    }

    /// Runs the handshake, all of it before `deadline`. A refused client has had its alert when this returns.
    ///
    /// # Errors
    /// Why the connection must not be used; it is closed already.
    pub async fn accept(&self, stream: TcpStream, http2: bool, deadline: Instant) -> Result<Session, Refused> {
        let material = self.current();
        match timeout_at(deadline, handshake(&material, stream, http2)).await {
            Err(_) => Err(Refused::new(Reason::Timeout, "the handshake was not finished in time")),
            Ok(Ok(session)) => {
                let session = Session { peer: self.peers.share(session.peer), ..session };
                // While it shook hands, its set may have been replaced and everyone else judged.
                if !Arc::ptr_eq(&material, &self.current()) {
                    self.judge(&session.peer).map_err(|refusal| Refused::new(refusal.reason, refusal.detail))?;
                }
                Ok(session)
            }
            Ok(Err((refused, stream))) => {
                let linger = deadline.min(Instant::now() + LINGER);
                // Closing with unread bytes would reset the connection, and with it lose the alert.
                let _ = timeout_at(linger, hang_up(stream)).await;
                Err(refused)
            }
        }
    }

    fn judge(&self, peer: &PeerIdentity) -> Result<(), Refusal> {
        // A chain always has its end entity; an empty one would be refused as malformed.
        let nothing = CertificateDer::from(&[][..]);
        let (end_entity, intermediates) = peer.chain().split_first().unwrap_or((&nothing, &[]));
        self.current().policy.judge(end_entity, intermediates, UnixTime::now()).map(|_| ())
    }

    fn replace(&self, material: Material) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn handshake(
    material: &Material,
    stream: TcpStream,
    http2: bool,
) -> Result<Session, (Refused, Option<TcpStream>)> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) => {}
        Ok(_) | Err(_) => return Err((Refused::new(Reason::Probe, "closed without a byte"), None)),
    }
    let judge = Arc::new(Judge::new(Arc::clone(&material.policy)));
    let config = match material.server_config(Arc::clone(&judge), http2) {
        Ok(config) => config,
        Err(error) => return Err((Refused::new(Reason::Other, error.to_string()), None)),
    };
    match TlsAcceptor::from(Arc::new(config)).accept(stream).into_fallible().await {
        Err((error, stream)) => {
            let refused = match judge.verdict() {
                Some(Err(refusal)) => Refused::new(refusal.reason, refusal.detail.clone()),
                _ => classify(&error, first),
            };
            Err((refused, Some(stream)))
        }
        Ok(stream) => match judge.verdict() {
            Some(Ok(peer)) => {
                let alpn = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Alpn::Http2,
                    _ => Alpn::Http1,
                };
                Ok(Session { stream, peer: peer.clone(), alpn })
            }
            // rustls asks for a certificate and judges it in every full handshake; there is no other.
            _ => Err((Refused::new(Reason::NoCertificate, "the client was never judged"), None)),
        },
    }
}

/// What went wrong when no certificate was judged, or a good one's holder failed after that.
fn classify(error: &std::io::Error, first: [u8; 1]) -> Refused {
    use rustls::{Error as E, PeerIncompatible as P};
    const HANDSHAKE_RECORD: [u8; 1] = [0x16];
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) else {
        return Refused::new(Reason::Aborted, error.to_string());
    };
    let reason = match tls {
        E::NoCertificatesPresented => Reason::NoCertificate,
        E::PeerIncompatible(
            P::SupportedVersionsExtensionRequired
            | P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::ServerDoesNotSupportTls12Or13
            // A hello from before TLS 1.2 has none, and rustls says so before it looks at the version.
            | P::SignatureAlgorithmsExtensionRequired,
        ) => Reason::ProtocolVersion,
        E::PeerIncompatible(_) => Reason::Incompatible,
        E::InvalidMessage(_) if first != HANDSHAKE_RECORD => Reason::NotTls,
        E::InvalidMessage(_) | E::InappropriateMessage { .. } | E::InappropriateHandshakeMessage { .. } => {
            Reason::Protocol
        }
        E::PeerMisbehaved(_) | E::DecryptError | E::PeerSentOversizedRecord | E::InvalidCertificate(_) => {
            Reason::Protocol
        }
        E::NoApplicationProtocol => Reason::Incompatible,
        E::AlertReceived(_) => Reason::ClientAlert,
        _ => Reason::Other,
    };
    Refused::new(reason, tls.to_string())
}

/// Says that no more will come, and reads on until the client has seen it, or sends so much that it does not look.
async fn hang_up(stream: Option<TcpStream>) -> std::io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    stream.shutdown().await?;
    let mut unread = [0; 4096];
    let mut left = MOST_UNREAD;
    while left > 0 {
        match stream.read(&mut unread).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
