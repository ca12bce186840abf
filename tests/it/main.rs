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
mod displaced;
mod feed_config;
mod file;
#[cfg(feature = "nats")]
mod fleet;
mod framing;
mod full;
mod haproxy;
mod harness;
mod hostile;
mod http;
mod http2;
mod http_sink;
mod http_trust;
mod independent;
mod kept;
mod kubernetes;
mod ledger;
#[cfg(feature = "nats")]
mod migrate;
#[cfg(feature = "nats")]
mod nats;
mod night;
mod order;
mod own_files;
mod pem;
mod pool;
mod process;
mod proxy;
#[cfg(feature = "nats")]
mod records;
mod recovery;
mod reload;
mod replay;
mod revocation;
mod shapes;
mod simulate;
mod sinks;
mod storage;
#[cfg(feature = "nats")]
mod streams;
mod systemd;
mod tail;
mod tls;
mod tls_set;
#[cfg(feature = "otlp")]
mod traces;
