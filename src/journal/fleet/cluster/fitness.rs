//! What servers and streams must be like for the journal to keep its promises: pure comparison. Every refusal says what it
//! is about, why it does not do, and the remedy.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::ServerInfo;
use async_nats::jetstream::stream::{Config as Stream, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};

use super::names::Names;
use crate::config::{self, Config};

/// Older servers lose acknowledged messages in known ways.
const OLDEST_SERVER: (u64, u64, u64) = (2, 12, 3);
/// What a message has beside an event's body, at most: headers, endpoint, peer, ids.
const BESIDE_THE_BODY: usize = 64 << 10;
/// Servers that take less at once have no room for the journal's own records.
const SMALLEST_PAYLOAD: usize = 256 << 10;
/// A range in a sink's record: two sequences, and what is around them.
const RANGE: u64 = 44;
/// For ids of what is not an event: longer than a write of it is repeated.
const SHORT_WINDOW: Duration = Duration::from_secs(120);
const PARTITIONS: &str = "asapp_receiver.partitions";
const FORMAT: &str = "asapp_receiver.format";
/// The layout of messages, records and subjects.
const OWN_FORMAT: &str = "1";

/// What must be different, and what an operator should know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) problems: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Verdict {
    pub(crate) fn extend(&mut self, other: Self) {
        self.problems.extend(other.problems);
        self.warnings.extend(other.warnings);
    }
}

/// The four streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Events,
    State,
    DeadLetters,
    Quarantine,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Events, Self::State, Self::DeadLetters, Self::Quarantine];

    pub(crate) fn name(self, names: &Names) -> &str {
        match self {
            Self::Events => names.events(),
            Self::State => names.state(),
            Self::DeadLetters => names.dead(),
            Self::Quarantine => names.quarantine(),
        }
    }

    /// The stream as the receiver makes it.
    pub(crate) fn wanted(self, names: &Names, config: &Config, settings: &config::Nats) -> Stream {
        let common = Stream {
            name: self.name(names).to_owned(),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            num_replicas: settings.replicas,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_bytes: -1,
            duplicate_window: SHORT_WINDOW,
            allow_direct: true,
            ..Stream::default()
        };
        match self {
            Self::Events => Stream {
                subjects: vec![names.subjects()],
                description: Some("asapp-receiver: events, in the order of their receipt".to_owned()),
                discard: DiscardPolicy::New,
                max_bytes: bytes(settings.max_bytes),
                duplicate_window: settings.duplicate_window,
                deny_delete: true,
                metadata: HashMap::from([
                    (PARTITIONS.to_owned(), settings.partitions.to_string()),
                    (FORMAT.to_owned(), OWN_FORMAT.to_owned()),
                ]),
                ..common
            },
            Self::State => Stream {
                subjects: vec![names.record(">")],
                description: Some("asapp-receiver: where each sink stands".to_owned()),
                discard: DiscardPolicy::Old,
                max_messages_per_subject: 1,
                allow_message_ttl: true,
                allow_direct: false,
                ..common
            },
            Self::DeadLetters => Stream {
                subjects: vec![names.letters(None)],
                description: Some("asapp-receiver: events that a sink refused for good".to_owned()),
                discard: DiscardPolicy::New,
                max_bytes: bytes(config.dead_letters.max_bytes),
                ..common
            },
            Self::Quarantine => Stream {
                subjects: vec![names.bodies()],
                description: Some("asapp-receiver: bodies that were not accepted".to_owned()),
                discard: DiscardPolicy::Old,
                max_bytes: bytes(config.quarantine.max_bytes),
                ..common
            },
        }
    }
}

/// The largest message that a body of so many bytes may need.
pub(crate) fn largest_message(max_body_bytes: usize) -> usize {
    max_body_bytes.saturating_add(BESIDE_THE_BODY)
}

/// The largest body that servers with this `max_payload` take as an event, as a dead letter and in the quarantine, where
/// bodies may have `max_body_bytes`. None where they take too little for the journal's own records: such servers get no
/// event, whatever its size.
pub(crate) fn largest_body(max_payload: usize, max_body_bytes: usize) -> Option<usize> {
    let needed = largest_message(max_body_bytes);
    (max_payload >= SMALLEST_PAYLOAD.min(needed)).then(|| max_payload.saturating_sub(BESIDE_THE_BODY))
}

/// Why a server takes too little at once, if it does. It may be set so while receivers run.
pub(crate) fn of_payload(server: &ServerInfo, config: &Config) -> Option<String> {
    let needed = largest_message(config.listen.max_body_bytes);
    let (name, most) = (&server.server_name, server.max_payload);
    largest_body(most, config.listen.max_body_bytes).is_none().then(|| {
        format!(
            "journal.nats.servers: {name} takes messages of {most} bytes at most (max_payload), too little for the journal's \
             records: set max_payload: {needed} in the servers' settings"
        )
    })
}

/// Whether a server does.
pub(crate) fn of_server(server: &ServerInfo, config: &Config, settings: &config::Nats) -> Verdict {
    let mut verdict = Verdict::default();
    let mut problem = |text: String| verdict.problems.push(text);
    let (name, version) = (&server.server_name, &server.version);
    if numbers(version) < OLDEST_SERVER {
        let (major, minor, patch) = OLDEST_SERVER;
        problem(format!(
            "journal.nats.servers: {name} is nats-server {version}, which loses acknowledged events in known ways: \
             run {major}.{minor}.{patch} or newer"
        ));
    }
    if !server.jetstream {
        problem(format!("journal.nats.servers: {name} has no JetStream: enable it (a jetstream section)"));
    }
    let needed = largest_message(config.listen.max_body_bytes);
    let most = server.max_payload;
    let short = format!("{name} takes messages of {most} bytes at most (max_payload)");
    if let Some(what) = of_payload(server, config) {
        problem(what);
    } else if let Some(largest) = largest_body(most, config.listen.max_body_bytes)
        && largest < config.listen.max_body_bytes
    {
        verdict.warnings.push(format!(
            "listen.max_body_bytes: {short}, so events of more than {largest} bytes are answered 413: set max_payload: \
             {needed} in the servers' settings",
        ));
    }
    for sink in &config.sinks {
        // Every other one may be settled beyond the oldest that is not.
        if let Some(max_ahead) = sink.kind.settings().max_ahead()
            && usize::try_from(max_ahead / 2 * RANGE).is_ok_and(|record| record > most)
        {
            verdict.warnings.push(format!(
                "sinks.{}.max_ahead: {short}, and what is settled ahead may need more: lower it to {}",
                sink.name,
                most as u64 / RANGE * 2
            ));
        }
    }
    match settings.replicas {
        1 if server.cluster.is_some() => problem(
            "journal.nats.replicas: 1 in a cluster: the death of the one server that has it stops the journal, and \
             that of its disk loses it: write 3"
                .to_owned(),
        ),
        replicas if replicas % 2 == 0 => problem(format!(
            "journal.nats.replicas: {replicas} survive no more deaths of servers than {} do: write 3",
            replicas - 1
        )),
        replicas @ 2.. if server.cluster.is_none() => problem(format!(
            "journal.nats.replicas: {replicas}, and {name} is in no cluster: write 1, or name the servers of a cluster"
        )),
        _ => {}
    }
    verdict
}

/// Whether a stream does, whoever made it.
pub(crate) fn of_stream(
    kind: Kind,
    names: &Names,
    found: &Stream,
    server: &ServerInfo,
    config: &Config,
    settings: &config::Nats,
) -> Verdict {
    let wanted = kind.wanted(names, config, settings);
    let mut verdict = Verdict::default();
    let mut problems = Problems { stream: &wanted.name, found: &mut verdict.problems };
    problems.of_what_stays(&wanted, found);
    problems.of_replicas(&wanted, found, server);
    problems.of_limits(kind, &wanted, found);
    problems.of_rights(kind, &wanted, found);
    let largest = largest_message(config.listen.max_body_bytes);
    if usize::try_from(found.max_message_size).is_ok_and(|limit| limit > 0 && limit < largest) {
        let what = format!("max_msg_size {} is less than the largest event ({largest})", found.max_message_size);
        problems.add(what, "", &format!("--max-msg-size={largest}"));
    }
    if kind == Kind::Events {
        problems.of_metadata(found, settings);
        let needed = config.sinks.len().saturating_mul(settings.partitions.into());
        if usize::try_from(found.max_consumers).is_ok_and(|limit| limit > 0 && limit < needed) {
            let what = format!("max_consumers {} is less than the sinks need ({needed})", found.max_consumers);
            problems.add_for_good(what, "");
        }
    }
    if found.max_bytes != wanted.max_bytes && kind != Kind::State {
        let (name, stream, own) = (&wanted.name, found.max_bytes, wanted.max_bytes);
        verdict.warnings.push(format!(
            "journal.nats.stream: {name} has max_bytes {stream}, not {own} as in the settings; the stream's is what \
             counts (nats stream edit {name} --max-bytes={own})"
        ));
    }
    if found.num_replicas > wanted.num_replicas {
        let (name, stream, own) = (&wanted.name, found.num_replicas, wanted.num_replicas);
        verdict.warnings.push(format!(
            "journal.nats.replicas: {name} has {stream}, not {own} as in the settings; the stream's is what counts"
        ));
    }
    if found.duplicate_window > wanted.duplicate_window && kind == Kind::Events {
        let (name, stream) = (&wanted.name, humantime::format_duration(found.duplicate_window));
        verdict.warnings.push(format!(
            "journal.nats.duplicate_window: {name} remembers ids for {stream}, longer than the settings say"
        ));
    }
    verdict
}

struct Problems<'a> {
    stream: &'a str,
    found: &'a mut Vec<String>,
}

impl Problems<'_> {
    /// `edit` is what of the `nats` command mends it.
    fn add(&mut self, what: impl AsRef<str>, why: &str, edit: &str) {
        let remedy = format!("nats stream edit {} {edit}", self.stream);
        self.found.push(self.text(what.as_ref(), why, &remedy));
    }

    /// What no edit mends.
    fn add_for_good(&mut self, what: impl AsRef<str>, why: &str) {
        let remedy = "name another stream in journal.nats.stream, or remove this one once nothing in it is needed: \
                      the receiver makes its own";
        self.found.push(self.text(what.as_ref(), why, remedy));
    }

    fn text(&self, what: &str, why: &str, remedy: &str) -> String {
        let why = if why.is_empty() { String::new() } else { format!(", {why}") };
        format!("journal.nats.stream: {}: {what}{why}: {remedy}", self.stream)
    }

    fn of_what_stays(&mut self, wanted: &Stream, found: &Stream) {
        if found.storage != wanted.storage {
            self.add_for_good("is in memory", "where a restart of the servers loses everything");
        }
        if found.retention != wanted.retention {
            self.add_for_good("its retention is not limits", "so that what one sink has had is lost to the others");
        }
        if found.persist_mode == Some(PersistenceMode::Async) {
            self.add_for_good("is persisted asynchronously", "so that acknowledged messages are lost in a crash");
        }
        if found.sealed {
            self.add_for_good("is sealed", "so that nothing can be stored");
        }
        if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
            self.add_for_good("takes in messages of other streams", "which are not events of the receiver");
        }
        if found.allow_message_counter {
            self.add_for_good("is a counter", "which stores no messages");
        }
        if found.subject_transform.is_some() {
            self.add_for_good("transforms subjects", "by which partitions are told apart");
        }
        if found.no_ack {
            self.add("acknowledges nothing (no_ack)", "so that nobody knows what is stored", "--ack");
        }
    }

    fn of_replicas(&mut self, wanted: &Stream, found: &Stream, server: &ServerInfo) {
        let edit = format!("--replicas={}", wanted.num_replicas.max(3));
        let least = wanted.num_replicas;
        match found.num_replicas {
            _ if server.cluster.is_none() => {}
            1 => self.add("has one replica in a cluster", "so that the death of one server stops or loses it", &edit),
            2 => self.add("has two replicas", "so that the death of either server stops it", &edit),
            replicas if replicas < least => {
                let what = format!("has {replicas} replicas, fewer than journal.nats.replicas ({least})");
                self.add(what, "", &edit);
            }
            _ => {}
        }
    }

    fn of_limits(&mut self, kind: Kind, wanted: &Stream, found: &Stream) {
        if found.discard != wanted.discard {
            match kind {
                Kind::Events | Kind::DeadLetters => self.add(
                    "discards old messages when it is full",
                    "those that were not delivered yet among them",
                    "--discard=new",
                ),
                Kind::State | Kind::Quarantine => {
                    self.add("discards new messages when it is full", "so that it stands still", "--discard=old");
                }
            }
        }
        if !found.max_age.is_zero() {
            let what = format!("drops messages after {}", humantime::format_duration(found.max_age));
            self.add(what, "delivered or not", "--max-age=-1");
        }
        if found.max_messages > 0 {
            let what = format!("has max_msgs {}", found.max_messages);
            self.add(what, "a limit that the receiver does not know", "--max-msgs=-1");
        }
        if found.max_messages_per_subject.max(0) != wanted.max_messages_per_subject.max(0) {
            let own = wanted.max_messages_per_subject;
            let what = format!("has max_msgs_per_subject {}, not {own}", found.max_messages_per_subject);
            self.add(what, "", &format!("--max-msgs-per-subject={own}"));
        }
        if kind == Kind::State && found.max_bytes > 0 {
            let what = format!("has max_bytes {}", found.max_bytes);
            self.add(what, "so that places of sinks are dropped when it is full", "--max-bytes=-1");
        }
        if found.duplicate_window < wanted.duplicate_window {
            let text = |window| humantime::format_duration(window).to_string();
            let (stream, own) = (text(found.duplicate_window), text(wanted.duplicate_window));
            let why = "so that what is repeated after that is stored twice";
            self.add(format!("remembers ids for {stream}, not {own}"), why, &format!("--dupe-window={own}"));
        }
        if found.consumer_limits.as_ref().is_some_and(|limits| !limits.inactive_threshold.is_zero()) {
            self.add_for_good("drops consumers that are idle", "which a sink's must be for hours");
        }
    }

    fn of_rights(&mut self, kind: Kind, wanted: &Stream, found: &Stream) {
        if found.subjects != wanted.subjects {
            let own = wanted.subjects.join(",");
            let what = format!("takes {}, not {own}", found.subjects.join(","));
            self.add(what, "", &format!("--subjects={own}"));
        }
        if kind != Kind::State && !found.allow_direct {
            self.add("does not allow direct reads", "by which the receiver reads", "--allow-direct");
        }
        if kind == Kind::State && !found.allow_message_ttl {
            self.add("does not allow messages with a time to live", "", "--allow-msg-ttl");
        }
        if kind != Kind::State && found.deny_purge {
            self.add_for_good("denies purges", "so that what was delivered would fill it");
        }
        if kind != Kind::Events && found.deny_delete {
            self.add_for_good("denies deletes", "so that what was handled would stay");
        }
    }

    fn of_metadata(&mut self, found: &Stream, settings: &config::Nats) {
        let own = settings.partitions.to_string();
        let edit = format!("--metadata={PARTITIONS}={own} --metadata={FORMAT}={OWN_FORMAT}");
        match found.metadata.get(PARTITIONS).map(String::as_str) {
            None => self.add(format!("does not say {PARTITIONS}"), "so that nobody knows how entities are spread", &edit),
            Some(partitions) if partitions != own => self.found.push(format!(
                "journal.nats.partitions: {own}, and {} was made for {partitions}: entities would change places, out of \
                 their order: write journal.nats.partitions = {partitions}",
                self.stream
            )),
            Some(_) => {}
        }
        if found.metadata.get(FORMAT).is_some_and(|format| format != OWN_FORMAT) {
            let what = format!("is of format {}, and this receiver knows {OWN_FORMAT}", found.metadata[FORMAT]);
            self.found.push(self.text(&what, "", "run the version of asapp-receiver that wrote it"));
        }
    }
}

/// A limit as servers take it: none is none to them.
fn bytes(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).max(1)
}

/// The version's numbers; what cannot be read is none.
fn numbers(version: &str) -> (u64, u64, u64) {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests;
