//! `sinks`: what is kept for sinks beyond their settings.

use std::path::PathBuf;

use super::client::{Admin, Client};
use super::output::{Failure, agree, count, print};
use crate::admin::api::{Kept, KeptFor};

/// Give up what is kept for a sink that is gone from the settings
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver sinks forget warehouse")]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Drop a sink's place in the journal, after saying what is lost with it: its undelivered events stay undelivered
    Forget {
        /// A sink that is no longer in the settings
        #[arg(value_name = "NAME")]
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Does it.
///
/// # Errors
/// When there is no receiver or no such sink, when the sink is still in the settings, or when it is not meant.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let (client, json) = (args.admin.client(files)?, args.admin.json);
    match args.verb {
        Verb::Forget { name, yes } => forget(&client, &name, yes, json).await,
    }
}

async fn forget(client: &Client, name: &str, yes: bool, json: bool) -> Result<(), Failure> {
    if !is_sink_name(name) {
        return Err(Failure::usage("a sink's name has a-z, 0-9, _ and - only"));
    }
    let path = format!("/api/v1/sinks/{name}");
    let kept: Kept = client.read(&client.get(&path).await?)?;
    if kept.state != KeptFor::Gone {
        let first = "take it out of the settings and restart the receiver first";
        return Err(client.failure(&format!("the sink {name} is in the settings and keeps its place: {first}")));
    }
    let (events, letters) = (count(kept.pending, "undelivered event"), count(kept.dead_letters, "dead letter"));
    agree(&format!("the sink {name} would never get its {events}, and its {letters} could not be retried"), yes)?;
    let answer = client.delete(&path).await?;
    let lost: Kept = client.read(&answer)?;
    let (events, letters) = (count(lost.pending, "undelivered event"), count(lost.dead_letters, "dead letter"));
    print(&if json { format!("{answer}\n") } else { format!("forgotten, with {events} and {letters}\n") })
}

/// Nothing in it needs escaping in a path.
fn is_sink_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}
