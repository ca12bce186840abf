//! `demo`: the main job, whole, on one machine with nothing set up.

use std::fs::{self, File, TryLockError};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;

use super::output::{Failure, reader_gone, tell, while_read};
use super::serve::{Signals, run_until_stopped};
use super::simulate;
use crate::config::{Config, PREFIX};
use crate::notify::ServiceManager;
use crate::service::{Running, Service};
use crate::simulator::Settings;
use crate::simulator::credentials::{Credentials, Pem};
use crate::simulator::pace::Pace;
use crate::telemetry;
use crate::tls::profile::{self, Options};

/// Everything the demo makes is in here, and every run begins by emptying it.
const FOLDER: &str = "data/demo";
/// What a demo leaves in it.
const MADE: [&str; 3] = ["certs", "journal", "demo.toml"];
/// Time for the last events to come out, once all are stored.
const SETTLE: Duration = Duration::from_secs(10);

/// Show the whole receiver at work: throw-away certificates, a fresh journal under data/demo, a simulated ASAPP
///
/// Prints each delivered event as a JSON line on stdout, then a summary on stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver demo --duration 10s --rate 50")]
pub struct Args {
    /// How long the simulator sends, such as 5s or 1m
    #[arg(long, default_value = "5s", value_parser = super::output::duration)]
    pub duration: Duration,
    /// Events a second, evenly spaced: above 0, up to 1000000
    #[arg(long, default_value_t = 10.0, value_parser = super::output::rate)]
    pub rate: f64,
    /// Go on serving afterwards, until SIGINT
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// When the receiver could not start, or its account does not add up.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let folder = empty_folder()?;
    let certificates = folder.join("certs");
    let made = profile::make(&Options::default()).and_then(|pki| pki.write(&certificates, false));
    made.map_err(|error| Failure::from_error(&error))?;
    let config = settings(&folder)?;
    telemetry::init_logging(&config.log).map_err(|error| Failure::failed(error.to_string()))?;
    let running = Service::start(config).await?;
    tokio::select! {
        shown = show(args, &running, &certificates, &mut signals) => if !shown? { return drained(running).await },
        // Nobody sees it, so there is no reason to go on; nor to wait for a stdout that takes nothing more.
        () = reader_gone() => {
            running.abandon().await;
            return Ok(());
        }
    }
    while_read(run_until_stopped(running, &mut signals, &ServiceManager::nobody())).await
}

async fn drained(running: Running) -> Result<(), Failure> {
    running.drain().await.map_err(|failed| Failure::from_error(&failed))
}

/// Simulates ASAPP, and tells what came of it; says whether to go on serving.
async fn show(args: Args, running: &Running, certificates: &Path, signals: &mut Signals) -> Result<bool, Failure> {
    tell(&format!(
        "demo: the receiver serves on https://{}/events; ASAPP is simulated for {}\n",
        running.events(),
        humantime::format_duration(args.duration)
    ));

    let file = |name: &str| Pem::File(certificates.join(name));
    let credentials =
        Credentials { ca: file("ca.pem"), certificate: file("client.pem"), private_key: file("client-key.pem") };
    let settings = Settings {
        pace: Pace::Rate(args.rate),
        duration: Some(args.duration),
        ..Settings::new(format!("https://{}/events", running.events()), credentials)
    };
    // What comes out is progress enough.
    let (hidden, never) = (ProgressBar::hidden(), std::future::pending());
    let (summary, stopped) = simulate::run_until_stopped(settings, signals, &hidden, never).await?;
    wait_for_delivery(running).await;
    tell(&format!("\n{summary}\n\n{}", account(running)?));
    if !stopped {
        tell(&how_to_post(running, certificates, args.keep));
    }
    Ok(args.keep && !stopped)
}

/// A fresh folder, unless another demo is at work in it.
fn empty_folder() -> Result<PathBuf, Failure> {
    let folder = Path::new(FOLDER);
    let failed = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "; it is made in the current folder: run the demo where you may write"
            }
            _ => "",
        };
        Failure::failed(format!("{FOLDER} cannot be made anew: {error}{remedy}"))
    };
    if let Ok(lock) = File::open(folder.join("journal/lock"))
        && let Err(TryLockError::WouldBlock) = lock.try_lock()
    {
        return Err(Failure::failed(format!("another demo is running in {FOLDER}: end it first")));
    }
    if folder.exists() {
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !MADE.iter().any(|made| name == *made) {
                let what = format!("{FOLDER} holds {}, which no demo has made", Path::new(&name).display());
                return Err(Failure::failed(format!("{what}, and would be emptied: move it away first")));
            }
        }
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    // Absolute, so that what is printed works from any folder.
    fs::canonicalize(folder).map_err(failed)
}

/// The settings an operator would write down for this.
fn settings(folder: &Path) -> Result<Config, Failure> {
    let text = |value: &str| toml_string(value);
    let path = |name: &str| text(&folder.join(name).display().to_string());
    let toml = format!(
        "# What `demo` runs with.\n\
         [listen]\naddress = \"127.0.0.1:{}\"\npre_drain = \"0s\"\n\n\
         [tls]\ncertificate = {}\nprivate_key = {}\nclient_ca = [{}]\n\n\
         [[tls.allowed_clients]]\ncommon_name = {}\n\n\
         [journal]\npath = {}\n\n\
         [admin]\naddress = \"127.0.0.1:{}\"\n\n\
         [log]\nformat = \"text\"\nlevel = \"warn\"\n",
        free_or_any(8443),
        path("certs/server.pem"),
        path("certs/server-key.pem"),
        path("certs/ca.pem"),
        text(&Options::default().client_cn),
        path("journal"),
        free_or_any(8081),
    );
    let file = folder.join("demo.toml");
    fs::write(&file, toml).map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
    // Of the environment only the log's settings count: the others could make it something else than the demo.
    let environment = std::env::vars().filter(|(key, _)| key.starts_with(&format!("{PREFIX}__LOG__")));
    let (config, _warnings) = Config::from_sources(&[file], environment)?;
    Ok(config)
}

/// The usual port, or 0 for any other when somebody else has it.
fn free_or_any(port: u16) -> u16 {
    TcpListener::bind(("127.0.0.1", port)).map_or(0, |_| port)
}

/// A string as TOML writes it; JSON's escapes are among TOML's.
fn toml_string(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// Every event that is stored comes out in the end; the demo waits for it, but not for ever.
async fn wait_for_delivery(running: &Running) {
    // A sink that fails, such as a reader of stdout that has seen enough, is not waited for.
    let pending = || running.status().sinks.iter().any(|sink| sink.pending > 0 && sink.last_error.is_none());
    let delivered = async {
        while pending() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // What is missing then shows in the account.
    let _ = tokio::time::timeout(SETTLE, delivered).await;
}

/// Both accounts, and that they add up.
fn account(running: &Running) -> Result<String, Failure> {
    let status = running.status();
    let process = status.process;
    let mut text = format!(
        "received {} = stored {} + duplicate {} + rejected {} + refused {} + in flight {}\n",
        process.received, process.stored, process.duplicate, process.rejected, process.refused, process.in_flight
    );
    let settled = process.stored + process.duplicate + process.rejected + process.refused + process.in_flight;
    let mut adds_up = process.received == settled;
    for sink in &status.sinks {
        text += &format!(
            "sink {}: stored {} = delivered {} + filtered {} + dead-lettered {} + evicted {} + pending {}\n",
            sink.name, sink.stored, sink.delivered, sink.filtered, sink.dead_lettered, sink.evicted, sink.pending
        );
        adds_up &= sink.stored == sink.delivered + sink.filtered + sink.dead_lettered + sink.evicted + sink.pending
            && sink.stored == process.stored;
    }
    if adds_up { Ok(text) } else { Err(Failure::failed(format!("the account does not add up:\n{text}"))) }
}

fn how_to_post(running: &Running, certificates: &Path, keep: bool) -> String {
    let id = uuid::Uuid::new_v4();
    let file = |name: &str| shell_word(&certificates.join(name).display().to_string());
    let curl = format!(
        "  curl --cacert {} --cert {} --key {} \\\n    \
         --data-binary '{{\"name\":\"com.asapp.event.queue\",\"event_type\":\"queue_size_updated\",\"event_id\":\"{id}\"}}' \\\n    \
         https://{}/events\n",
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem"),
        running.events()
    );
    if keep {
        let admin = running.admin();
        // As this program was called, since a build is on nobody's PATH.
        let program = std::env::args().next().unwrap_or_else(|| "asapp-receiver".to_owned());
        let status = format!("{} status --admin http://{admin}", shell_word(&program));
        format!("\nStill serving, until Ctrl-C. Post an event of your own:\n\n{curl}\nLook inside:\n\n  {status}\n")
    } else {
        format!("\nTo post events of your own, start it again with --keep; then:\n\n{curl}")
    }
}

/// `text` as one word of a shell's command line, whatever is in it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
