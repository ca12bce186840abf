//! What clients are not told: the monitoring port of a server is asked.

use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, Uri};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::time::Instant;

use crate::outbound::Client;
use crate::{config, pem, tls};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the server of `journal.nats.monitor_url` has each message on its disk before it acknowledges it; unknown
/// without one, or when it does not answer within 5 s.
pub(crate) async fn sync_always(settings: &config::Nats) -> Option<bool> {
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
    let url: Uri = url.parse().map_err(|_| "journal.nats.monitor_url is no URL".to_owned())?;
    let client = Client::new(&url, trust(ca)?, TIMEOUT, TIMEOUT).map_err(|error| error.to_string())?;
    let mut request = Request::new(Full::default());
    *request.uri_mut() = url;
    let end = Instant::now() + TIMEOUT;
    let answer = client.send(request, end).await.map_err(|error| error.cause())?;
    if !answer.status.is_success() {
        return Err(format!("it answered {}", answer.status));
    }
    let body = answer.body(end).await.map_err(|error| error.cause())?;
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
