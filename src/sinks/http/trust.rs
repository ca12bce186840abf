//! TLS towards a target: whom the sink trusts, and how it shows itself.

use std::path::Path;

use rustls::{ClientConfig, RootCertStore};

use super::Unusable;
use crate::config::{HttpSink, HttpTls};
use crate::{pem, tls};

/// TLS 1.2 and 1.3.
pub(super) fn client_config(settings: &HttpSink) -> Result<ClientConfig, Unusable> {
    let HttpTls { ca, certificate, private_key } = &settings.tls;
    let is_https = settings.url.scheme_str() == Some("https");
    let roots = match &**ca {
        [] if is_https => system_roots()?,
        files => own_roots(files)?,
    };
    let bad = |error: rustls::Error| Unusable::new("tls", None, error.to_string(), "mend the sink's tls settings");
    let config = tls::trusting(roots, rustls::ALL_VERSIONS).map_err(bad)?;
    let config = match (certificate, private_key) {
        (Some(certificate), Some(key)) => {
            let chain = read("tls.certificate", certificate, pem::chain)?;
            let key_der = read("tls.private_key", key, pem::private_key)?;
            config.with_client_auth_cert(chain, key_der).map_err(|error| {
                let what = format!("does not go with tls.certificate ({error})");
                Unusable::new("tls.private_key", Some(key), what, "name the key of that certificate")
            })?
        }
        _ => config.with_no_client_auth(),
    };
    Ok(config)
}

/// The system's CAs. What of them cannot be read or used is left out, as every program does.
fn system_roots() -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let remedy = "name the target's CA there, or install the system's (package ca-certificates)";
        return Err(Unusable::new("tls.ca", None, "is not set, and this system has no CAs", remedy));
    }
    Ok(roots)
}

fn own_roots(files: &[std::path::PathBuf]) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for file in files {
        for certificate in read("tls.ca", file, pem::authorities)? {
            roots.add(certificate).map_err(|error| {
                let what = format!("holds a certificate that cannot be used ({error})");
                Unusable::new("tls.ca", Some(file), what, "it must hold CA certificates")
            })?;
        }
    }
    Ok(roots)
}

/// All that a PEM file holds.
fn read<T>(key: &'static str, file: &Path, reader: fn(&[u8]) -> Result<T, pem::Fault>) -> Result<T, Unusable> {
    let bytes = pem::read(file).map_err(|error| {
        let what = format!("cannot be read ({error})");
        Unusable::new(key, Some(file), what, "check the path and its permissions")
    })?;
    reader(&bytes).map_err(|fault| Unusable::new(key, Some(file), fault.what(), fault.remedy().to_owned()))
}
