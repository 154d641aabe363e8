//! What is asked over the system's message bus: the privileged helper, polkit, and udisks in the helper's place. None of
//! them is started for it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use netbus_helper_interface::{Helper1Proxy, names};
use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::zvariant::Value;

use super::{Check, system};

const POLKIT: &str = "org.freedesktop.PolicyKit1";
const UDISKS: &str = "org.freedesktop.UDisks2";

/// polkit's action for what udisks does in the helper's place.
const SET_UP: &str = "org.freedesktop.udisks2.loop-setup";

const PATIENCE: Duration = Duration::from_secs(5);

/// What the bus knows of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// It runs, and has answered if it was asked.
    Runs,
    /// It runs and does not answer.
    Silent,
    /// The bus starts it when it is needed.
    Installed,
    Missing,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
struct Found {
    helper: Service,
    polkit: Service,
    udisks: Service,
    /// Whether polkit lets this user have the kernel serve a disk.
    attach: Permission,
    /// Whether polkit lets this user have a loop device.
    set_up: Permission,
}

/// What polkit says to something for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    Granted,
    AfterPassword,
    Denied,
    /// It was not asked, or did not answer.
    Unknown,
}

/// Asks the bus. `kernel_is_fit` tells whether the kernel has what a disk of its own needs.
pub(super) async fn checks(kernel_is_fit: bool) -> Vec<Check> {
    let connection = async { Builder::system()?.method_timeout(PATIENCE).build().await };
    let connection = match connection.await {
        Ok(connection) => connection,
        Err(error) => {
            let text = format!(
                "The system's message bus cannot be reached ({error}), so `--as disk` does not work; `--as file` and `--as nbd` do."
            );
            let is_installed = ["dbus-daemon", "dbus-broker"].into_iter().any(|bus| system::find(bus).is_some());
            let start = || system::administer("systemctl start dbus");
            let remedy = if is_installed { start() } else { system::install("dbus") };
            return vec![Check::warning("helper", text, remedy)];
        }
    };
    match look(&connection).await {
        Ok(found) => judge(kernel_is_fit, &found),
        Err(error) => {
            vec![Check::unknown("helper", format!("The system's message bus does not answer: {error}."), None)]
        }
    }
}

async fn look(connection: &Connection) -> zbus::Result<Found> {
    let bus = DBusProxy::new(connection).await?;
    let installed: HashSet<String> = bus.list_activatable_names().await?.iter().map(ToString::to_string).collect();
    let running: HashSet<String> = bus.list_names().await?.iter().map(ToString::to_string).collect();
    let service = |name: &str| {
        if running.contains(name) {
            Service::Runs
        } else if installed.contains(name) {
            Service::Installed
        } else {
            Service::Missing
        }
    };
    let mut helper = service(names::SERVICE);
    if helper == Service::Runs && Helper1Proxy::new(connection).await?.list().await.is_err() {
        helper = Service::Silent;
    }
    let (polkit, udisks) = (service(POLKIT), service(UDISKS));
    // polkit knows an action only where its service is installed.
    let ask = async |service, action| match (service, polkit) {
        (Service::Missing, _) | (_, Service::Missing) => Permission::Unknown,
        (_, _) => ask_polkit(connection, action).await.unwrap_or(Permission::Unknown),
    };
    let (attach, set_up) = (ask(helper, names::ATTACH).await, ask(udisks, SET_UP).await);
    Ok(Found { helper, polkit, udisks, attach, set_up })
}

/// Asks polkit whether this process may do something, without anybody being asked for a password.
async fn ask_polkit(connection: &Connection, action: &str) -> zbus::Result<Permission> {
    let name = connection.unique_name().map(|name| name.as_str()).unwrap_or_default();
    let who = ("system-bus-name", HashMap::from([("name", Value::from(name))]));
    let question = (who, action, HashMap::<&str, &str>::new(), 0_u32, "");
    let (path, interface) = ("/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority");
    let answer = connection.call_method(Some(POLKIT), path, Some(interface), "CheckAuthorization", &question).await?;
    let (is_authorized, is_challenge, _): (bool, bool, HashMap<String, String>) = answer.body().deserialize()?;
    Ok(match (is_authorized, is_challenge) {
        (true, _) => Permission::Granted,
        (false, true) => Permission::AfterPassword,
        (false, false) => Permission::Denied,
    })
}

fn judge(kernel_is_fit: bool, found: &Found) -> Vec<Check> {
    let &Found { helper, polkit, udisks, attach, set_up } = found;
    let helper_check = match helper {
        Service::Runs => Check::ok("helper", "The helper, which has the kernel serve disks, runs and answers."),
        Service::Installed => {
            Check::ok("helper", "The helper, which has the kernel serve disks, starts when it is needed.")
        }
        Service::Silent => Check::warning(
            "helper",
            "The helper, which has the kernel serve disks, runs but does not answer.",
            system::administer("systemctl restart netbus-helper"),
        ),
        Service::Missing => Check::warning(
            "helper",
            "The helper, which has the kernel serve disks, is not installed.",
            system::install("netbus"),
        ),
    };
    let mut checks = vec![helper_check];
    if helper != Service::Missing {
        checks.push(judge_permission(polkit, attach));
    }
    // Who may not have it is told so, and not served by udisks instead.
    let has_fast_path = kernel_is_fit && matches!(helper, Service::Runs | Service::Installed);
    checks.push(judge_udisks(udisks, has_fast_path, set_up));
    checks
}

fn judge_permission(polkit: Service, permission: Permission) -> Check {
    match (polkit, permission) {
        (Service::Missing, _) => Check::warning(
            "permission",
            "polkit, which says who may have the kernel serve disks, is not installed.",
            system::install("polkitd"),
        ),
        (_, Permission::Granted) => Check::ok("permission", "This user may have the kernel serve disks."),
        (_, Permission::AfterPassword) => Check::ok(
            "permission",
            "This user may have the kernel serve disks, after the password of an administrator was typed.",
        ),
        (_, Permission::Denied) => Check::warning(
            "permission",
            "polkit does not allow this user to have the kernel serve disks.",
            format!("allow {} in a rule in /etc/polkit-1/rules.d", names::ATTACH),
        ),
        (_, Permission::Unknown) => {
            Check::unknown("permission", "polkit does not say whether this user may have the kernel serve disks.", None)
        }
    }
}

fn judge_udisks(udisks: Service, has_fast_path: bool, set_up: Permission) -> Check {
    match (udisks, has_fast_path) {
        (Service::Runs | Service::Silent | Service::Installed, true) => {
            Check::ok("udisks", "udisks is there, and not needed: the kernel can serve disks by itself.")
        }
        (Service::Runs | Service::Silent | Service::Installed, false) => match set_up {
            Permission::Granted | Permission::Unknown => {
                Check::ok("udisks", "`--as disk` goes through a loop device of udisks, which is slower.")
            }
            Permission::AfterPassword => Check::ok(
                "udisks",
                "`--as disk` goes through a loop device of udisks, which is slower, after the password of an administrator was typed.",
            ),
            Permission::Denied => Check::warning(
                "udisks",
                "polkit does not allow this user a loop device of udisks, by which `--as disk` would work more slowly.",
                format!("allow {SET_UP} in a rule in /etc/polkit-1/rules.d"),
            ),
        },
        (Service::Missing, true) => {
            Check::ok("udisks", "udisks is not installed, and not needed: the kernel can serve disks by itself.")
        }
        (Service::Missing, false) => Check::warning(
            "udisks",
            "udisks, by which `--as disk` would work more slowly, is not installed: only `--as file` and `--as nbd` work.",
            system::install("udisks2"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn verdicts(kernel: bool, helper: Service, udisks: Service, set_up: Permission) -> Vec<(String, Verdict)> {
        let attach = if helper == Service::Missing { Permission::Unknown } else { Permission::Granted };
        let checks = judge(kernel, &Found { helper, polkit: Service::Runs, udisks, attach, set_up });
        checks.into_iter().map(|check| (check.name, check.verdict)).collect()
    }

    fn named(verdicts: &[(&str, Verdict)]) -> Vec<(String, Verdict)> {
        verdicts.iter().map(|&(name, verdict)| (name.to_owned(), verdict)).collect()
    }

    #[test]
    fn udisks_is_missed_only_where_the_kernel_cannot_serve_disks_by_itself() {
        use Permission::{Denied, Granted, Unknown};
        use Service::{Installed, Missing};
        let all = verdicts(true, Installed, Missing, Unknown);
        assert_eq!(all, named(&[("helper", Verdict::Ok), ("permission", Verdict::Ok), ("udisks", Verdict::Ok)]));
        let none = verdicts(true, Missing, Missing, Unknown);
        assert_eq!(none, named(&[("helper", Verdict::Warning), ("udisks", Verdict::Warning)]));
        let slow = verdicts(true, Missing, Installed, Granted);
        assert_eq!(slow, named(&[("helper", Verdict::Warning), ("udisks", Verdict::Ok)]));
        let denied = verdicts(true, Missing, Installed, Denied);
        assert_eq!(denied, named(&[("helper", Verdict::Warning), ("udisks", Verdict::Warning)]));
        let no_nbd = verdicts(false, Installed, Missing, Unknown);
        assert_eq!(no_nbd.last(), named(&[("udisks", Verdict::Warning)]).first());
    }

    #[test]
    fn polkit_is_told_from_its_answers() {
        let verdict = |polkit, permission| judge_permission(polkit, permission).verdict;
        assert_eq!(verdict(Service::Runs, Permission::Granted), Verdict::Ok);
        assert_eq!(verdict(Service::Installed, Permission::AfterPassword), Verdict::Ok);
        assert_eq!(verdict(Service::Runs, Permission::Denied), Verdict::Warning);
        assert_eq!(verdict(Service::Runs, Permission::Unknown), Verdict::Unknown);
        assert_eq!(verdict(Service::Missing, Permission::Unknown), Verdict::Warning);
    }
}
