//! `dead-letters` and `quarantine`: what sinks did not take, and what was not accepted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use form_urlencoded::Serializer;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::client::{Admin, Client};
use super::output::{Failure, agree, count, print, print_on, tell, while_read};
use super::table::{pairs, table};
use crate::admin::api::{Chosen, Handled, Skipped};
use crate::terminal::{escaped, escaped_line};

const LETTER: [&str; 11] =
    ["id", "sink", "sequence", "event_id", "name", "event_type", "at", "attempts", "state", "bytes", "reason"];
const BODY: [&str; 7] = ["id", "reason", "at", "endpoint", "peer", "bytes", "detail"];

/// In one page of a list.
const PAGE: u64 = 1000;

/// List, show, retry or discard the events that a sink did not take
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver dead-letters retry --sink stdout")]
pub struct DeadLetters {
    #[command(flatten)]
    pub admin: Admin,
    #[command(subcommand)]
    pub verb: LetterVerb,
}

#[derive(Debug, Subcommand)]
pub enum LetterVerb {
    /// The oldest first, without the events themselves
    List {
        /// Of this sink only
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
        #[command(flatten)]
        part: Part,
    },
    /// One with its event
    Show { id: u64 },
    /// Have their sinks try them again
    Retry {
        #[command(flatten)]
        which: WhichLetters,
    },
    /// Delete them for good
    Discard {
        #[command(flatten)]
        which: WhichLetters,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// List, show, retry or discard the bodies that could not be accepted
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver quarantine list")]
pub struct Quarantine {
    #[command(flatten)]
    pub admin: Admin,
    #[command(subcommand)]
    pub verb: BodyVerb,
}

#[derive(Debug, Subcommand)]
pub enum BodyVerb {
    /// The oldest first, without the bodies themselves
    List {
        #[command(flatten)]
        part: Part,
    },
    /// One with its body
    Show {
        id: u64,
        /// Only its exact bytes
        #[arg(long, conflicts_with = "json")]
        body: bool,
    },
    /// Take them in as events, if they are events by now: after an update of this program, say
    Retry {
        #[command(flatten)]
        which: WhichBodies,
    },
    /// Delete them for good
    Discard {
        #[command(flatten)]
        which: WhichBodies,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Which part of a list.
#[derive(Debug, clap::Args)]
pub struct Part {
    /// Those after this id
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub after: u64,
    /// So many at most
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct WhichLetters {
    /// Those with these ids
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// All of this sink
    #[arg(long, value_name = "NAME")]
    pub sink: Option<String>,
    /// All
    #[arg(long)]
    pub all: bool,
}

/// Which bodies.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct WhichBodies {
    /// Those with these ids
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// All
    #[arg(long)]
    pub all: bool,
}

/// Does it.
///
/// # Errors
/// When there is no receiver, or it refuses; when some of the named ids were left as they were.
pub async fn dead_letters(args: DeadLetters, files: &[PathBuf]) -> Result<(), Failure> {
    let (client, json) = (args.admin.client(files)?, args.admin.json);
    let path = "/api/v1/dead-letters";
    match args.verb {
        LetterVerb::List { sink, part } => {
            while_read(list(&client, (path, "dead_letters"), sink, &part, &LETTER, json)).await
        }
        LetterVerb::Show { id } => show(&client, &format!("{path}/{id}"), &LETTER, "event", json).await,
        LetterVerb::Retry { which } => change(&client, &format!("{path}/retry"), letters(which), json).await,
        LetterVerb::Discard { which, yes } => {
            let (number, whose) = match &which.sink {
                Some(sink) => (letters_of(&client, sink).await?, format!(" of the sink {sink}")),
                None if which.all => (kept(&client, "dead_letters").await?, " of all sinks".to_owned()),
                None => (which.ids.len() as u64, String::new()),
            };
            agree(&format!("{}{whose} would be deleted for good", count(number, "dead letter")), yes)?;
            change(&client, &format!("{path}/discard"), letters(which), json).await
        }
    }
}

/// Does it.
///
/// # Errors
/// As [`dead_letters`].
pub async fn quarantine(args: Quarantine, files: &[PathBuf]) -> Result<(), Failure> {
    let (client, json) = (args.admin.client(files)?, args.admin.json);
    let path = "/api/v1/quarantine";
    match args.verb {
        BodyVerb::List { part } => while_read(list(&client, (path, "quarantine"), None, &part, &BODY, json)).await,
        BodyVerb::Show { id, body: true } => {
            print_on(&client.get_bytes(&format!("{path}/{id}/body")).await?).map(|_| ())
        }
        BodyVerb::Show { id, body: false } => show(&client, &format!("{path}/{id}"), &BODY, "body", json).await,
        BodyVerb::Retry { which } => change(&client, &format!("{path}/retry"), bodies(which), json).await,
        BodyVerb::Discard { which, yes } => {
            let number = if which.all { kept(&client, "quarantine").await? } else { which.ids.len() as u64 };
            agree(&format!("{} of the quarantine would be deleted for good", bodies_of(number)), yes)?;
            change(&client, &format!("{path}/discard"), bodies(which), json).await
        }
    }
}

fn letters(WhichLetters { ids, sink, all }: WhichLetters) -> Chosen {
    let is_named = sink.is_none() && !all;
    Chosen { ids: is_named.then_some(ids), all: (sink.is_none() && all).then_some(true), sink }
}

fn bodies(WhichBodies { ids, all }: WhichBodies) -> Chosen {
    letters(WhichLetters { ids, sink: None, all })
}

/// How many there are now.
async fn kept(client: &Client, of: &str) -> Result<u64, Failure> {
    Ok(client.get("/api/v1/status").await?[of]["count"].as_u64().unwrap_or_default())
}

/// How many dead letters this sink has now; a sink that is not known has none.
async fn letters_of(client: &Client, sink: &str) -> Result<u64, Failure> {
    let mut query = Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string()).append_pair("sink", sink);
    let path = format!("/api/v1/dead-letters?{}", query.finish());
    let (mut after, mut number) = (0, 0);
    loop {
        let page = client.get(&format!("{path}&after={after}")).await?;
        number += page["dead_letters"].as_array().map_or(0, |letters| letters.len() as u64);
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return Ok(number),
        }
    }
}

fn bodies_of(number: u64) -> String {
    if number == 1 { "1 body".to_owned() } else { format!("{number} bodies") }
}

/// Prints a list, which comes in pages.
async fn list(
    client: &Client,
    (path, member): (&str, &str),
    sink: Option<String>,
    part: &Part,
    columns: &[&str],
    json: bool,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let (mut after, mut left) = (part.after, part.limit);
    let mut more = true;
    while more && left > 0 {
        let mut query = Serializer::new(String::new());
        query.append_pair("after", &after.to_string()).append_pair("limit", &left.min(PAGE).to_string());
        query.extend_pairs(sink.iter().map(|sink| ("sink", sink)));
        let page = client.get(&format!("{path}?{}", query.finish())).await?;
        let found = page[member].as_array().cloned().unwrap_or_default();
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => more = false,
        }
        left = left.saturating_sub(found.len() as u64);
        rows.extend(found);
    }
    if json {
        let next = if more { Value::from(after) } else { Value::Null };
        let list = Map::from_iter([(member.to_owned(), Value::from(rows)), ("next".to_owned(), next)]);
        return print(&format!("{}\n", Value::from(list)));
    }
    print(&table(columns, &rows.iter().collect::<Vec<_>>()))?;
    if more {
        tell(&format!("there may be more: --after {after}\n"));
    }
    Ok(())
}

/// Prints one. What it is about, `member`, holds bytes that must not be changed.
async fn show(client: &Client, path: &str, heads: &[&str], member: &str, json: bool) -> Result<(), Failure> {
    let answer = client.get_bytes(path).await?;
    if json {
        return print_on(&answer).and_then(|_| print("\n"));
    }
    let broken = |_| client.failure("answered with something else than JSON");
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(&answer).map_err(broken)?;
    let raw = members.remove(member).map(RawValue::get).unwrap_or_default();
    let head: Map<String, Value> = members
        .into_iter()
        .map(|(key, raw)| Ok((key, serde_json::from_str(raw.get())?)))
        .collect::<Result<_, _>>()
        .map_err(broken)?;
    let text = match serde_json::from_str::<Option<String>>(raw) {
        // A body.
        Ok(Some(text)) => text,
        Ok(None) => "(not UTF-8: --body gives its bytes)".to_owned(),
        // An event.
        Err(_) => raw.to_owned(),
    };
    print(&format!("{}\n{}\n", pairs(heads, &Value::from(head)), escaped(&text)))
}

/// Has the receiver do it, and says what was left as it was.
async fn change(client: &Client, path: &str, which: Chosen, json: bool) -> Result<(), Failure> {
    let answer = client.post(path, &json!(which)).await?;
    let Handled { retried, discarded, skipped, reasons } = client.read(&answer)?;
    if json {
        print(&format!("{answer}\n"))?;
    } else {
        let done = match (retried, discarded) {
            (Some(number), _) => format!("{number} retried"),
            (None, number) => format!("{} discarded", number.unwrap_or_default()),
        };
        print(&format!("{done}, {skipped} skipped\n"))?;
        for Skipped { id, why } in reasons {
            tell(&format!("{id}: {}\n", escaped_line(&why)));
        }
    }
    if which.ids.is_some() && skipped > 0 { Err(Failure::failed("not all of them")) } else { Ok(()) }
}
