//! What an HTTP sink says of itself, and how it is opened.

use std::io;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::Uri;

use super::settings::{self, Settings};
use super::{Http, reach};
use crate::findings::{Finding, example_host, secret, shown_certificate, trusted_authorities};
use crate::settings::Section;
use crate::shape::Format;
use crate::sinks::kind::{Checked, Kind, Open, Opening};
use crate::sinks::plan::Plan;
use crate::tls::Expiry;

impl Kind for Settings {
    fn read(s: &mut Section<'_, '_>, format: Format) -> Self {
        settings::read(s, format)
    }

    fn plan(&self) -> Plan {
        Plan {
            concurrency: self.concurrency,
            max_events: self.batch.max_events,
            max_bytes: self.batch.max_bytes,
            max_wait: self.batch.max_wait,
            max_ahead: self.max_ahead,
            ordering: self.ordering,
        }
    }

    fn max_ahead(&self) -> Option<u64> {
        Some(self.max_ahead)
    }

    fn check(&self, sink: &Checked<'_>) -> Vec<Finding> {
        let key = sink.key;
        let secrets = self.secret_files().map(|(file, path)| secret(&format!("{key}.{file}"), path));
        let mut findings: Vec<Finding> = secrets.collect();
        let unusable = Http::new(self, sink.shape.clone()).err();
        findings.extend(unusable.map(|bad| Finding::error(format!("{key}.{}", bad.key()), bad.to_string())));
        if let Some(certificate) = &self.tls.certificate {
            findings.extend(shown_certificate(&format!("{key}.tls.certificate"), certificate));
        }
        for file in &self.tls.ca {
            findings.extend(trusted_authorities(&format!("{key}.tls.ca"), file));
        }
        if sink.is_enabled {
            findings.extend(example_host(&format!("{key}.url"), self.url.host().unwrap_or_default()));
        }
        findings
    }

    fn connect(&self) -> Option<(&'static str, BoxFuture<'_, Result<String, String>>)> {
        Some(("url", reach::connect(self).boxed()))
    }

    fn expiries(&self, key: &str) -> Vec<Expiry> {
        let key = |name: &str| format!("{key}.tls.{name}");
        let shown = self.tls.certificate.iter().flat_map(|file| Expiry::of_chain(&key("certificate"), file));
        let trusted = self.tls.ca.iter().flat_map(|file| Expiry::of_authorities(&key("ca"), file));
        shown.chain(trusted).collect()
    }

    fn target(&self) -> Option<&Uri> {
        Some(&self.url)
    }
}

impl Open for Settings {
    type Sink = Http;

    fn open(&self, opening: Opening<'_>) -> io::Result<Vec<Http>> {
        let named =
            |error: super::Unusable| io::Error::other(format!("sinks.{}.{}: {error}", opening.name, error.key()));
        let sink = Http::new(self, opening.shape.clone()).map_err(named)?;
        Ok(vec![sink; self.concurrency])
    }
}
