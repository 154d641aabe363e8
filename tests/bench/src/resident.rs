//! The memory of a daemon that has nothing to do.

use anyhow::Result;

use crate::statistics::Sample;
use crate::table::{Measured, Report, Row, Target, Unit};
use crate::{Run, bus};

const MOST_MEBIBYTES: f64 = 20.0;

/// Starts a fresh daemon in each round and reads what it has resident once it answers.
pub(crate) fn measure(run: &Run, report: &mut Report) -> Result<()> {
    if !run.wants("memory") {
        return Ok(());
    }
    let mut ours = Sample::default();
    for round in 1..=run.rounds {
        let node = bus::Node::start(&format!("idle-{round}"), &run.netbus, run.folder.path())?;
        ours.add(node.memory()?);
        node.stop()?;
    }
    let work = "idle daemon, resident memory".to_owned();
    let target = Some(Target::ValueBelow(MOST_MEBIBYTES));
    report.rows.push(Row::Measured(Measured { work, unit: Unit::Mebibytes, ours, against: None, target }));
    Ok(())
}
