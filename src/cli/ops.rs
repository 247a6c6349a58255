//! How commands ask the ops listener of a daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::net::Endpoint;

/// Why a configuration has nobody to ask.
pub(super) const OFF: &str = "the ops listener is off in this configuration";

/// Where the ops listener of this configuration can be asked, if it has one.
pub(super) fn endpoint(config: &Config) -> Option<Endpoint> {
    config.ops.tcp.map(|addr| Endpoint::Tcp(reachable(addr).to_string()))
}

/// The address by which this host reaches a listener of its own.
pub(super) fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        let loopback =
            if addr.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() };
        addr.set_ip(loopback);
    }
    addr
}
