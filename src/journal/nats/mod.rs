//! The journal of a fleet: a NATS JetStream cluster that all receivers share. They keep nothing themselves.
#![allow(dead_code, reason = "wired in the next commits")]

mod link;
mod login;
mod names;
mod records;
mod replies;
mod share;
