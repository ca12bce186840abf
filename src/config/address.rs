//! An address to listen on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::settings::Section;

/// An address that nothing listens on, in place of one that could not be read.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

pub(super) fn address(s: &mut Section<'_, '_>) -> SocketAddr {
    s.parsed("address", |text| text.parse().ok(), "write an IP address and a port, such as \"127.0.0.1:8443\"")
        .unwrap_or(NO_ADDRESS)
}
