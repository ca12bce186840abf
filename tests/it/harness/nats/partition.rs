//! A stretch of network that can fall silent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Forwards every connection to its port to one address. While it is cut nothing passes, in neither direction: no bytes,
/// no new connections and no ends of old ones. Once it is healed, what waited passes, as TCP would send it again. Dropped,
/// its connections break.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    cut: watch::Sender<bool>,
    _stop: oneshot::Sender<Infallible>,
}

impl Link {
    pub(crate) fn to(target: SocketAddr) -> Self {
        Self::start(Some(target))
    }

    /// Closes every connection at once.
    pub(crate) fn to_nowhere() -> Self {
        Self::start(None)
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn heal(&self) {
        self.cut.send_replace(false);
    }

    fn start(target: Option<SocketAddr>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    never = accept(listener, target, is_cut) => match never {},
                    Err(_) = stopped => {}
                }
            });
        });
        Self { address, cut, _stop: stop }
    }
}

async fn accept(listener: TcpListener, target: Option<SocketAddr>, is_cut: watch::Receiver<bool>) -> Infallible {
    // They end with this future.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                if let Some(target) = target {
                    connections.spawn(forward(stream, target, is_cut.clone()));
                }
            }
        }
    }
}

async fn forward(from: TcpStream, target: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    healed(&mut is_cut).await;
    let Ok(to) = TcpStream::connect(target).await else { return };
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    tokio::join!(pump(from_read, to_write, is_cut.clone()), pump(to_read, from_write, is_cut));
}

/// Until one side ends; then the other side's is ended, too.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        healed(&mut is_cut).await;
        let read = from.read(&mut bytes).await.unwrap_or_default();
        healed(&mut is_cut).await;
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn healed(is_cut: &mut watch::Receiver<bool>) {
    // Its sender is gone only when nobody waits for this any more.
    let _ = is_cut.wait_for(|cut| !cut).await;
}
