//! Journals with many events, made through the library.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use asapp_receiver::config::Config;
use asapp_receiver::envelope::Envelope;
use asapp_receiver::simulator::model::{Event, ISSUES_PER_MINUTE, Model};
use tokio::task::JoinSet;

use crate::Bench;
use crate::door::Door;

/// A sink that is never served, so that whatever is in the journal stays as it is.
pub(crate) const IDLE_SINK: &str = "[sinks.idle]\ntype = 'stdout'\nenabled = false\nstart = 'earliest'\n";

/// Bodies, alike but for their ids.
pub(crate) struct Bodies(Vec<Template>);

struct Template {
    body: Vec<u8>,
    /// Where the 36 bytes of its event_id begin.
    id: usize,
}

impl Bodies {
    /// As short as an event can be.
    pub(crate) fn short() -> Self {
        let body =
            br#"{"name":"com.asapp.event.queue","event_type":"x","event_id":"00000000-0000-0000-0000-000000000000"}"#;
        Self(vec![Template { body: body.to_vec(), id: body.len() - 38 }])
    }

    /// What the simulator makes up, of `mean` bytes on average: the short ones are left out.
    pub(crate) fn simulated(mean: usize) -> Self {
        let mut model = Model::new(1, ISSUES_PER_MINUTE);
        let mut events: Vec<Event> = (0..2000).map(|_| model.next(time::OffsetDateTime::now_utc())).collect();
        events.sort_unstable_by_key(|event| event.body.len());
        let bytes = |events: &[Event]| events.iter().map(|event| event.body.len()).sum::<usize>();
        let short = (0..1999).find(|&short| bytes(&events[short..]) >= mean * (2000 - short)).unwrap_or(0);
        // Neighbours in a journal are no neighbours in size.
        fastrand::Rng::with_seed(1).shuffle(&mut events[short..]);
        let templates = events[short..].iter().map(|event| {
            let text = std::str::from_utf8(&event.body).unwrap();
            Template { body: event.body.to_vec(), id: text.find(&event.event_id).unwrap() }
        });
        Self(templates.collect())
    }

    fn envelope(&self, number: usize) -> Envelope {
        let Template { body, id } = &self.0[number % self.0.len()];
        let mut body = body.clone();
        uuid::Uuid::new_v4().hyphenated().encode_lower(&mut body[*id..*id + 36]);
        Envelope::parse(body.into()).unwrap()
    }
}

/// Puts `count` events into the journal of these settings, `group` of them at a time.
pub(crate) fn fill(bench: &Bench, settings: &Path, count: usize, group: usize, bodies: Bodies) {
    let (config, _) = Config::from_sources(&[settings.to_owned()], std::iter::empty()).unwrap();
    bench.runtime.block_on(async {
        let (door, _) = Door::open(config, &bench.pki).await;
        let (door, bodies, next) = (Arc::new(door), Arc::new(bodies), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..group {
            let (door, bodies, next) = (Arc::clone(&door), Arc::clone(&bodies), Arc::clone(&next));
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return;
                    }
                    door.append(bodies.envelope(number)).await;
                }
            });
        }
        tasks.join_all().await;
        door.journal.close().await;
    });
}
