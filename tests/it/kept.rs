//! Dead letters, the quarantine and notes, as operators and lanes see them: on all engines, and across crashes.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use asapp_receiver::admission::Outcome;
use asapp_receiver::config::{Endpoint, Engine};
use asapp_receiver::journal::{
    Appended, Bodies, Cursor, Event, Handled, Journal, Letter, LetterState, Letters, LettersOf, QuarantineStatus,
    Quarantined, Refused, Settled, Settler, State, Which,
};
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::harness::disk::Disk;
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::journal::{Open, PEER, RUNTIME, config, copy, scratch};
#[cfg(feature = "nats")]
use crate::harness::nats::{NatsServer, Streams};
use crate::harness::{PATIENCE, wait_for};

/// Runs the test on a journal of each engine, with these settings.
fn on_all(settings: &[(&str, &str)], test: impl AsyncFn(Open)) {
    on_both(settings, &test);
    #[cfg(feature = "nats")]
    on_a_cluster(settings, test);
}

#[cfg(feature = "nats")]
fn on_a_cluster(settings: &[(&str, &str)], test: impl AsyncFn(Open)) {
    let streams = Streams::new(NatsServer::shared());
    let cluster = [
        ("JOURNAL__ENGINE", "nats"),
        ("JOURNAL__NATS__SERVERS", &*NatsServer::shared().url()),
        ("JOURNAL__NATS__STREAM", &*streams.name),
        ("JOURNAL__NATS__REPLICAS", "1"),
        ("JOURNAL__NATS__PARTITIONS", "4"),
    ];
    let config = config(Path::new("/nowhere"), &[&cluster[..], settings].concat());
    RUNTIME.block_on(async { test(Open::start(config).await.unwrap()).await });
}

/// The same on the embedded engines.
fn on_both(settings: &[(&str, &str)], test: impl AsyncFn(Open)) {
    for engine in ["sqlite", "memory"] {
        let folder = scratch();
        RUNTIME.block_on(async { test(open(folder.path(), engine, settings)).await });
    }
}

fn open(path: &Path, engine: &str, settings: &[(&str, &str)]) -> Open {
    let engine = [("JOURNAL__ENGINE", engine), ("JOURNAL__ALLOW_LOSS", "true")];
    Open::with(config(path, &[&engine[..], settings].concat())).unwrap()
}

/// Stores so many events and puts them into the dead letters of `early`.
async fn die(open: &mut Open, count: usize) -> Vec<Event> {
    let bodies: Vec<String> = (0..count).map(|_| event(&new_id())).collect();
    // No more of them at once than are admitted.
    for some in bodies.chunks(1_000) {
        join_all(some.iter().map(|body| open.append(body.as_bytes()))).await;
    }
    let cursor = open.cursors.get_mut("early").unwrap();
    let mut dead = Vec::new();
    while dead.len() < count {
        dead.extend(timeout(PATIENCE, cursor.read()).await.unwrap().unwrap().events());
    }
    let settler = cursor.settler();
    let buried = join_all(dead.iter().map(|event| settler.dead_letter(event, "no", 2))).await;
    assert!(buried.iter().all(Result::is_ok));
    dead
}

/// The next event of `early`.
async fn one(open: &mut Open) -> Event {
    let cursor = open.cursors.get_mut("early").unwrap();
    loop {
        let events = timeout(PATIENCE, cursor.read()).await.expect("an event").unwrap().events();
        if let Some(event) = events.into_iter().next() {
            return event;
        }
    }
}

/// Delivered, dead-lettered and pending at `early`, when all of it adds up.
#[track_caller]
fn account(open: &Open) -> (u64, u64, u64) {
    let account = open.account("early");
    let settled = account.delivered + account.filtered + account.dead_lettered + account.evicted;
    assert_eq!(account.stored, settled + account.pending, "{account:?}");
    (account.delivered, account.dead_lettered, account.pending)
}

/// Checks that something is so: at once, or in a cluster, whose counts are asked for every second, after a while.
#[track_caller]
fn becomes<T: PartialEq + std::fmt::Debug>(open: &Open, wanted: T, what: impl Fn(&Journal) -> T) {
    if open.journal.engine() == Engine::Nats {
        wait_for(&format!("{wanted:?}"), || (what(&open.journal) == wanted).then_some(()));
    }
    assert_eq!(what(&open.journal), wanted);
}

/// How many there are, and how many of them are retried.
fn counts(journal: &Journal) -> (u64, u64) {
    let status = journal.status().dead_letters;
    (status.count, status.retrying)
}

/// Waits for these counts: a fleet's are taken every second.
#[track_caller]
fn await_counts(journal: &Journal, expected: (u64, u64)) {
    let seen = Cell::new((0, 0));
    let is_there = || {
        seen.set(counts(journal));
        (seen.get() == expected).then_some(())
    };
    wait_for(&format!("{expected:?} dead letters"), is_there);
}

async fn all(journal: &Journal) -> Vec<Letter> {
    let mut letters: Vec<Letter> = Vec::new();
    loop {
        let after = letters.last().map_or(0, |letter| letter.id);
        let some = journal.dead_letters(LettersOf { sink: None, after, limit: 1000 }).await.unwrap();
        if some.is_empty() {
            return letters;
        }
        letters.extend(some);
    }
}

/// So many of them, at a time or one after the other.
async fn some(letters: &mut Letters, count: usize) -> Vec<Letter> {
    let mut given = Vec::new();
    while given.len() < count {
        given.extend(next(letters).await);
    }
    given
}

async fn next(letters: &mut Letters) -> Vec<Letter> {
    timeout(PATIENCE, letters.next()).await.expect("retried letters").unwrap()
}

fn settler(open: &Open) -> Settler {
    open.cursors["early"].settler()
}

fn done(count: u64) -> Handled {
    Handled { done: count, ..Handled::default() }
}

#[test]
fn a_retried_dead_letter_is_pending_until_its_end() {
    on_all(&[], async |mut open| {
        let dead = die(&mut open, 3).await;
        await_counts(&open.journal, (3, 0));
        assert_eq!(account(&open), (0, 3, 0));
        let bytes = open.journal.status().dead_letters.bytes;
        let listed = all(&open.journal).await;
        assert_eq!(listed.iter().map(|letter| letter.id).collect::<Vec<_>>(), [1, 2, 3]);
        for (letter, event) in listed.iter().zip(&dead) {
            assert_eq!((&*letter.sink, &*letter.reason, letter.attempts), ("early", "no", 2));
            assert_eq!((letter.sequence, letter.state), (event.sequence(), LetterState::Dead));
            assert_eq!((letter.event.body(), letter.event.peer()), (event.body(), event.peer()));
            assert_eq!(letter.event.received_at(), event.received_at());
        }

        let mut letters = open.cursors["early"].letters();
        assert!(letters.next().now_or_never().is_none(), "nothing is retried yet");
        let retried = open.journal.retry_dead_letters(Which::Ids(vec![2, 1, 2, 77, u64::MAX])).await.unwrap();
        assert_eq!((retried.done, retried.skipped), (2, 2));
        assert_eq!(retried.reasons.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [77, u64::MAX]);
        await_counts(&open.journal, (3, 2));
        assert_eq!(account(&open), (0, 1, 2));
        let again = open.journal.retry_dead_letters(Which::Ids(vec![1])).await.unwrap();
        assert_eq!((again.done, &*again.reasons[0].1), (0, "it is being retried already"));

        let given = some(&mut letters, 2).await;
        assert_eq!(given.iter().map(|letter| letter.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(given[0].event.body(), dead[0].body());
        assert!(letters.next().now_or_never().is_none(), "each is given once");
        settler(&open).letter_delivered(1).await;
        settler(&open).letter_failed(2, "still no", 4).await;
        await_counts(&open.journal, (2, 0));
        assert_eq!(account(&open), (1, 2, 0));
        let letter = open.journal.dead_letter(2).await.unwrap().unwrap();
        assert_eq!((&*letter.reason, letter.attempts, letter.state), ("still no", 6, LetterState::Dead));
        assert!(letter.at >= listed[1].at);
        assert!(open.journal.dead_letter(1).await.unwrap().is_none());

        // And once more, all of them.
        assert_eq!(open.journal.retry_dead_letters(Which::All).await, Ok(done(2)));
        let given = some(&mut letters, 2).await;
        assert_eq!(given.iter().map(|letter| (letter.id, letter.attempts)).collect::<Vec<_>>(), [(2, 6), (3, 2)]);
        for letter in given {
            settler(&open).letter_delivered(letter.id).await;
        }
        await_counts(&open.journal, (0, 0));
        assert_eq!(account(&open), (3, 0, 0));
        assert!(bytes > 0);
        becomes(&open, 0, |journal| journal.status().dead_letters.bytes);
        assert!(all(&open.journal).await.is_empty());
        // The next one has a number of its own.
        die(&mut open, 1).await;
        assert_eq!(all(&open.journal).await[0].id, 4);
        open.journal.close().await;
        assert_eq!(letters.next().await.err().map(|gone| gone.to_string()).as_deref(), Some("the journal is closed"));
        assert_eq!(open.journal.dead_letter(4).await.err(), Some(Refused::Closed));
        assert_eq!(open.journal.retry_dead_letters(Which::Ids(vec![4])).await, Err(Refused::Closed));
    });
}

/// An end that is said right before the journal closes is written.
#[test]
fn after_a_crash_what_was_retried_is_handed_out_again() {
    let (folder, crashed) = (scratch(), scratch());
    RUNTIME.block_on(async {
        let mut before = open(folder.path(), "sqlite", &[]);
        die(&mut before, 5).await;
        before.journal.retry_dead_letters(Which::Ids(vec![1, 2, 4])).await.unwrap();
        let mut letters = before.cursors["early"].letters();
        assert_eq!(next(&mut letters).await.len(), 3);
        settler(&before).letter_failed(1, "again no", 1).await;
        await_counts(&before.journal, (5, 2));
        copy(folder.path(), crashed.path());
        settler(&before).letter_delivered(2).await;
        before.journal.close().await;

        for (path, left, accounts) in [(&crashed, &[2, 4][..], (0, 3, 2)), (&folder, &[4], (1, 3, 1))] {
            let after = open(path.path(), "sqlite", &[]);
            assert!(after.report.damage.is_none() && after.report.warnings.is_empty(), "{:?}", after.report);
            assert_eq!(account(&after), accounts);
            assert_eq!(counts(&after.journal), (3 + left.len() as u64, left.len() as u64));
            let mut letters = after.cursors["early"].letters();
            let given = next(&mut letters).await;
            assert_eq!(given.iter().map(|letter| letter.id).collect::<Vec<_>>(), left);
            for letter in given {
                settler(&after).letter_delivered(letter.id).await;
            }
            let (delivered, dead, pending) = accounts;
            await_counts(&after.journal, (3, 0));
            assert_eq!(account(&after), (delivered + pending, dead, 0));
            after.journal.close().await;
        }
    });
}

#[test]
fn thousands_are_retried_while_events_come_in() {
    on_all(&[("LISTEN__MAX_IN_FLIGHT", "8192")], async |mut open| {
        die(&mut open, 5_000).await;
        let journal = open.journal.clone();
        let mut letters = open.cursors["early"].letters();
        let settler = settler(&open);
        let lane = async {
            let mut had = BTreeSet::new();
            while had.len() < 5_000 {
                let given = next(&mut letters).await;
                assert!(given.len() <= 64);
                for letter in given {
                    assert!(had.insert(letter.id), "{} came twice", letter.id);
                    settler.letter_delivered(letter.id).await;
                }
            }
        };
        let retry =
            async { assert_eq!(journal.retry_dead_letters(Which::Sink("early".to_owned())).await, Ok(done(5_000))) };
        let come_in = async {
            let mut longest = Duration::ZERO;
            for _ in 0..200 {
                let start = Instant::now();
                open.append(event(&new_id()).as_bytes()).await;
                longest = longest.max(start.elapsed());
                account(&open);
            }
            longest
        };
        let ((), (), longest) = futures_util::join!(lane, retry, come_in);
        assert!(longest < PATIENCE / 2, "an event waited {longest:?}");
        await_counts(&open.journal, (0, 0));
        assert_eq!(account(&open), (5_000, 0, 200));
        becomes(&open, 0, |journal| journal.status().dead_letters.bytes);
        open.journal.close().await;
    });
}

/// A lane that does not say what became of them gets no more.
#[test]
fn so_many_are_handed_out_at_a_time() {
    on_all(&[], async |mut open| {
        die(&mut open, 1_200).await;
        open.journal.retry_dead_letters(Which::All).await.unwrap();
        let mut letters = open.cursors["early"].letters();
        let mut given = Vec::new();
        while given.len() < 1_024 {
            given.extend(next(&mut letters).await);
        }
        assert!(timeout(Duration::from_millis(50), letters.next()).await.is_err());
        settler(&open).letter_failed(given[0].id, "no", 1).await;
        let more = next(&mut letters).await;
        assert_eq!((more.len(), more[0].id), (1, 1_025));
        open.journal.close().await;
    });
}

#[test]
fn a_wait_that_is_given_up_hands_out_nothing() {
    on_all(&[], async |mut open| {
        die(&mut open, 100).await;
        let mut letters = open.cursors["early"].letters();
        open.journal.retry_dead_letters(Which::All).await.unwrap();
        let mut had = Vec::new();
        for micros in 0..30 {
            // Dropped while it reads, most times.
            if let Ok(given) = timeout(Duration::from_micros(micros), letters.next()).await {
                had.extend(given.unwrap().iter().map(|letter| letter.id));
            }
        }
        while had.len() < 100 {
            had.extend(next(&mut letters).await.iter().map(|letter| letter.id));
        }
        assert!(had.is_sorted_by(|a, b| a < b));
        open.journal.close().await;
    });
}

#[test]
fn what_is_discarded_stays_in_the_account() {
    on_all(&[], async |mut open| {
        die(&mut open, 10).await;
        open.journal.retry_dead_letters(Which::Ids(vec![3])).await.unwrap();
        let discarded = open.journal.discard_dead_letters(Which::Ids(vec![3, 4])).await.unwrap();
        assert_eq!(discarded, Handled { done: 1, skipped: 1, reasons: vec![(3, "it is being retried".to_owned())] });
        await_counts(&open.journal, (9, 1));
        assert_eq!(account(&open), (0, 9, 1));
        assert_eq!(open.journal.discard_dead_letters(Which::Sink("late".to_owned())).await, Ok(done(0)));
        assert_eq!(open.journal.discard_dead_letters(Which::All).await.unwrap().done, 8);
        await_counts(&open.journal, (1, 1));
        assert_eq!(account(&open), (0, 9, 1));
        let mut letters = open.cursors["early"].letters();
        next(&mut letters).await;
        settler(&open).letter_failed(3, "no", 1).await;
        await_counts(&open.journal, (1, 0));
        assert_eq!(open.journal.discard_dead_letters(Which::Ids(vec![3])).await, Ok(done(1)));
        await_counts(&open.journal, (0, 0));
        assert_eq!(account(&open), (0, 10, 0));
        assert_eq!(open.journal.status().dead_letters.bytes, 0);
        open.journal.close().await;
    });
}

#[test]
fn a_retried_letter_always_has_its_room() {
    on_all(&[("DEAD_LETTERS__MAX_BYTES", "4KiB")], async |mut open| {
        let mut room = 0;
        let refused = loop {
            open.append(event(&new_id()).as_bytes()).await;
            let event = one(&mut open).await;
            match settler(&open).dead_letter(&event, "no", 1).await {
                Ok(()) => room += 1,
                Err(why) => break (event, why),
            }
        };
        assert!(room > 2);
        let (event, why) = refused;
        assert_eq!((why, account(&open)), (Refused::Full, (0, room, 1)));
        open.journal.retry_dead_letters(Which::All).await.unwrap();
        // They still take the room.
        assert_eq!(settler(&open).dead_letter(&event, "no", 1).await, Err(Refused::Full));
        let mut letters = open.cursors["early"].letters();
        let given = some(&mut letters, usize::try_from(room).unwrap()).await;
        for letter in given {
            settler(&open).letter_failed(letter.id, "a longer reason than it had at first", 1).await;
        }
        await_counts(&open.journal, (room, 0));
        assert_eq!(settler(&open).dead_letter(&event, "no", 1).await, Err(Refused::Full));
        open.journal.discard_dead_letters(Which::Ids(vec![1])).await.unwrap();
        assert_eq!(settler(&open).dead_letter(&event, "no", 1).await, Ok(()));
        assert_eq!(account(&open), (0, room + 1, 0));
        open.journal.close().await;
    });
}

#[test]
fn letters_of_a_sink_without_a_lane_wait_for_it() {
    let folder = scratch();
    let off = [("SINKS__EARLY__ENABLED", "false")];
    RUNTIME.block_on(async {
        let mut on = open(folder.path(), "sqlite", &[]);
        die(&mut on, 6).await;
        on.journal.retry_dead_letters(Which::Ids(vec![1, 2, 3])).await.unwrap();
        on.journal.close().await;

        let switched_off = open(folder.path(), "sqlite", &off);
        assert!(!switched_off.cursors.contains_key("early"));
        let refused = switched_off.journal.retry_dead_letters(Which::All).await.unwrap();
        assert_eq!((refused.done, refused.skipped), (0, 6));
        assert_eq!(refused.reasons[5], (6, "its sink is switched off".to_owned()));
        // Nobody is at work on it.
        assert_eq!(switched_off.journal.discard_dead_letters(Which::Ids(vec![2])).await, Ok(done(1)));
        assert_eq!((account(&switched_off), counts(&switched_off.journal)), ((0, 4, 2), (5, 2)));
        switched_off.journal.close().await;

        let mut gone = config(folder.path(), &[]);
        gone.sinks.retain(|sink| sink.name != "early");
        let gone = Open::with(gone).unwrap();
        let refused = gone.journal.retry_dead_letters(Which::Ids(vec![6])).await.unwrap();
        assert_eq!(refused.reasons, [(6, "its sink is not in the settings".to_owned())]);
        assert_eq!(gone.journal.forget("early").await, Ok(true));
        assert_eq!(gone.journal.forget("early").await, Ok(false));
        assert_eq!(counts(&gone.journal), (5, 0));
        gone.journal.close().await;

        // A new sink of that name has no part of them in its account, and gets them all the same.
        let back = open(folder.path(), "sqlite", &[]);
        assert!(back.report.damage.is_none(), "{:?}", back.report);
        assert_eq!(account(&back), (0, 0, 0));
        assert_eq!(back.journal.retry_dead_letters(Which::Ids(vec![1, 4, 5])).await, Ok(done(3)));
        assert_eq!((account(&back), counts(&back.journal)), ((0, 0, 0), (5, 3)));
        let mut letters = back.cursors["early"].letters();
        assert_eq!(next(&mut letters).await.len(), 3);
        settler(&back).letter_delivered(1).await;
        settler(&back).letter_failed(4, "no", 1).await;
        await_counts(&back.journal, (4, 1));
        back.journal.close().await;
        let back = open(folder.path(), "sqlite", &[]);
        assert!(back.report.damage.is_none(), "{:?}", back.report);
        assert_eq!((account(&back), counts(&back.journal)), ((0, 0, 0), (4, 1)));
        back.journal.close().await;
    });
}

#[test]
fn lists_come_in_pages() {
    on_all(&[], async |mut open| {
        let ids: Vec<String> = (0..30).map(|_| new_id()).collect();
        for id in &ids {
            open.append(big_event(id, 900_000).as_bytes()).await;
        }
        for (number, sink) in ["early", "late"].into_iter().enumerate() {
            let events = open.read(sink).await;
            let settler = open.cursors[sink].settler();
            // The one has the even ones, the other the odd ones.
            for event in events.iter().filter(|event| event.sequence() % 2 == number as u64) {
                settler.dead_letter(event, "no", 1).await.unwrap();
            }
        }
        let whole = all(&open.journal).await;
        assert!(whole.is_sorted_by(|a, b| a.id < b.id) && whole.len() == 30);
        let list = async |sink: Option<&str>, after, limit| {
            let query = LettersOf { sink: sink.map(str::to_owned), after, limit };
            open.journal.dead_letters(query).await.unwrap().iter().map(|letter| letter.id).collect::<Vec<_>>()
        };
        assert_eq!(list(None, 0, 3).await, [1, 2, 3]);
        assert_eq!(list(None, 28, 3).await, [29, 30]);
        assert!(list(None, 30, 3).await.is_empty() && list(None, u64::MAX, 3).await.is_empty());
        assert_eq!(list(Some("late"), 0, 2).await, [16, 17]);
        assert!(list(Some("nobody"), 0, 2).await.is_empty());
        // Bodies are large: a list is bounded by their bytes too.
        let first = list(None, 0, usize::MAX).await;
        assert!((5..15).contains(&first.len()), "{first:?}");
        open.journal.close().await;
    });
}

/// Puts a body into the quarantine as the door would.
async fn quarantine(open: &Open, reason: &'static str, endpoint: &str, received_at: SystemTime, body: &str) {
    let endpoint = Endpoint { name: endpoint.to_owned(), ..open.config.endpoints[0].clone() };
    let body = Quarantined {
        reason,
        detail: "a test".to_owned(),
        received_at,
        peer: PEER.clone(),
        endpoint: Arc::new(endpoint),
        body: body.as_bytes().to_vec().into(),
    };
    open.journal.quarantine(body, open.admit(), Outcome::Rejected(reason)).await.unwrap();
}

/// Waits for so many bodies in the quarantine: a fleet's are counted every second.
#[track_caller]
fn await_bodies(journal: &Journal, count: u64) -> QuarantineStatus {
    let status = || Some(journal.status().quarantine).filter(|status| status.count == count);
    wait_for(&format!("{count} bodies in the quarantine"), status)
}

#[test]
fn what_is_an_event_gets_out_of_the_quarantine() {
    on_all(&[], async |mut open| {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let (id, good) = new_event();
        let (_, encoded) = new_event();
        let (known, known_event) = new_event();
        open.append(known_event.as_bytes()).await;
        // A path that was bound to other feeds, an encoding that was none; then what stays.
        quarantine(&open, "incomplete", "an old path", long_ago, &good).await;
        quarantine(&open, "unsupported-media", "default", long_ago, &encoded).await;
        quarantine(&open, "unsupported-media", "default", long_ago, &known_event).await;
        quarantine(&open, "malformed", "default", long_ago, "{\"cut o").await;
        quarantine(&open, "incomplete", "default", long_ago, "{\"name\":\"a\",\"event_type\":\"b\"}").await;
        let other = known_event.replace("hello", "other bytes");
        assert!(matches!(open.append(other.as_bytes()).await, Appended::Duplicate(_)));

        let listed = open.journal.quarantined(0, 1000).await.unwrap();
        let reasons = ["incomplete", "unsupported-media", "unsupported-media", "malformed", "incomplete", "conflict"];
        assert_eq!(listed.iter().map(|body| &*body.reason).collect::<Vec<_>>(), reasons);
        assert_eq!((&*listed[0].endpoint, listed[0].at), ("an old path", long_ago));
        assert_eq!((&*listed[0].peer, &listed[0].body[..]), (&**PEER.subject(), good.as_bytes()));
        let status = await_bodies(&open.journal, 6);
        assert!(status.bytes > 1_000 && status.newest == 6, "{status:?}");
        let received = open.metrics.received.get();

        let retried = open.journal.retry_quarantined(Bodies::All).await.unwrap();
        assert_eq!((retried.done, retried.skipped), (3, 3));
        let told: Vec<_> = retried.reasons.iter().map(|(id, why)| (*id, why.as_str())).collect();
        assert_eq!(told[1..], [(5, "`event_id` is missing or null"), (6, "its event_id is known with other bytes")]);
        assert!(told[0].0 == 4 && told[0].1.contains("at line 1 column"), "{told:?}");
        let left: Vec<u64> = open.journal.quarantined(0, 9).await.unwrap().iter().map(|body| body.id).collect();
        assert_eq!(left, [4, 5, 6]);
        await_bodies(&open.journal, 3);
        assert_eq!(open.metrics.quarantine_released.get(), 3);
        // They were received when they came.
        assert_eq!((open.metrics.received.get(), open.metrics.stored.get()), (received, 1));

        // Stored as they came, once, and known from now on.
        let events = open.read("late").await;
        assert_eq!(events.len(), 3);
        let released = events.iter().find(|event| event.event_id() == id).unwrap();
        assert_eq!((released.body(), released.received_at()), (good.as_bytes(), long_ago));
        assert_eq!((released.endpoint(), released.peer()), ("an old path", &**PEER.subject()));
        assert_eq!(events.iter().filter(|event| event.event_id() == known).count(), 1);
        assert!(matches!(open.append(good.as_bytes()).await, Appended::Duplicate(_)));
        let again = open.journal.retry_quarantined(Bodies::Ids(vec![1, 4])).await.unwrap();
        assert_eq!((again.done, &*again.reasons[0].1), (0, "there is no body of this id"));

        // What is discarded is forgotten: it would be kept again.
        let discarded = open.journal.discard_quarantined(Bodies::Ids(vec![1, 4])).await.unwrap();
        assert_eq!((discarded.done, discarded.skipped), (1, 1));
        quarantine(&open, "malformed", "default", long_ago, "{\"cut o").await;
        quarantine(&open, "incomplete", "default", long_ago, "{\"name\":\"a\",\"event_type\":\"b\"}").await;
        await_bodies(&open.journal, 3);
        assert!(open.journal.quarantined_body(4).await.unwrap().is_none());
        assert_eq!(&open.journal.quarantined_body(7).await.unwrap().unwrap().body[..], b"{\"cut o");
        assert_eq!(open.journal.discard_quarantined(Bodies::All).await, Ok(done(3)));
        assert_eq!(await_bodies(&open.journal, 0).bytes, 0);
        open.journal.close().await;
    });
}

/// Two of one id in the quarantine: the first one is the event, the other one a conflict that stays.
#[test]
fn copies_in_the_quarantine_are_told_apart() {
    on_all(&[], async |mut open| {
        let (_, first) = new_event();
        let second = first.replace("hello", "other bytes");
        let now = SystemTime::now();
        for reason in ["incomplete", "unsupported-media"] {
            quarantine(&open, reason, "default", now, &first).await;
            quarantine(&open, reason, "default", now, &second).await;
        }
        // All of them at once, in whatever groups.
        let retry = (1..=4).map(|id| open.journal.retry_quarantined(Bodies::Ids(vec![id])));
        let done: Vec<u64> = join_all(retry).await.into_iter().map(|handled| handled.unwrap().done).collect();
        let events = open.read("late").await;
        assert_eq!(events.len(), 1);
        let expected = if events[0].body() == first.as_bytes() { [1, 0, 1, 0] } else { [0, 1, 0, 1] };
        assert_eq!(done, expected);
        await_bodies(&open.journal, 2);
        open.journal.close().await;
    });
}

#[test]
fn the_quarantine_is_the_same_after_a_crash() {
    let (folder, crashed) = (scratch(), scratch());
    RUNTIME.block_on(async {
        let now = SystemTime::now();
        let before = open(folder.path(), "sqlite", &[]);
        let (id, good) = new_event();
        for body in ["{", "[", &good] {
            quarantine(&before, "malformed", "default", now, body).await;
        }
        before.journal.discard_quarantined(Bodies::Ids(vec![1])).await.unwrap();
        before.journal.retry_quarantined(Bodies::Ids(vec![3])).await.unwrap();
        copy(folder.path(), crashed.path());
        before.journal.close().await;
        let mut after = open(crashed.path(), "sqlite", &[]);
        assert!(after.report.damage.is_none(), "{:?}", after.report);
        assert_eq!(after.journal.quarantined(0, 9).await.unwrap().iter().map(|body| body.id).collect::<Vec<_>>(), [2]);
        assert_eq!(after.read("late").await[0].event_id(), id);
        quarantine(&after, "malformed", "default", now, "{").await;
        assert_eq!(after.journal.quarantined(2, 9).await.unwrap()[0].id, 4);
        after.journal.close().await;
    });
}

#[test]
fn notes_are_kept() {
    on_all(&[], async |open| {
        assert!(open.journal.notes().is_empty());
        open.journal.note("one", Some("first".to_owned())).await.unwrap();
        open.journal.note("two", Some("2".to_owned())).await.unwrap();
        open.journal.note("one", Some("second".to_owned())).await.unwrap();
        assert_eq!(open.journal.read_note("one").as_deref(), Some("second"));
        open.journal.note("two", None).await.unwrap();
        assert_eq!(open.journal.notes().into_iter().collect::<Vec<_>>(), [("one".to_owned(), "second".to_owned())]);
        let long = "x".repeat(65 << 10);
        assert_eq!(open.journal.note("one", Some(long)).await, Err(Refused::TooLarge));
        assert_eq!(open.journal.read_note("one").as_deref(), Some("second"));
        open.journal.close().await;
        assert_eq!(open.journal.note("one", None).await, Err(Refused::Closed));
    });
    let (folder, crashed) = (scratch(), scratch());
    RUNTIME.block_on(async {
        let before = open(folder.path(), "sqlite", &[]);
        before.journal.note("one", Some("first".to_owned())).await.unwrap();
        before.journal.note("two", Some("2".to_owned())).await.unwrap();
        before.journal.note("two", None).await.unwrap();
        copy(folder.path(), crashed.path());
        before.journal.close().await;
        let after = open(crashed.path(), "sqlite", &[]);
        assert!(after.report.damage.is_none(), "{:?}", after.report);
        after.journal.note("two", Some("again".to_owned())).await.unwrap();
        after.journal.close().await;
        let last = open(crashed.path(), "sqlite", &[]);
        let notes = last.journal.notes().into_iter().collect::<Vec<_>>();
        assert_eq!(notes, [("one".to_owned(), "first".to_owned()), ("two".to_owned(), "again".to_owned())]);
        last.journal.close().await;
    });
}

#[test]
fn a_time_has_a_sequence() {
    on_all(&[], async |open| {
        let pause = async || tokio::time::sleep(Duration::from_millis(3)).await;
        assert_eq!(open.journal.range(), (1, 0));
        assert_eq!(open.journal.sequence_at(SystemTime::UNIX_EPOCH).await, Ok(1));
        assert!(open.journal.status().oldest.is_none());
        let mut moments = Vec::new();
        let start = SystemTime::now();
        for _ in 0..20 {
            pause().await;
            moments.push((SystemTime::now(), open.journal.range().1 + 1));
            let group: Vec<String> = (0..3).map(|_| event(&new_id())).collect();
            join_all(group.iter().map(|body| open.append(body.as_bytes()))).await;
        }
        pause().await;
        for (moment, sequence) in &moments {
            assert_eq!(open.journal.sequence_at(*moment).await, Ok(*sequence));
        }
        assert_eq!(open.journal.sequence_at(SystemTime::UNIX_EPOCH).await, Ok(1));
        assert_eq!(open.journal.sequence_at(SystemTime::now()).await, Ok(61));
        assert_eq!(open.journal.sequence_at(SystemTime::now() + Duration::from_secs(1 << 40)).await, Ok(61));
        assert_eq!(open.journal.range(), (1, 60));
        // A fleet's stream is looked at every second.
        let oldest = wait_for("the oldest event", || open.journal.status().oldest);
        assert!(oldest >= start && oldest < moments[1].0);
        open.journal.close().await;
    });
}

/// Retention deletes what is being read: what is left comes in order, and the end is found.
#[test]
fn a_scan_goes_on_behind_what_is_deleted() {
    // A fleet's stream keeps events for the duplicate window, and its sinks settle what they were given.
    on_both(&[("JOURNAL__RETENTION", "0s")], async |mut open| {
        let text = "x".repeat(200_000);
        // More than the ring holds.
        for _ in 0..220 {
            open.append(event(&new_id()).replace("hello", &text).as_bytes()).await;
        }
        let mut scan = open.journal.scan(1);
        let mut seen: Vec<u64> = scan.read().await.unwrap().iter().map(Event::sequence).collect();
        assert_eq!(seen, [1]);
        for sink in ["early", "late"] {
            open.cursors[sink].settler().settle(1, 100, Settled::Delivered).await;
        }
        while seen.last() < Some(&50) {
            seen.extend(scan.read().await.unwrap().iter().map(Event::sequence));
        }
        wait_for("the first ones to go", || (open.journal.range().0 == 101).then_some(()));
        while seen.last() < Some(&220) {
            seen.extend(timeout(PATIENCE, scan.read()).await.unwrap().unwrap().iter().map(Event::sequence));
        }
        assert!(seen.is_sorted_by(|a, b| a < b));
        assert!((101..=220).all(|sequence| seen.contains(&sequence)));
        assert!(scan.caught_up());
        let late: &mut Cursor = open.cursors.get_mut("late").unwrap();
        assert_eq!(late.read().await.unwrap().events()[0].sequence(), 101);
        open.journal.close().await;
    });
}

/// A read goes on while its scan is not asked: that it found nothing says nothing of what has come since.
#[test]
fn a_read_that_found_nothing_skips_nothing_that_came_after_it() {
    let folder = scratch();
    // Reads stand in line, so that who comes later knows that they are over.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        let before = open(folder.path(), "sqlite", &[("JOURNAL__RETENTION", "0s")]);
        for _ in 0..3 {
            before.append(event(&new_id()).as_bytes()).await;
        }
        for sink in ["early", "late"] {
            before.cursors[sink].settler().settle(1, 3, Settled::Delivered).await;
        }
        wait_for("them to go", || (before.journal.range().0 == 4).then_some(()));
        before.journal.close().await;

        let after = open(folder.path(), "sqlite", &[]);
        let mut scan = after.journal.scan(1);
        let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
        tokio::task::spawn_blocking(move || released.recv());
        assert!(timeout(Duration::ZERO, scan.read()).await.is_err());
        drop(release);
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        after.append(event(&new_id()).as_bytes()).await;
        let mut seen = Vec::new();
        while seen.is_empty() {
            let events = timeout(PATIENCE, scan.read()).await.expect("the event that came").unwrap();
            seen.extend(events.iter().map(Event::sequence));
        }
        assert_eq!(seen, [4]);
        after.journal.close().await;
    });
}

/// Damage to the file after letters were delivered and discarded: they do not come back, and what was on its way to a
/// sink is dead, told, and in the account.
#[test]
fn damage_brings_no_discarded_letter_back() {
    let folder = scratch();
    RUNTIME.block_on(async {
        let mut before = open(folder.path(), "sqlite", &[]);
        die(&mut before, 300).await;
        before.journal.note("replay", Some("here".to_owned())).await.unwrap();
        before.journal.discard_dead_letters(Which::Ids((1..=250).collect())).await.unwrap();
        before.journal.retry_dead_letters(Which::Ids((290..=300).collect())).await.unwrap();
        before.journal.close().await;
        let database = rusqlite::Connection::open(folder.path().join("journal.db")).unwrap();
        database.execute_batch("DELETE FROM dead_letters WHERE id IN (270, 300)").unwrap();
        drop(database);

        let after = open(folder.path(), "sqlite", &[]);
        assert!(after.report.damage.is_some());
        let told = after.report.warnings.join("\n");
        assert!(told.contains("2 dead letters") || counts(&after.journal).0 == 50, "{told}");
        assert!(told.contains("they are dead again"), "{told}");
        let left = all(&after.journal).await;
        assert!(left.iter().all(|letter| letter.id > 250 && letter.state == LetterState::Dead));
        assert_eq!(counts(&after.journal), (left.len() as u64, 0));
        let (delivered, dead, pending) = account(&after);
        assert_eq!((delivered, pending), (0, 0));
        assert!(dead >= 298, "{dead}");
        assert_eq!(after.journal.read_note("replay").as_deref(), Some("here"));
        assert_eq!(after.journal.retry_dead_letters(Which::All).await.unwrap().done, left.len() as u64);
        after.journal.close().await;
        let again = open(folder.path(), "sqlite", &[]);
        assert!(again.report.damage.is_none(), "{:?}", again.report);
        assert_eq!(counts(&again.journal).1, left.len() as u64);
        account(&again);
        again.journal.close().await;
    });
}

#[test]
fn on_a_full_disk_retries_end_and_none_begin() {
    let Some(disk) = Disk::tmpfs(32 << 20) else { return };
    RUNTIME.block_on(async {
        let mut open = open(&disk.path().join("journal"), "sqlite", &[]);
        die(&mut open, 40).await;
        open.journal.retry_dead_letters(Which::Ids((1..=20).collect())).await.unwrap();
        let mut letters = open.cursors["early"].letters();
        let given = next(&mut letters).await;
        let filler = disk.fill();
        while open.try_append(big_event(&new_id(), 50_000).as_bytes()).await.is_ok() {}
        assert_eq!(open.journal.retry_dead_letters(Which::All).await, Err(Refused::Full));
        assert_eq!(open.journal.note("one", Some("1".to_owned())).await, Err(Refused::Full));
        for (at, letter) in given.iter().enumerate() {
            match at % 2 {
                0 => settler(&open).letter_delivered(letter.id).await,
                _ => settler(&open).letter_failed(letter.id, "no", 1).await,
            }
        }
        // There is room kept back for that.
        await_counts(&open.journal, (30, 0));
        let (delivered, dead, _) = account(&open);
        assert_eq!((delivered, dead), (10, 30));
        assert_eq!(open.journal.discard_dead_letters(Which::Ids(vec![40])).await, Ok(done(1)));
        std::fs::remove_file(filler).unwrap();
        open.journal.state().wait_for(|state| *state == State::Open).await.unwrap();
        assert_eq!(open.journal.retry_dead_letters(Which::All).await, Ok(done(29)));
        open.journal.close().await;
        let again = self::open(&disk.path().join("journal"), "sqlite", &[]);
        assert!(again.report.damage.is_none(), "{:?}", again.report);
        assert_eq!(counts(&again.journal), (29, 29));
        again.journal.close().await;
    });
}

/// Operators ask all the time, and nobody's event waits for that.
#[test]
fn operators_leave_room_for_events() {
    on_all(&[("LISTEN__MAX_IN_FLIGHT", "4")], async |mut open| {
        die(&mut open, 4).await;
        let asked = join_all((0..500).map(|_| open.journal.retry_dead_letters(Which::Ids(vec![1, 2, 3, 4]))));
        let notes = join_all((0..200).map(|number| open.journal.note("n", Some(number.to_string()))));
        let listed =
            join_all((0..100).map(|_| open.journal.dead_letters(LettersOf { limit: 10, ..LettersOf::default() })));
        let stored = async {
            for _ in 0..50 {
                let (_, event) = new_event();
                assert!(matches!(open.append(event.as_bytes()).await, Appended::Stored(_)));
            }
        };
        let (asked, notes, listed, ()) = futures_util::join!(asked, notes, listed, stored);
        assert_eq!(asked.into_iter().map(|handled| handled.unwrap().done).sum::<u64>(), 4);
        assert!(notes.iter().all(Result::is_ok) && listed.iter().all(Result::is_ok));
        open.journal.close().await;
    });
}
