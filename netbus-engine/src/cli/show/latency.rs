//! Where the time of requests goes, as tables.

use super::super::text::Table;
use super::super::units::brief;
use crate::latency::report::{ChannelReport, Report};
use crate::latency::{Component, Operation};

/// How long requests took, part by part of their way.
pub(in super::super) fn latency(report: &Report) -> String {
    let sections = [("Published", &report.published), ("Subscribed", &report.subscribed)];
    let sections = sections.map(|(title, channels)| {
        if channels.iter().all(|channel| channel.components.is_empty()) {
            return String::new();
        }
        format!("{title}\n{}", table(channels).lines("  "))
    });
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

fn table(channels: &[ChannelReport]) -> Table<8> {
    let rows = channels.iter().flat_map(|channel| {
        channel.components.iter().map(|times| {
            [
                channel.channel.clone(),
                channel.peer.clone(),
                operation(times.operation).to_owned(),
                component(times.component).to_owned(),
                times.count.to_string(),
                brief(times.median_nanoseconds),
                brief(times.p99_nanoseconds),
                brief(times.mean_nanoseconds),
            ]
        })
    });
    Table::new(["CHANNEL", "PEER", "OPERATION", "COMPONENT", "COUNT", "MEDIAN", "P99", "MEAN"], rows)
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "read",
        Operation::Write => "write",
        Operation::Flush => "flush",
    }
}

fn component(component: Component) -> &'static str {
    match component {
        Component::Frontend => "frontend",
        Component::Queue => "queue",
        Component::Encrypt => "encrypt",
        Component::Link => "link",
        Component::Decrypt => "decrypt",
        Component::Disk => "disk",
        Component::Back => "back",
    }
}
