//! The promise as a whole: through faults of every kind, in any order, nobody gets an error and nothing is lost.

use std::path::Path;

use anyhow::ensure;

use super::chaos::{Chaos, Fault, in_chaos};
use super::scene::{becomes, nobody_uses};
use super::witness::Witness;

#[test]
fn what_fio_writes_verifies_through_faults_of_every_kind() -> anyhow::Result<()> {
    in_chaos(16, |chaos, node, faults| {
        let stop = chaos.scene.desk.folder.join("stop");
        let script = format!(
            "cd '{}' && until [ -e stop ]; do fio --name=verify --filename='{}' --rw=randwrite --bs=4k --size=8M \
             --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --fsync=32 --rate_iops=1000 \
             --output=fio.log || {{ cat fio.log; exit 1; }}; echo verified; done",
            chaos.scene.desk.folder.display(),
            node.display()
        );
        let mut fio = chaos.scene.desk.script(&script);
        let fio = std::thread::spawn(move || fio.output());
        let result = strike(chaos, faults, || fio.is_finished());
        std::fs::write(stop, "")?;
        let output = netbus_lan_tests::wait_for("fio ends", || Ok(fio.is_finished().then_some(())))
            .and_then(|()| Ok(fio.join().map_err(|_| anyhow::anyhow!("fio's thread panicked"))??))?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(told.matches("verified").count() > 0, "fio has verified nothing");
        println!("fio verified {} times", told.matches("verified").count());
        result?;
        chaos.scene.unsubscribe()
    })
}

/// Strikes again and again while an application goes on.
fn strike(chaos: &mut Chaos<'_>, faults: u32, has_ended: impl Fn() -> bool) -> anyhow::Result<()> {
    for _ in 0..faults {
        chaos.strike(&Fault::OUTLIVED)?;
        // Now and then the next one does not wait until all is well.
        if chaos.draw(4) != 0 {
            becomes(&chaos.scene.desk, "active")?;
        }
        ensure!(!has_ended(), "fio has ended");
    }
    becomes(&chaos.scene.desk, "active").map(drop)
}

#[test]
fn what_a_writer_was_told_is_safe_outlives_faults_of_every_kind() -> anyhow::Result<()> {
    let all: Vec<Fault> = Fault::OUTLIVED.into_iter().chain([Fault::UserKilled]).collect();
    in_chaos(8, |chaos, node, faults| {
        let witness = Witness::new(chaos.draw(u64::MAX), node)?;
        let mut life = witness.live(node)?;
        life.goes_on(&witness)?;
        for _ in 0..faults {
            if chaos.strike(&all)? == Fault::UserKilled {
                life.fails()?;
                witness.check(node)?;
                life = witness.live(node)?;
            }
            if chaos.draw(4) != 0 {
                life.goes_on(&witness)?;
            }
        }
        life.goes_on(&witness)?;
        life.end()?;
        println!("{} syncs were kept", witness.synced());
        handed_back(chaos, &witness, node)
    })
}

/// The node and, after it was handed back, the image show what was written.
fn handed_back(chaos: &mut Chaos<'_>, witness: &Witness, node: &Path) -> anyhow::Result<()> {
    witness.check(node)?;
    chaos.scene.unsubscribe()?;
    nobody_uses(&chaos.scene.attic)?;
    witness.check(&chaos.scene.image_here())
}
