//! Which of a service's announced addresses are worth a try, and in which order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The most addresses kept of one service; whoever announces more is not believed the rest.
const MAX_ADDRESSES: usize = 16;

/// One announced address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// The address.
    pub(super) address: IpAddr,
    /// Index of the interface on which it was heard; zero when that is not known.
    pub(super) interface: u32,
}

/// The addresses to try, best first: IPv4, then routable IPv6, then IPv6 of the link. Sorted, so that the same set
/// always gives the same list.
///
/// A link-local IPv6 address counts only together with the interface on which it was heard, and a loopback address
/// only while this machine listens on nothing but its loopback interface (`only_loopback`): all that is heard then
/// comes from this machine, and else a loopback address comes from a machine that means itself.
pub(super) fn choose(heard: impl IntoIterator<Item = Heard>, port: u16, only_loopback: bool) -> Vec<SocketAddr> {
    let mut chosen: Vec<SocketAddr> =
        heard.into_iter().filter_map(|heard| socket(heard, port, only_loopback)).collect();
    chosen.sort_by_key(|address| (rank(address), *address));
    chosen.dedup();
    chosen.truncate(MAX_ADDRESSES);
    chosen
}

fn socket(heard: Heard, port: u16, only_loopback: bool) -> Option<SocketAddr> {
    let address = heard.address;
    if port == 0 || address.is_unspecified() || address.is_multicast() {
        return None;
    }
    if address.is_loopback() && !only_loopback {
        return None;
    }
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => None,
        IpAddr::V4(_) => Some(SocketAddr::new(address, port)),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            let scope = Some(heard.interface).filter(|interface| *interface != 0)?;
            Some(SocketAddrV6::new(address, port, 0, scope).into())
        }
        IpAddr::V6(_) => Some(SocketAddr::new(address, port)),
    }
}

fn rank(address: &SocketAddr) -> u8 {
    match address.ip() {
        IpAddr::V4(address) if address.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(address) if Ipv6Addr::is_unicast_link_local(&address) => 3,
        IpAddr::V6(_) => 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_best_first_and_once() {
        let heard = ["fe80::1", "fd00::1", "169.254.1.1", "192.168.1.9", "192.168.1.9"].map(|text| on(text, 3));
        let chosen: Vec<String> = choose(heard, 6287, false).iter().map(ToString::to_string).collect();
        assert_eq!(chosen, ["192.168.1.9:6287", "[fd00::1]:6287", "169.254.1.1:6287", "[fe80::1%3]:6287"]);
    }

    #[test]
    fn a_link_local_address_counts_only_where_it_was_heard() {
        assert_eq!(choose([on("fe80::1", 0)], 6287, false), []);
        let both: Vec<String> =
            choose([on("fe80::1", 2), on("fe80::1", 3)], 1, false).iter().map(ToString::to_string).collect();
        assert_eq!(both, ["[fe80::1%2]:1", "[fe80::1%3]:1"]);
    }

    #[test]
    fn loopback_counts_only_where_there_is_nothing_else() {
        let heard = [on("127.0.0.1", 1), on("::1", 1)];
        assert_eq!(choose(heard, 6287, false), []);
        assert_eq!(choose(heard, 6287, true).len(), 2);
    }

    #[test]
    fn addresses_of_nobody_and_floods_of_them_are_dropped() {
        let nobody = ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::fb", "::ffff:10.0.0.1"];
        assert_eq!(choose(nobody.map(|text| on(text, 2)), 6287, false), []);
        assert_eq!(choose([on("10.0.0.1", 2)], 0, false), []);
        let flood = (0..200).map(|i| Heard { address: Ipv4Addr::new(10, 0, 0, i).into(), interface: 2 });
        assert_eq!(choose(flood, 6287, false).len(), MAX_ADDRESSES);
    }

    fn on(address: &str, interface: u32) -> Heard {
        Heard { address: address.parse().unwrap(), interface }
    }
}
