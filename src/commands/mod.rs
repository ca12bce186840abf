//! The command line's verbs, one file each: they parse, call, print, and know nothing else.

pub mod certs;
pub mod check;
mod client;
pub mod demo;
pub mod feed_config;
pub mod letters;
pub mod migrate;
mod output;
pub mod replay;
pub mod serve;
pub mod simulate;
pub mod sinks;
pub mod status;
mod table;
pub mod tail;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use self::output::Failure;
use crate::about;

/// Receives ASAPP's real-time events over mutual TLS, keeps them durably, and delivers them.
#[derive(Debug, Parser)]
#[command(name = "asapp-receiver", version = about::version(), after_help = SETTINGS)]
pub struct Cli {
    /// A file with settings (TOML); later ones win over earlier ones
    #[arg(long, value_name = "FILE", global = true)]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const SETTINGS: &str = "\
Settings: built-in defaults, then each --config FILE in order, then environment variables named
ASAPP_RECEIVER__SECTION__KEY, such as ASAPP_RECEIVER__TLS__CERTIFICATE=/etc/tls/server.pem

Exit codes: 0 good, 1 failed, 2 wrong usage, 78 wrong configuration

Example: asapp-receiver demo";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Check(check::Args),
    Certs(certs::Args),
    Demo(demo::Args),
    Simulate(simulate::Args),
    FeedConfig(feed_config::Args),
    Status(status::Args),
    Tail(tail::Args),
    DeadLetters(letters::DeadLetters),
    Quarantine(letters::Quarantine),
    Replay(replay::Args),
    Sinks(sinks::Args),
    Migrate(migrate::Args),
}

impl Cli {
    /// Runs the command to its end, on a runtime of its own.
    ///
    /// # Errors
    /// [`Failure`] has the exit code and what to tell.
    pub fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
        let outcome = runtime.block_on(self.execute());
        // A thread may be stuck in a write that nobody reads; it must not keep the process.
        runtime.shutdown_background();
        outcome
    }

    async fn execute(self) -> Result<(), Failure> {
        let needs_none = match &self.command {
            Command::Certs(_) => Some("certs"),
            Command::Demo(_) => Some("demo"),
            Command::Simulate(_) => Some("simulate"),
            _ => None,
        };
        if let Some(verb) = needs_none.filter(|_| !self.config.is_empty()) {
            return Err(Failure::usage(format!("`{verb}` reads no settings: leave --config out")));
        }
        match self.command {
            Command::Serve(args) => serve::run(args, &self.config).await,
            Command::Check(args) => check::run(args, &self.config).await,
            Command::Certs(args) => certs::run(args),
            Command::Demo(args) => demo::run(args).await,
            Command::Simulate(args) => simulate::run(args).await,
            Command::FeedConfig(args) => feed_config::run(args, &self.config),
            Command::Status(args) => status::run(args, &self.config).await,
            Command::Tail(args) => tail::run(args, &self.config).await,
            Command::DeadLetters(args) => letters::dead_letters(args, &self.config).await,
            Command::Quarantine(args) => letters::quarantine(args, &self.config).await,
            Command::Replay(args) => replay::run(args, &self.config).await,
            Command::Sinks(args) => sinks::run(args, &self.config).await,
            Command::Migrate(args) => migrate::run(args, &self.config).await,
        }
    }
}
