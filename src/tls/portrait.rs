//! What a client sees of the server's own certificate: for `check`, which says what ASAPP would find out.

use std::path::Path;

use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::identity::rfc4514;
use super::verify::Key;
use crate::pem;

/// The server's own certificate and what it is sent with.
#[derive(Debug)]
pub struct Portrait {
    chain: Vec<CertificateDer<'static>>,
    key: String,
    issuer: String,
}

/// Who vouches for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// A CA that this system trusts, and so most likely everybody.
    Publicly,
    /// None of those, or not with the intermediates that the file has.
    NotPublicly,
    /// This system has no CAs to ask.
    Unknown,
}

impl Portrait {
    /// `None` for a file that holds no certificates that can be read.
    #[must_use]
    pub fn read(file: &Path) -> Option<Self> {
        let chain = pem::chain(&pem::read(file).ok()?).ok()?;
        let own = Certificate::from_der(chain.first()?).ok()?;
        Some(Self { key: Key::of(&own).to_string(), issuer: rfc4514(own.tbs_certificate().issuer()), chain })
    }

    /// Kind and size of its key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// RFC 4514.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether a client that asks for this host is content with the names in it.
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let Ok(name) = ServerName::try_from(host) else { return false };
        self.parsed().is_some_and(|own| verify_server_name(&own, &name).is_ok())
    }

    /// Whether it leads to a CA that this system trusts, through the intermediates in its file.
    #[must_use]
    pub fn vouched(&self) -> Vouched {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let (Some(own), false) = (self.parsed(), roots.is_empty()) else { return Vouched::Unknown };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms.all;
        let intermediates = self.chain.get(1..).unwrap_or_default();
        match verify_server_cert_signed_by_trust_anchor(&own, &roots, intermediates, UnixTime::now(), algorithms) {
            Ok(()) => Vouched::Publicly,
            Err(_) => Vouched::NotPublicly,
        }
    }

    fn parsed(&self) -> Option<ParsedCertificate<'_>> {
        ParsedCertificate::try_from(self.chain.first()?).ok()
    }
}
