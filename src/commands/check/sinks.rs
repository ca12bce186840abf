//! The sinks, and what they and the endpoints make of the feeds.

use crate::commands::feed_config;
use crate::config::{self, Config, Engine};
use crate::findings::{Finding, Verdict};
use crate::shape::Shape;
use crate::sinks::Checked;

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
    let targets = config.sinks.iter().filter(|sink| sink.enabled).filter_map(|sink| {
        let (key, connect) = sink.kind.settings().connect()?;
        Some(async move {
            let key = format!("sinks.{}.{key}", sink.name);
            match connect.await {
                Ok(how) => Finding::good(key, how),
                Err(why) => Finding::failed(key, format!("{why}; its events would wait in the journal")),
            }
        })
    });
    futures_util::future::join_all(targets).await
}

fn of_sink(sink: &config::Sink, config: &Config) -> Vec<Finding> {
    let duty = match (sink.enabled, sink.required) {
        (false, _) => "switched off; what it has not had holds the journal",
        (true, true) => "required",
        (true, false) => "not required: a full journal lets go of what it has not had",
    };
    let key = format!("sinks.{}", sink.name);
    let mut findings = vec![Finding::good(&key, format!("{}, {duty}", sink.kind.name()))];
    let journal = (config.journal.engine == Engine::Sqlite).then_some(&*config.journal.path);
    let shape = Shape::new(sink.format, &sink.redact);
    findings.extend(sink.kind.settings().check(&Checked { key: &key, is_enabled: sink.enabled, shape, journal }));
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
