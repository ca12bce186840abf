//! Server TLS and the policy for client certificates. The only maker of [`PeerIdentity`], the only code that knows X.509.

use std::sync::Arc;

/// A client that was judged and let in. Cheap to clone; attached to its connection.
#[derive(Debug, Clone)]
pub struct PeerIdentity {
    subject: Arc<str>,
}

impl PeerIdentity {
    /// The certificate's subject as RFC 4514 writes it.
    #[must_use]
    pub fn subject(&self) -> &Arc<str> {
        &self.subject
    }
}
