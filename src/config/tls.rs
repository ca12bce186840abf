//! `[tls]`.

use std::path::PathBuf;
use std::time::Duration;

use crate::about::Feature;
use crate::settings::{DAY, INSTANT, Section, Use, sha256};

/// `[tls]`: the server's certificate and who may connect.
#[derive(Debug, Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// At least one file; each holds one or more PEM certificates.
    pub client_ca: Vec<PathBuf>,
    pub client_crl: Vec<PathBuf>,
    pub min_version: TlsVersion,
    pub reload_interval: Duration,
    pub allow_extra_key_usage: bool,
    pub clients: AllowedClients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// Only in builds with the feature `tls12`.
    Tls12,
    Tls13,
}

/// Which clients of the configured CA may connect.
#[derive(Debug, Clone)]
pub enum AllowedClients {
    /// One matching entry suffices. Never empty.
    Listed(Vec<AllowedClient>),
    /// `tls.allow_any_client = true`, written out.
    Any,
}

/// An entry of `tls.allowed_clients`: every given key must match; at least one is given.
#[derive(Debug, Clone, Default)]
pub struct AllowedClient {
    /// RFC 4514.
    pub subject: Option<String>,
    pub common_name: Option<String>,
    pub organization: Option<String>,
    pub dns: Option<String>,
    pub uri: Option<String>,
    pub certificate_sha256: Option<[u8; 32]>,
    pub public_key_sha256: Option<[u8; 32]>,
}

pub(super) fn tls(mut s: Section<'_, '_>) -> Tls {
    let certificate =
        s.needed_file("certificate", Some(Use::Reads), "name the PEM file of the server's certificate and its chain");
    let private_key = s.needed_file("private_key", Some(Use::Reads), "name the PEM file of the server's private key");
    let client_ca = s.files("client_ca");
    if client_ca.is_empty() {
        s.missing("client_ca", "name the PEM files of the CAs that sign ASAPP's client certificates");
    }
    let tls = Tls {
        certificate,
        private_key,
        client_ca,
        client_crl: s.files("client_crl"),
        min_version: s.choice(
            "min_version",
            &[("1.3", TlsVersion::Tls13), ("1.2", TlsVersion::Tls12)],
            TlsVersion::Tls13,
        ),
        reload_interval: s.duration("reload_interval", INSTANT..=DAY),
        allow_extra_key_usage: s.flag("allow_extra_key_usage"),
        clients: allowed_clients(&mut s),
    };
    s.needs("min_version", tls.min_version == TlsVersion::Tls12, Feature::Tls12);
    s.finish();
    tls
}

fn allowed_clients(s: &mut Section<'_, '_>) -> AllowedClients {
    let listed = s.entries("allowed_clients", allowed_client);
    let any = s.flag("allow_any_client");
    s.contradiction(
        &["allowed_clients", "allow_any_client"],
        any && !listed.is_empty(),
        "exclude each other",
        "take one of them out",
    );
    s.contradiction(
        &["allowed_clients", "allow_any_client"],
        !any && listed.is_empty(),
        "let nobody in",
        "list what identifies ASAPP's certificate, such as allowed_clients = [{ common_name = \"…\" }]; \
         allow_any_client = true lets in everyone whom client_ca vouches for",
    );
    s.doubt(&["allow_any_client"], any, "lets in every client that tls.client_ca vouches for");
    if any { AllowedClients::Any } else { AllowedClients::Listed(listed) }
}

fn allowed_client(s: &mut Section<'_, '_>) -> AllowedClient {
    let fingerprint = "write the SHA-256 as 64 hex digits, with or without colons";
    AllowedClient {
        subject: s.text("subject"),
        common_name: s.text("common_name"),
        organization: s.text("organization"),
        dns: s.text("dns"),
        uri: s.text("uri"),
        certificate_sha256: s.parsed("certificate_sha256", sha256, fingerprint),
        public_key_sha256: s.parsed("public_key_sha256", sha256, fingerprint),
    }
}
