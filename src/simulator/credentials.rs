//! What mutual TLS needs on the sending side.

use std::path::PathBuf;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};

use crate::tls;

#[derive(Debug, Clone)]
pub struct Credentials {
    /// Whom to trust as a receiver.
    pub ca: Pem,
    /// The client's certificate and its chain.
    pub certificate: Pem,
    pub private_key: Pem,
}

#[derive(Clone)]
pub enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {what}, {place}, cannot be read")]
    Pem { what: &'static str, place: String, source: pem::Error },
    #[error("the {what}, {place}, holds no certificate")]
    NoCertificate { what: &'static str, place: String },
    #[error("the client key, {place}, holds no private key")]
    NoKey { place: String },
    #[error("the client key, {key}, is not that of the first certificate in {certificate}")]
    Pair { key: String, certificate: String },
    #[error("the certificates and the key cannot be used")]
    Tls(#[from] rustls::Error),
}

impl Credentials {
    /// TLS 1.3 only, and no session is resumed: every connection makes a full handshake.
    pub(super) fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, Error> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in self.ca.certificates("CA")? {
            roots.add(certificate)?;
        }
        let chain = self.certificate.certificates("client certificate")?;
        let key = self.private_key.private_key()?;
        let mut config =
            tls::trusting(roots, &[&rustls::version::TLS13])?.with_client_auth_cert(chain, key).map_err(|error| {
                match error {
                    rustls::Error::InconsistentKeys(_) => {
                        Error::Pair { key: self.private_key.to_string(), certificate: self.certificate.to_string() }
                    }
                    other => Error::Tls(other),
                }
            })?;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![alpn.to_owned()];
        Ok(config)
    }
}

impl Pem {
    fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let read = match self {
            Self::File(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>),
            Self::Text(text) => CertificateDer::pem_slice_iter(text).collect(),
        };
        let place = || self.to_string();
        match read {
            Ok(found) if found.is_empty() => Err(Error::NoCertificate { what, place: place() }),
            Ok(found) => Ok(found),
            Err(source) => Err(Error::Pem { what, place: place(), source }),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let read = match self {
            Self::File(path) => PrivateKeyDer::from_pem_file(path),
            Self::Text(text) => PrivateKeyDer::from_pem_slice(text),
        };
        read.map_err(|source| match source {
            pem::Error::NoItemsFound => Error::NoKey { place: self.to_string() },
            source => Error::Pem { what: "client key", place: self.to_string(), source },
        })
    }
}

impl std::fmt::Display for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text(_) => f.write_str("given in memory"),
        }
    }
}

/// Never shows what it holds: it may be a key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
