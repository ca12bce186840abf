//! Tests through the door: the real program, real sockets, real certificates, real files, and curl and OpenSSL in front.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod admin;
mod alarms;
mod body;
mod chaos;
mod check;
mod commands;
mod config;
mod connection;
mod container;
mod crash;
mod dead_letters;
mod dedup;
mod feed_config;
mod file;
mod fleet;
mod framing;
mod full;
mod haproxy;
mod harness;
mod http;
mod http2;
mod http_sink;
mod http_trust;
mod independent;
mod kubernetes;
mod ledger;
mod letters;
mod migrate;
mod nats;
mod night;
mod order;
mod process;
mod proxy;
mod recovery;
mod reload;
mod replay;
mod shapes;
mod simulate;
mod sinks;
mod storage;
mod systemd;
mod tail;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
