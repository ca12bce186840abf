//! `status`: asks a running receiver's admin port how it is.

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::client::{Admin, Client};
use super::table::{table, word};
use super::{Failure, print};

/// Ask a running receiver how it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver status --admin http://127.0.0.1:8081")]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
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
    let client = args.admin.client()?.in_a_hurry();
    if args.ready {
        return ready(&client, args.admin.json).await;
    }
    let (answer, text) = match &args.forget {
        Some(sink) if is_sink_name(sink) => {
            (client.delete(&format!("/api/v1/sinks/{sink}")).await?, "forgotten\n".to_owned())
        }
        Some(_) => return Err(Failure::failed("--forget: a sink's name has a-z, 0-9, _ and - only")),
        None => {
            let status = client.get("/api/v1/status").await?;
            let text = tables(&status);
            (status, text)
        }
    };
    print(&if args.admin.json { format!("{answer}\n") } else { text })
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

/// Nothing in it needs escaping in a path.
fn is_sink_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
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
