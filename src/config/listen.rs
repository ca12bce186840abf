//! `[listen]`.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::address::address;
use crate::settings::{DAY, HOUR, INSTANT, KIB, MIB, MINUTE, Section, network};

/// `[listen]`: the event port and its limits.
#[derive(Debug, Clone)]
pub struct Listen {
    pub address: SocketAddr,
    pub max_connections: usize,
    pub max_in_flight: usize,
    pub max_in_flight_bytes: usize,
    pub max_body_bytes: usize,
    pub handshake_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_connection_age: Duration,
    pub answer_within: Duration,
    pub drain_timeout: Duration,
    pub pre_drain: Duration,
    pub http2: bool,
    /// `proxy_protocol = "required"`, and from these networks only (`trusted_proxies`, never empty); `None`: `"off"`.
    pub proxies: Option<Vec<IpNet>>,
}

pub(super) fn listen(mut s: Section<'_, '_>) -> Listen {
    let listen = Listen {
        address: address(&mut s),
        max_connections: s.number("max_connections", 1..=1_000_000),
        max_in_flight: s.number("max_in_flight", 1..=1_000_000),
        max_in_flight_bytes: s.memory("max_in_flight_bytes", KIB..=u64::MAX),
        max_body_bytes: s.memory("max_body_bytes", 1..=256 * MIB),
        handshake_timeout: s.duration("handshake_timeout", INSTANT..=10 * MINUTE),
        header_timeout: s.duration("header_timeout", INSTANT..=10 * MINUTE),
        body_timeout: s.duration("body_timeout", INSTANT..=10 * MINUTE),
        idle_timeout: s.duration("idle_timeout", INSTANT..=DAY),
        max_connection_age: s.duration("max_connection_age", INSTANT..=30 * DAY),
        answer_within: s.duration("answer_within", INSTANT..=10 * MINUTE),
        drain_timeout: s.duration("drain_timeout", INSTANT..=HOUR),
        pre_drain: s.duration("pre_drain", Duration::ZERO..=HOUR),
        http2: s.flag("http2"),
        proxies: proxies(&mut s),
    };
    s.contradiction(
        &["pre_drain", "drain_timeout"],
        listen.pre_drain >= listen.drain_timeout,
        "leave no time to drain",
        "make pre_drain shorter than drain_timeout",
    );
    s.contradiction(
        &["max_body_bytes", "max_in_flight_bytes"],
        listen.max_body_bytes > listen.max_in_flight_bytes,
        "never admit the largest body",
        "make max_in_flight_bytes at least as large as max_body_bytes",
    );
    s.finish();
    listen
}

fn proxies(s: &mut Section<'_, '_>) -> Option<Vec<IpNet>> {
    let required = s.choice("proxy_protocol", &[("off", false), ("required", true)], false);
    let networks = s.list("trusted_proxies", network, "write networks such as \"10.0.0.0/8\"");
    s.contradiction(
        &["proxy_protocol", "trusted_proxies"],
        required && networks.is_empty(),
        "let nobody in: a PROXY header is required, and nobody's is believed",
        "list the networks that the load balancer connects from, such as trusted_proxies = [\"10.0.0.0/8\"], or set \
         proxy_protocol to \"off\"",
    );
    s.doubt(
        &["trusted_proxies"],
        !required && !networks.is_empty(),
        "has no effect while listen.proxy_protocol is \"off\"",
    );
    s.doubt(
        &["trusted_proxies"],
        required && networks.iter().any(|network| network.prefix_len() == 0),
        "believes whoever can connect: any client can claim any address",
    );
    required.then_some(networks)
}
