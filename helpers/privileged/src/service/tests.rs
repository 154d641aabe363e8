//! The calls over a bus of their own, with a polkit that says what it is told to.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use netbus_helper_interface::{Helper1ProxyBlocking, names};
use zbus::blocking::Connection;
use zbus::blocking::connection::Builder;
use zbus::zvariant::{Fd, OwnedValue};

use super::*;

const IDENTIFIER: &str = "000102030405060708090a0b0c0d0e0f";

#[test]
fn without_polkit_nothing_is_attached() {
    let Some(bus) = Bus::new() else { return };
    let client = bus.connect();
    let refused = proxy(&client).attach(null(), &request());
    assert!(matches!(&refused, Err(Error::Unsupported(text)) if text.contains("polkit")), "{refused:?}");
}

#[test]
fn what_polkit_does_not_allow_is_not_attached() {
    let Some(bus) = Bus::new() else { return };
    for (answer, word) in [((false, false), "does not allow"), ((false, true), "password")] {
        let polkit = bus.polkit(answer);
        let client = bus.connect();
        let refused = proxy(&client).attach(null(), &request());
        assert!(matches!(&refused, Err(Error::Denied(text)) if text.contains(word)), "{refused:?}");
        let asked = polkit.asked();
        let sender = client.unique_name().unwrap().to_string();
        // The proxy allows that the user is asked for a password.
        assert_eq!(asked, [Asked { sender, action: names::ATTACH.to_owned(), flags: 1 }]);
    }
}

#[test]
fn nobody_is_asked_for_a_password_unless_the_caller_wants_it() {
    let Some(bus) = Bus::new() else { return };
    let polkit = bus.polkit((false, true));
    let client = bus.connect();
    let arguments = (null(), &request());
    let call = client.call_method(Some(names::SERVICE), names::PATH, Some(names::SERVICE), "Attach", &arguments);
    assert!(call.unwrap_err().to_string().contains("password"));
    assert_eq!(polkit.asked()[0].flags, 0);
}

#[test]
fn what_polkit_allows_must_still_be_a_socket() {
    let Some(bus) = Bus::new() else { return };
    let _polkit = bus.polkit((true, false));
    let client = bus.connect();
    let refused = proxy(&client).attach(null(), &request());
    assert!(matches!(&refused, Err(Error::Invalid(text)) if text.contains("socket")), "{refused:?}");
}

#[test]
fn polkit_is_not_asked_about_what_is_refused_in_any_case() {
    let Some(bus) = Bus::new() else { return };
    let polkit = bus.polkit((true, false));
    let client = bus.connect();
    let helper = proxy(&client);
    for host in ["..", "a/b", "", "a.b"] {
        let refused = helper.attach(null(), &DiskRequest { host: host.to_owned(), ..request() });
        assert!(matches!(refused, Err(Error::Invalid(_))), "{host}: {refused:?}");
    }
    assert!(matches!(helper.open_device(4095, 1, 1, false), Err(Error::Absent(_))));
    assert_eq!(polkit.asked(), []);
}

#[test]
fn a_disk_of_another_sequence_number_is_refused_before_polkit_is_asked() {
    let Some(bus) = Bus::new() else { return };
    let Some((major, minor, sequence)) = some_disk() else {
        println!("skipped: there is no block device on this machine");
        return;
    };
    let polkit = bus.polkit((false, false));
    let client = bus.connect();
    let helper = proxy(&client);
    let changed = helper.open_device(major, minor, sequence + 1, false);
    assert!(matches!(changed, Err(Error::Changed(_))), "{changed:?}");
    assert_eq!(polkit.asked(), []);
    let refused = helper.open_device(major, minor, sequence, false);
    assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    let action = polkit.asked().remove(0).action;
    assert!([names::OPEN_REMOVABLE, names::OPEN_SYSTEM].contains(&action.as_str()), "{action}");
}

#[test]
fn a_usb_device_is_plugged_in_by_those_who_may_and_is_a_unix_socket() {
    let Some(bus) = Bus::new() else { return };
    let client = bus.connect();
    let helper = proxy(&client);
    let refused = helper.attach_usb(null(), 3);
    assert!(matches!(&refused, Err(Error::Unsupported(text)) if text.contains("polkit")), "{refused:?}");
    let polkit = bus.polkit((false, false));
    let refused = helper.attach_usb(null(), 3);
    assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    assert_eq!(polkit.asked()[0].action, names::ATTACH_USB);
    drop(polkit);
    let polkit = bus.polkit((true, false));
    let refused = helper.attach_usb(null(), 3);
    assert!(matches!(&refused, Err(Error::Invalid(text)) if text.contains("socket")), "{refused:?}");
    let asked = polkit.asked().len();
    for speed in [0, 4, 6] {
        assert!(matches!(helper.attach_usb(null(), speed), Err(Error::Invalid(_))));
    }
    for (number, address) in [(0, 0), (1, 0), (255, 255)] {
        assert!(matches!(helper.open_usb(number, address), Err(Error::Absent(_))));
    }
    assert_eq!(polkit.asked().len(), asked);
}

#[test]
fn polkit_is_never_asked_about_what_belongs_to_the_caller() {
    let Some(bus) = Bus::new() else { return };
    let polkit = bus.polkit((false, false));
    let client = bus.connect();
    let helper = proxy(&client);
    let other = helper.reconnect(null(), IDENTIFIER);
    assert!(matches!(&other, Err(Error::Invalid(text)) if text.contains("socket")), "{other:?}");
    // Where the kernel has no device-mapper it says so; where it has, there is no such disk.
    let absent = [
        helper.detach(IDENTIFIER, false),
        helper.resize(IDENTIFIER, 4096).map(drop),
        helper.partition(IDENTIFIER, &[]).map(drop),
    ];
    for result in absent {
        assert!(matches!(result, Err(Error::Absent(_) | Error::Unsupported(_))), "{result:?}");
    }
    assert!(matches!(helper.detach("../sda", true), Err(Error::Invalid(_))));
    helper.list().unwrap();
    assert_eq!(polkit.asked(), []);
}

#[test]
fn a_call_under_way_is_activity() {
    let activity = Activity::new();
    let call = activity.begin();
    assert_eq!(activity.idle(), Duration::ZERO);
    drop(call);
    assert!(activity.idle() < Duration::from_secs(3600));
    assert_eq!(activity.0.lock().unwrap().0, 0);
}

/// A bus with the helper on it.
struct Bus {
    daemon: Child,
    address: String,
    _helper: Connection,
}

impl Bus {
    fn new() -> Option<Self> {
        let mut daemon = Command::new("dbus-daemon");
        daemon.args(["--session", "--nofork", "--print-address"]).stdout(Stdio::piped());
        let Ok(mut daemon) = daemon.spawn() else {
            assert!(std::env::var_os("CI").is_none(), "CI must not skip these tests: dbus-daemon is missing");
            println!("skipped: dbus-daemon is missing");
            return None;
        };
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let service = Service::new(Activity::new());
        let helper = Builder::address(address.as_str())
            .and_then(|bus| bus.serve_at(names::PATH, service))
            .and_then(|bus| bus.name(names::SERVICE))
            .and_then(Builder::build)
            .unwrap();
        Some(Self { daemon, address, _helper: helper })
    }

    fn connect(&self) -> Connection {
        Builder::address(self.address.as_str()).and_then(Builder::build).unwrap()
    }

    fn polkit(&self, answer: (bool, bool)) -> Polkit {
        let asked = Arc::default();
        let authority = Authority { answer, asked: Arc::clone(&asked) };
        let connection = Builder::address(self.address.as_str())
            .and_then(|bus| bus.serve_at("/org/freedesktop/PolicyKit1/Authority", authority))
            .and_then(|bus| bus.name("org.freedesktop.PolicyKit1"))
            .and_then(Builder::build)
            .unwrap();
        Polkit { asked, connection }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

/// A polkit that is there as long as this is.
struct Polkit {
    asked: Arc<Mutex<Vec<Asked>>>,
    connection: Connection,
}

impl Polkit {
    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Polkit {
    fn drop(&mut self) {
        drop(self.connection.release_name("org.freedesktop.PolicyKit1"));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    sender: String,
    action: String,
    flags: u32,
}

struct Authority {
    answer: (bool, bool),
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedValue>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation: String,
    ) -> ((bool, bool, HashMap<String, String>),) {
        assert_eq!((subject.0.as_str(), cancellation.as_str()), ("system-bus-name", ""));
        assert!(details.contains_key("subject"));
        let sender = String::try_from(subject.1["name"].try_clone().unwrap()).unwrap();
        self.asked.lock().unwrap().push(Asked { sender, action, flags });
        ((self.answer.0, self.answer.1, HashMap::new()),)
    }
}

fn proxy(client: &Connection) -> Helper1ProxyBlocking<'_> {
    Helper1ProxyBlocking::new(client).unwrap()
}

fn null() -> Fd<'static> {
    Fd::from(std::os::fd::OwnedFd::from(File::open("/dev/null").unwrap()))
}

/// The number and the sequence number of a disk of this machine.
fn some_disk() -> Option<(u32, u32, u64)> {
    std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|disk| {
        let read = |name: &str| std::fs::read_to_string(disk.path().join(name)).ok();
        let number = read("dev")?;
        let (major, minor) = number.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?, read("diskseq")?.trim().parse().ok()?))
    })
}

fn request() -> DiskRequest {
    DiskRequest {
        identifier: IDENTIFIER.to_owned(),
        host: "attic".to_owned(),
        channel: "photos".to_owned(),
        size: 1 << 20,
        block_size: 4096,
        read_only: false,
        features: 1,
    }
}
