//! Everything at once: a sender with all its faults, SIGKILLs and restarts, a target that fails in phases and a slow disk. What
//! was acknowledged comes out of every sink, as the simulator's ledger has it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::pki::PKI;
use crate::harness::programs::json_of;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::simulator::{Simulator, simulate, verify};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::{free_port, wait_for};

/// Of the sender.
const CONNECTIONS: u64 = 32;

#[test]
fn what_was_acknowledged_comes_out_whatever_happens() {
    println!("{}", chaos(Duration::from_secs(6), 4));
}

/// By hand, for as many seconds (600 unless told) and with the seed (a random one unless told) of the environment:
///
/// ```text
/// CHAOS_SECONDS=3600 CHAOS_SEED=1 cargo test --release --test it -- --ignored --nocapture chaos
/// ```
#[test]
#[ignore = "takes ten minutes, or as long as CHAOS_SECONDS says"]
fn what_was_acknowledged_comes_out_whatever_happens_for_long() {
    let number = |key: &str| std::env::var(key).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    println!("{}", chaos(Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(600)), seed));
}

/// Dedup, as a sink sees it.
#[test]
fn without_crashes_every_id_comes_out_once_whatever_the_sender_does() {
    let folder = TempDir::new().unwrap();
    let (ledger, out) = (folder.path().join("ledger"), folder.path().join("events"));
    let receiver = Setup::new().set("sinks.out.type", "file").set("sinks.out.path", &out).start();
    let mut command = sender(receiver.events.port(), 5, &ledger);
    let output = command.args(["--events", "2000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary = json_of(&output);
    let account = receiver.settled();
    let sink = receiver.sink_settled("out");
    receiver.finish();

    let count = |word: &str| summary[word].as_u64().unwrap();
    assert!(count("duplicate") > 50 && count("rejected") > 20 && count("stored") > 1_000, "{summary}");
    let report = verified(&ledger, &[out], &[]);
    assert_eq!(report["lines"], sink["delivered"], "{report}");
    assert_eq!(report["lines"], account.stored, "{report}");
    assert_eq!(report["repeated"], 0, "{report}");
}

/// All faults on.
fn sender(port: u16, seed: u64, ledger: &Path) -> Command {
    let mut command = simulate(&format!("https://localhost:{port}/events"), &PKI.client);
    command.args([
        "--rate",
        "400",
        "--connections",
        &CONNECTIONS.to_string(),
        "--timeout-ms",
        "2000",
        "--retries",
        "6",
    ]);
    command.args([
        "--duplicates",
        "0.1",
        "--reorder",
        "0.1",
        "--drift",
        "0.1",
        "--abort",
        "0.05",
        "--malformed",
        "0.05",
    ]);
    command.args(["--seed", &seed.to_string()]).arg("--ledger").arg(ledger);
    command
}

#[track_caller]
fn verified(ledger: &Path, files: &[PathBuf], arguments: &[&str]) -> Value {
    let output = verify(ledger, files, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    json_of(&output)
}

/// For people: how it went.
fn chaos(length: Duration, seed: u64) -> String {
    let mut random = Rng::with_seed(seed);
    let folder = TempDir::new().unwrap();
    let (ledger, out) = (folder.path().join("ledger"), folder.path().join("out"));
    fs::create_dir(&out).unwrap();
    let mut web = Web::start(&folder.path().join("web"));
    let port = free_port();
    let setup = Setup::new()
        .durable()
        .set("listen.address", &*format!("127.0.0.1:{port}"))
        .set("listen.drain_timeout", "1s")
        .set("log.level", "info")
        .set("sinks.file.type", "file")
        .set("sinks.file.path", &out.join("events"))
        .set("sinks.file.rotate_bytes", 1_000_000)
        .set("sinks.file.compress", "zstd")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*web.target.url("/"))
        .set("sinks.web.timeout", "500ms")
        .set("sinks.web.concurrency", 16)
        .set("sinks.web.retry.initial_backoff", "20ms")
        .set("sinks.web.retry.max_backoff", "200ms");

    let mut receiver = setup.start();
    let mut command = sender(port, seed, &ledger);
    command.args(["--duration", "1000h"]);
    let sender = Simulator::start(command);
    let begun = Instant::now();
    let (mut lives, mut stored) = (0, 0);
    while begun.elapsed() < length {
        web.change(&mut random);
        stored += live(receiver, &mut random);
        lives += 1;
        receiver = setup.start();
    }
    web.recover();
    let summary = sender.stop();
    receiver.settled();
    drained(&receiver);
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    assert_eq!(status["journal"]["lost_events"], 0, "{status}");
    receiver.finish();

    let mut told = format!("{lives} lives in {:.1} s\n{summary}", begun.elapsed().as_secs_f64());
    // What a kill left of a file being compressed is no file of events yet.
    let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension() != Some("tmp".as_ref())).collect();
    for files in [files, vec![web.path]] {
        let report = verified(&ledger, &files, &["--allow-repeats"]);
        told += &format!("\n{report}");
        // In each life up to one for each connection may be stored, and not answered any more.
        assert!(report["acknowledged"].as_u64().unwrap() + CONNECTIONS * lives >= stored, "{report}");
    }
    told
}

/// Until some events were stored, then SIGKILL or SIGTERM. How many were waited for.
fn live(receiver: Receiver, random: &mut Rng) -> u64 {
    let slow = random.u8(0..3) == 0;
    // strace slows down every call.
    let enough = random.u64(1..if slow { 200 } else { 500 });
    let faults = slow.then(|| receiver.inject(&format!("fdatasync,fsync:delay_enter={}", random.u32(1_000..30_000))));
    receiver.wait_metric("stored_total", enough);
    let ended = match (random.u8(0..3), faults) {
        (0, faults) => {
            drop(faults);
            let ended = receiver.stop();
            assert!(ended.status.success(), "{ended:?}");
            ended
        }
        (1, Some(faults)) => faults.kill(receiver),
        (_, faults) => {
            drop(faults);
            // Wherever it is then.
            std::thread::sleep(Duration::from_micros(random.u64(0..5_000)));
            receiver.kill().1
        }
    };
    assert!(!ended.log.iter().any(|line| line.contains("panic") || line.contains("damaged")), "{ended:?}");
    enough
}

/// Waits until no sink has anything left, as long as it becomes less.
fn drained(receiver: &Receiver) {
    for sink in ["file", "web"] {
        let mut pending = u64::MAX;
        while pending > 0 {
            pending = wait_for(&format!("{sink} to have less than {pending} pending"), || {
                receiver.sink(sink)["pending"].as_u64().filter(|&left| left < pending)
            });
        }
    }
}

/// A target of the HTTP sink, which keeps each event that it takes as a line of a file.
struct Web {
    target: Target,
    path: PathBuf,
    file: Arc<Mutex<File>>,
    is_away: bool,
}

impl Web {
    fn start(path: &Path) -> Self {
        let file = Arc::new(Mutex::new(File::create(path).unwrap()));
        let target = Target::start(taking(&file, Reply::status(200)));
        Self { target, path: path.to_owned(), file, is_away: false }
    }

    /// Another way of answering, good or bad.
    fn change(&mut self, random: &mut Rng) {
        self.recover();
        match random.u8(0..7) {
            0 => self.target.answer(|_| Reply::status(503)),
            1 => self.target.answer(|_| Reply::hang()),
            // It has the event, and the sink cannot know.
            2 => self.target.answer(taking(&self.file, Reply::break_off())),
            3 => self.target.answer(taking(&self.file, Reply::status(200).after(Duration::from_secs(1)))),
            4 => {
                self.target.go_away();
                self.is_away = true;
            }
            _ => (),
        }
    }

    fn recover(&mut self) {
        // A long run has many.
        self.target.forget();
        self.target.answer(taking(&self.file, Reply::status(200)));
        if std::mem::take(&mut self.is_away) {
            self.target.come_back();
        }
    }
}

fn taking(file: &Arc<Mutex<File>>, reply: Reply) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let file = Arc::clone(file);
    move |request| {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let mut line: Vec<u8> = request.body.iter().map(|byte| if is_end(byte) { b' ' } else { *byte }).collect();
        line.push(b'\n');
        file.lock().unwrap().write_all(&line).unwrap();
        reply.clone()
    }
}
