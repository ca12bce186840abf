//! Why a handshake failed.

/// A handshake that failed.
#[derive(Debug)]
pub struct Refused {
    pub reason: Reason,
    /// For the operator's log; names the certificate's subject at most.
    pub detail: String,
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Connected and closed without a byte, as load balancers do: no refusal.
    Probe,
    NoCertificate,
    UnknownCa,
    Expired,
    NotYetValid,
    Revoked,
    RevocationUnknown,
    Usage,
    Key,
    Identity,
    /// A certificate that cannot be read.
    Malformed,
    /// A chain that is too long, too large or too entangled to be looked at.
    Chain,
    /// A chain that oversteps what one of its CAs allows: names, number of intermediates.
    Constraints,
    ProtocolVersion,
    /// No cipher suite, group or signature scheme in common.
    Incompatible,
    NotTls,
    /// TLS, but not as the RFC has it.
    Protocol,
    /// The client refused the server, by an alert.
    ClientAlert,
    /// The client went away in the middle.
    Aborted,
    Timeout,
    Other,
}

impl Reason {
    /// The label of `asapp_receiver_tls_refused_total`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::NoCertificate => "no-certificate",
            Self::UnknownCa => "unknown-ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation-unknown",
            Self::Usage => "usage",
            Self::Key => "key",
            Self::Identity => "identity",
            Self::Malformed => "malformed",
            Self::Chain => "chain",
            Self::Constraints => "constraints",
            Self::ProtocolVersion => "protocol-version",
            Self::Incompatible => "incompatible",
            Self::NotTls => "not-tls",
            Self::Protocol => "protocol",
            Self::ClientAlert => "client-alert",
            Self::Aborted => "aborted",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }
}

impl Refused {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
