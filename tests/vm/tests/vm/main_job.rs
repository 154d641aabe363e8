//! The main job: a disk of one machine is used on another as if it were there.

use anyhow::ensure;

use super::scene::{DISK, Node, Way, with_a_disk};

#[test]
fn a_disk_is_used_as_a_file_and_keeps_every_byte() -> anyhow::Result<()> {
    a_disk_is_used(Way::File)
}

#[test]
fn a_disk_is_used_by_the_kernels_nbd_client_and_keeps_every_byte() -> anyhow::Result<()> {
    a_disk_is_used(Way::Nbd)
}

#[test]
fn a_disk_is_used_as_a_disk_of_the_kernel_and_keeps_every_byte() -> anyhow::Result<()> {
    a_disk_is_used(Way::Disk)
}

fn a_disk_is_used(way: Way) -> anyhow::Result<()> {
    with_a_disk(64, |pair| {
        let desk = &pair.desk;
        let node = Node::new(desk, way)?;
        node.format(desk)?;
        node.mount(desk)?;
        desk.run(
            "cd /mnt/disk && for number in $(seq 40); do
                mkdir -p dir-$((number % 7)) &&
                    head -c $((number * number * 150)) /dev/urandom >\"dir-$((number % 7))/ünïcode $number\" || exit
            done",
        )?;
        let sums = "cd /mnt/disk && find . -type f -print0 | sort -z | xargs -0 sha256sum";
        let written = desk.run(sums)?;
        ensure!(written.lines().count() == 40, "{written}");
        desk.run("umount /mnt/disk")?;
        // Nothing of it is in desk's memory any more.
        desk.run("echo 3 >/proc/sys/vm/drop_caches")?;
        node.mount(desk)?;
        ensure!(desk.run(sums)? == written, "Desk reads what it has not written");
        desk.run("umount /mnt/disk")?;
        node.unsubscribe(pair)?;

        let (attic, disk) = (&pair.attic, pair.attic.node_of(DISK)?);
        attic.run(&format!("e2fsck -fn {disk} && mkdir -p /mnt/disk && mount -o ro {disk} /mnt/disk"))?;
        ensure!(attic.run(sums)? == written, "Attic's disk has not what desk has written");
        attic.run("umount /mnt/disk").map(drop)
    })
}
