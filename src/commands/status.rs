//! `status`: asks a running receiver's admin port how it is.

use std::path::PathBuf;

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::client::{Admin, Client};
use super::output::{Failure, print};
use super::table::{size, span, table, word};
use crate::terminal::escaped;

/// Ask a running receiver how it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver status --admin http://127.0.0.1:8081")]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
    /// Only ask whether it is ready: exit 0 if it is, else 1
    #[arg(long)]
    pub ready: bool,
    /// What `sinks forget` does now
    #[arg(long, value_name = "NAME", hide = true)]
    pub forget: Option<String>,
}

/// Asks, and prints the answer.
///
/// # Errors
/// When there is no answer, a refusal, or, with `--ready`, a receiver that is not ready.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    if args.forget.is_some() {
        let how = "`sinks forget NAME` drops the place of a sink, after saying what is lost with it";
        return Err(Failure::usage(format!("status only looks: {how}")));
    }
    if args.ready {
        return ready(&args.admin.probe(files)?, args.admin.json).await;
    }
    let client = args.admin.client(files)?.in_a_hurry();
    let status = client.get("/api/v1/status").await?;
    print(&if args.admin.json { format!("{status}\n") } else { tables(&status) })
}

async fn ready(client: &Client, json: bool) -> Result<(), Failure> {
    let (status, body) = client.ask(Method::GET, "/readyz", None).await?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_ready = status == StatusCode::OK;
    if json {
        print(&format!("{answer}\n"))?;
    } else if is_ready {
        print("ready\n")?;
    }
    if is_ready { Ok(()) } else { Err(client.failure(&format!("not ready: {}", word(&answer, "reason")))) }
}

/// The status for people.
fn tables(status: &Value) -> String {
    let process = ["received", "stored", "duplicate", "rejected", "refused", "in_flight"];
    let journal = ["state", "engine", "first_sequence", "last_sequence", "oldest", "size", "lost_events", "dedup_ids"];
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
        "lag",
    ];
    let stock = ["of", "count", "retrying", "size"];
    let reload = ["taken_at", "reloads", "failures"];
    let certificate = ["key", "subject", "not_after", "days_left", "file"];
    let sinks = list(&status["sinks"]).into_iter().map(|sink| with(sink, "lag", span(seconds(&sink["lag_seconds"]))));
    let sinks: Vec<Value> = sinks.collect();
    let oldest = status["journal"]["oldest_seconds"].as_f64().map(|seconds| format!("{} ago", span(seconds)));
    let stocks = ["dead_letters", "quarantine"].map(|key| with(&sized(&status[key]), "of", key.replace('_', " ")));
    let mut text = format!(
        "process\n{}\njournal\n{}\nsinks\n{}\nkept aside\n{}\ncertificates\n{}\nreload\n{}",
        table(&process, &[&status["process"]]),
        table(&journal, &[&with(&sized(&status["journal"]), "oldest", oldest)]),
        table(&sink, &sinks.iter().collect::<Vec<_>>()),
        table(&stock, &stocks.each_ref()),
        table(&certificate, &list(&status["certificates"])),
        table(&reload, &[&status["reload"]]),
    );
    if let disk @ Value::Object(_) = &status["journal"]["disk"] {
        let bytes = |key: &str| size(disk[key].as_u64().unwrap_or_default());
        let disk = with(&with(disk, "free", bytes("free_bytes")), "size", bytes("total_bytes"));
        let log = size(status["journal"]["wal_bytes"].as_u64().unwrap_or_default());
        let keys = ["mount", "device", "file_system", "free", "size", "write-ahead_log"];
        text += &format!("\njournal's disk\n{}", table(&keys, &[&with(&disk, "write-ahead_log", log)]));
    }
    if let cluster @ Value::Object(_) = &status["journal"]["cluster"] {
        let sync = match cluster["sync_always"].as_bool() {
            Some(true) => "always",
            Some(false) => "every few minutes",
            None => "unknown",
        };
        text +=
            &format!("\ncluster\n{}", table(&["server", "version", "name", "sync"], &[&with(cluster, "sync", sync)]));
    }
    if let Some(reason) = status["journal"]["reason"].as_str() {
        text += &format!("\njournal: events cannot be stored now: {}\n", escaped(reason));
    }
    if let Some(bytes) = status["journal"]["replay_limit_bytes"].as_u64() {
        text += &format!(
            "\njournal: the disk was full: delivered events beyond {} go before journal.retention is over\n",
            size(bytes)
        );
    }
    let drift = list(&status["drift"]);
    if !drift.is_empty() {
        let columns = ["feed", "kind", "at", "name", "count", "first_seen", "last_seen"];
        text += &format!("\nnot as documented by ASAPP\n{}", table(&columns, &drift));
    }
    if let Some(bytes) = status["journal"]["largest_body_bytes"].as_u64() {
        text += &format!(
            "\njournal: events of more than {bytes} bytes are answered 413: raise max_payload in the servers' settings\n"
        );
    }
    for problem in list(&status["reload"]["problems"]) {
        text += &format!("\nnot taken: {}\n", escaped(problem.as_str().unwrap_or_default()));
    }
    for key in list(&status["reload"]["restart_for"]) {
        text += &format!("\n{} has changed: restart to apply it\n", escaped(key.as_str().unwrap_or_default()));
    }
    for sink in sinks.iter().filter(|sink| sink["last_error"].is_string()) {
        text += &format!("\nsink {}: {}\n", word(sink, "name"), word(sink, "last_error"));
    }
    text
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

/// The same with one member more.
fn with(object: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut object = object.clone();
    if let Some(members) = object.as_object_mut() {
        members.insert(key.to_owned(), value.into());
    }
    object
}

/// The same with `size`: how much of how much.
fn sized(object: &Value) -> Value {
    let of = |key: &str| size(object[key].as_u64().unwrap_or_default());
    with(object, "size", format!("{} of {}", of("bytes"), of("max_bytes")))
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}
