//! The judgement of servers that the receiver connects to: webpki's, within the bounds of [`chain`](super::chain).

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

use super::chain;
use super::verify::bounded;

/// The beginning of every client's settings: rustls on aws-lc, with these CAs alone. What a server sends cannot keep the
/// thread that shakes hands busy.
///
/// # Errors
/// When no cipher suite goes with these versions.
pub fn trusting(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    trusting_as_of_now(Arc::new(Anchors::new(roots)), versions)
}

/// The same with CAs that change: what they are at the time of a handshake counts.
///
/// # Errors
/// As [`trusting`].
pub fn trusting_as_of_now(
    anchors: Arc<Anchors>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Servers { anchors, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

/// CAs that can be replaced.
#[derive(Debug)]
pub struct Anchors(RwLock<Arc<RootCertStore>>);

impl Anchors {
    #[must_use]
    pub fn new(roots: RootCertStore) -> Self {
        Self(RwLock::new(Arc::new(roots)))
    }

    pub fn replace(&self, roots: RootCertStore) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roots);
    }

    fn current(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Servers {
    anchors: Arc<Anchors>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Servers {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let fit = chain::fit(end_entity, intermediates)
            .map_err(|unfit| CertificateError::Other(OtherError(Arc::new(unfit))))?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        let roots = self.anchors.current();
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &fit.intermediates, now, algorithms)?;
        verify_server_name(&parsed, name)
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, name, now).map_err(brief)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// An error of which the text is as long as the server wants (all its names, all its usages), with the beginning of it.
fn brief(error: rustls::Error) -> rustls::Error {
    use CertificateError as E;
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Beginning(String);
    match &error {
        rustls::Error::InvalidCertificate(E::NotValidForNameContext { .. } | E::InvalidPurposeContext { .. }) => {
            E::Other(OtherError(Arc::new(Beginning(bounded(&error))))).into()
        }
        _ => error,
    }
}
