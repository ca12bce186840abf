//! The journal of a fleet: a NATS JetStream cluster that all receivers share. They keep nothing themselves.
#![allow(dead_code, reason = "wired in the next commits")]

mod fitness;
mod horizon;
mod janitor;
mod known;
mod letters;
mod link;
mod login;
mod monitor;
mod names;
mod notes;
mod once;
mod quarantine;
mod records;
mod replicas;
mod replies;
mod retries;
mod streams;

pub use streams::{ClusterFindings, examine_cluster};
