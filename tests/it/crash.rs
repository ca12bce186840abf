//! SIGKILL at any moment, again and again, under load: every event that got 200 is there, once.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use crate::harness::event::event;
use crate::harness::pki::PKI;
use crate::harness::receiver::Setup;
use crate::harness::wait_for;
use crate::harness::wire::{Answer, Wire, post};

/// As the acceptance asks: at least 50 on one journal.
const KILLS: usize = 50;
const CLIENTS: usize = 6;

/// Where the receiver listens in this life, for clients that outlive it.
type Address = Arc<Mutex<Option<SocketAddr>>>;

/// Acknowledged ids of one client, and how many of them were posted again.
#[derive(Default)]
struct Told {
    stored: Vec<String>,
    again: usize,
}

#[test]
fn what_got_200_survives_every_kill_and_is_stored_once() {
    let out_folder = Setup::embedded();
    let out = out_folder.folder().join("out");
    let setup = Setup::embedded().stdout_to(&out).set("log.level", "info");
    let address = Address::default();
    let (done, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut random = fastrand::Rng::with_seed(20_261_122);
    let mut lives = Vec::new();
    let told: Vec<Told> = thread::scope(|scope| {
        // Whatever fails in here, the clients end, and with them the scope.
        let end = Ends(&done);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (address, done, acknowledged) = (Arc::clone(&address), &done, &acknowledged);
                scope.spawn(move || send(client, &address, done, acknowledged))
            })
            .collect();
        for _ in 0..KILLS {
            lives.push(fs::read(&out).map_or(0, |out| out.len()));
            let receiver = setup.start();
            *address.lock().unwrap() = Some(receiver.events);
            // Under load, wherever it is then: as it begins, and in full swing.
            let enough = acknowledged.load(Ordering::SeqCst) + random.usize(1..500);
            let mut next = acknowledged.load(Ordering::SeqCst);
            while next < enough {
                next = enough.min(next + 10);
                wait_for("load", || (acknowledged.load(Ordering::SeqCst) >= next).then_some(()));
            }
            thread::sleep(Duration::from_micros(random.u64(0..5_000)));
            *address.lock().unwrap() = None;
            let (_, ended) = receiver.kill();
            assert!(!ended.log.iter().any(|line| line.contains("ERROR") || line.contains("damaged")), "{ended:?}");
        }
        drop(end);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });

    lives.push(fs::read(&out).unwrap().len());
    let receiver = setup.start();
    let stored: Vec<&String> = told.iter().flat_map(|told| &told.stored).collect();
    let mut wire = receiver.connect();
    for id in &stored {
        wire.post(event(id).as_bytes()).assert_durable("duplicate", id);
    }
    let sink = receiver.sink_settled("stdout");
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    assert_eq!(status["journal"]["lost_events"], 0);
    receiver.finish();

    let again: usize = told.iter().map(|told| told.again).sum();
    println!("{} events acknowledged in {KILLS} lives, {again} posted again meanwhile", stored.len());
    let known = ids_in(&setup.journal());
    let once: HashSet<&String> = known.iter().collect();
    assert_eq!(once.len(), known.len(), "no id is in the journal twice");
    assert_eq!(sink["stored"], known.len() as u64);
    assert_eq!(status["journal"]["last_sequence"], known.len() as u64);
    let deliveries = deliveries(&fs::read(&out).unwrap(), &lives);
    for id in stored {
        assert!(once.contains(id), "{id} got 200 and is not in the journal");
        assert!(deliveries.contains_key(id), "{id} got 200 and never came out");
    }
    assert_eq!(deliveries.len(), known.len(), "all that was stored came out, and nothing else");
}

/// Dropped, it says that the work is done.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Posts one event after the other until each has its 200, and now and then one again that had it before.
fn send(client: usize, address: &Address, done: &AtomicBool, acknowledged: &AtomicUsize) -> Told {
    let mut told = Told::default();
    let mut random = fastrand::Rng::with_seed(client as u64);
    let mut connection = None;
    for number in 0.. {
        let id = format!("client-{client}-{number}");
        loop {
            if done.load(Ordering::SeqCst) {
                return told;
            }
            match attempt(&mut connection, address, &id) {
                Some(answer) if answer.status == 200 => break,
                // Not ready, or refused: come again.
                Some(answer) => assert!(answer.status >= 500, "{answer:?}"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        told.stored.push(id);
        acknowledged.fetch_add(1, Ordering::SeqCst);
        if random.u8(0..4) == 0 {
            let known = &told.stored[random.usize(0..told.stored.len())];
            if let Some(answer) = attempt(&mut connection, address, known)
                && answer.status == 200
            {
                answer.assert_durable("duplicate", known);
                told.again += 1;
            }
        }
    }
    told
}

/// One POST; `None` when there was no answer, for whatever reason.
fn attempt(connection: &mut Option<Wire>, address: &Address, id: &str) -> Option<Answer> {
    let mut wire = match connection.take() {
        Some(wire) => wire,
        None => {
            let address = (*address.lock().unwrap())?;
            Wire::connect(address, &PKI.client).ok()?
        }
    };
    wire.send(post("/events", "", event(id).as_bytes())).ok()?;
    let answer = wire.try_answer().ok()?;
    *connection = Some(wire);
    Some(answer)
}

/// Every event id that was ever given a sequence, in order.
fn ids_in(journal: &Path) -> Vec<String> {
    let database = Connection::open(journal.join("journal.db")).unwrap();
    let mut rows = database.prepare("SELECT first, last, ids FROM ids ORDER BY first").unwrap();
    let read = |row: &rusqlite::Row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?, row.get::<_, Vec<u8>>(2)?));
    let mut all = Vec::new();
    for row in rows.query_map([], read).unwrap() {
        let (first, last, ids) = row.unwrap();
        assert_eq!(first, all.len() as u64 + 1, "no sequence is missing");
        let mut rest = &ids[..];
        // Behind the ids of the row's own events stand those seen again.
        for _ in first..=last {
            // Ids shorter than 128 bytes: one byte says how long, and four more follow it.
            let length = usize::from(rest[0]);
            all.push(String::from_utf8(rest[1..=length].to_vec()).unwrap());
            rest = &rest[length + 5..];
        }
    }
    all
}

/// How often each id came out. `lives` says at which byte each life began: in one life nothing comes twice, and a line
/// that a kill broke off is ended by the next life.
fn deliveries(out: &[u8], lives: &[usize]) -> HashMap<String, usize> {
    let mut deliveries = HashMap::new();
    let ends = lives.iter().skip(1).copied().chain([out.len()]);
    for (&start, end) in lives.iter().zip(ends) {
        let mut seen = HashSet::new();
        let mut life = &out[start..end];
        if start > 0 && out[start - 1] != b'\n' && !life.is_empty() {
            assert_eq!(life[0], b'\n', "a partial line is ended first");
            life = &life[1..];
        }
        for line in life.split_inclusive(|&byte| byte == b'\n') {
            // A last line without an end is one that the kill broke off.
            let Some(line) = line.strip_suffix(b"\n") else { continue };
            let event: serde_json::Value = serde_json::from_slice(line).unwrap();
            let id = event["event_id"].as_str().unwrap().to_owned();
            assert!(seen.insert(id.clone()), "{id} came twice in one life");
            *deliveries.entry(id).or_default() += 1;
        }
    }
    deliveries
}
