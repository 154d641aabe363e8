//! The kernel's fast path: a data link that was granted becomes a device of the kernel, which from then on talks with the
//! host by itself.
//!
//! ```text
//! programs ─ file system ─ dm-linear `netbus-…` ─ nbd ─ kernel TLS ─ the socket of the data link ─ the host
//! ```
//!
//! - `lacks`: what the kernel has not got of what this needs.
//! - `link`: a link that the kernel has, watched for its end without reading from it.
//! - `tls`: the keys of a link, given to the kernel.
//! - [`swap`]: disks of the kernel that go onto disks of this machine.
//! - [`helper`]: the privileged helper, which tells the kernel what to do with it, and opens devices of hosts.
//!
//! The kernel remembers everything: a daemon that was killed finds its devices again and gives them new links. What a
//! device is made of is its class's matter. Linux only; elsewhere no class offers a way that needs this.

#[cfg(target_os = "linux")]
pub mod helper;
#[cfg(target_os = "linux")]
mod lacks;
#[cfg(target_os = "linux")]
mod link;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
pub mod swap;
#[cfg(target_os = "linux")]
mod tls;

#[cfg(target_os = "linux")]
pub use self::lacks::has_what_a_disk_needs;
#[cfg(target_os = "linux")]
pub use self::link::KernelLink;
#[cfg(not(target_os = "linux"))]
pub use self::portable::KernelLink;

/// A link that was granted for one of the kernel's framings, before the kernel has it.
pub use crate::session::handed::GrantedLink;
