//! How fast sinks take what a journal holds: a file, and an HTTP target on this machine. Beside each, in the same run, the
//! least that the same work takes: plain writes and syncs, a bare client with as many connections. The README has the last
//! results.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot go on ends there")]
#![allow(clippy::print_stdout, reason = "it prints its results")]
#![allow(clippy::cast_precision_loss, reason = "counts of a minute are exact in a float")]

mod door;
mod pki;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use asapp_receiver::config::Config;
use asapp_receiver::dispatch::Lanes;
use asapp_receiver::envelope::Envelope;
use asapp_receiver::simulator::model::{ISSUES_PER_MINUTE, Model};
use asapp_receiver::traces::Traces;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use door::{Door, cpu, median};
use pki::Pki;

/// Connections of the HTTP sink, and of the bare client.
const CONCURRENCY: usize = 4;
/// Events of one plain write, as of the file sink's.
const WRITE: usize = 1024;

/// Events a second that sinks take, and CPU per event
#[derive(Debug, Parser)]
#[command(after_help = "Example: cargo bench --bench sinks -- --events 5000 --rounds 1")]
struct Options {
    /// Simulated events in the journal
    #[arg(long, default_value_t = 50_000)]
    events: usize,
    /// Runs of each, taking turns; the medians are shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the journal and the files are made
    #[arg(long, value_name = "FOLDER", default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let folder = TempDir::with_prefix_in("bench-", &options.folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(&options, folder.path()));
}

async fn run(options: &Options, folder: &Path) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let pki = Pki::make(folder);
    let target = target();
    let bodies = fill(options.events, folder, &pki).await;
    let bytes: usize = bodies.iter().map(Bytes::len).sum();
    println!(
        "{} events of {} bytes on average, medians of {} rounds\n",
        bodies.len(),
        bytes / bodies.len(),
        options.rounds
    );
    println!("{:>34} {:>10} {:>14} {:>12} {:>10}", "", "events/s", "CPU µs/event", "of the bare", "CPU ratio");
    let file = |sync: &str| format!("type = 'file'\npath = '{}'\nsync = '{sync}'", folder.join("out").display());
    let http = |batch: usize| {
        format!(
            "type = 'http'\nurl = 'http://{target}/'\nconcurrency = {CONCURRENCY}\nbatch.max_events = {batch}\n\
             batch.max_bytes = '16MiB'"
        )
    };
    let works = [
        ("file, sync = batch", file("batch"), Bare::File { sync: true }),
        ("file, sync = never", file("never"), Bare::File { sync: false }),
        ("http, 1 event a request", http(1), Bare::Http { target, batch: 1 }),
        ("http, 100 events a request", http(100), Bare::Http { target, batch: 100 }),
    ];
    let mut number = 0;
    for (name, sink, bare) in works {
        let (mut runs, mut bare_runs) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            number += 1;
            runs.push(deliver(&format!("sink-{number}"), &sink, folder, &pki, bodies.len()).await);
            bare_runs.push(bare.run(&bodies, folder).await);
        }
        let ((rate, cpu), (bare_rate, bare_cpu)) = (Run::medians(&runs), Run::medians(&bare_runs));
        println!("{name:>34} {rate:>10.0} {cpu:>14.1} {:>12.2} {:>10.2}", rate / bare_rate, cpu / bare_cpu);
        println!("{:>34} {bare_rate:>10.0} {bare_cpu:>14.1}", "bare");
    }
    println!("\nCPU is that of the whole process; with http, the target's is in it on both sides");
}

/// A journal with events that no sink has had yet.
async fn fill(count: usize, folder: &Path, pki: &Pki) -> Vec<Bytes> {
    let (config, _) = Config::from_sources(&[pki.settings(folder, "")], std::iter::empty()).unwrap();
    let (door, _) = Door::open(config, pki).await;
    let (door, mut model, mut tasks) = (Arc::new(door), Model::new(1, ISSUES_PER_MINUTE), JoinSet::new());
    let mut bodies = Vec::new();
    for _ in 0..count {
        let envelope = Envelope::parse(model.next(time::OffsetDateTime::now_utc()).body).unwrap();
        bodies.push(envelope.body().clone());
        let door = Arc::clone(&door);
        tasks.spawn(async move { door.append(envelope).await });
        if tasks.len() >= 64 {
            tasks.join_next().await;
        }
    }
    tasks.join_all().await;
    door.journal.close().await;
    bodies
}

struct Run {
    rate: f64,
    cpu_us: f64,
}

impl Run {
    fn of(events: usize, took: Duration, cpu: Duration) -> Self {
        let events = events as f64;
        Self { rate: events / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / events }
    }

    fn medians(runs: &[Self]) -> (f64, f64) {
        (median(runs.iter().map(|run| run.rate).collect()), median(runs.iter().map(|run| run.cpu_us).collect()))
    }
}

/// From the start of its lane until a new sink has everything.
async fn deliver(name: &str, sink: &str, folder: &Path, pki: &Pki, count: usize) -> Run {
    let settings = format!("[sinks.{name}]\nstart = 'earliest'\n{sink}\n");
    let (config, _) = Config::from_sources(&[pki.settings(folder, &settings)], std::iter::empty()).unwrap();
    let (door, cursors) = Door::open(config, pki).await;
    let (start, cpu_before) = (Instant::now(), cpu());
    let lanes =
        Lanes::start(cursors, &door.config.sinks, &watch::channel(Arc::default()).1, &door.metrics, &Traces::none())
            .unwrap();
    let delivered = || {
        let status = door.journal.status();
        status.sinks.iter().find(|sink| &*sink.name == name).map_or(0, |sink| sink.account.delivered)
    };
    while delivered() < count as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let run = Run::of(count, start.elapsed(), cpu() - cpu_before);
    lanes.finish().await;
    door.journal.forget(name).await.unwrap();
    door.journal.close().await;
    run
}

/// The same work with nothing around it.
enum Bare {
    File { sync: bool },
    Http { target: SocketAddr, batch: usize },
}

impl Bare {
    async fn run(&self, bodies: &[Bytes], folder: &Path) -> Run {
        let (start, cpu_before) = (Instant::now(), cpu());
        match *self {
            Self::File { sync } => write(bodies, &folder.join("bare"), sync),
            Self::Http { target, batch } => post(bodies, target, batch).await,
        }
        Run::of(bodies.len(), start.elapsed(), cpu() - cpu_before)
    }
}

fn write(bodies: &[Bytes], path: &Path, sync: bool) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    for bodies in bodies.chunks(WRITE) {
        let mut text = Vec::new();
        for body in bodies {
            text.extend_from_slice(body);
            text.push(b'\n');
        }
        file.write_all(&text).unwrap();
        if sync {
            file.sync_data().unwrap();
        }
    }
}

async fn post(bodies: &[Bytes], target: SocketAddr, batch: usize) {
    let requests: Arc<[Bytes]> = match batch {
        1 => bodies.into(),
        _ => bodies.chunks(batch).map(|bodies| [b"[", &bodies.join(&b","[..])[..], b"]"].concat().into()).collect(),
    };
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        tasks.spawn(async move {
            let mut sender = connect(target).await;
            while let Some(body) = requests.get(next.fetch_add(1, Relaxed)) {
                let request = Request::post("/").header("host", "localhost").header("content-type", "application/json");
                let response = sender.send_request(request.body(Full::new(body.clone())).unwrap()).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

async fn connect(target: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(target).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with its connection")]
    tokio::spawn(connection);
    sender
}

/// A server that reads every request and answers 200, on a thread of its own.
fn target() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let service = service_fn(|request: Request<Incoming>| async {
                    request.into_body().collect().await.unwrap();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                });
                connections.spawn(async move {
                    // A client that goes away is no news.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    address
}
