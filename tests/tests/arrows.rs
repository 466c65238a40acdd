//! The map's arrows hold: which crate may depend on which, and on which outside crates it must never come to depend.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Crate → crates of ours it may name. Everything else is an arrow that was bent.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mloc-core", &[]),
    ("mloc-kernels", &[]),
    ("mloc-burn", &["mloc-kernels"]),
    ("mloc-engine", &[]),
    ("mloc-cpu", &["mloc-engine"]),
    ("mloc-openai", &["mloc-engine"]),
    ("mloc-rag", &[]),
    ("mloc-agent", &[]),
    ("mloc-exec", &["mloc-core"]),
    ("mloc-mesh", &["mloc-core"]),
    ("mloc-api", &["mloc-core"]),
    ("mloc-store", &["mloc-core", "mloc-exec"]),
    ("mloc-runtime", &["mloc-core", "mloc-exec"]),
    ("mloc-serve", &["mloc-burn", "mloc-cpu", "mloc-engine", "mloc-openai"]),
    (
        "mloc-modules",
        &[
            "mloc-core",
            "mloc-exec",
            "mloc-burn",
            "mloc-cpu",
            "mloc-engine",
            "mloc-openai",
            "mloc-serve",
            "mloc-rag",
            "mloc-agent",
        ],
    ),
    ("mloc", &["mloc-core", "mloc-mesh", "mloc-exec", "mloc-store", "mloc-runtime", "mloc-modules", "mloc-api"]),
    ("mloc-tests", &[]),
    ("mloc-test-hub", &[]),
];

/// Crate → features that it is asked with below; others are asked as they are by default.
const FEATURES: &[(&str, &str)] = &[("mloc-kernels", "cubecl"), ("mloc", "cuda")];

/// Crate → crates that must be nowhere below it.
const NEVER: &[(&str, &[&str])] = &[
    ("mloc-core", &["tokio", "burn", "rand", "libp2p", "redb"]),
    ("mloc-mesh", &["burn", "axum", "opendal"]),
    ("mloc-exec", &["burn", "libp2p", "redb"]),
    ("mloc-api", &["burn", "libp2p", "redb", "opendal"]),
    ("mloc-runtime", &["burn", "libp2p", "axum"]),
    ("mloc-store", &["burn", "libp2p", "axum"]),
    ("mloc-burn", &["tokio", "libp2p", "axum"]),
    ("mloc-kernels", &["burn", "tokio", "libp2p", "wgpu"]),
    ("mloc", &["wgpu", "naga"]),
    ("mloc-engine", &["tokio", "burn", "axum"]),
    ("mloc-cpu", &["tokio", "burn", "axum"]),
    ("mloc-openai", &["burn", "libp2p", "redb"]),
    ("mloc-rag", &["burn", "libp2p", "opendal"]),
    ("mloc-agent", &["burn", "libp2p", "redb", "openssl", "aws-lc-rs"]),
];

#[test]
fn crates_depend_only_along_the_arrows_of_the_map() {
    let metadata = MetadataCommand::new()
        .manifest_path("../Cargo.toml")
        .other_options(["--locked".into(), "--filter-platform=x86_64-unknown-linux-gnu".into()])
        .exec();
    let metadata = metadata.expect("cargo metadata");
    let members: BTreeSet<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    assert_eq!(members, allowed.keys().copied().collect(), "every crate of the workspace has its row in ALLOWED");

    let mut bent = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let production = dependency.kind != DependencyKind::Development;
            if members.contains(name) && production && !allowed[package.name.as_str()].contains(&name) {
                bent.push(format!("{} → {name}", package.name));
            }
        }
    }
    assert!(bent.is_empty(), "arrows that are not on the map: {bent:?}");
}

/// Asked of `cargo tree`, which resolves features for one crate alone; `cargo metadata` unites them over the workspace.
#[test]
fn no_crate_links_what_it_must_never_link() {
    for (root, never) in NEVER {
        let features = FEATURES.iter().find(|(name, _)| name == root).map_or("", |(_, features)| features);
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", root])
            .args(["--features", features])
            .output()
            .expect("cargo tree");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let text = String::from_utf8(tree.stdout).expect("names are UTF-8");
        let below: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(below.contains(root), "cargo tree lists the crate itself");
        for name in *never {
            assert!(!below.contains(name), "{root} must never come to depend on {name}");
        }
    }
}
