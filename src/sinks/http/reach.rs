//! Whether a target can be reached, without sending it anything.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::settings::Settings;
use super::trust;

/// In TLS 1.3 a client learns after its own last word that its certificate was not liked.
const SECOND_THOUGHTS: Duration = Duration::from_millis(300);

/// Connects, with TLS where the URL is `https`, and closes again: how it was connected.
///
/// # Errors
/// Why not, and where to look.
pub(super) async fn connect(settings: &Settings) -> Result<String, String> {
    let host = settings.url.host().unwrap_or_default();
    let is_https = settings.url.scheme_str() == Some("https");
    let port = settings.url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let shown = format!("{host}:{port}");
    let within = humantime::format_duration(settings.timeout);
    match timeout(settings.timeout, shake_hands(settings, host, port, is_https)).await {
        Ok(Ok(how)) => Ok(format!("{shown} can be reached, {how}")),
        Ok(Err(why)) => Err(format!("{shown} {why}")),
        Err(_) => Err(format!("{shown} does not answer within {within}: check url, and firewalls on the way")),
    }
}

async fn shake_hands(settings: &Settings, host: &str, port: u16, is_https: bool) -> Result<String, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await;
    let stream = stream.map_err(|error| format!("cannot be reached ({error}): check url, and that the target runs"))?;
    if !is_https {
        return Ok("without TLS".to_owned());
    }
    let mut config = trust::client_config(settings).map_err(|unusable| format!("was not tried: {unusable}"))?;
    // As the sink itself does.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| "is no name for TLS: check url".to_owned())?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        format!("does not come to terms over TLS ({error}): check url, tls.ca and the target's certificate")
    })?;
    let version = stream.get_ref().1.protocol_version().and_then(|version| version.as_str());
    let refused = |error: String| format!("ends the connection ({error}): check tls.certificate, which it may want");
    match timeout(SECOND_THOUGHTS, stream.read_u8()).await {
        // It waits for a request, as it should.
        Err(_) | Ok(Ok(_)) => Ok(format!("by {}", version.unwrap_or("TLS"))),
        Ok(Err(error)) => Err(refused(error.to_string())),
    }
}
