# Goes on from boot.sh on a machine whose process 1 is systemd, with what the package finds on every system and little
# more: none of what the build machine starts.
units=/etc/systemd/system
rm -rf $units/*.wants
: >/etc/fstab
for unit in man-db.timer dpkg-db-backup.timer getty.target systemd-binfmt.service systemd-firstboot.service \
    systemd-repart.service systemd-sysusers.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-random-seed.service systemd-journal-flush.service systemd-machine-id-commit.service \
    proc-sys-fs-binfmt_misc.automount cryptsetup.target integritysetup.target veritysetup.target \
    modprobe@drm.service rc-local.service systemd-hwdb-update.service; do
    ln -sf /dev/null $units/$unit
done
# Nor is what other programs would make units of.
mkdir /etc/systemd/system-generators
for generator in /lib/systemd/system-generators/*; do
    ln -s /dev/null "/etc/systemd/system-generators/${generator##*/}"
done
# It is a machine, and no container, where nothing is started.
rm -f /.dockerenv /run/.containerenv /usr/sbin/policy-rc.d
# dpkg reads the files of all packages that it knows: those that ours deals with.
dpkg-query -s libc6 libgcc-s1 fuse3 dbus dbus-bin dbus-daemon dbus-system-bus-common libdbus-1-3 libexpat1 libsystemd0 \
    init-system-helpers >/run/status && cp /run/status /var/lib/dpkg/status
# What is logged is on the build machine, whatever becomes of the guest.
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nForwardToConsole=yes\nMaxLevelConsole=info\n' >/etc/systemd/journald.conf.d/vm.conf
# What the build machine has in these folders is neither removed nor looked through.
mkdir $units/systemd-tmpfiles-setup.service.d
printf '[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --boot %s\n' \
    '--exclude-prefix=/dev --exclude-prefix=/tmp --exclude-prefix=/var/tmp --exclude-prefix=/home' \
    >$units/systemd-tmpfiles-setup.service.d/vm.conf
# It carries commands out until the very end.
cat >$units/vm-agent.service <<END
[Unit]
DefaultDependencies=no
[Service]
ExecStart=$AGENT serve
Environment=PATH=$PATH HOME=$HOME LANG=$LANG TERM=$TERM
KillMode=process
IgnoreSIGPIPE=no
TasksMax=infinity
END
mkdir $units/multi-user.target.wants
ln -s $units/vm-agent.service $units/multi-user.target.wants/
# The manual's index takes longer than all the rest.
rm -f /var/lib/man-db/auto-update
exec /lib/systemd/systemd --unit=multi-user.target --show-status=no
