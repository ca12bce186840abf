//! What clients are not told: the monitoring port of a server is asked.

use std::path::Path;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use crate::{config, pem, tls};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the server of `journal.nats.monitor_url` has each message on its disk before it acknowledges it; unknown
/// without one, or when it does not answer within 5 s.
pub(in crate::journal) async fn sync_always(settings: &config::Nats) -> Option<bool> {
    let url = format!("{}/varz", settings.monitor_url.as_deref()?.trim_end_matches('/'));
    let read = read(&url, settings.ca.as_deref()).await;
    read.inspect_err(|why| tracing::debug!(url, why, "the monitoring port of NATS does not tell of syncs")).ok()
}

async fn read(url: &str, ca: Option<&Path>) -> Result<bool, String> {
    #[derive(Deserialize)]
    struct Varz {
        jetstream: JetStream,
    }
    #[derive(Deserialize)]
    struct JetStream {
        config: JetStreamConfig,
    }
    #[derive(Deserialize)]
    struct JetStreamConfig {
        // Left out where it is not set.
        #[serde(default)]
        sync_always: bool,
    }
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(trust(ca)?)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let exchange = async { client.get(url).send().await?.error_for_status()?.bytes().await };
    let body = exchange.await.map_err(|error| error.to_string())?;
    let varz: Varz = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(varz.jetstream.config.sync_always)
}

fn trust(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let certificates = match ca {
        Some(file) => pem::authorities(&pem::read(file)?).map_err(|fault| fault.to_string())?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(certificates);
    let config = tls::trusting(roots, rustls::ALL_VERSIONS).map_err(|error| error.to_string())?;
    Ok(config.with_no_client_auth())
}
