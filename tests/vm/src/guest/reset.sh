# Brings a guest back to the state that it booted into, after a test that went well. What cannot be undone fails.
agent=$(cat /run/agent.pid)
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    # Kernel threads have no program. The agent's other children are this script and its `timeout`.
    [ -e "$process/exe" ] && [ "$id" != 1 ] && [ "$id" != "$agent" ] && [ "$id" != $$ ] && [ "$id" != $PPID ] &&
        kill -KILL "$id" 2>/dev/null
done
# Virtual USB devices are unplugged, and what they were made of goes.
for gadget in /sys/kernel/config/usb_gadget/*; do
    [ -e "$gadget" ] || continue
    [ -z "$(cat "$gadget/UDC")" ] || echo >"$gadget/UDC" || exit 1
    rm "$gadget"/configs/c.1/*.0 && rmdir "$gadget/configs/c.1" "$gadget"/functions/*.0 "$gadget/strings/0x409" "$gadget" ||
        exit 1
done
# What was mounted last goes first.
tac /proc/mounts | while read -r _ place _; do
    grep -qxF "$place" /run/boot-mounts || umount "$(printf '%b' "$place")" || exit 1
done || exit 1
losetup -D
for device in /sys/block/nbd*/pid; do
    [ -e "$device" ] && device=${device%/pid} && nbd-client -d "/dev/${device##*/}" >/dev/null
done
rm -rf /run/udev /run/dbus /run/netbus/* /mnt/* /state/netbus
[ "$(dmesg | grep -cE 'BUG:|WARNING:|blocked for more than')" = 0 ] || {
    dmesg | grep -E -A 20 'BUG:|WARNING:|blocked for more than' | tail -100
    exit 1
}
