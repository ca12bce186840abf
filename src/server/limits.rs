//! What a port allows its peers.

use std::time::Duration;

use ipnet::IpNet;

use crate::config;

const SHORTEST_HANDSHAKE: Duration = Duration::from_secs(1);

/// From whom, how much and how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TLS connections come from these networks only and begin with a PROXY header; `None`: from anywhere, without one.
    pub proxies: Option<Vec<IpNet>>,
    pub max_connections: usize,
    /// `None`: when all connections are in use, only unproven ones make room. Else the connection that has been idle longest
    /// does, and at most so many requests (fewer than connections) can protect theirs from that ([`Seat`]).
    pub seats: Option<usize>,
    /// In total, PROXY header included, when less than half of the connections are in use; see [`Limits::handshake_within`]. Without TLS: up to
    /// the first request.
    pub handshake_timeout: Duration,
    /// From a head's first byte to its end.
    pub header_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// How long a peer may take no bytes at all while there are some for it.
    pub write_timeout: Duration,
    /// After it (less up to a tenth, so that a fleet does not come back at once), the next answer is the last.
    pub max_connection_age: Option<Duration>,
    pub http2: bool,
}

impl Limits {
    /// Of the event port.
    #[must_use]
    pub fn of(listen: &config::Listen) -> Self {
        Self {
            proxies: listen.proxies.clone(),
            max_connections: listen.max_connections,
            seats: None,
            handshake_timeout: listen.handshake_timeout,
            header_timeout: listen.header_timeout,
            idle_timeout: listen.idle_timeout,
            write_timeout: Duration::from_secs(10),
            max_connection_age: Some(listen.max_connection_age),
            http2: listen.http2,
        }
    }

    /// Of the admin port: few connections, which may live long, but not idle: anyone can make them. A quarter of them
    /// serves operators, the rest is for probes.
    #[must_use]
    pub fn admin(max_connections: usize) -> Self {
        Self {
            proxies: None,
            max_connections,
            seats: Some((max_connections / 4).max(1)),
            handshake_timeout: Duration::from_secs(2),
            header_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            max_connection_age: None,
            http2: false,
        }
    }

    /// The deadline of a handshake that begins while `used` connections are open.
    ///
    /// Beyond half of all it shrinks, down to a second when the last one is taken: a flood of silent connections then
    /// makes room as fast as it fills it, and a client that means it, done within milliseconds, still gets in.
    pub(super) fn handshake_within(&self, used: usize) -> Duration {
        let half = self.max_connections / 2;
        let shortest = SHORTEST_HANDSHAKE.min(self.handshake_timeout);
        let beyond = u32::try_from(used.saturating_sub(half)).unwrap_or(u32::MAX);
        let room = u32::try_from(self.max_connections - half).unwrap_or(u32::MAX).max(1);
        self.handshake_timeout - (self.handshake_timeout - shortest) * beyond.min(room) / room
    }
}
