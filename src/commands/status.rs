//! `status`: asks a running receiver's admin port how it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{Failure, print};

/// For the whole exchange.
const DEADLINE: Duration = Duration::from_secs(5);

const LARGEST_ANSWER: usize = 16 << 20;

/// Ask a running receiver how it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver status --admin http://127.0.0.1:8081")]
pub struct Args {
    /// The receiver's admin port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub admin: Uri,
    /// A file with the admin port's token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only ask whether it is ready: exit 0 if it is, else 1
    #[arg(long)]
    pub ready: bool,
    /// Drop the place of a sink that is gone from the settings: what it has not had stays undelivered
    #[arg(long, value_name = "NAME", conflicts_with = "ready")]
    pub forget: Option<String>,
}

/// Asks, and prints the answer.
///
/// # Errors
/// When there is no answer, a refusal, or, with `--ready`, a receiver that is not ready.
pub async fn run(args: Args) -> Result<(), Failure> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let (method, path) = match &args.forget {
        Some(sink) if is_sink_name(sink) => (Method::DELETE, format!("/api/v1/sinks/{sink}")),
        Some(_) => return Err(Failure::failed("--forget: a sink's name has a-z, 0-9, _ and - only")),
        None if args.ready => (Method::GET, "/readyz".to_owned()),
        None => (Method::GET, "/api/v1/status".to_owned()),
    };
    let asked = tokio::time::timeout(DEADLINE, ask(&args.admin, method, &path, token));
    let answer = asked.await.unwrap_or_else(|_| Err(format!("no answer within {}s", DEADLINE.as_secs())));
    let (status, body) = answer.map_err(|error| Failure::failed(format!("{}: {error}", args.admin)))?;
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    if args.json {
        print(&format!("{json}\n"))?;
    }
    match status {
        StatusCode::OK if args.json => Ok(()),
        StatusCode::OK if args.ready => print("ready\n"),
        StatusCode::OK if args.forget.is_some() => print("forgotten\n"),
        StatusCode::OK => print(&tables(&json)),
        _ if args.ready => Err(Failure::failed(format!("not ready: {}", word(&json, "reason")))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Failure::failed(format!("{}: the token is missing or wrong: give --token-file", args.admin)))
        }
        _ => Err(Failure::failed(format!("{}: answered {status}: {}", args.admin, word(&json, "detail")))),
    }
}

fn read_token(file: &Path) -> Result<HeaderValue, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::failed(format!("--token-file {}: {error}", file.display())))?;
    let mut token = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_| Failure::failed(format!("--token-file {}: holds no token of one line", file.display())))?;
    token.set_sensitive(true);
    Ok(token)
}

/// Nothing in it needs escaping in a path.
fn is_sink_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

async fn ask(
    admin: &Uri,
    method: Method,
    path: &str,
    token: Option<HeaderValue>,
) -> Result<(StatusCode, Bytes), String> {
    let (Some("http"), Some(authority)) = (admin.scheme_str(), admin.authority()) else {
        return Err("the admin port is plain HTTP: write it as http://HOST:PORT".to_owned());
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    let mut request = Request::builder().method(method).uri(path).header(HOST, authority.as_str());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("no HTTP: {error}"))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        Ok((status, body.map_err(|error| format!("a broken answer: {error}"))?.to_bytes()))
    };
    // How the connection ends says nothing that the exchange does not.
    let (answer, _) = futures_util::future::join(exchange, connection).await;
    answer
}

/// The status for people.
fn tables(status: &Value) -> String {
    let process = ["received", "stored", "duplicate", "rejected", "refused", "in_flight"];
    let journal =
        ["state", "engine", "first_sequence", "last_sequence", "bytes", "max_bytes", "lost_events", "dedup_ids"];
    let sink = [
        "name",
        "state",
        "required",
        "stored",
        "delivered",
        "filtered",
        "dead_lettered",
        "evicted",
        "pending",
        "cursor",
        "lag_seconds",
    ];
    let sinks: Vec<&Value> = status["sinks"].as_array().into_iter().flatten().collect();
    let mut text = format!(
        "process\n{}\njournal\n{}\nsinks\n{}",
        table(&process, &[&status["process"]]),
        table(&journal, &[&status["journal"]]),
        table(&sink, &sinks)
    );
    for sink in sinks.into_iter().filter(|sink| sink["last_error"].is_string()) {
        text += &format!("\nsink {}: {}\n", word(sink, "name"), word(sink, "last_error"));
    }
    text
}

/// A row for each object, a column for each key.
fn table(keys: &[&str], objects: &[&Value]) -> String {
    let mut rows = vec![keys.iter().map(|key| key.replace('_', " ")).collect::<Vec<_>>()];
    rows.extend(objects.iter().map(|object| keys.iter().map(|key| word(object, key)).collect()));
    let widths: Vec<usize> =
        (0..keys.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("  {cell:<width$}")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// A member as a word, without anything that could steer a terminal.
fn word(object: &Value, key: &str) -> String {
    match &object[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        other => other.to_string(),
    }
}
