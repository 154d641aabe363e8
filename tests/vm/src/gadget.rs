//! USB devices that a machine makes for itself: gadgets of the kernel on a virtual controller, which it finds like any others.
//! And those that QEMU plugs into it.

use serde_json::json;

use crate::machine::Machine;
use crate::{hfsplus, wait_for};

/// Makes a gadget and plugs it in.
const GADGET: &str = include_str!("guest/gadget.sh");

/// The serial number of every gadget.
pub const SERIAL: &str = "000A27001A2B3C4D";

/// The disk of a player: its size in MiB, and where its content is in the guest.
const DISK: u64 = 64;
const IMAGE: &str = "/run/netbus/ipod.img";

/// A USB device that plays a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gadget {
    /// A music player whose music is on a disk with a FAT file system.
    Ipod,
    /// The same, as a Mac has set it up: with an HFS+ file system.
    MacIpod,
    /// An input device that gives reports of eight bytes and takes such.
    Reports,
    /// The kernel's device for tests ("gadget zero"): one endpoint gives a pattern without end, one takes it.
    Pattern,
}

/// A Perl program that sends reports to whoever uses the device that its machine plays ([`Gadget::Reports`]), one after
/// the other, and waits for each to come back. Its argument is how many.
pub const SEND_REPORTS: &str = r#"
open my $gadget, "+<", "/dev/hidg0" or die "hidg0: $!";
for my $number (1 .. $ARGV[0]) {
    my $sent = pack "N2", $number, rand 2 ** 32;
    syswrite($gadget, $sent) == 8 or die "report $number is not sent: $!";
    sysread($gadget, my $got, 64) == 8 or die "report $number is not answered: $!";
    $got eq $sent or die sprintf "report %d is %s instead of %s", $number, unpack("H*", $got), unpack "H*", $sent;
}"#;

/// A Perl program that sends every report back. Its argument is the `hidraw` node.
pub const ANSWER_REPORTS: &str = r#"
open my $device, "+<", $ARGV[0] or die "$ARGV[0]: $!";
while (sysread($device, my $report, 8) == 8) {
    syswrite($device, "\0$report") == 9 or die "a report is not answered: $!";
}"#;

impl Gadget {
    fn name(self) -> &'static str {
        match self {
            Self::Ipod | Self::MacIpod => "ipod",
            Self::Reports => "reports",
            Self::Pattern => "pattern",
        }
    }

    fn variables(self) -> &'static str {
        match self {
            Self::Ipod | Self::MacIpod => {
                "VENDOR=0x05ac PRODUCT=0x1209 MAKER='Apple Inc.' MODEL=iPod FUNCTION=mass_storage \
                 SETTINGS='stall=1 lun.0/removable=1 lun.0/file=/run/netbus/ipod.img'"
            }
            Self::Reports => {
                "VENDOR=0x1d6b PRODUCT=0x0104 MAKER=Linux MODEL=Reports FUNCTION=hid SETTINGS=report_length=8 \
                 REPORTS='\\x06\\x00\\xff\\x09\\x01\\xa1\\x01\\x15\\x00\\x26\\xff\\x00\\x75\\x08\\x95\\x08\\x09\\x01\\x81\\x02\\x09\\x02\\x91\\x02\\xc0'"
            }
            Self::Pattern => {
                "VENDOR=0x0525 PRODUCT=0xa4a0 MAKER=Linux MODEL=Zero FUNCTION=SourceSink SETTINGS='pattern=1'"
            }
        }
    }
}

impl Machine {
    /// Makes a gadget and plugs it into one of two controllers; gives its place, as `netbus devices` names it.
    ///
    /// # Errors
    /// When the kernel does not make it or does not see it.
    pub fn add_gadget(&self, gadget: Gadget, controller: u8) -> anyhow::Result<String> {
        match gadget {
            Gadget::Ipod => {
                let script = format!("truncate -s {DISK}M {IMAGE} && mkfs.vfat -F 32 {IMAGE} >/dev/null");
                self.run(&script).map(drop)?;
            }
            Gadget::MacIpod => {
                hfsplus::make_volume(&self.folder.join("ipod.img"), DISK, "iPod")?;
                self.run(&format!("mv /lab/ipod.img {IMAGE}"))?;
            }
            Gadget::Reports | Gadget::Pattern => {}
        }
        let (name, variables) = (gadget.name(), gadget.variables());
        self.run(&format!("NAME={name} CONTROLLER={controller} SERIAL={SERIAL} {variables}\n{GADGET}"))?;
        self.place_of_gadget(controller)
    }

    /// Pulls a gadget out.
    ///
    /// # Errors
    /// When it is not in.
    pub fn pull_gadget(&self, gadget: Gadget) -> anyhow::Result<()> {
        self.run(&format!("echo >/sys/kernel/config/usb_gadget/{}/UDC", gadget.name())).map(drop)
    }

    /// Plugs a gadget that was pulled out in again, perhaps elsewhere; gives its place.
    ///
    /// # Errors
    /// When the kernel does not see it.
    pub fn plug_gadget(&self, gadget: Gadget, controller: u8) -> anyhow::Result<String> {
        self.run(&format!("echo dummy_udc.{controller} >/sys/kernel/config/usb_gadget/{}/UDC", gadget.name()))?;
        self.place_of_gadget(controller)
    }

    /// Plugs in one of QEMU's own devices, `usb-kbd` or another; gives its place.
    ///
    /// # Errors
    /// When QEMU does not know it or the guest does not see it.
    pub fn plug_qemus(&self, driver: &str) -> anyhow::Result<String> {
        let mut device = json!({"driver": driver, "bus": "usb.0", "id": driver});
        if driver == "usb-audio" {
            device["audiodev"] = "silence".into();
        }
        self.qmp("device_add", &device)?;
        let product = match driver {
            "usb-audio" => "QEMU USB Audio",
            "usb-kbd" => "QEMU USB Keyboard",
            _ => "QEMU USB Tablet",
        };
        let script = format!(
            "file=$(grep -l '{product}' /sys/bus/usb/devices/*/product) && file=${{file%/product}} && [ -d $file/*:1.0 ] &&
            basename $file"
        );
        Ok(wait_for(&format!("{driver} is seen"), || self.run(&script).map(Some))?.trim().to_owned())
    }

    /// Pulls one of QEMU's own devices out.
    ///
    /// # Errors
    /// When it is not in.
    pub fn pull_qemus(&self, driver: &str) -> anyhow::Result<()> {
        self.qmp("device_del", &json!({"id": driver})).map(drop)
    }

    /// The driver of the first interface of the USB device at a place; empty without one.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn driver_at(&self, place: &str) -> anyhow::Result<String> {
        let script = format!("basename \"$(readlink '/sys/bus/usb/devices/{place}:1.0/driver')\"");
        Ok(self.run(&script)?.trim().to_owned())
    }

    /// Waits until the gadget in this controller is configured.
    fn place_of_gadget(&self, controller: u8) -> anyhow::Result<String> {
        let script = format!(
            "for device in /sys/devices/platform/dummy_hcd.{controller}/usb*/*-1; do
                # What is not there yet must not be looked for as a pattern once more: it may be there by then.
                [ -d \"$device\" ] && [ \"$(cat \"$device/serial\")\" = {SERIAL} ] && ls -d \"$device\"/*:1.0 >/dev/null &&
                    echo \"${{device##*/}}\" && exit
            done; exit 1"
        );
        Ok(wait_for("the gadget is seen", || self.run(&script).map(Some))?.trim().to_owned())
    }
}
