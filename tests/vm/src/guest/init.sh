#!/bin/busybox sh
# The first program of a guest: makes the build machine's root the guest's, with a layer in memory above it.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
fail() {
    echo "VM-BOOT-FAILED: $1"
    $b poweroff -f
}
for module in /modules/*.ko; do
    $b insmod "$module" || fail "$module cannot be loaded"
done
options=trans=virtio,version=9p2000.L,msize=262144
$b mount -t 9p -o ro,cache=loose,$options root /lower || fail "the root cannot be mounted"
$b mount -t tmpfs -o size=75% upper /upper || fail "no memory for the upper layer"
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root ||
    fail "the layers cannot be joined"
$b mkdir -p /root/lab
$b mount -t 9p -o cache=none,$options lab /root/lab || fail "the machine's folder cannot be mounted"
$b mount --move /dev /root/dev
$b umount /proc
exec $b switch_root /root /bin/bash /lab/boot.sh
