//! TLS towards a target: whom the sink trusts, and how it shows itself.

use rustls::{ClientConfig, RootCertStore};

use super::settings::{Settings, Tls};
use super::unusable::Unusable;
use crate::outbound::trust;

/// TLS 1.2 and 1.3.
pub(super) fn client_config(settings: &Settings) -> Result<ClientConfig, Unusable> {
    let Tls { ca, certificate, private_key } = &settings.tls;
    let is_https = settings.url.scheme_str() == Some("https");
    let roots = match &**ca {
        [] if is_https => system_roots()?,
        files => trust::roots("tls.ca", files)?,
    };
    let shown = match (certificate, private_key) {
        (Some(certificate), Some(key)) => {
            Some(trust::shown(("tls.certificate", certificate), ("tls.private_key", key))?)
        }
        _ => None,
    };
    let bad = |error: rustls::Error| Unusable::new("tls", None, error.to_string(), "mend the sink's tls settings");
    trust::client_config(roots, shown).map_err(bad)
}

fn system_roots() -> Result<RootCertStore, Unusable> {
    let roots = trust::system_roots();
    if roots.is_empty() {
        let remedy = "name the target's CA there, or install the system's (package ca-certificates)";
        return Err(Unusable::new("tls.ca", None, "is not set, and this system has no CAs", remedy));
    }
    Ok(roots)
}

impl From<trust::Unusable<'static>> for Unusable {
    fn from(unusable: trust::Unusable<'static>) -> Self {
        Self::new(unusable.key, Some(&unusable.file), unusable.what, unusable.remedy)
    }
}
