//! A client that sends exactly the bytes it is told to, over mutual TLS.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;
use super::pki::{Identity, PKI};

/// An open connection.
pub(crate) struct Wire {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Read, but not part of an answer yet.
    rest: Vec<u8>,
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case; the last one of equal names.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// How the other side ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In order, with or without TLS's own goodbye.
    Closed,
    Reset,
    Alert(u8),
    /// It is still open.
    Open,
}

impl Wire {
    /// Connects and finishes the client's part of the handshake. In TLS 1.3 the server may still refuse.
    pub(crate) fn connect(to: SocketAddr, client: &Identity) -> io::Result<Self> {
        Self::handshake(TcpStream::connect(to)?, tls(Some(client), &[]))
    }

    pub(crate) fn connect_with(to: SocketAddr, config: ClientConfig) -> io::Result<Self> {
        Self::handshake(TcpStream::connect(to)?, config)
    }

    pub(crate) fn handshake(tcp: TcpStream, config: ClientConfig) -> io::Result<Self> {
        Self::handshake_after(b"", tcp, config)
    }

    /// The same, with `header` and the ClientHello in one segment.
    pub(crate) fn handshake_after(header: &[u8], mut tcp: TcpStream, config: ClientConfig) -> io::Result<Self> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let name = "localhost".try_into().map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut first = header.to_vec();
        tls.write_tls(&mut first)?;
        tcp.write_all(&first)?;
        let mut stream = StreamOwned::new(tls, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        stream.flush()?;
        Ok(Self { stream, rest: Vec::new() })
    }

    pub(crate) fn tls(&self) -> &ClientConnection {
        &self.stream.conn
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Sends `bytes` one at a time until they are sent, or the other side has ended the connection.
    pub(crate) fn drip(&mut self, bytes: impl AsRef<[u8]>, every: Duration) {
        for byte in bytes.as_ref() {
            if self.send([*byte]).is_err() || self.has_ended() {
                return;
            }
            std::thread::sleep(every);
        }
    }

    fn has_ended(&mut self) -> bool {
        let before = self.rest.len();
        self.stream.sock.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut buffer = [0; 4096];
        let ended = match self.stream.read(&mut buffer) {
            Ok(read) => {
                self.rest.extend_from_slice(&buffer[..read]);
                self.rest.len() == before
            }
            Err(error) => !is_timeout(&error),
        };
        self.stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
        ended
    }

    /// Posts one event and reads its answer.
    #[track_caller]
    pub(crate) fn post(&mut self, body: &[u8]) -> Answer {
        self.send(post("/events", "", body)).unwrap();
        self.answer()
    }

    /// The next answer.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        match self.try_answer() {
            Ok(answer) => answer,
            Err(error) => panic!("no answer but {error} after {:?}", String::from_utf8_lossy(&self.rest)),
        }
    }

    /// The next answer, or how the connection ended before it.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some((answer, length)) = Answer::parse(&self.rest) {
                self.rest.drain(..length);
                return Ok(answer);
            }
            let mut buffer = [0; 16384];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.rest.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// The next `length` bytes.
    #[track_caller]
    pub(crate) fn receive(&mut self, length: usize) -> Vec<u8> {
        while self.rest.len() < length {
            let mut buffer = [0; 16384];
            let read = self.stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the connection ended after {} of {length} bytes", self.rest.len());
            self.rest.extend_from_slice(&buffer[..read]);
        }
        self.rest.drain(..length).collect()
    }

    /// Reads until the other side ends the connection: what came, and how it ended.
    pub(crate) fn until_end(&mut self) -> (Vec<u8>, End) {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut buffer = [0; 16384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return (bytes, End::Closed),
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(error) => return (bytes, End::of(&error)),
            }
        }
    }

    /// Waits until the other side ends the connection without another byte, and tells how long that took.
    #[track_caller]
    pub(crate) fn closed(&mut self) -> Duration {
        let start = Instant::now();
        let (bytes, end) = self.until_end();
        assert!(bytes.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&bytes));
        assert_ne!(end, End::Open, "still open after {:?}", start.elapsed());
        start.elapsed()
    }

    /// Goes away without a word.
    pub(crate) fn abort(self) {
        let _ = self.stream.sock.shutdown(Shutdown::Both);
    }
}

impl End {
    pub(crate) fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(AlertDescription::CloseNotify)) => Self::Closed,
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert((*alert).into()),
            _ if is_timeout(error) => Self::Open,
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Reset,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// TLS 1.3 towards the tests' receivers, with this client certificate and these protocols on offer.
pub(crate) fn tls(client: Option<&Identity>, protocols: &[&[u8]]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&PKI.ca.certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let chain = CertificateDer::pem_file_iter(&client.chain).unwrap().map(Result::unwrap).collect();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&client.key).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// A request with a Content-Length; `headers` are whole lines.
pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

impl Answer {
    /// The answer that `bytes` begin with, and its length; interim answers are skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..head_end - 4]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if status == 100 {
            let (answer, length) = Self::parse(&bytes[head_end..])?;
            return Some((answer, head_end + length));
        }
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let rest = &bytes[head_end..];
        let length = match headers.get("content-length") {
            Some(length) => length.parse().ok()?,
            None => rest.len(),
        };
        let body = rest.get(..length)?.to_vec();
        Some((Self { status, headers, body }, head_end + length))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Checks that this is a 200 with this status word for this id.
    #[track_caller]
    pub(crate) fn assert_durable(&self, word: &str, id: &str) {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.json(), serde_json::json!({ "status": word, "event_id": id }));
    }

    /// Checks that this is the 503 that tells a sender to come again.
    #[track_caller]
    pub(crate) fn assert_unavailable(&self) {
        self.assert_problem(503, "unavailable");
        assert!(self.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{self:?}");
    }

    /// Checks that this is a problem whose type ends in `word`, and gives its detail.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, word: &str) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        let kind = problem["type"].as_str().unwrap();
        assert!(kind.ends_with(&format!(":{word}")), "{kind}");
        assert_eq!(problem["status"], status);
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()));
        problem["detail"].as_str().unwrap().to_owned()
    }
}
