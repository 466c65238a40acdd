//! The map's arrows hold: which crate may depend on which, and on which outside crates it must never come to depend.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand, PackageId};

/// Crate → crates of ours it may name. Everything else is an arrow that was bent.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mloc-core", &[]),
    ("mloc-burn", &[]),
    ("mloc-exec", &["mloc-core"]),
    ("mloc-mesh", &["mloc-core"]),
    ("mloc-api", &["mloc-core"]),
    ("mloc-store", &["mloc-core", "mloc-exec"]),
    ("mloc-runtime", &["mloc-core", "mloc-exec"]),
    ("mloc-modules", &["mloc-core", "mloc-exec", "mloc-burn"]),
    ("mloc", &["mloc-core", "mloc-mesh", "mloc-exec", "mloc-store", "mloc-runtime", "mloc-modules", "mloc-api"]),
    ("mloc-tests", &["mloc-core", "mloc-mesh", "mloc-exec", "mloc-store", "mloc-runtime", "mloc-api", "mloc"]),
];

/// Crate → crates that must be nowhere below it.
const NEVER: &[(&str, &[&str])] = &[
    ("mloc-core", &["tokio", "burn", "rand", "libp2p", "redb"]),
    ("mloc-mesh", &["burn", "axum", "opendal"]),
    ("mloc-exec", &["burn", "libp2p", "redb"]),
    ("mloc-api", &["burn", "libp2p", "redb", "opendal"]),
    ("mloc-runtime", &["burn", "libp2p", "axum"]),
    ("mloc-store", &["burn", "libp2p", "axum"]),
    ("mloc-burn", &["tokio", "libp2p", "axum"]),
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

    let resolve = metadata.resolve.as_ref().expect("resolved graph");
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    for (root, never) in NEVER {
        let root_id = &metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == *root).expect(root).id;
        let mut seen = BTreeSet::from([root_id]);
        let mut queue = vec![root_id];
        while let Some(id) = queue.pop() {
            for dep in &nodes[id].deps {
                let normal = dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
                if normal && seen.insert(&dep.pkg) {
                    queue.push(&dep.pkg);
                }
            }
        }
        for id in seen {
            let name = metadata[id].name.as_str();
            assert!(!never.contains(&name), "{root} must never come to depend on {name}");
        }
    }
}
