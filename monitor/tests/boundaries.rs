//! The boundaries between crates, read from `cargo metadata`: what `docs/architecture.md` says is what the compiler sees.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each of our crates may depend on, of ours and of the crates that stand for a kind of I/O.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kanchi-crds", &["kube"]),
    ("kanchi-contract", &[]),
    ("kanchi-domain", &[]),
    ("kanchi-runtime", &["axum", "tokio"]),
    (
        "kanchi-broker",
        &["kanchi-contract", "kanchi-domain", "lapin", "redis", "tokio"],
    ),
    ("kanchi-store", &["kanchi-domain", "sqlx", "tokio"]),
    (
        "kanchi-ingest",
        &[
            "kanchi-contract",
            "kanchi-domain",
            "kanchi-broker",
            "kanchi-store",
            "tokio",
        ],
    ),
    (
        "kanchi-monitor",
        &[
            "kanchi-contract",
            "kanchi-domain",
            "kanchi-broker",
            "kanchi-store",
            "kanchi-ingest",
            "kanchi-runtime",
            "tokio",
        ],
    ),
    (
        "kanchi-operator",
        &[
            "kanchi-crds",
            "kanchi-contract",
            "kanchi-store",
            "kanchi-runtime",
            "kube",
            "tokio",
        ],
    ),
];

/// Crates that stand for I/O: a dependency on one of them must be allowed by name.
const IO: &[&str] = &["kube", "sqlx", "axum", "lapin", "redis", "tokio"];

#[test]
fn crates_depend_only_on_what_the_architecture_allows() {
    let dependencies = workspace_dependencies();
    for (krate, allowed) in ALLOWED {
        let found = dependencies.get(*krate).unwrap_or_else(|| panic!("no crate {krate}"));
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let surprises: Vec<_> = found
            .iter()
            .filter(|name| name.starts_with("kanchi-") || IO.contains(&name.as_str()))
            .filter(|name| !allowed.contains(name.as_str()))
            .collect();
        assert!(surprises.is_empty(), "{krate} may not depend on {surprises:?}");
    }
}

fn workspace_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").to_owned();
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
            let names = normal.map(|dependency| dependency["name"].as_str().expect("name").to_owned());
            (name, names.collect())
        })
        .collect()
}
