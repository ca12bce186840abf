//! `replay`: has events that are still in the journal delivered to a sink once more.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::{Admin, Client};
use super::table::{table, word};
use super::tail::Filter;
use super::{Failure, agree, count, print, tell, while_read};
use crate::dispatch::DEFAULT_RATE;

const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Deliver events that are still in the journal to a sink once more, and watch it
#[derive(Debug, clap::Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Example: asapp-receiver replay --sink stdout --from 4h --to 2h --rate 500\n\n\
                  The receiver does it by itself, beside the live events: this command only watches. Without it the \
                  replay goes on, after a restart too."
)]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
    #[command(subcommand)]
    pub verb: Option<Verb>,
    #[command(flatten)]
    pub start: Start,
}

/// What to replay.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// The sink that gets the events
    #[arg(long, value_name = "NAME", required = true)]
    pub sink: Option<String>,
    /// The first event: a sequence, a time (2026-11-22T10:00:00Z), or how long ago (2h)
    #[arg(long, value_name = "PLACE", required = true)]
    pub from: Option<String>,
    /// The last one; without it, what is there now
    #[arg(long, value_name = "PLACE")]
    pub to: Option<String>,
    /// Events a second, at most
    #[arg(long, value_parser = super::rate, default_value_t = DEFAULT_RATE)]
    pub rate: f64,
    /// Only begin it
    #[arg(long)]
    pub detach: bool,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Those under way, and those that ended not long ago
    List,
    /// Watch one until it ends
    Watch { id: u64 },
    /// Let one rest
    Pause { id: u64 },
    /// Go on with one that rests, and watch it
    Resume { id: u64 },
    /// End one for good; what it has not delivered by then is not
    Cancel {
        id: u64,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Begins, watches or changes a replay.
///
/// # Errors
/// When there is no receiver, it refuses, or the replay that is watched does not end well.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let client = args.admin.client(files)?;
    let json = args.admin.json;
    let path = |id: &u64| format!("/api/v1/replay/{id}");
    match &args.verb {
        None => {
            let begun = client.post("/api/v1/replay", &request(&args.start)).await?;
            if args.start.detach { show(&begun, json) } else { while_read(watch(&client, begun, json)).await }
        }
        Some(Verb::List) => {
            let list = client.get("/api/v1/replay").await?;
            print(&if json { format!("{list}\n") } else { rows(list["replays"].as_array().into_iter().flatten()) })
        }
        Some(Verb::Watch { id }) => while_read(watch(&client, client.get(&path(id)).await?, json)).await,
        Some(Verb::Resume { id }) => {
            let begun = client.post(&format!("{}/resume", path(id)), &json!({})).await?;
            while_read(watch(&client, begun, json)).await
        }
        Some(Verb::Pause { id }) => show(&client.post(&format!("{}/pause", path(id)), &json!({})).await?, json),
        Some(Verb::Cancel { id, yes }) => {
            let progress = client.get(&path(id)).await?;
            let number = |key: &str| progress[key].as_u64().unwrap_or_default();
            if progress["ended_at"].is_null() {
                let left = count((number("last") + 1).saturating_sub(number("next")), "event");
                let sink = word(&progress, "sink");
                agree(
                    &format!("replay {id} to the sink {sink} would end for good, with up to {left} still to deliver"),
                    *yes,
                )?;
            }
            show(&client.delete(&path(id)).await?, json)
        }
    }
}

fn request(start: &Start) -> Value {
    let place = |text: &String| text.parse::<u64>().map_or_else(|_| Value::from(text.clone()), Value::from);
    let filter: serde_json::Map<String, Value> =
        start.filter.words().map(|(word, values)| (word.to_owned(), Value::from(values))).collect();
    json!({
        "sink": start.sink,
        "from": start.from.as_ref().map(place),
        "to": start.to.as_ref().map(place),
        "rate": start.rate,
        "filter": filter,
    })
}

/// Looks at it until it is over. The bar is drawn on a terminal only.
async fn watch(client: &Client, mut progress: Value, json: bool) -> Result<(), Failure> {
    let id = progress["id"].clone();
    tell(&format!("replay {id} goes on in the receiver without this command; `replay cancel {id}` ends it\n"));
    let number = |progress: &Value, key: &str| progress[key].as_u64().unwrap_or_default();
    let first = number(&progress, "first");
    let bar = ProgressBar::new((number(&progress, "last") + 1).saturating_sub(first));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {elapsed}") {
        bar.set_style(style);
    }
    while progress["state"] == "running" {
        bar.set_position(number(&progress, "next").saturating_sub(first));
        bar.set_message(format!("{} delivered, {} filtered", progress["delivered"], progress["filtered"]));
        tokio::time::sleep(LOOK_EVERY).await;
        progress = client.get(&format!("/api/v1/replay/{id}")).await?;
    }
    bar.finish_and_clear();
    show(&progress, json)?;
    if progress["state"] == "done" {
        Ok(())
    } else {
        Err(client.failure(&format!("replay {id} is {}", word(&progress, "state"))))
    }
}

fn show(progress: &Value, json: bool) -> Result<(), Failure> {
    print(&if json { format!("{progress}\n") } else { rows([progress]) })
}

fn rows<'a>(replays: impl IntoIterator<Item = &'a Value>) -> String {
    let keys = [
        "id",
        "sink",
        "state",
        "first",
        "last",
        "next",
        "delivered",
        "filtered",
        "rejected",
        "gone",
        "rate",
        "started_at",
    ];
    table(&keys, &replays.into_iter().collect::<Vec<_>>())
}
