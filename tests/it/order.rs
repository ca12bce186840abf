//! At least once, and in order for each entity, whatever the target and the receiver go through: random outages, answers
//! of every kind, answers that get lost, slow ones, SIGKILL. What the target took is compared with a ledger.
//!
//! `ORDER_SEEDS=100 cargo test --release --test it order::` takes more seeds, `ORDER_FROM=17` begins at another one.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a run says what it went through, and which one failed")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::event::new_id;
use crate::harness::pki::PKI;
use crate::harness::receiver::Setup;
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wire::{Wire, post};

const EVENTS: usize = 300;
const ENTITIES: usize = 12;
/// How long it goes on at least.
const CHAOS: Duration = Duration::from_secs(2);

/// What the target does for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Good,
    /// Requests are answered so.
    Status(u16),
    /// Takes the request and says nothing of it: success that nobody sees.
    Silent,
    /// As `Silent`, and closes the connection.
    Broken,
    Slow,
    /// "Not now", and sometimes "in a second".
    Busy,
}

const MOODS: [Mood; 11] = [
    Mood::Good,
    Mood::Good,
    Mood::Status(500),
    Mood::Status(503),
    Mood::Status(404),
    Mood::Status(401),
    Mood::Status(408),
    Mood::Silent,
    Mood::Broken,
    Mood::Slow,
    Mood::Busy,
];

/// What the target took.
#[derive(Default)]
struct Ledger {
    taken: Vec<Taken>,
    /// Attempts that were not taken, of any kind.
    refused: usize,
}

struct Taken {
    id: String,
    key: String,
    /// Which life of the receiver it came from.
    life: String,
    at: Instant,
    /// The receiver got an answer that said so.
    seen: bool,
}

/// An event as it is sent.
struct Sent {
    id: String,
    /// `None`: nothing keeps it in order.
    entity: Option<String>,
    /// The target never takes it.
    poison: bool,
    body: String,
}

#[test]
fn nothing_is_lost_and_every_entity_keeps_its_order() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |number| number.parse().unwrap());
    let from = number("ORDER_FROM", 1);
    for seed in from..from + number("ORDER_SEEDS", 6) {
        let naming = Naming(seed);
        run(seed);
        drop(naming);
    }
}

/// Says which seed failed.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let strict = random.u8(..4) == 0;
    let batch = [1_u64, 1, 2, 10][random.usize(..4)];
    let (ledger, mood) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(Mutex::new(Mood::Good)));
    let (written, moody, answers) = (Arc::clone(&ledger), Arc::clone(&mood), Mutex::new(random.fork()));
    let mut target = Target::start(move |request| {
        let mood = *moody.lock().unwrap();
        answer(request, mood, &mut answers.lock().unwrap(), &mut written.lock().unwrap())
    });
    let setup = Setup::new()
        .durable()
        .set("log.level", "info")
        .set("sinks.plain.type", "stdout")
        .set("sinks.crm.type", "http")
        .set("sinks.crm.url", &*target.url("/events?a=b"))
        .set("sinks.crm.timeout", "10s")
        .set("sinks.crm.concurrency", random.u64(1..8))
        .set("sinks.crm.ordering", if strict { "strict" } else { "entity" })
        .set("sinks.crm.max_ahead", [20_u64, 100, 10_000][random.usize(..3)])
        .set("sinks.crm.batch.max_events", batch)
        .set("sinks.crm.batch.max_wait", ["0s", "20ms"][random.usize(..2)])
        .set("sinks.crm.retry.initial_backoff", "5ms")
        .set("sinks.crm.retry.max_backoff", "100ms");
    let in_life = |life: u64| setup.clone().set("sinks.crm.headers.x-life", &*life.to_string());
    let events: Vec<Sent> = (0..EVENTS).map(|number| make(number, &mut random)).collect();
    let mut receiver = Some(in_life(0).start());
    let address = Mutex::new(receiver.as_ref().map(|receiver| receiver.events));
    let (mut kills, mut outages, began) = (0, 0, Instant::now());
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&events, &address));
        while !sender.is_finished() || began.elapsed() < CHAOS {
            let (pause, slept) = (Duration::from_millis(random.u64(1..80)), Instant::now());
            thread::sleep(pause);
            // A machine that stood still meanwhile held answers up, too.
            let held_up = slept.elapsed().saturating_sub(pause);
            match random.u8(..10) {
                0 if kills < 4 => {
                    *address.lock().unwrap() = None;
                    receiver.take().unwrap().kill();
                    kills += 1;
                    let next = in_life(kills).start();
                    *address.lock().unwrap() = Some(next.events);
                    receiver = Some(next);
                }
                1 => {
                    outages += 1;
                    target.go_away();
                    // Answers that were under way are lost.
                    lose_recent(&ledger, Duration::from_secs(2) + held_up);
                    thread::sleep(Duration::from_millis(random.u64(1..150)));
                    target.come_back();
                }
                _ => *mood.lock().unwrap() = MOODS[random.usize(..MOODS.len())],
            }
        }
        sender.join().unwrap();
    });
    *mood.lock().unwrap() = Mood::Good;
    // Nothing waits for an answer that never comes.
    target.go_away();
    lose_recent(&ledger, Duration::from_secs(2));
    target.come_back();
    let receiver = receiver.unwrap();
    let sink = receiver.sink_settled("crm");
    receiver.sink_settled("plain");
    receiver.finish();

    let ledger = ledger.lock().unwrap();
    let poisoned = events.iter().filter(|event| event.poison).count();
    assert_eq!(sink["stored"], EVENTS);
    assert_eq!(sink["dead_lettered"], poisoned, "{sink}");
    let repeats = judge(&events, &ledger, strict, batch == 1);
    println!(
        "seed {seed}: {EVENTS} events, {kills} kills, {outages} outages, {} attempts refused, {repeats} repeats",
        ledger.refused
    );
}

/// What the target says to a request, and what it makes of it.
fn answer(request: &Request, mood: Mood, random: &mut fastrand::Rng, ledger: &mut Ledger) -> Reply {
    let json = request.json();
    let events = json.as_array().cloned().unwrap_or_else(|| vec![json]);
    let refuse = |ledger: &mut Ledger, reply| {
        ledger.refused += 1;
        reply
    };
    if events.iter().any(|event| event["data"]["poison"] == true) {
        let status = [400, 413, 422][random.usize(..3)];
        return refuse(ledger, Reply::status(status));
    }
    // Whatever its mood, it takes some.
    let mood = if random.u8(..5) == 0 { Mood::Good } else { mood };
    let mut take = |seen| {
        ledger.taken.extend(events.iter().map(|event| Taken {
            id: event["event_id"].as_str().unwrap().to_owned(),
            key: request.header("idempotency-key").unwrap().to_owned(),
            life: request.header("x-life").unwrap().to_owned(),
            at: Instant::now(),
            seen,
        }));
    };
    match mood {
        Mood::Good => take(true),
        Mood::Slow => {
            take(true);
            return Reply::status(202).after(Duration::from_millis(random.u64(1..60)));
        }
        Mood::Silent => {
            take(false);
            return Reply::hang();
        }
        Mood::Broken => {
            take(false);
            return Reply::break_off();
        }
        Mood::Status(status) => {
            // A server may fail after it has done its work.
            if status >= 500 && random.bool() {
                take(false);
            }
            return refuse(ledger, Reply::status(status));
        }
        Mood::Busy if random.u8(..10) == 0 => {
            return refuse(ledger, Reply::status(429).header("retry-after", 1));
        }
        Mood::Busy => return refuse(ledger, Reply::status(425)),
    }
    Reply::status(200)
}

/// Whoever waited for answers to what was taken so recently may not have had them.
fn lose_recent(ledger: &Mutex<Ledger>, age: Duration) {
    let recent = |taken: &&mut Taken| taken.at.elapsed() < age;
    ledger.lock().unwrap().taken.iter_mut().filter(recent).for_each(|taken| taken.seen = false);
}

/// Checks what the target took against what was sent; how many came more than once.
#[track_caller]
fn judge(events: &[Sent], ledger: &Ledger, strict: bool, single: bool) -> usize {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    let mut last: BTreeMap<&str, &Taken> = BTreeMap::new();
    let mut repeats = 0;
    for (at, taken) in ledger.taken.iter().enumerate() {
        first.entry(&taken.id).or_insert(at);
        assert!(!single || taken.key == taken.id, "{} came under the key {}", taken.id, taken.key);
        if let Some(before) = last.insert(&taken.id, taken) {
            repeats += 1;
            let excused = before.life != taken.life || !before.seen;
            assert!(excused, "{} came again, though the target had said that it took it", taken.id);
        }
    }
    let mut order: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events {
        let taken = first.remove(&*event.id);
        assert_eq!(taken.is_some(), !event.poison, "{} was taken: {taken:?}", event.id);
        let Some(taken) = taken else { continue };
        let chain = if strict { Some("all") } else { event.entity.as_deref() };
        if let Some(before) = chain.and_then(|chain| order.insert(chain, taken)) {
            assert!(before < taken, "{} of {chain:?} overtook another one", event.id);
        }
    }
    assert!(first.is_empty(), "nobody sent {first:?}");
    repeats
}

/// An event of some entity of some feed.
fn make(number: usize, random: &mut fastrand::Rng) -> Sent {
    let id = new_id();
    let poison = random.u8(..40) == 0;
    let of = random.usize(..ENTITIES);
    let (feed, meta, data) = match of % 4 {
        0 => ("activity", String::new(), format!(r#""rep_id":"rep-{of}","#)),
        1 => ("journey", format!(r#""issue_id":"issue-{of}","#), String::new()),
        2 => ("queue", String::new(), format!(r#""queue_id":"queue-{of}","#)),
        _ => ("journey", String::new(), String::new()),
    };
    let entity = (of % 4 < 3).then(|| format!("{feed} {of}"));
    let body = format!(
        r#"{{"api_version":"v1.4.0","name":"com.asapp.event.{feed}","event_type":"t","event_id":"{id}","meta_data":{{{meta}"company_id":"acme"}},"data":{{{data}"number":{number},"poison":{poison}}}}}"#
    );
    Sent { id, entity, poison, body }
}

/// Posts one event after the other, each until it has its 200.
fn send(events: &[Sent], address: &Mutex<Option<SocketAddr>>) {
    let mut connection: Option<Wire> = None;
    for event in events {
        loop {
            let Some(to) = *address.lock().unwrap() else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            let Some(mut wire) = connection.take().or_else(|| Wire::connect(to, &PKI.client).ok()) else { continue };
            let answered = wire.send(post("/events", "", event.body.as_bytes())).and_then(|()| wire.try_answer());
            if let Ok(answer) = answered {
                connection = Some(wire);
                if answer.status == 200 {
                    break;
                }
            }
        }
    }
}
