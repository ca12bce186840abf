//! The sinks, and what they and the endpoints make of the feeds.

use super::folders::{file_sink, secret};
use super::{Finding, Verdict, example_host, shown_certificate, trusted_authorities};
use crate::commands::feed_config;
use crate::config::{self, Config, SinkKind};
use crate::shape::Shape;
use crate::sinks;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = config.sinks.iter().flat_map(|sink| of_sink(sink, config)).collect();
    if !config.sinks.iter().any(|sink| sink.enabled) {
        let text = "all are switched off: events fill the journal and go nowhere; switch one on";
        findings.push(Finding::warning("sinks", text));
    }
    findings.extend(feeds(config));
    findings
}

/// Tries whether the targets of HTTP sinks can be reached, all at once.
pub(super) async fn connect(config: &Config) -> Vec<Finding> {
    let targets = config.sinks.iter().filter(|sink| sink.enabled).filter_map(|sink| match &sink.kind {
        SinkKind::Http(http) => Some(async move {
            let key = format!("sinks.{}.url", sink.name);
            match sinks::connect(http).await {
                Ok(how) => Finding::good(key, how),
                Err(why) => Finding::failed(key, format!("{why}; its events would wait in the journal")),
            }
        }),
        SinkKind::Stdout | SinkKind::File(_) => None,
    });
    futures_util::future::join_all(targets).await
}

fn of_sink(sink: &config::Sink, config: &Config) -> Vec<Finding> {
    let kind = match sink.kind {
        SinkKind::Stdout => "stdout",
        SinkKind::File(_) => "file",
        SinkKind::Http(_) => "http",
    };
    let duty = match (sink.enabled, sink.required) {
        (false, _) => "switched off; what it has not had holds the journal",
        (true, true) => "required",
        (true, false) => "not required: a full journal lets go of what it has not had",
    };
    let key = format!("sinks.{}", sink.name);
    let mut findings = vec![Finding::good(&key, format!("{kind}, {duty}"))];
    match &sink.kind {
        SinkKind::Stdout => {}
        SinkKind::File(file) => findings.extend(file_sink(&key, file, &config.journal)),
        SinkKind::Http(http) => {
            findings.extend(http.secret_files().map(|(file, path)| secret(&format!("{key}.{file}"), path)));
            let unusable = sinks::Http::new(http, Shape::new(sink.format, &sink.redact)).err();
            findings.extend(unusable.map(|bad| Finding::error(format!("{key}.{}", bad.key()), bad.to_string())));
            if let Some(certificate) = &http.tls.certificate {
                findings.extend(shown_certificate(&format!("{key}.tls.certificate"), certificate));
            }
            for file in &http.tls.ca {
                findings.extend(trusted_authorities(&format!("{key}.tls.ca"), file));
            }
            if sink.enabled {
                findings.extend(example_host(&format!("{key}.url"), http.url.host().unwrap_or_default()));
            }
        }
    }
    findings
}

/// What ASAPP would be told about each feed.
fn feeds(config: &Config) -> Vec<Finding> {
    let feeds = match feed_config::work_out(config) {
        Ok(feeds) => feeds,
        Err(problems) => {
            // Without any address the settings are not meant for `feed-config`.
            let is_meant = config.endpoints.iter().any(|endpoint| endpoint.public_url.is_some());
            let problems = problems.0.into_iter().filter(|problem| is_meant || !problem.key.ends_with(".public_url"));
            return problems.map(|problem| Finding { verdict: Verdict::Warning, ..problem.into() }).collect();
        }
    };
    let mut findings = Vec::new();
    for feed in feeds {
        let key = format!("feed {}", feed.feed());
        if let Some(reason) = feed.reason() {
            let text =
                format!("{reason}: it would be stored and go nowhere; leave it out at ASAPP, or let a sink want it");
            findings.push(Finding::warning(&key, text));
        }
        findings.extend(feed.warnings().iter().map(|warning| Finding::warning(&key, warning)));
    }
    findings
}
