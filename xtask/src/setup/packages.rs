//! Which packages are needed, by what, and why. Names are Debian's; most are Fedora's and Arch's too.

/// What a package is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Building the project.
    Build,
    /// Using it and seeing the demonstration.
    Run,
    /// The tests on this system.
    Test,
    /// The tests on virtual machines.
    Vm,
    /// Making the package.
    Package,
    /// Building and testing the window.
    Ui,
    /// What comes as a Python package.
    Python,
    /// The checks for other systems.
    Cross,
    /// The servers that Netbus is measured against.
    Bench,
    /// Those that it is measured against in a virtual machine.
    BenchVm,
}

/// One package of the table.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its name in Debian and Ubuntu.
    pub(crate) name: &'static str,
    /// What needs it.
    pub(crate) group: Group,
    /// Why, as a phrase that follows "for".
    pub(crate) reason: &'static str,
}

impl Group {
    /// What is needed to use the project and to test it on this system.
    pub(crate) const ALL: [Self; 7] =
        [Self::Build, Self::Run, Self::Test, Self::Vm, Self::Package, Self::Ui, Self::Python];
}

/// Every package that the project asks for.
pub(crate) const PACKAGES: [Package; 66] = [
    package("gcc", Group::Build, "linking, and the C and assembler parts of aws-lc"),
    package("libc6-dev", Group::Build, "the C library's headers"),
    package("ca-certificates", Group::Build, "fetching crates over TLS"),
    package("fuse3", Group::Run, "mounting a channel as a file without root's rights (fusermount3)"),
    package("e2fsprogs", Group::Run, "making and checking the ext4 image of the demonstration"),
    package("libnbd-bin", Group::Run, "using a channel where FUSE is not allowed, and standard NBD clients (nbdcopy)"),
    package("util-linux", Group::Test, "loop devices, mounts and runuser"),
    package("mount", Group::Test, "mounting what a subscriber sees"),
    package("passwd", Group::Test, "the ordinary user that the tests create (useradd)"),
    package("iproute2", Group::Test, "the machines of the LAN tests: namespaces and a bridge"),
    package("fdisk", Group::Test, "partition tables as everybody has them (sfdisk, fdisk)"),
    package("qemu-utils", Group::Test, "comparing images over NBD (qemu-img)"),
    package("fio", Group::Test, "verified load over NBD"),
    package("gnome-keyring", Group::Test, "a real keyring, open and locked"),
    package("dbus-daemon", Group::Test, "buses of their own for that keyring and for a stand-in for logind"),
    package("avahi-daemon", Group::Test, "another mDNS responder beside ours"),
    package("avahi-utils", Group::Test, "seeing our announcement as others see it (avahi-browse)"),
    package("qemu-system-x86", Group::Vm, "the virtual machines, in software"),
    package("busybox-static", Group::Vm, "what they start with"),
    package("kmod", Group::Vm, "their modules (depmod, modprobe)"),
    package("udev", Group::Vm, "names and links of their devices"),
    package("dosfstools", Group::Vm, "file systems as sticks and players have them"),
    package("dmsetup", Group::Vm, "another hand at their mapped devices"),
    package("dbus", Group::Vm, "their system bus, for the privileged helper"),
    package("polkitd", Group::Vm, "who may ask that helper for what"),
    package(
        "udisks2",
        Group::Vm,
        "what desktops make of their disks, and loop devices where that helper is not installed",
    ),
    package("udiskie", Group::Vm, "an automounter on both of them"),
    package("genisoimage", Group::Vm, "discs for their optical drives"),
    package("ffmpeg", Group::Vm, "films on those discs"),
    package("dvdauthor", Group::Vm, "the video DVDs that such a film is on"),
    package("lsdvd", Group::Vm, "what is on a video DVD"),
    package("mpv", Group::Vm, "playing it"),
    package("sg3-utils", Group::Vm, "commands to those drives that no program would give"),
    package("eject", Group::Vm, "their trays"),
    package("nbd-client", Group::Vm, "their kernel's own NBD client"),
    package("systemd", Group::Vm, "the machine on which the package is installed, and its users (logind)"),
    package("systemd-sysv", Group::Vm, "turning that machine off as people do"),
    package("libpam-systemd", Group::Vm, "sessions of its users"),
    package("dpkg", Group::Package, "making the package, and installing it on that machine"),
    package("dpkg-dev", Group::Package, "what it depends on (dpkg-shlibdeps)"),
    package("binutils", Group::Package, "programs without what only debuggers read (strip)"),
    package("rpm", Group::Package, "the same for Fedora and its like (rpmbuild), and a look at it"),
    package("desktop-file-utils", Group::Package, "a check of the window's entry in menus (desktop-file-validate)"),
    package("appstream", Group::Package, "a check of what shops for software tell of it (appstreamcli)"),
    package("lintian", Group::Package, "a check of the packages"),
    package("pkg-config", Group::Ui, "finding the web view's libraries"),
    package("libwebkit2gtk-4.1-dev", Group::Ui, "the web view of the window"),
    package("xvfb", Group::Ui, "a display for the window in tests"),
    package("webkit2gtk-driver", Group::Ui, "using the window as a person does (WebKitWebDriver)"),
    package("chromium", Group::Ui, "how its page is laid out"),
    package("fonts-dejavu-core", Group::Ui, "letters in it"),
    package("rustc-web", Group::Cross, "a compiler whose standard library can be built for other systems"),
    package("cargo-web", Group::Cross, "the cargo that belongs to it"),
    package("rust-web-src", Group::Cross, "the source of its standard library"),
    package("rust-web-clippy", Group::Cross, "lints of code that only other systems compile"),
    package("gcc-mingw-w64-x86-64-posix", Group::Cross, "C parts and linking for Windows"),
    package("zip", Group::Cross, "the archive for Windows"),
    package("wine64", Group::Cross, "running the tests for Windows"),
    package("python3-venv", Group::Python, "Node.js where it is too old, and the C compiler for macOS (ziglang)"),
    package("nbdkit", Group::Bench, "measuring beside an NBD server, plain and with TLS; qemu-nbd is in qemu-utils"),
    package("nbd-server", Group::Bench, "measuring beside the classic NBD server"),
    package("gnutls-bin", Group::Bench, "the certificates of those that speak TLS (certtool)"),
    package("tgt", Group::BenchVm, "measuring beside an iSCSI target"),
    package("open-iscsi", Group::BenchVm, "the kernel's client of that target"),
    package("usbip", Group::BenchVm, "measuring beside the kernel's own way to share USB devices"),
    package("stunnel4", Group::BenchVm, "that way through TLS"),
];

const fn package(name: &'static str, group: Group, reason: &'static str) -> Package {
    Package { name, group, reason }
}
