//! Which identities may connect: `tls.allowed_clients`, compared exactly on parsed attributes.

use std::fmt::Write as _;

use x509_cert::Certificate;
use x509_cert::der::asn1::{Any, ObjectIdentifier};
use x509_cert::der::{Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use super::finding::Finding;
use crate::config::{AllowedClient, AllowedClients};
use crate::terminal::is_unseen;
use crate::whole::is_placeholder;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

/// The identities that may connect.
#[derive(Debug)]
pub(super) enum Clients {
    Any,
    Listed(Vec<Pinned>),
}

/// One entry: every given key must match.
#[derive(Debug)]
pub(super) struct Pinned {
    subject: Option<Attributes>,
    common_name: Option<String>,
    organization: Option<String>,
    dns: Option<String>,
    uri: Option<String>,
    certificate_sha256: Option<[u8; 32]>,
    public_key_sha256: Option<[u8; 32]>,
}

/// What a certificate says about its holder.
pub(super) struct Presented<'a> {
    pub(super) certificate: &'a Certificate,
    pub(super) certificate_sha256: [u8; 32],
    pub(super) public_key_sha256: [u8; 32],
}

/// A subject as parsed: one list of attributes per relative name, each with its text.
type Attributes = Vec<Vec<(ObjectIdentifier, String)>>;

impl Clients {
    pub(super) fn compile(clients: &AllowedClients, findings: &mut Vec<Finding>) -> Self {
        let AllowedClients::Listed(entries) = clients else { return Self::Any };
        Self::Listed(entries.iter().filter_map(|entry| Pinned::compile(entry, findings)).collect())
    }

    /// Whether one entry matches whole.
    pub(super) fn admit(&self, presented: &Presented<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(entries) => entries.iter().any(|entry| entry.matches(presented)),
        }
    }
}

impl Pinned {
    fn compile(entry: &AllowedClient, findings: &mut Vec<Finding>) -> Option<Self> {
        if let Some(placeholder) = placeholder(entry) {
            findings.push(Finding::error(
                format!(
                    "tls.allowed_clients holds the placeholder `{placeholder}` of the shipped settings: nobody gets in"
                ),
                None,
                "write what identifies ASAPP's certificate, as agreed with ASAPP",
            ));
            return None;
        }
        let subject = match &entry.subject {
            None => None,
            Some(text) => {
                let parsed = text.parse::<Name>().ok().and_then(|name| attributes(&name));
                if parsed.is_none() {
                    findings.push(Finding::error(
                        format!("tls.allowed_clients: the subject `{text}` is not a name as RFC 4514 writes it"),
                        None,
                        // With `oid`, because not every short name of OpenSSL is known here.
                        "copy it from `openssl x509 -in client.pem -noout -subject -nameopt RFC2253,oid`",
                    ));
                    return None;
                }
                parsed
            }
        };
        Some(Self {
            subject,
            common_name: entry.common_name.clone(),
            organization: entry.organization.clone(),
            dns: entry.dns.clone(),
            uri: entry.uri.clone(),
            certificate_sha256: entry.certificate_sha256,
            public_key_sha256: entry.public_key_sha256,
        })
    }

    fn matches(&self, presented: &Presented<'_>) -> bool {
        let subject = presented.certificate.tbs_certificate().subject();
        let given = |wanted: &Option<String>, found: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(found);
        self.subject.as_ref().is_none_or(|wanted| attributes(subject).as_ref() == Some(wanted))
            && given(&self.common_name, &|wanted| only(subject, COMMON_NAME).as_deref() == Some(wanted))
            && given(&self.organization, &|wanted| only(subject, ORGANIZATION).as_deref() == Some(wanted))
            && given(&self.dns, &|wanted| has_alternative_name(presented.certificate, NameKind::Dns, wanted))
            && given(&self.uri, &|wanted| has_alternative_name(presented.certificate, NameKind::Uri, wanted))
            && self.certificate_sha256.is_none_or(|wanted| wanted == presented.certificate_sha256)
            && self.public_key_sha256.is_none_or(|wanted| wanted == presented.public_key_sha256)
    }
}

/// What the shipped settings have in place of the identity that is agreed with ASAPP, and the examples beside the key.
fn placeholder(entry: &AllowedClient) -> Option<&str> {
    const EXAMPLES: [&str; 3] = ["client.example.com", "urn:example:client", "CN=client.example.com,O=ASAPP"];
    let texts = [&entry.subject, &entry.common_name, &entry.organization, &entry.dns, &entry.uri];
    let texts = texts.into_iter().flatten().map(String::as_str);
    let mut found = texts.filter(|text| is_placeholder(text) || EXAMPLES.contains(text));
    let is_zero = |digest: &Option<[u8; 32]>| *digest == Some([0; 32]);
    let digests = is_zero(&entry.certificate_sha256) || is_zero(&entry.public_key_sha256);
    found.next().or(digests.then_some("0000\u{2026}"))
}

/// The name as RFC 4514 writes it, on one line: what is not printable is escaped.
pub(super) fn rfc4514(name: &Name) -> String {
    let text = name.to_string();
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        // A name must not look like another one.
        if c.is_control() || is_unseen(c) {
            // RFC 4514 lets any byte of a value stand as a backslash and two hex digits.
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(line, "\\{byte:02x}");
            }
        } else {
            line.push(c);
        }
    }
    line
}

/// The value of an attribute that occurs exactly once. Of two values, no one could say which was meant.
fn only(subject: &Name, oid: ObjectIdentifier) -> Option<String> {
    let mut values = subject.iter().filter(|attribute| attribute.oid == oid);
    match (values.next(), values.next()) {
        (Some(attribute), None) => text(&attribute.value),
        _ => None,
    }
}

/// `None` when a value is no text.
fn attributes(name: &Name) -> Option<Attributes> {
    name.iter_rdn()
        .map(|rdn| {
            let mut pairs = rdn
                .iter()
                .map(|attribute| Some((attribute.oid, text(&attribute.value)?)))
                .collect::<Option<Vec<_>>>()?;
            pairs.sort();
            Some(pairs)
        })
        .collect()
}

enum NameKind {
    Dns,
    Uri,
}

fn has_alternative_name(certificate: &Certificate, kind: NameKind, wanted: &str) -> bool {
    let Ok(Some((_, names))) = certificate.tbs_certificate().get_extension::<SubjectAltName>() else { return false };
    names.0.iter().any(|name| match (&kind, name) {
        (NameKind::Dns, GeneralName::DnsName(found))
        | (NameKind::Uri, GeneralName::UniformResourceIdentifier(found)) => found.as_str() == wanted,
        _ => false,
    })
}

/// The characters of a string type; the encoding a CA chose does not matter to a comparison.
fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(bytes).ok().map(str::to_owned),
        Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::TeletexString if bytes.is_ascii() => {
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        }
        Tag::BmpString => {
            let (pairs, rest) = bytes.as_chunks::<2>();
            let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
            if rest.is_empty() { String::from_utf16(&units).ok() } else { None }
        }
        _ => None,
    }
}
