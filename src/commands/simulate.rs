//! `simulate`: acts as ASAPP.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Failure, print, reader_gone, tell};
use super::serve::Signals;
use crate::server::open_files;
use crate::simulator::credentials::{Credentials, Pem};
use crate::simulator::faults::Faults;
use crate::simulator::pace::Pace;
use crate::simulator::sender::Protocol;
use crate::simulator::{self, Control, Settings, Summary, verify};

/// How long it sends when neither an end nor a number was given.
const UNLESS_TOLD: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Act as ASAPP: post realistic events over mutual TLS, one POST an event, with its time-out and retries
///
/// An event is posted again, after 100 ms and then twice as long each time, until it gets a 200 or is dropped. The load
/// is open: events are due at their pace however slow the answers, and their time to the 200 counts from when they were
/// due. SIGINT ends it once what is under way is settled; a second one at once, what is under way as dropped. Exits
/// with 0 whatever was dropped.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to post, https://HOST[:PORT]/PATH
    #[arg(long, required_unless_present = "verify")]
    pub url: Option<String>,
    /// The CA that signed the receiver's certificate (PEM)
    #[arg(long, required_unless_present = "verify", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The client certificate and its chain (PEM)
    #[arg(long, required_unless_present = "verify", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// The client certificate's private key (PEM)
    #[arg(long, required_unless_present = "verify", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Makes a run repeatable: the same events and faults, only their times differ; chosen and told when not given
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Keep a ledger in this file, anew: a JSON line for each sending
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Print the summary as JSON, times in microseconds, and show no progress; or all findings
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub sending: Sending,
    #[command(flatten)]
    pub faults: Injected,
    #[command(flatten)]
    pub verify: Verify,
}

const EXAMPLES: &str = "\
Example: asapp-receiver simulate --url https://localhost:8443/events --ca data/certs/ca.pem \
--cert data/certs/client.pem --key data/certs/client-key.pem --rate 100 --duration 30s

With faults and a ledger: … --events 10000 --rate 1000 --duplicates 0.05 --reorder 0.05 --drift 0.02 --abort 0.02 \
--malformed 0.01 --seed 7 --ledger ledger.jsonl

Was all of it delivered: asapp-receiver simulate --verify ledger.jsonl --against data/events.jsonl*";

/// Open files beside the connections.
const OTHER_FILES: u64 = 32;
/// Findings of each kind that a person is shown.
const SHOWN: usize = 20;

/// How much is sent, and how long.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Load")]
pub struct Load {
    /// Events a second, evenly spaced: above 0, up to 1000000
    #[arg(long, default_value_t = 10.0, value_parser = super::output::rate)]
    pub rate: f64,
    /// Instead of a rate, the traffic of a company with so many new issues a minute, above 0, up to 100000: a chat makes
    /// about 10 events, a call about 100
    #[arg(long, value_name = "COUNT", value_parser = issues, conflicts_with = "rate")]
    pub issues_per_minute: Option<f64>,
    /// How many times as fast as the real clock that company's runs, above 0, up to 10000
    #[arg(long, value_name = "TIMES", value_parser = speed, requires = "issues_per_minute", conflicts_with = "rate")]
    pub speed: Option<f64>,
    /// Stop after so many events
    #[arg(long, value_name = "COUNT")]
    pub events: Option<u64>,
    /// Stop after so long, such as 30s or 5m; without --events and --duration after 10s. What is late by then is still
    /// sent, for --timeout-ms more
    #[arg(long, value_parser = super::output::duration)]
    pub duration: Option<Duration>,
}

/// How each event is sent.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sending")]
pub struct Sending {
    /// How long an attempt may take, connecting included, milliseconds, 1 to 600000
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// How often to try again before an event is dropped, 0 to 100
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,
    /// Connections at a time, at most, 1 to 10000; kept alive
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Post over HTTP/2, up to 8 events at a time on each connection, rather than HTTP/1.1
    #[arg(long)]
    pub http2: bool,
    /// Make a new connection, with a full TLS handshake, for each attempt
    #[arg(long, conflicts_with = "http2")]
    pub handshake_per_request: bool,
}

/// Faults: each hits a fraction of the events, 0 (none) to 1 (all); 0 unless given.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Faults, each a fraction of the events from 0 to 1, unless given 0")]
pub struct Injected {
    /// Send an event again: along with its first copy, after the answer, or up to 40 events later
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.0, hide_default_value = true)]
    pub duplicates: f64,
    /// Hold an event back, and send it up to 40 events later
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.0, hide_default_value = true)]
    pub reorder: f64,
    /// Send what is not documented: new fields, types, feeds, values and versions, other types and line breaks
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.0, hide_default_value = true)]
    pub drift: f64,
    /// Break off an event's first attempt, or the first two, in the head, in the body or before the answer
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.0, hide_default_value = true)]
    pub abort: f64,
    /// Send what is no event: damaged JSON, or routing members that are missing or doubled
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.0, hide_default_value = true)]
    pub malformed: f64,
}

/// Instead of sending, what a ledger of an earlier run says.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Verifying")]
pub struct Verify {
    /// Send nothing: tell whether each event that this ledger has as acknowledged was delivered, unaltered and once; exits
    /// with 1 if not
    #[arg(long, value_name = "LEDGER", requires = "against", conflicts_with_all = ["url", "ca", "cert", "key", "ledger"])]
    pub verify: Option<PathBuf>,
    /// Where it was delivered to: files of a sink with the format `raw`, rotated ones as well, or - for standard input
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "verify")]
    pub against: Vec<PathBuf>,
    /// For runs with crashes: events may come again, and lines be broken off
    #[arg(long, requires = "verify")]
    pub allow_repeats: bool,
}

/// Sends until done, then prints the summary; events that were dropped are no failure. Or verifies.
///
/// # Errors
/// When the certificates cannot be used, the ledger cannot be written, or HTTP/2 was asked for and is not offered. When
/// what was delivered is not what the ledger says.
pub async fn run(mut args: Args) -> Result<(), Failure> {
    if let Some(ledger) = args.verify.verify.take() {
        return verify(ledger, args.verify, args.json);
    }
    let json = args.json;
    let settings = settings(args)?;
    let needed = OTHER_FILES.saturating_add(settings.connections as u64);
    let allowed = open_files(needed);
    if allowed < needed {
        let how = "raise the limit (ulimit -n), or choose fewer --connections";
        return Err(Failure::failed(format!("{needed} open files are needed, and {allowed} are allowed: {how}")));
    }
    tell(&format!("simulate: seed {}\n", settings.seed));
    let bar = if json { ProgressBar::hidden() } else { bar(&settings) };
    let mut signals = Signals::new()?;
    let (summary, _) = run_until_stopped(settings, &mut signals, &bar, reader_gone()).await?;
    if json { print(&format!("{}\n", summary.json())) } else { print(&format!("{summary}\n")) }
}

/// Sends until done, told to stop, or `unwanted`; says also whether it was stopped.
pub(super) async fn run_until_stopped(
    settings: Settings,
    signals: &mut Signals,
    bar: &ProgressBar,
    unwanted: impl Future<Output = ()>,
) -> Result<(Summary, bool), Failure> {
    let control = Control::default();
    let mut stopped = 0;
    let begun = Instant::now();
    let of_time = settings.events.is_none();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut sending = pin!(simulator::run(settings, control.clone()));
    let mut unwanted = pin!(unwanted.fuse());
    let summary = loop {
        tokio::select! {
            summary = &mut sending => break summary,
            () = signals.stop.recv() => {
                stopped += 1;
                if stopped == 1 { control.stop() } else { control.break_off() }
            }
            () = &mut unwanted => {
                stopped += 1;
                control.stop();
            }
            _ = look.tick() => {
                let settled = control.settled();
                let passed = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                bar.set_position(if of_time { passed } else { settled });
                bar.set_message(format!("{settled} sent"));
            }
        }
    };
    bar.finish_and_clear();
    Ok((summary.map_err(|error| Failure::from_error(&error))?, stopped > 0))
}

fn verify(ledger: PathBuf, Verify { against, allow_repeats, .. }: Verify, json: bool) -> Result<(), Failure> {
    let keep = if json { usize::MAX } else { SHOWN };
    let report = verify::verify(&verify::Settings { ledger, against, allow_repeats, keep })
        .map_err(|error| Failure::from_error(&error))?;
    if json {
        print(&format!("{}\n", serde_json::json!(report)))?
    } else {
        print(&format!("{report}\n"))?
    }
    if report.acknowledged == 0 {
        tell("asapp-receiver: nothing in the ledger was acknowledged, so there was nothing to verify\n");
    }
    if report.good { Ok(()) } else { Err(Failure::failed("what was delivered is not what the ledger says")) }
}

fn settings(args: Args) -> Result<Settings, Failure> {
    let Args { url, ca, cert, key, seed, ledger, load, sending, faults, json: _, verify: _ } = args;
    // Each of them is required by the command line already.
    let missing = || Failure::usage("--url, --ca, --cert and --key are needed to send");
    let file = |path: Option<PathBuf>| path.map(Pem::File).ok_or_else(missing);
    let credentials = Credentials { ca: file(ca)?, certificate: file(cert)?, private_key: file(key)? };
    let Injected { duplicates, reorder, drift, abort, malformed } = faults;
    let endless = load.events.is_none() && load.duration.is_none();
    Ok(Settings {
        pace: match load.issues_per_minute {
            Some(issues_per_minute) => Pace::Company { issues_per_minute, speed: load.speed.unwrap_or(1.0) },
            None => Pace::Rate(load.rate),
        },
        events: load.events,
        duration: if endless { Some(UNLESS_TOLD) } else { load.duration },
        seed: seed.unwrap_or_else(|| fastrand::u64(..)),
        timeout_ms: sending.timeout_ms,
        retries: sending.retries,
        connections: usize::try_from(sending.connections).unwrap_or(usize::MAX),
        protocol: match sending {
            Sending { http2: true, .. } => Protocol::Http2,
            Sending { handshake_per_request: true, .. } => Protocol::HandshakePerRequest,
            _ => Protocol::KeepAlive,
        },
        faults: Faults { duplicates, reorder, drift, abort, malformed },
        ledger,
        ..Settings::new(url.ok_or_else(missing)?, credentials)
    })
}

/// Drawn on a terminal only: by events where their number is known, else by time.
fn bar(settings: &Settings) -> ProgressBar {
    let time = settings.duration.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    let bar = ProgressBar::new(settings.events.unwrap_or(time));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        _ => Err("write a fraction of the events, from 0 to 1".to_owned()),
    }
}

fn issues(text: &str) -> Result<f64, String> {
    within(text, 100_000.0).ok_or_else(|| "write a number of issues a minute, above 0 and up to 100000".to_owned())
}

fn speed(text: &str) -> Result<f64, String> {
    within(text, 10_000.0).ok_or_else(|| "write how many times as fast, above 0 and up to 10000".to_owned())
}

fn within(text: &str, most: f64) -> Option<f64> {
    text.parse().ok().filter(|&number: &f64| number > 0.0 && number <= most)
}
