use std::collections::{BTreeSet, HashMap};

use time::OffsetDateTime;

use super::*;
use crate::envelope::{Envelope, Kind, Rejection, inspect};
use crate::simulator::model::Model;

const EVENTS: usize = 2_000;

fn sendings(faults: Faults) -> Vec<Sending> {
    let mut model = Model::new(1, 20.0);
    let mut saboteur = Saboteur::new(faults, 1);
    let now = OffsetDateTime::UNIX_EPOCH;
    let mut sendings: Vec<_> = (0..EVENTS).flat_map(|_| saboteur.take(model.next(now))).collect();
    sendings.extend(saboteur.rest());
    sendings
}

/// The ids of the events that a fault has hit.
fn hit(sendings: &[Sending], is_hit: impl Fn(&Sending) -> bool) -> BTreeSet<String> {
    sendings.iter().filter(|sending| is_hit(sending)).map(|sending| sending.event_id.clone()).collect()
}

#[test]
fn a_fault_hits_its_fraction_whatever_the_others_do() {
    let none = sendings(Faults::default());
    assert_eq!(none.len(), EVENTS);
    assert!(none.iter().all(|sending| sending.hit == Hit::default() && sending.breaks.is_none() && !sending.again));
    let alone = sendings(Faults { drift: 0.1, ..Faults::default() });
    let together = sendings(Faults { duplicates: 0.5, reorder: 0.3, drift: 0.1, abort: 0.2, malformed: 0.7 });
    let drift = |sending: &Sending| sending.hit.drift;
    assert_eq!(hit(&alone, drift), hit(&together, drift));
    assert_eq!(sendings(Faults { drift: 0.1, ..Faults::default() }), alone);
    let share = |is_hit: fn(&Sending) -> bool| hit(&together, is_hit).len() * 100 / EVENTS;
    assert!((8..=12).contains(&share(drift)));
    assert!((17..=23).contains(&share(|sending| sending.breaks.is_some())));
    assert!((26..=34).contains(&share(|sending| sending.hit.reorder)));
    assert!((46..=54).contains(&share(|sending| sending.hit.duplicate || sending.again)));
    assert!((66..=74).contains(&share(|sending| sending.hit.malformed)));
    let all = sendings(Faults { duplicates: 1.0, reorder: 1.0, drift: 1.0, abort: 1.0, malformed: 1.0 });
    let first = |sending: &&Sending| !sending.hit.duplicate;
    assert!(
        all.iter()
            .filter(first)
            .all(|first| { first.hit.reorder && first.hit.drift && first.hit.malformed && first.breaks.is_some() })
    );
}

#[test]
fn drift_is_of_every_kind_and_still_an_event() {
    let original: HashMap<_, _> =
        sendings(Faults::default()).into_iter().map(|sending| (sending.event_id, sending.body)).collect();
    let (mut kinds, mut minor, mut lines) = (BTreeSet::new(), 0, 0);
    for sending in sendings(Faults { drift: 1.0, ..Faults::default() }) {
        assert_ne!(sending.body, original[&sending.event_id]);
        let envelope = Envelope::parse(sending.body.clone()).unwrap();
        assert_eq!(envelope.event_id(), sending.event_id);
        let mut known = true;
        inspect(&envelope, |drift| {
            known = false;
            kinds.insert(drift.kind.label());
        });
        let has_lines = sending.body.windows(2).any(|two| two == b"\r\n");
        lines += usize::from(has_lines);
        minor += usize::from(known && !has_lines);
        if known && has_lines {
            let value = |body| serde_json::from_slice::<serde_json::Value>(body).unwrap();
            assert_eq!(value(&sending.body), value(&original[&sending.event_id]));
        }
    }
    let all = [Kind::Feed, Kind::EventType, Kind::Field, Kind::Value, Kind::Mismatch, Kind::ApiVersion];
    assert_eq!(kinds, all.map(Kind::label).into());
    assert!(minor > 100 && lines > 100, "{minor} with another minor version, {lines} on several lines");
}

#[test]
fn what_is_malformed_is_refused_for_every_reason() {
    let faults = Faults { malformed: 1.0, drift: 0.5, ..Faults::default() };
    let mut reasons = BTreeSet::new();
    for sending in sendings(faults) {
        reasons.insert(match Envelope::parse(sending.body.clone()) {
            Err(Rejection::Malformed { what, .. }) => what.to_owned(),
            Err(Rejection::Incomplete { member, what }) => format!("{member} {what}"),
            Ok(_) => panic!("taken: {}", String::from_utf8_lossy(&sending.body)),
        });
    }
    let reasons: Vec<_> = reasons.into_iter().collect();
    let told = reasons.join("; ");
    for reason in ["byte order mark", "UTF-8", "object", "deep"] {
        assert!(told.contains(reason), "{reason} is not in {told}");
    }
    for member in ["name", "event_type", "event_id"] {
        let of_it = reasons.iter().filter(|reason| reason.starts_with(&format!("{member} "))).count();
        assert_eq!(of_it, 2, "{member} in {told}");
    }
}

#[test]
fn breaks_are_everywhere_and_never_complete() {
    let breaks: Vec<_> = sendings(Faults { abort: 1.0, ..Faults::default() })
        .into_iter()
        .map(|sending| sending.breaks.unwrap())
        .collect();
    for place in [Place::Head, Place::Body, Place::Answer] {
        assert!(breaks.iter().filter(|how| how.place == place).count() > EVENTS / 6, "{place:?}");
    }
    assert!(breaks.iter().any(|how| how.reset) && breaks.iter().any(|how| !how.reset));
    let cuts: BTreeSet<_> = breaks.iter().map(|how| how.cut(3, 7)).collect();
    assert_eq!(cuts, BTreeSet::from([3, 4, 5, 6]));
}
