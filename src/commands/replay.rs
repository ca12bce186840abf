//! `replay`: has events that are still in the journal delivered to a sink once more.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::client::{Admin, Client};
use super::output::{Failure, agree, count, print, tell, while_read};
use super::table::{table, word};
use super::tail::Filter;
use crate::admin::api::{Replay, ReplayRequest};
use crate::dispatch::{DEFAULT_RATE, ReplayState};
use crate::terminal::escaped_line;

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
    #[arg(long, value_parser = super::output::rate, default_value_t = DEFAULT_RATE)]
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
            let begun = client.post("/api/v1/replay", &json!(request(&args.start))).await?;
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
            let replay: Replay = client.read(&client.get(&path(id)).await?)?;
            if replay.ended_at.is_none() {
                let left = count((replay.last + 1).saturating_sub(replay.next), "event");
                let sink = escaped_line(&replay.sink);
                agree(
                    &format!("replay {id} to the sink {sink} would end for good, with up to {left} still to deliver"),
                    *yes,
                )?;
            }
            show(&client.delete(&path(id)).await?, json)
        }
    }
}

fn request(start: &Start) -> ReplayRequest<Value, Map<String, Value>> {
    let place = |text: &String| text.parse::<u64>().map_or_else(|_| Value::from(text.clone()), Value::from);
    ReplayRequest {
        sink: start.sink.clone().unwrap_or_default(),
        from: start.from.as_ref().map(place).unwrap_or_default(),
        to: start.to.as_ref().map(place),
        filter: start.filter.words().map(|(word, values)| (word.to_owned(), Value::from(values))).collect(),
        rate: Some(start.rate),
    }
}

/// Looks at it until it is over. The bar is drawn on a terminal only.
async fn watch(client: &Client, mut answer: Value, json: bool) -> Result<(), Failure> {
    let mut replay: Replay = client.read(&answer)?;
    let id = replay.id;
    tell(&format!("replay {id} goes on in the receiver without this command; `replay cancel {id}` ends it\n"));
    let bar = ProgressBar::new((replay.last + 1).saturating_sub(replay.first));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {elapsed}") {
        bar.set_style(style);
    }
    while replay.state == ReplayState::Running {
        bar.set_position(replay.next.saturating_sub(replay.first));
        bar.set_message(format!("{} delivered, {} filtered", replay.delivered, replay.filtered));
        tokio::time::sleep(LOOK_EVERY).await;
        answer = client.get(&format!("/api/v1/replay/{id}")).await?;
        replay = client.read(&answer)?;
    }
    bar.finish_and_clear();
    show(&answer, json)?;
    if replay.state == ReplayState::Done {
        Ok(())
    } else {
        Err(client.failure(&format!("replay {id} is {}", word(&answer, "state"))))
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
