//! What a server would object to in a certificate that the receiver shows to it: for `check`.

use std::path::Path;
use std::time::SystemTime;

use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::expiry::Expiry;
use super::finding::{Finding, Severity};
use super::verify::{CLIENT_AUTH, extended_key_usages, may_sign};
use crate::pem;

/// Days left, and usage. Nothing of a file that cannot be read: that is said elsewhere. An error is what makes servers
/// refuse it now.
#[must_use]
pub fn shown_to_servers(file: &Path, now: SystemTime) -> Vec<Finding> {
    let chain = pem::read(file).ok().and_then(|bytes| pem::chain(&bytes).ok()).unwrap_or_default();
    let Some(certificate) = chain.first().and_then(|der| Certificate::from_der(der).ok()) else { return Vec::new() };
    let mut findings = Vec::new();
    for (place, der) in chain.iter().enumerate() {
        let Ok(of_chain) = Certificate::from_der(der) else { continue };
        let end = Expiry::of_certificate("", file, &of_chain);
        let whose = if place == 0 { "it".to_owned() } else { format!("the intermediate `{}`", end.subject) };
        let (date, days) = (humantime::format_rfc3339_seconds(end.at), end.days_left(now));
        let finding = if end.is_over(now) {
            Finding::error(format!("{whose} expired on {date}"), Some(file), "renew it")
        } else if end.ends_soon(now) {
            Finding::warning(format!("{whose} is valid for {days} more days, until {date}"), file, "renew it")
        } else if place == 0 {
            Finding::info(format!("{whose} is valid for {days} more days, until {date}"), file)
        } else {
            continue;
        };
        findings.push(finding);
    }
    let begins = certificate.tbs_certificate().validity().not_before.to_unix_duration();
    if now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|now| now < begins) {
        findings.push(Finding::error("it is not valid yet", Some(file), "wait, or check the clock of this machine"));
    }
    let usages = extended_key_usages(&certificate);
    if usages.is_some_and(|usages| !usages.contains(&CLIENT_AUTH)) || !may_sign(&certificate) {
        let remedy = "have it issued with the extended key usage `clientAuth` and for digital signatures";
        findings.push(Finding {
            severity: Severity::Warning,
            ..Finding::error("it is not meant for client authentication", Some(file), remedy)
        });
    }
    findings
}
