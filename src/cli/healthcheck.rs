//! `smcached healthcheck`: for images without a shell or curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ConfigArgs, Exit, complain, load, small_runtime};
use crate::config::Environment;
use crate::net::{Endpoint, PATIENCE, fetch};

pub(super) fn run(args: ConfigArgs, environment: &Environment) -> Exit {
    let asked = (|| {
        let config = load(args, environment)?;
        let Some(mut addr) = config.ops.tcp else {
            complain(&"the ops listener is off in this configuration");
            return Err(Exit::Usage);
        };
        if addr.ip().is_unspecified() {
            let loopback =
                if addr.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() };
            addr.set_ip(loopback);
        }
        let endpoint = Endpoint::Tcp(addr.to_string());
        Ok(small_runtime()?.block_on(fetch(&endpoint, "/readyz", &[], PATIENCE)))
    })();
    match asked {
        Err(exit) => exit,
        Ok(Ok((head, _))) if head.status.is_success() => Exit::Success,
        Ok(Ok((_, reasons))) => {
            complain(&String::from_utf8_lossy(&reasons).trim_end());
            Exit::Failure
        }
        Ok(Err(error)) => {
            complain(&error);
            Exit::Failure
        }
    }
}
