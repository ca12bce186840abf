//! Receives ASAPP's real-time events over mutual TLS, keeps them durably, and delivers them to sinks.
//!
//! **A 200 is a promise.** ASAPP posts one event per request, waits a few seconds for a 200, retries a few times and
//! then forgets the event. From the 200 on, the event exists nowhere but here.
//!
//! # The path of an event
//!
//! ```text
//! accept → authenticate → admit → parse → journal (dedup, sync) → 200      then, per sink:
//! read → filter → shape → deliver → advance
//! ```
//!
//! 1. [`server`] takes a permit, accepts a connection and runs the TLS handshake against a deadline. [`tls`] judges the
//!    client's certificate; the only way to a [`tls::PeerIdentity`] is through that judgement.
//! 2. [`receiver`] is the event route: it asks [`admission`] for a place and a byte budget before it reads the body,
//!    and turns the outcome into a status code. It alone knows inbound HTTP.
//! 3. [`envelope`] scans the body once: one JSON object, bounded depth, valid UTF-8, and the routing members. It also
//!    has the one description of each feed's fields, by which events are read and drift is found.
//! 4. [`ingest`] is one sentence: parse, append, answer; what does not parse goes to the quarantine.
//! 5. [`journal`] owns the order of events. Its one writer decides what is a duplicate, writes a group, syncs once and
//!    only then hands out a [`journal::Receipt`]; a 200 can only be built from one. Where several receivers share a
//!    journal, a NATS cluster does the writer's work, and its acknowledgement makes the receipt.
//! 6. [`dispatch`] runs one lane per sink, each with a cursor of its own in the journal: it filters, puts batches
//!    together, keeps each entity's events in order, tries again, gives up into the dead letters, and tells the journal
//!    what became of each event. Beside the live events, and out of their order, it takes dead letters that an operator
//!    wants to be tried again, and, when nothing else can go, copies for a replay.
//! 7. [`sinks`] do the delivering. Each kind has a file or folder of its own in `sinks/`, with its settings, their reader,
//!    its part of `check`, the plan of its lane and its opening; `sinks/mod.rs` has the only list of kinds. A new kind is
//!    such a file, a line in that list, its keys in `config/default.toml` and its page in `docs/`.
//! 8. [`shape`] makes of an event, for its sink, what that gets to see: its format, with the redacted members cut out of
//!    the bytes.
//!
//! Around the path: [`service`] (puts all of it together, and drains it), [`config`] (settings, put together from its
//! sections; `settings` has the layers and the typed reads), [`reload`] (takes them and the TLS files anew while all
//! goes on), `outbound` (TLS and HTTP to other systems, bounded), [`admin`] (the operators' port), [`problem`] (error answers
//! of both ports), `pem` and `whole` (files of certificates, keys and secrets, taken whole or refused), [`telemetry`]
//! (names of metrics and log fields), [`terminal`] (what a terminal may be shown), [`traces`] (spans, in builds that
//! have them), [`places`] (where paths lead), [`notify`] (what a service manager is told), [`simulator`] (ASAPP's side)
//! and [`commands`] (the command line). Imports run one way, from the door inwards.
//!
//! # Invariants
//!
//! - A success is answered only from durable state, a duplicate's too; a duplicate in the same commit group shares its
//!   first copy's fate.
//! - A request handler may vanish at any moment: the writer settles what was handed to it.
//! - Every received POST is accounted for exactly once ([`admission::Admitted`]), every event once per sink.
//! - Every queue has a bound, every wait on a peer a deadline.
//! - Logs, metrics and error answers never carry a field's value.

pub mod about;
pub mod admin;
pub mod admission;
mod blocking;
pub mod commands;
pub mod config;
pub mod dispatch;
pub mod envelope;
mod findings;
pub mod ingest;
pub mod journal;
pub mod notify;
mod outbound;
mod pem;
pub mod places;
pub mod problem;
pub mod receiver;
pub mod reload;
pub mod server;
pub mod service;
mod settings;
pub mod shape;
pub mod simulator;
pub mod sinks;
pub mod telemetry;
pub mod terminal;
pub mod tls;
pub mod traces;
mod whole;
