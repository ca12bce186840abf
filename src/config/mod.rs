//! Settings: raw layers to one checked [`Config`].
//!
//! Parsed, not validated: whoever holds a [`Config`] holds values of the right types and ranges. Every problem of every
//! layer is reported at once, each with its key, its source and the remedy ([`Problems`]).
//!
//! Each section is a file here with its type and its reader; this one puts them together, and compares what keys of
//! different sections say.

mod address;
mod admin;
mod defaults;
mod endpoint;
mod filter;
mod journal;
mod listen;
mod log;
mod nats;
mod sinks;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ::config::{Map, Value};

pub use self::admin::Admin;
pub use self::endpoint::Endpoint;
pub use self::filter::Filter;
pub(crate) use self::filter::{feed_name, glob};
pub use self::journal::{DeadLetters, Dedup, Engine, Journal, Quarantine};
pub use self::listen::Listen;
pub use self::log::{Log, LogFormat};
pub use self::nats::Nats;
pub use self::sinks::{Retry, Sink, Start};
pub use self::tls::{AllowedClient, AllowedClients, Tls, TlsVersion};
use crate::settings::{Origin, Reader, Section, environment, is_of_whole_file};
pub use crate::settings::{PREFIX, Problem, Problems, Warning};
pub use crate::shape::Format;
pub use crate::sinks::{
    Batch, Clash, Compress, FileSettings as FileSink, HttpSettings as HttpSink, HttpTls, Ordering, OwnFiles, SinkKind,
    Sync,
};

/// All settings, checked. SPEC section 4 has the keys; field names are the keys.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: Listen,
    /// At least one; paths are distinct.
    pub endpoints: Vec<Endpoint>,
    pub tls: Tls,
    pub dedup: Dedup,
    pub journal: Journal,
    /// Every configured sink, disabled ones too; names are distinct. With none configured, one `stdout` sink.
    pub sinks: Vec<Sink>,
    pub quarantine: Quarantine,
    pub dead_letters: DeadLetters,
    pub admin: Admin,
    pub log: Log,
    origin: Origin,
    own: OwnFiles,
}

impl Config {
    /// Built-in defaults, then `files` in order, then the process's environment.
    ///
    /// # Errors
    /// Every [`Problem`] of every layer.
    pub fn load(files: &[PathBuf]) -> Result<(Self, Vec<Warning>), Problems> {
        let mut problems = Vec::new();
        let env = environment(&mut problems);
        Self::read(files, env, problems)
    }

    /// As [`load`](Self::load), with `env` in place of the process's environment.
    ///
    /// # Errors
    /// Every [`Problem`] of every layer.
    pub fn from_sources(
        files: &[PathBuf],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Warning>), Problems> {
        Self::read(files, env.collect(), Vec::new())
    }

    /// The same sources, read again.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn reread(&self) -> Result<(Self, Vec<Warning>), Problems> {
        Self::read(&self.origin.files, self.origin.env.clone(), Vec::new())
    }

    /// The settings files, in order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.origin.files
    }

    /// The full paths of all keys whose values are others in `other`, sorted. A value counts as written: `"60s"` is
    /// another one than `"1m"`.
    #[must_use]
    pub fn changes(&self, other: &Self) -> Vec<String> {
        self.origin.changes(&other.origin)
    }

    /// The files that no sink may write to, and those that the sinks write.
    #[must_use]
    pub fn own_files(&self) -> &OwnFiles {
        &self.own
    }

    fn read(
        files: &[PathBuf],
        env: Vec<(String, String)>,
        mut problems: Vec<Problem>,
    ) -> Result<(Self, Vec<Warning>), Problems> {
        let table = defaults::merged(files, env.iter().cloned(), &mut problems);
        let is_unread = problems.iter().any(|problem| is_of_whole_file(&problem.key));
        let mut reader = Reader::new(problems);
        let mut config = sections(&mut reader, &table);
        config.own = OwnFiles::new(&reader.named, files);
        reader.problems.extend(config.own.problems());
        config.origin = Origin { files: files.to_vec(), env, table };
        if is_unread {
            // What seems to be missing may well be in the file that could not be read.
            reader.forgive_missing();
        }
        if reader.problems.is_empty() { Ok((config, reader.warnings)) } else { Err(Problems(reader.problems)) }
    }

    /// What an embedded journal's folder may come to hold: events, dead letters and quarantined bodies.
    #[must_use]
    pub fn most_kept(&self) -> u64 {
        let kept = [self.journal.max_bytes, self.dead_letters.max_bytes, self.quarantine.max_bytes];
        kept.into_iter().fold(0, u64::saturating_add)
    }

    /// How large the disk of an embedded journal should be (docs/deploy.md): twice what may be kept, as a damaged journal is
    /// set aside and carried over into a new one beside it, and the rest for ids, the write-ahead log and the ballast.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        const REST: u64 = 1 << 30;
        self.most_kept().saturating_mul(2).saturating_add(REST)
    }
}

/// Reads every section; worth something only if `reader` has no problems afterwards.
fn sections(reader: &mut Reader, table: &Map<String, Value>) -> Config {
    let mut root = reader.root(table);
    let config = Config {
        listen: listen::listen(root.section("listen")),
        endpoints: named(root.section("endpoints"), endpoint::endpoint),
        tls: tls::tls(root.section("tls")),
        dedup: journal::dedup(root.section("dedup")),
        journal: journal::journal(root.section("journal")),
        sinks: named(root.section("sinks"), sinks::sink),
        quarantine: journal::quarantine(root.section("quarantine")),
        dead_letters: journal::dead_letters(root.section("dead_letters")),
        admin: admin::admin(root.section("admin")),
        log: log::log(root.section("log")),
        origin: Origin::default(),
        own: OwnFiles::default(),
    };
    root.finish();
    between_sections(reader, &config);
    config
}

/// What keys of different sections contradict in each other.
fn between_sections(reader: &mut Reader, config: &Config) {
    let mut paths: BTreeMap<&str, &str> = BTreeMap::new();
    for endpoint in &config.endpoints {
        let timeout = format!("endpoints.{}.timeout_ms", endpoint.name);
        reader.doubt(
            &["listen.answer_within", &timeout],
            config.listen.answer_within >= Duration::from_millis(endpoint.timeout_ms),
            "ASAPP gives up before the receiver does: make listen.answer_within shorter than ASAPP's time-out",
        );
        let path = format!("endpoints.{}.path", endpoint.name);
        if let Some(other) = paths.insert(&endpoint.path, &endpoint.name) {
            let other = format!("endpoints.{other}.path");
            reader.contradiction(&[&other, &path], true, "are the same path", "give each endpoint its own");
        }
    }
    let (max_bytes, journal) = match &config.journal.nats {
        Some(nats) => ("journal.nats.max_bytes", nats.max_bytes),
        None => ("journal.max_bytes", config.journal.max_bytes),
    };
    reader.doubt(
        &["listen.max_body_bytes", max_bytes],
        u64::try_from(config.listen.max_body_bytes).is_ok_and(|body| body > journal),
        format!("the largest event that is let in never fits the journal: make {max_bytes} larger"),
    );
    if let Some(nats) = &config.journal.nats {
        of_a_fleet(reader, config, nats);
    }
    let (events, admin) = (config.listen.address, config.admin.address);
    reader.contradiction(
        &["listen.address", "admin.address"],
        events.port() == admin.port()
            && events.port() != 0
            && (events.ip() == admin.ip() || events.ip().is_unspecified() || admin.ip().is_unspecified()),
        "are one port",
        "give the events and the operators a port each",
    );
}

/// What else a journal that several receivers share requires.
fn of_a_fleet(reader: &mut Reader, config: &Config, nats: &Nats) {
    reader.contradiction(
        &["journal.nats.ack_timeout", "listen.answer_within"],
        nats.ack_timeout >= config.listen.answer_within,
        "leave no time to try an event a second time",
        "make ack_timeout shorter than answer_within, by half or more",
    );
    for sink in &config.sinks {
        let ordering = format!("sinks.{}.ordering", sink.name);
        let is_chosen = reader.knows(&ordering) && sink.kind.settings().plan().ordering == Ordering::Strict;
        reader.contradiction(
            &[&ordering, "journal.nats.partitions"],
            is_chosen && nats.partitions > 1,
            "exclude each other: there is no order over partitions",
            "write ordering = \"entity\", or partitions = 1, which one receiver at a time delivers",
        );
    }
}

/// Reads each entry of a table whose names are the user's.
fn named<T>(mut s: Section<'_, '_>, read: impl Fn(String, Section<'_, '_>) -> T) -> Vec<T> {
    let mut entries = Vec::new();
    for name in s.names() {
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b)) || name.is_empty()
        {
            s.bad(name, "is no name for this", "use a-z, 0-9, _ and - only");
        }
        entries.push(read(name.to_owned(), s.named(name)));
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ::config::{FileFormat, Format, Map, Value, ValueKind};

    use super::defaults::adapt;
    use crate::settings::Reader;

    /// `default.toml` with the examples of the keys without a default: every key that is documented.
    fn documented() -> Map<String, Value> {
        let text = include_str!("../../config/default.toml");
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' ')).unwrap_or(line)
            })
            .collect();
        FileFormat::Toml.parse(None, &uncommented.join("\n")).unwrap()
    }

    fn keys(prefix: &str, value: &Value, all: &mut BTreeSet<String>) {
        match &value.kind {
            ValueKind::Table(table) => {
                table.iter().for_each(|(key, value)| keys(&format!("{prefix}.{key}"), value, all))
            }
            ValueKind::Array(items) if matches!(items.first(), Some(Value { kind: ValueKind::Table(_), .. })) => {
                all.insert(prefix.to_owned());
                items.iter().enumerate().for_each(|(i, item)| keys(&format!("{prefix}[{i}]"), item, all));
            }
            _ => {
                all.insert(prefix.to_owned());
            }
        }
    }

    #[test]
    fn the_default_file_has_every_key_and_no_other() {
        // Its sinks as a user's of each type, with the keys that all sinks share.
        let table = adapt(documented(), &documented());
        let mut documented = BTreeSet::new();
        table.iter().for_each(|(key, value)| keys(key, value, &mut documented));
        let mut reader = Reader::default();
        super::sections(&mut reader, &table);
        let asked: BTreeSet<String> = reader.asked.into_keys().collect();
        assert_eq!(documented, asked);
        assert!(reader.problems.is_empty(), "the examples are good values: {:?}", reader.problems);
    }
}
