# The guest's process 1: prepares the system, starts the agent and, being bash, collects what orphans leave.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
exec </dev/console >/dev/console 2>&1
. /lab/machine.sh # MACHINE, ADDRESS, MODULES_DIR, AGENT, SYSTEM

fail() {
    echo "VM-BOOT-FAILED: $1"
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netbus /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
echo "$MACHINE" >/proc/sys/kernel/hostname
echo "127.0.0.1 localhost $MACHINE" >/etc/hosts
# An id of its own, the same at every boot.
echo "$MACHINE" | md5sum | cut -c1-32 >/etc/machine-id

release=$(uname -r)
mkdir -p "/lib/modules/$release"
mount --bind "$MODULES_DIR" "/lib/modules/$release" || fail "the modules cannot be mounted"
# Without udev nothing loads what the machine's hardware asks for.
modprobe -a virtio_console virtio_net virtio_blk virtio_rng xhci_pci usb_storage sd_mod ext4 fuse loop ||
    fail "a module cannot be loaded"
[ -c /dev/fuse ] || fail "/dev/fuse is not there"

# Whoever waits for a device waits for its node; the agent's port and the disk of the state are there at boot.
for _ in $(seq 300); do
    state=$(grep -lx state /sys/block/vd*/serial | cut -d/ -f4)
    [ -b "/dev/$state" ] && [ -d /sys/class/net/eth0 ] && break
    sleep 0.1
done
[ -b "/dev/$state" ] || fail "the disk of the state is not there"
# The last boot may have ended with a power failure.
e2fsck -p "/dev/$state" >/dev/null || [ $? -lt 4 ] || fail "the disk of the state is damaged"
mkdir -p /state
mount "/dev/$state" /state || fail "the disk of the state cannot be mounted"

ip link set lo up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up

mkdir -p /mnt
cut -d' ' -f2 /proc/mounts >/run/boot-mounts
[ "$SYSTEM" = systemd ] && . /lab/systemd.sh
"$AGENT" serve &
echo $! >/run/agent.pid
wait $!
fail "the agent ended"
