//! What mutual TLS needs on the sending side.

use std::path::PathBuf;

use rustls::ClientConfig;
use rustls::client::Resumption;

use crate::{pem, tls};

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
    #[error("the {what}, {place}: {why}")]
    Pem { what: &'static str, place: String, why: String },
    #[error("the client key, {key}, is not that of the first certificate in {certificate}")]
    Pair { key: String, certificate: String },
    #[error("the certificates and the key cannot be used")]
    Tls(#[from] rustls::Error),
}

impl Credentials {
    /// TLS 1.3 only, and no session is resumed: every connection makes a full handshake.
    pub(super) fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, Error> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in self.ca.read("CA", pem::authorities)? {
            roots.add(certificate)?;
        }
        let chain = self.certificate.read("client certificate", pem::chain)?;
        let key = self.private_key.read("client key", pem::private_key)?;
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
    /// All that it holds, by one of the readers of [`pem`].
    fn read<T>(&self, what: &'static str, reader: fn(&[u8]) -> Result<T, pem::Fault>) -> Result<T, Error> {
        let bad = |why: String| Error::Pem { what, place: self.to_string(), why };
        let read;
        let text = match self {
            Self::File(path) => {
                read = pem::read(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
                &read
            }
            Self::Text(text) => text,
        };
        reader(text).map_err(|fault| bad(fault.to_string()))
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
