//! The direction of dependencies between the workspace's crates, as one table.

use anyhow::{Context, Result};
use serde_json::Value;

/// What one crate of the workspace may depend on.
struct Layer {
    name: &'static str,
    /// Crates of the workspace, for any purpose, tests included.
    workspace: &'static [&'static str],
    /// Crates from outside that are built into it; `None`: any.
    outside: Option<&'static [&'static str]>,
}

/// Lower crates first. A crate that is not here does not pass: its author decides where it belongs.
const LAYERS: [Layer; 10] = [
    // No I/O, no clock, no runtime: what a test cannot drive by hand stays out.
    Layer { name: "netbus-proto", workspace: &[], outside: Some(&["bytes", "minicbor", "sha2", "thiserror"]) },
    // What a client of the daemon builds, and so little.
    Layer {
        name: "netbus-control",
        workspace: &["netbus-proto"],
        outside: Some(&[
            "futures",
            "interprocess",
            "jiff",
            "rustix",
            "serde",
            "serde_json",
            "sha2",
            "thiserror",
            "tokio",
            "tracing",
            "ts-rs",
            "widestring",
        ]),
    },
    // The words of the helper, for those who ask and for the one who answers.
    Layer { name: "netbus-helper-interface", workspace: &[], outside: Some(&["serde", "zbus"]) },
    // Runs as root: what is built into it is what somebody who reads it must trust.
    Layer {
        name: "netbus-helper",
        workspace: &["netbus-helper-interface"],
        outside: Some(&["anyhow", "blocking", "rustix", "zbus"]),
    },
    Layer {
        name: "netbus-engine",
        workspace: &["netbus-control", "netbus-proto", "netbus-helper-interface"],
        outside: None,
    },
    Layer { name: "netbus-lan-tests", workspace: &["netbus-proto", "netbus-engine"], outside: None },
    // Knows Netbus by its programs, and by the words that they are spoken to with. Parts of it plug USB devices
    // in, and use some, with what the daemon does that.
    Layer {
        name: "netbus-vm-tests",
        workspace: &["netbus-proto", "netbus-engine", "netbus-lan-tests", "netbus-helper-interface"],
        outside: None,
    },
    // Its machines are those of the tests. A part of it stands for a host.
    Layer {
        name: "netbus-bench",
        workspace: &["netbus-proto", "netbus-engine", "netbus-lan-tests", "netbus-vm-tests"],
        outside: None,
    },
    // Knows the window by its program and by what is in it.
    Layer { name: "netbus-app-tests", workspace: &["netbus-lan-tests"], outside: None },
    // Builds in seconds on a fresh machine, whatever state the other crates are in.
    Layer { name: "xtask", workspace: &[], outside: Some(&["anyhow", "clap", "serde_json"]) },
];

/// Every dependency in what `cargo metadata --no-deps` printed that the table does not allow, as a sentence each.
///
/// # Errors
/// The text does not have the form of cargo's metadata.
pub(crate) fn violations(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let members: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("A package in cargo metadata has no name")?;
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
            violations.push(format!("{name} is not in the table of layers (xtask/src/check/layers.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("A package in cargo metadata lists nothing")? {
            let on = dependency["name"].as_str().context("A dependency in cargo metadata has no name")?;
            let for_tests = dependency["kind"] == "dev";
            if !layer.allows(on, members.contains(&on), for_tests) {
                violations.push(format!("{name} must not depend on {on}"));
            }
        }
    }
    Ok(violations)
}

impl Layer {
    fn allows(&self, on: &str, is_member: bool, for_tests: bool) -> bool {
        if is_member {
            return self.workspace.contains(&on);
        }
        for_tests || self.outside.is_none_or(|outside| outside.contains(&on))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn the_engine_may_use_the_protocol_and_anything_outside() {
        let found = with(&[
            ("netbus-proto", &[("bytes", "normal")]),
            ("netbus-engine", &[("netbus-proto", "normal"), ("tokio", "normal")]),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn the_protocol_may_not_use_the_engine_even_for_tests() {
        let found = with(&[("netbus-proto", &[("netbus-engine", "dev")]), ("netbus-engine", &[])]);
        assert_eq!(found, ["netbus-proto must not depend on netbus-engine"]);
    }

    #[test]
    fn the_protocol_has_no_runtime_but_its_tests_may_use_a_library() {
        let found = with(&[("netbus-proto", &[("tokio", "normal"), ("proptest", "dev"), ("cc", "build")])]);
        assert_eq!(found, ["netbus-proto must not depend on tokio", "netbus-proto must not depend on cc"]);
    }

    #[test]
    fn nobody_uses_the_verbs_and_the_verbs_use_nobody() {
        let found = with(&[("netbus-engine", &[("xtask", "dev")]), ("xtask", &[("netbus-engine", "normal")])]);
        assert_eq!(found, ["netbus-engine must not depend on xtask", "xtask must not depend on netbus-engine"]);
    }

    #[test]
    fn a_crate_without_a_layer_does_not_pass() {
        assert_eq!(with(&[("netbus-extra", &[])]).len(), 1);
    }

    fn with(packages: &[(&str, &[(&str, &str)])]) -> Vec<String> {
        let packages: Vec<Value> = packages.iter().map(|(name, on)| package(name, on)).collect();
        violations(&json!({ "packages": packages })).unwrap()
    }

    fn package(name: &str, dependencies: &[(&str, &str)]) -> Value {
        let dependencies: Vec<Value> = dependencies
            .iter()
            .map(|(on, kind)| json!({ "name": on, "kind": if *kind == "normal" { Value::Null } else { json!(kind) } }))
            .collect();
        json!({ "name": name, "dependencies": dependencies })
    }
}
