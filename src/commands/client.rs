//! What the operators' commands share: a call of a running receiver's admin port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::output::{Failure, Go};
use super::table::word;
use crate::outbound::drive;
use crate::{config, whole};

/// For the whole of a call; one that changes thousands of things takes a while.
const DEADLINE: Duration = Duration::from_secs(600);
/// For a connection, and for the first part of an answer that goes on.
const FIRST_DEADLINE: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: usize = 512 << 20;

/// Which receiver, and how to talk to it.
#[derive(Debug, clap::Args)]
pub struct Admin {
    /// The receiver's admin port; otherwise admin.address of the settings, http://127.0.0.1:8081 by default
    #[arg(long, global = true, value_name = "URL")]
    pub admin: Option<Uri>,
    /// A file with the admin port's token; otherwise admin.token_file of the settings
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl Admin {
    /// What the command line does not say comes from the settings in `files` and the environment.
    ///
    /// # Errors
    /// Settings or a token that cannot be used, or an address that is none.
    pub(super) fn client(&self, files: &[PathBuf]) -> Result<Client, Failure> {
        let (authority, set) = self.place(files)?;
        let token = match (&self.token_file, set.and_then(|set| set.token_file)) {
            // It may be a pipe of the shell's.
            (Some(file), _) => Some(token("--token-file", file, whole::read_any(file, whole::SECRET))?),
            (None, Some(file)) => Some(token("admin.token_file", &file, whole::read(&file, whole::SECRET))?),
            (None, None) => None,
        };
        Ok(Client { authority, token, deadline: DEADLINE })
    }

    /// For the calls that never need a token, and so work for users who may not read it.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub(super) fn probe(&self, files: &[PathBuf]) -> Result<Client, Failure> {
        let (authority, _) = self.place(files)?;
        Ok(Client { authority, token: None, deadline: FIRST_DEADLINE })
    }

    /// Where the port is, and the settings where they were looked at.
    fn place(&self, files: &[PathBuf]) -> Result<(Authority, Option<config::Admin>), Failure> {
        let (url, set) = match (&self.admin, &self.token_file) {
            (Some(url), Some(_)) => (url.clone(), None),
            (Some(url), None) => (url.clone(), Some(config::Admin::load(files)?)),
            (None, _) => {
                let set = config::Admin::load(files)?;
                (local_url(set.address)?, Some(set))
            }
        };
        let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            let why = "the admin port is plain HTTP: write it as http://HOST:PORT";
            return Err(Failure::usage(format!("--admin {url}: {why}")));
        };
        Ok((authority.clone(), set))
    }
}

/// Where a client on the same machine finds a port that listens on `address`.
fn local_url(address: SocketAddr) -> Result<Uri, Failure> {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if address.port() == 0 {
        let why = "admin.address has port 0, so the receiver took any: give the one that it logged as --admin URL";
        return Err(Failure::configuration(why));
    }
    let url = format!("http://{}", SocketAddr::new(host, address.port()));
    url.parse().map_err(|_| Failure::configuration(format!("admin.address: {url} is no address to call")))
}

/// `key` is where the file's name comes from, `text` what was read.
fn token(key: &str, file: &Path, text: std::io::Result<Vec<u8>>) -> Result<HeaderValue, Failure> {
    let failure = |what: &str| Failure::failed(format!("{key} {}{what}", file.display()));
    let remedy = "give --token-file with a file that this user can read";
    let text = text.map_err(|error| failure(&format!(": {error}; {remedy}")))?;
    let word = whole::word(&text).map_err(|what| failure(&format!(" {what}")))?;
    // Its characters can all be sent.
    let mut token = HeaderValue::try_from(format!("Bearer {word}")).map_err(|error| failure(&format!(": {error}")))?;
    token.set_sensitive(true);
    Ok(token)
}

/// Calls one admin port, each time on a connection of its own.
pub(super) struct Client {
    authority: Authority,
    token: Option<HeaderValue>,
    deadline: Duration,
}

impl Client {
    /// For a caller who cannot wait long.
    pub(super) fn in_a_hurry(self) -> Self {
        Self { deadline: FIRST_DEADLINE, ..self }
    }

    /// `GET`, and the answer's JSON.
    ///
    /// # Errors
    /// No answer, or one that is no success: reported with its detail.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None).await
    }

    /// `POST` with a body, and the answer's JSON.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// `DELETE`, and the answer's JSON.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, None).await
    }

    /// `GET`, and the answer as it is.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) async fn get_bytes(&self, path: &str) -> Result<Bytes, Failure> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        if status.is_success() { Ok(body) } else { Err(self.refusal(status, &body)) }
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let (status, body) = self.ask(method, path, body).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|_| self.failure("answered with something else than JSON"))
    }

    /// What an answer means.
    ///
    /// # Errors
    /// It is none that this version knows.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Value) -> Result<T, Failure> {
        T::deserialize(answer).map_err(|error| self.failure(&format!("answered with something else: {error}")))
    }

    /// A call, whatever the answer's status.
    ///
    /// # Errors
    /// No answer.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let exchange = self.exchange(method, path, body, async |response: Response<Incoming>| {
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            Ok((status, body.map_err(|error| self.failure(&format!("a broken answer: {error}")))?.to_bytes()))
        });
        let seconds = self.deadline.as_secs();
        let exchange = timeout(self.deadline, exchange).await;
        exchange.unwrap_or_else(|_| Err(self.failure(&format!("no answer within {seconds}s"))))
    }

    /// `GET` of an answer that goes on; `each` is called with its pieces, whose bounds mean nothing, until it wants no
    /// more or there are no more.
    ///
    /// # Errors
    /// No answer, one that is no success, one that breaks off, or what `each` says.
    pub(super) async fn stream(
        &self,
        path: &str,
        mut each: impl AsyncFnMut(Bytes) -> Result<Go, Failure>,
    ) -> Result<(), Failure> {
        self.exchange(Method::GET, path, None, async |response: Response<Incoming>| {
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = Limited::new(body, LARGEST_ANSWER).collect().await.map(|body| body.to_bytes());
                return Err(self.refusal(status, &body.unwrap_or_default()));
            }
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| self.failure("the receiver went away"))?;
                if let Ok(piece) = frame.into_data()
                    && each(piece).await? == Go::Away
                {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn exchange<T>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let connect = TcpStream::connect((host, self.authority.port_u16().unwrap_or(80)));
        let stream = match timeout(FIRST_DEADLINE, connect).await {
            Ok(stream) => stream.map_err(|error| self.failure(&format!("cannot connect: {error}")))?,
            Err(_) => return Err(self.failure("cannot connect: no answer")),
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.authority.as_str());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| self.failure(&error.to_string()))?;
        let connected = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| self.failure(&format!("no HTTP: {error}")))?;
        let exchange = async move {
            let sent = sender.send_request(request).await;
            read(sent.map_err(|error| self.failure(&format!("no answer: {error}")))?).await
        };
        drive(&mut pin!(connection), exchange).await
    }

    /// What went wrong with this receiver.
    pub(super) fn failure(&self, what: &str) -> Failure {
        Failure::failed(format!("http://{}: {what}", self.authority))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        let problem: Value = serde_json::from_slice(body).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            return self.failure(
                "the token is missing or wrong: give --token-file, or --config with the settings that name it",
            );
        }
        match problem["detail"].as_str() {
            Some(_) => self.failure(&word(&problem, "detail")),
            None => self.failure(&format!("answered {status}")),
        }
    }
}
