//! What stands for a host and for a daemon in the tests of the privileged helper.

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    netbus_vm_tests::disk::main(std::env::args().skip(1))
}

/// Says where it belongs.
#[cfg(not(target_os = "linux"))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("Only Linux has a privileged helper")
}
