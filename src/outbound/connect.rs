//! How a connection is made: the name is looked up each time, each address gets its share of the time, then TLS.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::wire::{Meter, Metered, Wire};

/// A peer that is gone without a word is noticed within about a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Lookups under way at a time. One goes on, on a thread of its own, after the exchange that wanted it was given up: with
/// name servers that do not answer there would be ever more of them.
const LOOKUPS: usize = 2;

/// Both directions of a connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Cause = Box<dyn Error + Send + Sync>;

/// Connects to one server.
pub(super) struct Connector {
    server: Uri,
    tcp: HttpConnector<Resolver>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// Makes no connection yet. TLS where the scheme of `server` is `https`.
    pub(super) fn new(server: Uri, mut tls: ClientConfig, within: Duration) -> Result<Self, Cause> {
        let host = server.host().unwrap_or_default();
        let is_https = server.scheme_str() == Some("https");
        let tls = if is_https {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            Some((TlsConnector::from(Arc::new(tls)), ServerName::try_from(bare.to_owned())?))
        } else {
            None
        };
        let mut tcp = HttpConnector::new_with_resolver(Resolver(Arc::new(Semaphore::new(LOOKUPS))));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(within));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(3));
        Ok(Self { server, tcp, tls })
    }

    pub(super) async fn connect(&self, meter: &Arc<Meter>) -> Result<Wire<Box<dyn Stream>>, Cause> {
        let stream = self.tcp.clone().call(self.server.clone()).await?.into_inner();
        let stream = Metered { stream, meter: Arc::clone(meter) };
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await?),
        };
        Ok(Wire::new(stream, Arc::clone(meter)))
    }
}

/// The system's own lookups.
#[derive(Clone)]
struct Resolver(Arc<Semaphore>);

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let places = Arc::clone(&self.0);
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let lookup = tokio::task::spawn_blocking(move || {
                let found = (name.as_str(), 0).to_socket_addrs();
                drop(place);
                found
            });
            lookup.await.map_err(io::Error::other)?
        })
    }
}
