//! The clients that are connected, each kept once however many connections it has: a fleet of connections with one
//! certificate takes the memory of one, and is judged anew in one go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::pki_types::CertificateDer;

use super::digest::sha256;

/// Entries of clients that have gone are dropped when the table has grown to twice what was left of it last time.
const SMALLEST: usize = 64;

/// A client that was judged and let in. Cheap to clone; attached to its connections, which share it.
#[derive(Debug, Clone)]
pub struct PeerIdentity(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    subject: Arc<str>,
    sha256: [u8; 32],
    long_validity: bool,
    /// As it came, the client's own first: enough to judge it again when the files change.
    chain: Vec<CertificateDer<'static>>,
    /// Set once by a later judgement, read by the client's connections.
    dismissed: AtomicBool,
}

impl PeerIdentity {
    /// For [`Policy::judge`](super::verify::Policy::judge) alone.
    pub(super) fn new(
        subject: Arc<str>,
        sha256: [u8; 32],
        long_validity: bool,
        chain: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self(Arc::new(Peer { subject, sha256, long_validity, chain, dismissed: AtomicBool::new(false) }))
    }

    /// The certificate's subject as RFC 4514 writes it; one line.
    #[must_use]
    pub fn subject(&self) -> &Arc<str> {
        &self.0.subject
    }

    /// SHA-256 of the certificate's DER.
    #[must_use]
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.0.sha256
    }

    /// Its certificate is valid for three years or more, which ASAPP's never are.
    #[must_use]
    pub fn long_validity(&self) -> bool {
        self.0.long_validity
    }

    /// It was let in, but would not be any more: what it asks for from now on must not be done.
    #[must_use]
    pub fn is_dismissed(&self) -> bool {
        self.0.dismissed.load(Ordering::Relaxed)
    }

    /// The client's own certificate first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    fn dismiss(&self) {
        self.0.dismissed.store(true, Ordering::Relaxed);
    }
}

/// By the digest of the whole chain: what a client sends along can decide whether it is let in.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<[u8; 32], Weak<Peer>>,
    prune_at: usize,
}

impl Peers {
    /// The same client, as its other connections know it.
    pub(super) fn share(&self, peer: PeerIdentity) -> PeerIdentity {
        let key = key(&peer);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.peers.get(&key).and_then(Weak::upgrade) {
            return PeerIdentity(known);
        }
        if table.peers.len() >= table.prune_at {
            table.peers.retain(|_, peer| peer.strong_count() > 0);
            table.prune_at = SMALLEST.max(table.peers.len() * 2);
        }
        table.peers.insert(key, Arc::downgrade(&peer.0));
        peer
    }

    /// Everyone who is connected.
    pub(super) fn all(&self) -> Vec<PeerIdentity> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.peers.values().filter_map(Weak::upgrade).map(PeerIdentity).collect()
    }

    /// Marks a client as no longer allowed, for all its connections; those it makes from now on are another matter.
    pub(super) fn dismiss(&self, peer: &PeerIdentity) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).peers.remove(&key(peer));
        peer.dismiss();
    }
}

/// DER holds its own length, so a chain can be digested as one piece.
fn key(peer: &PeerIdentity) -> [u8; 32] {
    sha256(&peer.0.chain.iter().map(AsRef::<[u8]>::as_ref).collect::<Vec<_>>().concat())
}
