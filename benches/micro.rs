//! The parts of the path by themselves: what a body costs to be read, and what the journal makes of 1 and of 64 requests
//! at a time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot go on ends there")]
#![allow(clippy::print_stdout, reason = "it prints its results")]
#![allow(clippy::cast_precision_loss, reason = "counts of a minute are exact in a float")]

mod door;
mod pki;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use asapp_receiver::config::Config;
use asapp_receiver::envelope::{Envelope, inspect};
use asapp_receiver::journal::{Cursor, Settled};
use asapp_receiver::simulator::model::{ISSUES_PER_MINUTE, Model};
use bytes::Bytes;
use serde::de::IgnoredAny;
use tempfile::TempDir;
use tokio::task::JoinSet;

use door::{Door, median};
use pki::Pki;

const SAMPLES: [(&str, &[u8]); 3] = [
    ("activity", include_bytes!("../tests/samples/activity.json")),
    ("journey", include_bytes!("../tests/samples/journey.json")),
    ("queue", include_bytes!("../tests/samples/queue.json")),
];
const ROUNDS: usize = 25;

fn main() {
    bodies();
    let folder = TempDir::with_prefix_in("bench-", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(journals(folder.path()));
}

/// What it takes to read ASAPP's samples.
fn bodies() {
    println!(
        "{:>10} {:>6} {:>16} {:>16} {:>7} {:>16}",
        "", "bytes", "IgnoredAny ns", "Envelope ns", "ratio", "drift ns"
    );
    for (name, body) in SAMPLES {
        let body = Bytes::from_static(body);
        let envelope = Envelope::parse(body.clone()).unwrap();
        let [ignored, parsed, inspected] = nanoseconds([
            &|| {
                let text = std::str::from_utf8(black_box(&body)).unwrap();
                black_box(serde_json::from_str::<IgnoredAny>(text).unwrap());
            },
            &|| {
                black_box(Envelope::parse(black_box(&body).clone()).unwrap());
            },
            &|| inspect(black_box(&envelope), |drift| _ = black_box(drift)),
        ]);
        let (bytes, ratio) = (body.len(), parsed / ignored);
        println!("{name:>10} {bytes:>6} {ignored:>16.0} {parsed:>16.0} {ratio:>7.2} {inspected:>16.0}");
    }
    println!("IgnoredAny: from_utf8, then serde_json, which keeps nothing; drift: every field, off the path\n");
}

/// What each of `works` takes, in turns; medians.
fn nanoseconds<const N: usize>(works: [&dyn Fn(); N]) -> [f64; N] {
    const ROUND: u32 = 2_000;
    let mut times = [(); N].map(|()| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (work, times) in works.iter().zip(&mut times) {
            let start = Instant::now();
            (0..ROUND).for_each(|_| work());
            times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND));
        }
    }
    times.map(median)
}

async fn journals(folder: &Path) {
    println!(
        "{:>28} {:>10} {:>14} {:>8} {:>8} {:>14}",
        "", "events/s", "CPU µs/event", "p50 ms", "p99 ms", "events/commit"
    );
    let pki = Pki::make(folder);
    for engine in ["sqlite", "memory"] {
        let folder = folder.join(engine);
        fs::create_dir(&folder).unwrap();
        let settings = format!("journal.engine = '{engine}'\njournal.allow_loss = true\njournal.retention = '0s'");
        let settings = pki.settings(&folder, &settings);
        let (config, _) = Config::from_sources(&[settings], std::iter::empty()).unwrap();
        let (door, cursors) = Door::open(config, &pki).await;
        let mut lanes = JoinSet::new();
        for cursor in cursors {
            lanes.spawn(settle(cursor));
        }
        let door = Arc::new(door);
        let mut model = Model::new(1, ISSUES_PER_MINUTE);
        for (appenders, count) in [(1, 2_000), (64, 20_000)] {
            let mut new = Vec::new();
            let mut known = Vec::new();
            for _ in 0..3 {
                let envelopes = (0..count).map(|_| {
                    let event = model.next(time::OffsetDateTime::now_utc());
                    Envelope::parse(event.body).unwrap()
                });
                let envelopes: Arc<[Envelope]> = envelopes.collect();
                new.push(append(&door, appenders, &envelopes).await);
                known.push(append(&door, appenders, &envelopes).await);
            }
            print(&format!("{engine}, {appenders} at a time: new"), new);
            print("known", known);
        }
        door.journal.close().await;
    }
}

/// A sink that takes everything at once.
async fn settle(mut cursor: Cursor) {
    while let Ok(read) = cursor.read().await {
        let events = read.events();
        let (Some(first), Some(last)) = (events.first(), events.last()) else { continue };
        let (first, last) = (first.sequence(), last.sequence());
        cursor.settler().settle(first, last, Settled::Delivered).await;
    }
}

struct Run {
    rate: f64,
    cpu_us: f64,
    times: Vec<Duration>,
    group: f64,
}

/// Every envelope once, `appenders` at a time.
async fn append(door: &Arc<Door>, appenders: usize, envelopes: &Arc<[Envelope]>) -> Run {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let (groups, cpu, start) = (door.metrics.journal_groups.get(), door::cpu(), Instant::now());
    for _ in 0..appenders {
        let (door, next, envelopes) = (Arc::clone(door), Arc::clone(&next), Arc::clone(envelopes));
        tasks.spawn(async move {
            let mut times = Vec::new();
            while let Some(envelope) = envelopes.get(next.fetch_add(1, Relaxed)) {
                let start = Instant::now();
                door.append(envelope.clone()).await;
                times.push(start.elapsed());
            }
            times
        });
    }
    let mut times = tasks.join_all().await.concat();
    times.sort_unstable();
    let (took, cpu) = (start.elapsed().as_secs_f64(), door::cpu() - cpu);
    let (count, groups) = (envelopes.len() as f64, door.metrics.journal_groups.get() - groups);
    let group = if groups > 0 { count / groups as f64 } else { 0.0 };
    Run { rate: count / took, cpu_us: cpu.as_secs_f64() * 1e6 / count, times, group }
}

fn print(name: &str, runs: Vec<Run>) {
    let of = |what: &dyn Fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let at = |run: &Run, hundredths: usize| run.times[run.times.len() * hundredths / 100].as_secs_f64() * 1e3;
    println!(
        "{name:>28} {:>10.0} {:>14.1} {:>8.3} {:>8.3} {:>14.1}",
        of(&|run| run.rate),
        of(&|run| run.cpu_us),
        of(&|run| at(run, 50)),
        of(&|run| at(run, 99)),
        of(&|run| run.group),
    );
}
