//! What stands for a daemon in the tests of USB devices at their host.

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    netbus_vm_tests::usb_backend::main(std::env::args().skip(1))
}

/// Says where it belongs.
#[cfg(not(target_os = "linux"))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("Only Linux shares USB devices")
}
