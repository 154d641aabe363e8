//! What stands for a host and for a daemon in the tests of USB devices.

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    netbus_vm_tests::usb_frontend::main(std::env::args().skip(1))
}

/// Says where it belongs.
#[cfg(not(target_os = "linux"))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("Only Linux has a privileged helper")
}
