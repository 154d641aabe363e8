//! The distribution's kernel has what the product relies on.

use netbus_vm_tests::on_two_machines;

#[test]
fn the_kernel_has_nbd_tls_device_mapper_and_usb_over_a_network() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        for module in ["nbd", "tls", "dm-mod", "vhci-hcd", "usbip-host", "configfs", "dummy_hcd"] {
            pair.desk.run(&format!("modprobe {module}"))?;
            let name = module.replace('-', "_");
            pair.desk.run(&format!("[ -d /sys/module/{name} ]"))?;
        }
        pair.desk.run("[ -b /dev/nbd0 ] && [ -c /dev/mapper/control ] && [ -d /sys/devices/platform/vhci_hcd.0 ]")?;
        // A real transport has taken kernel TLS.
        pair.desk.run("grep -qw tls /proc/sys/net/ipv4/tcp_available_ulp")?;
        // The controller of virtual USB devices.
        pair.desk.run("ls /sys/class/udc | grep -q dummy_udc").map(drop)
    })
}
