//! What clients are not told: the monitoring port of a server is asked.

use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, Uri};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::time::Instant;

use super::login;
use crate::config;
use crate::outbound::{Client, trust};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the server of `journal.nats.monitor_url` has each message on its disk before it acknowledges it; unknown
/// without one, or when it does not answer within 5 s.
pub(crate) async fn sync_always(settings: &config::Nats) -> Option<bool> {
    let url = format!("{}/varz", settings.monitor_url.as_deref()?.trim_end_matches('/'));
    let read = match login::roots(settings) {
        Ok(roots) => read(&url, roots).await,
        Err(error) => Err(error.to_string()),
    };
    read.inspect_err(|why| tracing::debug!(url, why, "the monitoring port of NATS does not tell of syncs")).ok()
}

async fn read(url: &str, roots: RootCertStore) -> Result<bool, String> {
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
    let tls = trust::client_config(roots, None).map_err(|error| error.to_string())?;
    let client = Client::new(&url, tls, TIMEOUT, TIMEOUT).map_err(|error| error.to_string())?;
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
