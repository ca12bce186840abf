//! Memory and start-up of a real `serve` process: what a dedup id and an idle connection take, what a stranger's
//! certificates cost, whether memory stays level under a steady load, and how long a large journal takes to open. Each
//! against its goal; the README has the last results.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot go on ends there")]
#![allow(clippy::print_stdout, reason = "it prints its results")]
#![allow(clippy::cast_precision_loss, reason = "counts of bytes and events are exact enough in a float")]

#[path = "../path/baseline.rs"]
mod baseline;
mod chains;
mod connections;
#[allow(dead_code, reason = "its other users ask more of it")]
#[path = "../door.rs"]
mod door;
mod fill;
mod ids;
#[allow(dead_code, reason = "its other user asks more of it")]
#[path = "../path/load.rs"]
mod load;
#[allow(dead_code, reason = "its other user asks more of it")]
#[path = "../../tests/it/harness/chains.rs"]
mod made_up;
#[path = "../pki.rs"]
mod pki;
mod process;
mod soak;
mod start;
mod strangers;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use pki::Pki;

const EXAMPLES: &str = "\
Without options it takes about three minutes and 1 GB in --folder. Goals of smaller sizes are smaller in proportion.

In full, half an hour and 4 GB:
  cargo bench --bench limits -- --more-ids 2000000 --seconds 600 --start-events 5000000
A journal with a commit group for each event, as quiet days leave it, half an hour and 9 GB:
  cargo bench --bench limits -- --only start --start-events 5000000 --start-group 1
What clients that are refused cost, and what a good one feels of 64 of them, two minutes; and the largest bodies:
  cargo bench --bench limits -- --only strangers,bodies";

/// Memory and start-up of the receiver, against their goals
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
struct Options {
    /// Parts to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Ids, Part::Connections, Part::Chains, Part::Soak, Part::Start])]
    only: Vec<Part>,
    /// ids: what the dedup window holds
    #[arg(long, default_value_t = 1_000_000)]
    ids: usize,
    /// ids: events with new ids posted to the full window
    #[arg(long, default_value_t = 200_000)]
    more_ids: u64,
    /// connections: how many
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// soak: events a second
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// soak: how long it is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// start: events in the journal, of 2.2 KB each
    #[arg(long, default_value_t = 500_000)]
    start_events: usize,
    /// start: events in a commit group, at most
    #[arg(long, default_value_t = 64)]
    start_group: usize,
    /// strangers: how many at a time
    #[arg(long, default_value_t = 64)]
    strangers: usize,
    /// strangers: how long each kind of them comes
    #[arg(long, default_value_t = 4)]
    stranger_seconds: u64,
    /// Where journals and files are made: on the disk that is meant
    #[arg(long, value_name = "FOLDER", default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// This process is the bare server, with the certificates in this folder
    #[arg(long, hide = true)]
    serve_baseline: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The dedup window
    Ids,
    /// Idle mutual-TLS connections
    Connections,
    /// Certificates that strangers made up
    Chains,
    /// A steady load
    Soak,
    /// A large journal
    Start,
    /// Clients that are refused, one and many at a time
    Strangers,
    /// The largest bodies
    Bodies,
}

fn main() {
    let options = Options::parse();
    if let Some(folder) = options.serve_baseline {
        return baseline::serve(&Pki(folder));
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = TempDir::with_prefix_in("bench-", &options.folder).unwrap();
    let pki = Pki::make(folder.path());
    let bench = Bench { options: &options, folder: folder.path(), pki, runtime: Runtime::new().unwrap() };
    println!("{:<56} {:>12} {:>12}  verdict", "", "goal", "measured");
    for part in &options.only {
        match part {
            Part::Ids => ids::run(&bench),
            Part::Connections => connections::run(&bench),
            Part::Chains => chains::run(&bench),
            Part::Soak => soak::run(&bench),
            Part::Start => start::run(&bench),
            Part::Strangers => strangers::run(&bench),
            Part::Bodies => strangers::bodies(&bench),
        }
    }
}

struct Bench<'a> {
    options: &'a Options,
    folder: &'a Path,
    pki: Pki,
    runtime: Runtime,
}

impl Bench<'_> {
    /// A folder of its own for one receiver.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    }
}

/// A line of the table.
fn judge<T: PartialOrd + fmt::Display>(what: &str, goal: T, measured: T, remark: &str) {
    let verdict = if measured <= goal { "met" } else { "MISSED" };
    println!("{what:<56} {:>12} {:>12}  {verdict:<8} {remark}", goal.to_string(), measured.to_string());
}

/// A line that is there to compare with.
fn compare(what: &str, measured: impl fmt::Display, remark: &str) {
    println!("{what:<56} {:>12} {:>12}  {:<8} {remark}", "", measured.to_string(), "");
}

/// An amount of memory or disk.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Mib(f64);

impl Mib {
    fn of(bytes: u64) -> Self {
        Self(bytes as f64 / f64::from(1 << 20))
    }

    fn between(less: u64, more: u64) -> Self {
        Self(Self::of(more).0 - Self::of(less).0)
    }

    /// In bytes for each of `count`.
    fn each(self, count: usize) -> f64 {
        self.0 * f64::from(1 << 20) / count as f64
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Milliseconds(f64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Seconds(f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s", self.0)
    }
}
