//! The types of the page, written from those of this crate and of the control API.

use std::env;
use std::fs;
use std::path::Path;

use netbus_control::api::{
    Answer, ApiError, Call, ChannelInfo, ErrorKind, Holder, NodePath, PairingCode, PeerInfo, Published, PublishedState,
    Status, Subscribed, SubscribedState,
};
use netbus_control::device::LocalDevice;
use netbus_control::latency::{ChannelReport, Component, ComponentReport, Operation, Report};
use ts_rs::{Config, TS};

use crate::view::{Snapshot, View};

const FILE: &str = "../ui/src/generated/api.ts";

fn text() -> String {
    // JSON has one kind of number, and no size here comes near its limit.
    let config = Config::new().with_large_int("number");
    let mut text = String::from("// Written from the Rust types by `NETBUS_WRITE_TYPES=1 cargo test types`.\n");
    macro_rules! write {
        ($($kind:ty),+ $(,)?) => { $(
            text.push_str("\nexport ");
            text.push_str(&<$kind>::decl(&config));
            text.push('\n');
        )+ };
    }
    write!(
        View,
        Snapshot,
        Call,
        PairingCode,
        Answer,
        ApiError,
        ErrorKind,
        Status,
        Published,
        PublishedState,
        Holder,
        Subscribed,
        SubscribedState,
        NodePath,
        PeerInfo,
        ChannelInfo,
        LocalDevice,
        Report,
        ChannelReport,
        ComponentReport,
        Component,
        Operation,
    );
    text
}

#[test]
fn the_types_of_the_page_are_those_of_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if env::var_os("NETBUS_WRITE_TYPES").is_some() {
        fs::write(&path, text()).expect("The folder of generated types can be written to");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text(),
        "ui/src/generated/api.ts is not what the Rust types give. To write it anew, and commit what that changes: \
         (cd src-tauri && NETBUS_WRITE_TYPES=1 cargo test types)"
    );
}
