//! A server that answers as no server should: it sends what its script says, byte by byte if need be.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::PATIENCE;

/// A running server on a port of its own.
pub(crate) struct Hostile {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    ended: AtomicUsize,
}

/// What a script has in hand.
pub(crate) struct Peer {
    pub(crate) stream: Box<dyn Stream>,
}

pub(crate) trait Stream: Read + Write + Send {
    /// More of what is no data: a key update.
    fn update_keys(&mut self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn update_keys(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn update_keys(&mut self) -> io::Result<()> {
        self.conn.refresh_traffic_keys().map_err(io::Error::other)?;
        self.flush()
    }
}

impl Hostile {
    /// Plain HTTP. After each request, all of which was read, the script is asked what becomes of the connection: `true`,
    /// and it reads another request.
    pub(crate) fn start(script: impl Fn(&mut Peer) -> io::Result<bool> + Send + Sync + 'static) -> Self {
        Self::with(None, true, script)
    }

    /// The same, but nothing of a request is read.
    pub(crate) fn start_deaf(script: impl Fn(&mut Peer) -> io::Result<bool> + Send + Sync + 'static) -> Self {
        Self::with(None, false, script)
    }

    /// The same over TLS.
    pub(crate) fn start_tls(
        tls: ServerConfig,
        script: impl Fn(&mut Peer) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Some(Arc::new(tls)), true, script)
    }

    fn with(
        tls: Option<Arc<ServerConfig>>,
        reads: bool,
        script: impl Fn(&mut Peer) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let (counted, script) = (Arc::clone(&counts), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.connections.fetch_add(1, Relaxed);
                let (tls, counts, script) = (tls.clone(), Arc::clone(&counted), Arc::clone(&script));
                std::thread::spawn(move || {
                    // That it ends is what the test waits for; how, is not.
                    let _ = serve(stream, tls, reads, &counts, &*script);
                    counts.ended.fetch_add(1, Relaxed);
                });
            }
        });
        Self { address, counts }
    }

    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    /// Connections that came to an end.
    pub(crate) fn ended(&self) -> usize {
        self.counts.ended.load(Relaxed)
    }

    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Relaxed)
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    reads: bool,
    counts: &Counts,
    script: &(impl Fn(&mut Peer) -> io::Result<bool> + ?Sized),
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    stream.set_write_timeout(Some(PATIENCE * 2))?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
            Box::new(StreamOwned::new(connection, stream))
        }
    };
    let mut peer = Peer { stream };
    loop {
        if reads && !read_request(&mut peer.stream)? {
            return Ok(());
        }
        counts.requests.fetch_add(1, Relaxed);
        if !script(&mut peer)? {
            return Ok(());
        }
    }
}

/// Reads a request with a Content-Length; `false` when there is none any more.
fn read_request(stream: &mut impl Read) -> io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(false);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    io::copy(&mut stream.take(length.unwrap_or(0)), &mut io::sink())?;
    Ok(true)
}

impl Peer {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// The same again and again, until the other side has had enough.
    pub(crate) fn send_endlessly(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<bool> {
        let many = bytes.as_ref().repeat((16 << 10) / bytes.as_ref().len().max(1) + 1);
        loop {
            self.send(&many)?;
        }
    }

    /// A byte at a time, with pauses.
    pub(crate) fn drip(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<bool> {
        for byte in bytes.as_ref().iter().cycle() {
            self.send([*byte])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    /// Waits until the other side ends the connection.
    pub(crate) fn wait(&mut self) -> io::Result<bool> {
        io::copy(&mut self.stream, &mut io::sink())?;
        Ok(false)
    }
}
