//! TLS towards other systems: the CAs that the receiver trusts, and the certificate that it shows, from files of the settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use crate::{pem, tls};

/// A setting, and the file that it names.
pub(crate) type Named<'k, 'f> = (&'k str, &'f Path);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {} {what}: {remedy}", .file.display())]
pub(crate) struct Unusable<'k> {
    pub(crate) key: &'k str,
    pub(crate) file: PathBuf,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// TLS 1.2 and 1.3, trusting these CAs alone.
///
/// # Errors
/// When no cipher suite goes with these versions.
pub(crate) fn client_config(roots: RootCertStore, shown: Option<CertifiedKey>) -> Result<ClientConfig, rustls::Error> {
    let config = tls::trusting(roots, rustls::ALL_VERSIONS)?;
    Ok(match shown {
        Some(shown) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
        None => config.with_no_client_auth(),
    })
}

/// The CAs in these files.
///
/// # Errors
/// When one of them cannot be used.
pub(crate) fn roots<'k>(key: &'k str, files: &[impl AsRef<Path>]) -> Result<RootCertStore, Unusable<'k>> {
    let mut roots = RootCertStore::empty();
    for file in files {
        let named = (key, file.as_ref());
        for certificate in read(named, pem::authorities)? {
            roots.add(certificate).map_err(|error| {
                let what = format!("holds a certificate that cannot be used ({error})");
                unusable(named, what, "it must hold CA certificates")
            })?;
        }
    }
    Ok(roots)
}

/// The system's CAs. What of them cannot be read or used is left out, as every program does.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// A certificate with its chain, and its key.
///
/// # Errors
/// When one of the files cannot be used, or they do not go together.
pub(crate) fn shown<'k>(certificate: Named<'k, '_>, key: Named<'k, '_>) -> Result<CertifiedKey, Unusable<'k>> {
    let (chain, der) = (read(certificate, pem::chain)?, read(key, pem::private_key)?);
    CertifiedKey::from_der(chain, der, &rustls::crypto::aws_lc_rs::default_provider()).map_err(|error| {
        let what = format!("does not go with {} ({error})", certificate.0);
        unusable(key, what, "name the key of that certificate")
    })
}

/// All that a PEM file holds.
fn read<'k, T>(named: Named<'k, '_>, reader: fn(&[u8]) -> Result<T, pem::Fault>) -> Result<T, Unusable<'k>> {
    let bytes = pem::read(named.1)
        .map_err(|error| unusable(named, format!("cannot be read ({error})"), "check the path and its permissions"))?;
    reader(&bytes).map_err(|fault| unusable(named, fault.what(), fault.remedy()))
}

fn unusable<'k>((key, file): Named<'k, '_>, what: String, remedy: &str) -> Unusable<'k> {
    Unusable { key, file: file.to_owned(), what, remedy: remedy.to_owned() }
}
