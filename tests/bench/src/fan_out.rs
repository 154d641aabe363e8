//! Many subscribers that read one channel of one host at the same time.

use std::thread;

use anyhow::{Result, anyhow};

use crate::bus::Node;
use crate::fio::{Direction, Job, Order};
use crate::statistics::Sample;
use crate::table::{Measured, Report, Row, Target, Unit};
use crate::{Run, fio};

const CHANNEL: &str = "shared";
const SUBSCRIBERS: usize = 8;
const LEAST_RATIO: f64 = 0.9;
const JOB: Job = Job { direction: Direction::Read, order: Order::Sequential, block_size: 1 << 20, depth: 8 };

/// Measures one subscriber alone, then all together, in each round.
pub(crate) fn measure(run: &Run, report: &mut Report) -> Result<()> {
    if !run.wants("fan-out") {
        return Ok(());
    }
    let image = run.images.make("shared.img", run.size)?;
    let host = Node::start("library", &run.netbus, run.folder.path())?;
    let readers: Vec<Node> = (1..=SUBSCRIBERS)
        .map(|number| Node::start(&format!("reader-{number}"), &run.netbus, run.folder.path()))
        .collect::<Result<_>>()?;
    for reader in &readers {
        host.pair(reader)?;
    }
    host.publish(&image, CHANNEL)?;
    let uris: Vec<String> =
        readers.iter().map(|reader| reader.subscribe(&host, CHANNEL, true)).collect::<Result<_>>()?;

    let (mut one, mut all) = (Sample::default(), Sample::default());
    for round in 1..=run.rounds {
        one.add(total(run, &uris[..1])?);
        all.add(total(run, &uris)?);
        run.progress(&format!("{SUBSCRIBERS} subscribers, round {round}"))?;
    }
    for reader in readers {
        reader.stop()?;
    }
    host.stop()?;
    run.images.remove(&image)?;
    report.rows.push(Row::Measured(Measured {
        work: format!("1 MiB sequential read, depth 8, {SUBSCRIBERS} subscribers of one channel, total"),
        unit: Unit::BytesPerSecond,
        ours: all,
        against: Some(("one subscriber".to_owned(), one)),
        target: Some(Target::RatioAtLeast(LEAST_RATIO)),
    }));
    Ok(())
}

/// The bytes per second of clients that work at the same time.
fn total(run: &Run, uris: &[String]) -> Result<f64> {
    let done: Vec<Result<fio::Done>> = thread::scope(|scope| {
        let clients: Vec<_> = uris.iter().map(|uri| scope.spawn(move || run.client.run(JOB, uri, run.size))).collect();
        let panicked = |_| Err(anyhow!("A client's thread panicked"));
        clients.into_iter().map(|client| client.join().unwrap_or_else(panicked)).collect()
    });
    done.into_iter().map(|done| Ok(done?.bytes_per_second)).sum()
}
