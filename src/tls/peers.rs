//! The clients that are connected, each kept once however many connections it has: a fleet of connections with one
//! certificate takes the memory of one, and is judged anew in one go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Peer, PeerIdentity, sha256};

/// Entries of clients that have gone are dropped when the table has grown to twice what was left of it last time.
const SMALLEST: usize = 64;

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

/// DER tells its own length, so a chain can be digested as one piece.
fn key(peer: &PeerIdentity) -> [u8; 32] {
    sha256(&peer.0.chain.iter().map(AsRef::<[u8]>::as_ref).collect::<Vec<_>>().concat())
}
