//! Firewalls: whether other machines reach the daemon's port and its announcements. Much of that only root may see.

use std::fs;

use super::{Check, system};

/// UDP, for multicast DNS.
const MDNS_PORT: u16 = 5353;

/// Asks ufw, firewalld or nftables, whichever is in charge.
pub(super) async fn check(port: u16) -> Check {
    if is_ufw_enabled(&fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default()) {
        let asked = match system::find("ufw") {
            Some(program) => system::output(&program, &["status"]).await,
            None => None,
        };
        return judge_ufw(asked.as_deref(), port);
    }
    if let Some(program) = system::find("firewall-cmd")
        && system::output(&program, &["--state"]).await.is_some()
    {
        return judge_firewalld(system::output(&program, &["--list-all"]).await.as_deref(), port);
    }
    let Some(program) = system::find("nft") else {
        return match system::find("iptables") {
            None => Check::ok("firewall", "No program for a firewall is installed."),
            Some(_) => unseen("iptables", "iptables -S INPUT", port),
        };
    };
    judge_nftables(system::output(&program, &["list", "ruleset"]).await.as_deref(), port)
}

fn is_ufw_enabled(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "ENABLED=yes")
}

/// Judges by what `ufw status` prints, which only root gets.
fn judge_ufw(status: Option<&str>, port: u16) -> Check {
    let remedy = format!(
        "{} && {}",
        system::administer(&format!("ufw allow {port}/tcp")),
        system::administer(&format!("ufw allow {MDNS_PORT}/udp"))
    );
    let Some(status) = status else {
        let text = format!("ufw is active, and only root can see whether it lets {} through.", ports(port));
        return Check::unknown("firewall", text, Some(remedy));
    };
    if status.lines().any(|line| line.trim() == "Status: inactive") {
        return Check::ok("firewall", "ufw is installed and lets everything through.");
    }
    let allows = |port: u16, protocol: &str| {
        let names = [port.to_string(), format!("{port}/{protocol}"), "Anywhere".to_owned()];
        status.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|to| names.iter().any(|name| name == to)) && words.next() == Some("ALLOW")
        })
    };
    // ufw lets multicast DNS through by itself (before.rules), as its documentation says.
    if allows(port, "tcp") {
        return Check::ok("firewall", format!("ufw lets port {port} (TCP) through."));
    }
    closed("ufw", port, remedy)
}

/// Judges by what `firewall-cmd --list-all` prints of the zone that new connections come through.
fn judge_firewalld(zone: Option<&str>, port: u16) -> Check {
    let remedy = format!(
        "{} && {}",
        system::administer(&format!("firewall-cmd --permanent --add-port={port}/tcp --add-service=mdns")),
        system::administer("firewall-cmd --reload")
    );
    let Some(zone) = zone else {
        let text = format!("firewalld is active, and does not tell this user whether it lets {} through.", ports(port));
        return Check::unknown("firewall", text, Some(remedy));
    };
    let words = |key: &str| zone.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default();
    let lets_through = |port: u16, protocol: &str| {
        words("ports:").split_whitespace().filter_map(|range| range.split_once('/')).any(|(range, of)| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let bounds = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
            of == protocol && bounds.is_some_and(|(first, last)| (first..=last).contains(&port))
        })
    };
    let has_mdns = words("services:").split_whitespace().any(|service| service == "mdns");
    let accepts_all = words("target:").trim() == "ACCEPT";
    if accepts_all || (lets_through(port, "tcp") && (has_mdns || lets_through(MDNS_PORT, "udp"))) {
        return Check::ok("firewall", format!("firewalld lets {} through.", ports(port)));
    }
    closed("firewalld", port, remedy)
}

/// Judges by what `nft list ruleset` prints, which only root gets.
fn judge_nftables(ruleset: Option<&str>, port: u16) -> Check {
    let Some(ruleset) = ruleset else { return unseen("nftables", "nft list ruleset", port) };
    let chains = ruleset.split("chain ").skip(1).filter(|chain| chain.contains("hook input"));
    let (mut filters, mut drops) = (false, false);
    for chain in chains {
        let body = chain.split('}').next().unwrap_or(chain);
        drops |= body.contains("policy drop");
        filters |=
            ["drop", "reject", "jump", "goto"].iter().any(|word| body.split_whitespace().any(|found| found == *word));
    }
    match (drops, filters) {
        (false, false) => Check::ok("firewall", "No rule of nftables keeps other machines away."),
        (true, _) if !ruleset.contains(&port.to_string()) => {
            let rule = |port: u16, protocol: &str| {
                system::administer(&format!("nft insert rule inet filter input {protocol} dport {port} accept"))
            };
            closed("nftables", port, format!("{} && {}", rule(port, "tcp"), rule(MDNS_PORT, "udp")))
        }
        (true | false, _) => {
            let text = format!(
                "Rules of nftables may keep other machines away: look whether they let {} through.",
                ports(port)
            );
            Check::unknown("firewall", text, Some(system::administer("nft list ruleset")))
        }
    }
}

fn closed(firewall: &str, port: u16, remedy: String) -> Check {
    Check::wrong(
        "firewall",
        format!("{firewall} does not let {} through: other machines cannot reach this one.", ports(port)),
        remedy,
    )
}

fn unseen(firewall: &str, command: &str, port: u16) -> Check {
    let text = format!("Whether {firewall} lets {} through, only root can see.", ports(port));
    Check::unknown("firewall", text, Some(system::administer(command)))
}

fn ports(port: u16) -> String {
    format!("ports {port} (TCP) and {MDNS_PORT} (UDP)")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const UFW_CONF: &str = "\
# /etc/ufw/ufw.conf
#

# Set to yes to start on boot. If setting this remotely, be sure to add a rule
# to allow your remote connection before starting ufw. Eg: 'ufw allow 22/tcp'
ENABLED=yes

# Please use the 'ufw' command to set the loglevel. Eg: 'ufw logging medium'.
LOGLEVEL=low
";

    const UFW_STATUS: &str = "\
Status: active

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW       Anywhere
6287/tcp                   ALLOW       Anywhere
22/tcp (v6)                ALLOW       Anywhere (v6)
6287/tcp (v6)              ALLOW       Anywhere (v6)
";

    const FIREWALLD: &str = "\
public (active)
  target: default
  icmp-block-inversion: no
  interfaces: enp1s0
  sources: 
  services: dhcpv6-client mdns ssh
  ports: 6287/tcp
  protocols: 
  forward: yes
  masquerade: no
";

    const FEDORA_WORKSTATION: &str = "\
FedoraWorkstation (active)
  target: default
  services: dhcpv6-client samba-client ssh
  ports: 1025-65535/udp 1025-65535/tcp
";

    const NFTABLES: &str = "\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif \"lo\" accept
		tcp dport 22 accept
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
";

    #[test]
    fn ufw_is_seen_by_everybody_and_its_rules_by_root() {
        assert!(is_ufw_enabled(UFW_CONF));
        assert!(!is_ufw_enabled(&UFW_CONF.replace("ENABLED=yes", "ENABLED=no")) && !is_ufw_enabled(""));
        let unseen = judge_ufw(None, 6287);
        assert_eq!(unseen.verdict, Verdict::Unknown);
        assert!(unseen.remedy.expect("there is one").contains("ufw allow 6287/tcp"));
        assert_eq!(judge_ufw(Some(UFW_STATUS), 6287).verdict, Verdict::Ok);
        assert_eq!(judge_ufw(Some(UFW_STATUS), 7001).verdict, Verdict::Wrong);
        let denied = UFW_STATUS.replace("6287/tcp                   ALLOW", "6287/tcp                   DENY ");
        assert_eq!(judge_ufw(Some(&denied), 6287).verdict, Verdict::Wrong);
        assert_eq!(judge_ufw(Some("Status: inactive\n"), 6287).verdict, Verdict::Ok);
    }

    #[test]
    fn firewalld_tells_ports_one_by_one_and_as_ranges() {
        assert_eq!(judge_firewalld(Some(FIREWALLD), 6287).verdict, Verdict::Ok);
        assert_eq!(judge_firewalld(Some(FEDORA_WORKSTATION), 6287).verdict, Verdict::Ok);
        assert_eq!(judge_firewalld(Some(&FIREWALLD.replace(" mdns", "")), 6287).verdict, Verdict::Wrong);
        let closed = judge_firewalld(Some(&FIREWALLD.replace("6287/tcp", "")), 6287);
        assert_eq!(closed.verdict, Verdict::Wrong);
        assert!(closed.remedy.expect("there is one").contains("--add-port=6287/tcp --add-service=mdns"));
        assert_eq!(judge_firewalld(Some("trusted (active)\n  target: ACCEPT\n"), 6287).verdict, Verdict::Ok);
        assert_eq!(judge_firewalld(None, 6287).verdict, Verdict::Unknown);
    }

    #[test]
    fn nftables_is_wrong_only_where_that_is_sure() {
        assert_eq!(judge_nftables(Some(""), 6287).verdict, Verdict::Ok);
        assert_eq!(judge_nftables(Some(NFTABLES), 6287).verdict, Verdict::Wrong);
        let opened = NFTABLES.replace("tcp dport 22", "tcp dport { 22, 6287 }");
        assert_eq!(judge_nftables(Some(&opened), 6287).verdict, Verdict::Unknown);
        let chains_of_others = NFTABLES.replace("hook input", "hook output");
        assert_eq!(judge_nftables(Some(&chains_of_others), 6287).verdict, Verdict::Ok);
        let rejecting =
            NFTABLES.replace("policy drop;\n\t\tct", "policy accept;\n\t\tip saddr 10.0.0.7 reject\n\t\tct");
        assert_eq!(judge_nftables(Some(&rejecting), 6287).verdict, Verdict::Unknown);
        assert_eq!(judge_nftables(None, 6287).verdict, Verdict::Unknown);
    }
}
