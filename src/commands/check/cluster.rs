//! The cluster of a fleet's journal: whether it lets the receiver in, and keeps what the journal promises.

use crate::config::Config;
use crate::findings::{Finding, Verdict, secret, shown_certificate, trusted_authorities};
use crate::journal::examine_cluster;

/// Connects, and changes nothing.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let Some(settings) = &config.journal.nats else { return Vec::new() };
    let secrets = [
        ("credentials_file", &settings.credentials_file),
        ("nkey_file", &settings.nkey_file),
        ("private_key", &settings.private_key),
    ];
    let secrets = secrets.into_iter().filter_map(|(key, file)| Some((key, file.as_deref()?)));
    let mut findings: Vec<Finding> = secrets.map(|(key, file)| secret(&format!("journal.nats.{key}"), file)).collect();
    if let Some(certificate) = &settings.certificate {
        findings.extend(shown_certificate("journal.nats.certificate", certificate));
    }
    if let Some(ca) = &settings.ca {
        findings.extend(trusted_authorities("journal.nats.ca", ca));
    }
    let found = examine_cluster(config, settings).await;
    for (verdict, lines) in [
        (Verdict::Good, found.facts),
        (Verdict::Warning, found.warnings),
        (Verdict::Error, found.problems),
        (Verdict::Failed, found.failure.into_iter().collect()),
    ] {
        findings.extend(lines.into_iter().map(|line| {
            let (key, text) = line.split_once(": ").unwrap_or(("journal.nats", &line));
            Finding { verdict, key: key.to_owned(), text: text.to_owned() }
        }));
    }
    findings
}
