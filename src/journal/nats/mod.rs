//! The journal of a fleet: a NATS JetStream cluster that all receivers share. They keep nothing themselves.
#![allow(dead_code, reason = "wired in the next commits")]

mod consumer;
mod cursor;
mod fitness;
mod known;
mod letters;
mod link;
mod login;
mod monitor;
mod names;
mod notes;
mod once;
mod partition;
mod quarantine;
mod records;
mod replicas;
mod replies;
mod retries;
mod share;
mod sinks;
mod streams;
mod tenure;
