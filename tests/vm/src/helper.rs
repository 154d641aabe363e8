//! The privileged helper of a machine, and what it needs: a bus that starts it, and polkit.

use crate::agent::Reply;
use crate::machine::Machine;
use crate::wait_for;

/// What the helper's unit leaves it, for a machine without systemd.
const CONFINED: &str = "/usr/bin/prlimit --memlock=unlimited \
                        /usr/bin/setpriv --bounding-set=-all,+sys_admin,+mknod --no-new-privs ";

/// The files of the package.
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../installers/linux");

/// Whom polkit allows everything that an active user may do.
pub const FRIEND: &str = "games";

/// Whom polkit allows nothing.
pub const STRANGER: &str = "nobody";

/// The file by which the bus knows udisks, and where it is kept when there shall be none.
const UDISKS: [&str; 2] = ["/usr/share/dbus-1/system-services/org.freedesktop.UDisks2.service", "/run/udisks2.service"];

impl Machine {
    /// Installs the helper as the package does, and starts the bus and polkit. The bus starts the helper.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start_helper(&self) -> anyhow::Result<()> {
        let program = self.program("netbus-helper");
        self.have_udisks(true)?;
        self.run(&format!(
            "cd {FILES} &&
            install -D {program} /usr/libexec/netbus-helper &&
            install -D -m 644 org.netbus.Helper1.service -t /usr/share/dbus-1/system-services &&
            sed -i 's#^Exec=#&{CONFINED}#' /usr/share/dbus-1/system-services/org.netbus.Helper1.service &&
            install -D -m 644 org.netbus.Helper1.conf -t /usr/share/dbus-1/system.d &&
            install -D -m 644 org.netbus.helper.policy -t /usr/share/polkit-1/actions &&
            install -D -m 644 59-netbus.rules -t /usr/lib/udev/rules.d &&
            install -D -m 644 netbus-modprobe.conf /usr/lib/modprobe.d/netbus.conf &&
            modprobe -a nbd dm_mod tls"
        ))?;
        self.befriend()?;
        self.start_dbus()?;
        self.start_polkit("org.netbus.helper.attach")
    }

    /// A desktop's machine where the package of Netbus is not installed: udev, the bus, polkit and, if it is there,
    /// udisks, which the bus starts and of which [`FRIEND`] may ask for loop devices.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start_without_helper(&self, udisks: bool) -> anyhow::Result<()> {
        self.have_udisks(udisks)?;
        self.run(&format!(
            "rm -f /usr/share/dbus-1/system-services/org.netbus.Helper1.service && mkdir -p {{/etc,/usr/share}}/polkit-1/rules.d &&
            cat >/usr/share/polkit-1/rules.d/91-netbus-udisks-test.rules <<'END'
polkit.addRule(function(action, subject) {{
    if (action.id == 'org.freedesktop.udisks2.loop-setup' && subject.user == '{FRIEND}')
        return polkit.Result.YES;
}});
END"
        ))?;
        self.start_udev()?;
        self.start_dbus()?;
        self.start_polkit("org.freedesktop.udisks2.loop-setup")
    }

    /// Whether the bus, which is started afterwards, knows udisks. Without systemd it starts it by itself.
    fn have_udisks(&self, wanted: bool) -> anyhow::Result<()> {
        let [there, away] = UDISKS;
        let (from, to) = if wanted { (away, there) } else { (there, away) };
        self.run(&format!("[ ! -e {from} ] || mv {from} {to}")).map(drop)
    }

    /// Starts polkit, and waits until it judges this action.
    fn start_polkit(&self, action: &str) -> anyhow::Result<()> {
        self.run("setsid /usr/lib/polkit-1/polkitd --no-debug </dev/null >/lab/polkit.log 2>&1 &")?;
        let ready = format!("pkcheck --action-id {action} --process $$");
        wait_for("polkit answers", || self.run(&ready).map(Some)).map(drop)
    }

    /// Lets polkit allow [`FRIEND`] what it allows an active user.
    ///
    /// # Errors
    /// When the rules cannot be written.
    pub fn befriend(&self) -> anyhow::Result<()> {
        let rules = "/usr/share/polkit-1/rules.d/90-netbus-test.rules";
        self.run(&format!(
            "mkdir -p {{/etc,/usr/share}}/polkit-1/rules.d && chmod 755 {{/etc,/usr/share}}/polkit-1/rules.d &&
            cat >{rules} <<'END'
polkit.addRule(function(action, subject) {{
    if (['org.netbus.helper.attach', 'org.netbus.helper.attach-usb', 'org.netbus.helper.open-removable',
         'org.freedesktop.udisks2.filesystem-mount', 'org.freedesktop.udisks2.filesystem-mount-other-seat']
            .indexOf(action.id) >= 0 && subject.user == '{FRIEND}')
        return polkit.Result.YES;
}});
END"
        ))
        .map(drop)
    }

    /// Asks the helper as this user.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn ask_helper(&self, user: &str, words: &str) -> anyhow::Result<Reply> {
        self.try_run(&self.asking(user, words))
    }

    /// The command that asks the helper as this user.
    #[must_use]
    pub fn asking(&self, user: &str, words: &str) -> String {
        let program = self.program("netbus-vm-disk");
        format!("setpriv --reuid={user} --regid=nogroup --clear-groups '{program}' {words}")
    }

    /// The process of the helper, if it runs.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn helper_process(&self) -> anyhow::Result<Option<u32>> {
        // One that was killed and that nobody has collected has no program any more. Asking every process for its program
        // by a program of its own takes seconds here.
        let script = "for id in $(pgrep -x netbus-helper); do
                [ \"$(readlink /proc/$id/exe)\" = /usr/libexec/netbus-helper ] && echo $id
            done; true";
        Ok(self.run(script)?.trim().parse().ok())
    }
}
