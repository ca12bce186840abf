//! Tests through the door: the real program, real sockets, real certificates, real files, and curl and OpenSSL in front.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod admin;
mod body;
mod commands;
mod config;
mod connection;
mod crash;
mod dedup;
mod framing;
mod full;
mod harness;
mod http;
mod http2;
mod letters;
mod night;
mod process;
mod recovery;
mod sinks;
mod storage;
mod tls;
