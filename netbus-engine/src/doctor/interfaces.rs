//! Network interfaces on which other machines can be found.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, SockaddrLike as _};

use super::Check;

/// Looks for an interface that is up, has an address and carries multicast.
pub(super) fn check() -> Check {
    let addresses = match getifaddrs() {
        Ok(addresses) => addresses,
        Err(error) => {
            return Check::unknown("network", format!("The network interfaces cannot be read: {error}."), None);
        }
    };
    let with_address = addresses.filter(|interface| {
        let family = interface.address.as_ref().and_then(|address| address.family());
        matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6))
    });
    judge(with_address.map(|interface| (interface.interface_name, interface.flags)))
}

fn judge(interfaces: impl Iterator<Item = (String, InterfaceFlags)>) -> Check {
    let needed = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING | InterfaceFlags::IFF_MULTICAST;
    let is_fit = |flags: InterfaceFlags| flags.contains(needed) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let mut names: Vec<String> = interfaces.filter(|(_, flags)| is_fit(*flags)).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        let text = "No network interface is up, has an address and carries multicast: other machines cannot be found.";
        return Check::warning("network", text, "plug in the cable or join the Wi-Fi; then look at: ip address");
    }
    Check::ok("network", format!("Other machines can be found on {}.", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn loopback_and_cables_without_a_link_do_not_count() {
        let flags = |bits| InterfaceFlags::from_bits_retain(bits);
        // As the kernel shows them: loopback, a cable that is out, WireGuard (no multicast), Ethernet.
        let (lo, unplugged, tunnel, ethernet) = (0x49, 0x1003, 0x91, 0x1043);
        let judged = |interfaces: &[(&str, i32)]| {
            judge(interfaces.iter().map(|(name, bits)| ((*name).to_owned(), flags(*bits))))
        };
        assert_eq!(judged(&[("lo", lo), ("eth0", unplugged), ("wg0", tunnel)]).verdict, Verdict::Warning);
        let all = judged(&[("lo", lo), ("wlan0", ethernet), ("eth0", ethernet), ("eth0", ethernet)]);
        assert_eq!(all, Check::ok("network", "Other machines can be found on eth0, wlan0."));
    }
}
