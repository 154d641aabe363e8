//! The packages, installed in a layer above this machine's file system.

use std::collections::BTreeSet;
use std::path::Path;

use netbus_app_tests::{Display, System, Window};
use netbus_lan_tests::can_run;

const ENABLED: &str = "/etc/systemd/user/default.target.wants/netbus.service";

/// What policy asks for in vain: compression, of packages that are made for this test; scripts without debhelper; a page for a
/// program that nobody starts; and changes in Debian's own form, rather than in Netbus's.
const NOT_HERE: [&str; 5] = [
    "uses-no-compression-for-control-tarball",
    "uses-no-compression-for-data-tarball",
    "maintainer-script-calls-systemctl",
    "no-manual-page",
    "syntax-error-in-debian-changelog",
];

#[test]
fn the_packages_are_sound_bring_a_window_and_leave_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let system = System::start()?;
    // What policy asks for, as far as a program can tell.
    let suppressed = NOT_HERE.join(",");
    system
        .run(&format!("lintian --allow-root --fail-on error,warning --suppress-tags {suppressed} /packages/*/*.deb"))?;

    system.run("dpkg -i /packages/netbus/*.deb /packages/netbus-desktop/*.deb")?;
    assert_eq!(system.run("dpkg --verify netbus netbus-desktop; dpkg --audit netbus netbus-desktop")?, "");
    let version = system.run("dpkg-query --show --showformat '${Version}' netbus")?;
    let depends = system.run("dpkg-query --show --showformat '${Depends}' netbus-desktop")?;
    for wanted in ["libwebkit2gtk-4.1-0 (>= ", "libc6 (>= ", &format!("netbus (= {version})")] {
        assert!(depends.contains(wanted), "It does not depend on {wanted}: {depends}");
    }
    system.run("desktop-file-validate --no-hints /usr/share/applications/org.netbus.Netbus.desktop")?;
    system.run("appstreamcli validate --no-net --no-color /usr/share/metainfo/org.netbus.Netbus.metainfo.xml")?;
    let files =
        files(&system.run("dpkg -L netbus netbus-desktop | while read -r path; do [ -d $path ] || echo $path; done")?);
    for size in ["scalable/apps/org.netbus.Netbus.svg", "48x48/apps/org.netbus.Netbus.png"] {
        assert!(files.contains(&format!("/usr/share/icons/hicolor/{size}")), "{files:?}");
    }
    assert!(system.has(ENABLED)?);
    open_the_window(&system)?;

    // One goes with the other, which it cannot do without.
    assert!(system.run("dpkg --remove netbus").is_err());
    system.run("dpkg --purge netbus-desktop netbus")?;
    left(&system, &files)?;
    let those_of_the_rpms = install_and_remove_rpms(&system, &version)?;
    left(&system, &those_of_the_rpms)?;
    let elsewhere = |path: &String| path.replace("zsh/vendor-completions", "zsh/site-functions");
    assert_eq!(files.iter().map(elsewhere).collect::<BTreeSet<_>>(), those_of_the_rpms);
    Ok(())
}

/// Opens the window that is installed, which starts the daemon that is installed.
fn open_the_window(system: &System) -> anyhow::Result<()> {
    let display = Display::start()?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let variables = [
        ("NETBUS_STATE_DIR", state.as_path()),
        ("NETBUS_NAME", Path::new("shed")),
        ("NETBUS_PORT", Path::new("0")),
        ("NETBUS_KEYRING", Path::new("off")),
    ];
    let window = Window::open_installed(&display, "shed", &variables, system)?;
    let shown = window.shows("This machine is called shed");
    let stopped = system.run(&format!("NETBUS_STATE_DIR={} netbus stop", state.display()));
    shown?;
    stopped.map(drop)
}

/// Looks at the form of Fedora and its like, and installs it beside Debian's; gives the files.
fn install_and_remove_rpms(system: &System, version: &str) -> anyhow::Result<BTreeSet<String>> {
    let requires = system.run("rpm -qp --requires /packages/netbus-desktop/*.rpm")?;
    for wanted in ["libwebkit2gtk-4.1.so.0()(64bit)", "libc.so.6(GLIBC_", &format!("netbus = {version}-1")] {
        assert!(requires.contains(wanted), "It does not require {wanted}: {requires}");
    }
    assert!(system.run("rpm -qp --requires /packages/netbus/*.rpm")?.lines().any(|line| line == "fuse3"));
    // What it requires is here as Debian's, of which rpm knows nothing.
    let rpm = "rpm --root \"$1\" --dbpath /var/lib/rpm";
    system.run_outside(&format!("{rpm} --nodeps --install \"$1\"/packages/*/*.rpm"))?;
    assert_eq!(system.run_outside(&format!("{rpm} -V netbus netbus-desktop --nodeps"))?, "");
    assert!(system.has(ENABLED)?);
    assert!(system.run("netbus --version")?.contains(version));
    let files =
        files(&system.run("rpm -qpl /packages/*/*.rpm | while read -r path; do [ -d $path ] || echo $path; done")?);
    system.run_outside(&format!("{rpm} --erase netbus-desktop netbus"))?;
    Ok(files)
}

fn files(listing: &str) -> BTreeSet<String> {
    listing.lines().map(str::to_owned).collect()
}

/// Fails if one of the files is still there, or what they were started by.
fn left(system: &System, files: &BTreeSet<String>) -> anyhow::Result<()> {
    assert!(!system.has(ENABLED)?, "{ENABLED} is still there");
    let script =
        format!("for path in {}; do [ ! -e $path ] || echo $path; done", Vec::from_iter(files.clone()).join(" "));
    assert_eq!(system.run(&script)?, "", "these are still there");
    Ok(())
}
