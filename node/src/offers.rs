//! What this node offers the mesh: hardware as found or as configured, and the features of what it has and is told.

use std::{collections::BTreeSet, time::Duration};

use anyhow::bail;
use mloc_core::{
    capability::{Capability, Gpu, SIMULATED},
    quantity,
    task::agent::UNFENCED,
};
use mloc_exec::Sandbox;
use mloc_mesh::handle::MeshHandle;
use mloc_runtime::ProbeSettings;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::{CommandModule, NodeConfig, Vote},
    gpu_check::{self, Checked},
};

/// Volatile figures (GPU use, free disk) are read and gossiped this often.
const LOAD_EVERY: Duration = Duration::from_secs(5);
/// The module that runs programs of users.
const COMMAND: &str = "command";

/// Whether programs of users can be held to their folders as the configuration wants it.
fn check_sandbox(command: &CommandModule) -> anyhow::Result<()> {
    if command.enabled
        && command.sandbox == Sandbox::Required
        && let Err(why) = mloc_modules::sandbox_available()
    {
        bail!(
            "modules.command: programs of users cannot be held to their folders here: {why}\nhint: allow Landlock (Linux 6.2, and a container whose filter lets it pass), or set modules.command.sandbox: best-effort"
        );
    }
    Ok(())
}

/// Says what programs of users can do here, before any is run.
pub fn announce_programs(command: &CommandModule) {
    match (command.enabled, command.sandbox, mloc_modules::sandbox_available()) {
        (false, ..) => {}
        (true, Sandbox::Required | Sandbox::BestEffort, Ok(())) => {
            info!("programs of users run here, held to their folders");
        }
        (true, Sandbox::Off, _) => warn!("programs of users run here and can do whatever this node's user can"),
        (true, _, Err(why)) => warn!(%why, "programs of users run here and can do whatever this node's user can"),
    }
}

/// What the configuration says of this node's offers.
#[derive(Clone, Debug)]
pub struct Offers {
    cpu_millis: Option<u64>,
    memory_bytes: Option<u64>,
    simulated: Vec<Gpu>,
    /// Modules, places, secrets: what a task may require by name.
    pub features: BTreeSet<String>,
}

impl Offers {
    /// Checks all of it.
    ///
    /// # Errors
    /// An amount that is none, a module that this build lacks, programs of users that must be held and cannot be.
    pub fn settle(config: &NodeConfig, of_store: Vec<String>) -> anyhow::Result<Self> {
        let bad = |key: &str, text: &str, e: quantity::BadQuantity| anyhow::anyhow!("hardware.{key}: `{text}`: {e}");
        let hardware = &config.hardware;
        let cpu = hardware.cpu.as_ref();
        let cpu_millis = cpu.map(|text| quantity::cpu_millis(text).map_err(|e| bad("cpu", text, e))).transpose()?;
        let memory = hardware.memory.as_ref();
        let memory_bytes = memory.map(|text| quantity::bytes(text).map_err(|e| bad("memory", text, e))).transpose()?;
        let mut simulated = Vec::new();
        for gpus in &hardware.simulated.gpus {
            let memory_bytes =
                quantity::bytes(&gpus.memory).map_err(|e| bad("simulated.gpus.memory", &gpus.memory, e))?;
            let kind = gpus.kind.strip_prefix(SIMULATED).unwrap_or(&gpus.kind);
            let gpu = Gpu {
                index: 0,
                kind: format!("{SIMULATED}{kind}"),
                memory_bytes,
                driver: "simulated".into(),
                utilisation_percent: 0,
                unusable: None,
                unusable_for_good: false,
            };
            simulated.extend((0..gpus.count).map(|_| gpu.clone()));
        }
        let known: BTreeSet<&str> = mloc_modules::registry().iter().map(|module| module.name()).collect();
        if let Some(odd) = config.modules.offer.iter().flatten().find(|name| !known.contains(name.as_str())) {
            bail!(
                "modules.offer: this build has no `{odd}`; it has {}",
                known.into_iter().collect::<Vec<_>>().join(", ")
            );
        }
        let offer = config.modules.offer.as_ref();
        let wanted = |name: &str| match name {
            COMMAND => config.modules.command.enabled,
            _ => offer.is_none_or(|names| names.iter().any(|n| n == name)),
        };
        check_sandbox(&config.modules.command)?;
        let modules: Vec<_> = mloc_modules::registry().iter().filter(|m| wanted(m.name())).collect();
        let mut features: BTreeSet<String> = modules.iter().map(|m| m.name().to_owned()).collect();
        features.extend(of_store);
        features.extend(config.secrets.keys().map(|name| format!("secret:{name}")));
        features.extend(modules.iter().flat_map(|m| m.features()));
        if config.modules.command.enabled && config.modules.command.sandbox == Sandbox::Off {
            features.insert(UNFENCED.to_owned());
        }
        Ok(Self { cpu_millis, memory_bytes, simulated, features })
    }
}

/// What this node offers: what was found, unless its configuration says otherwise.
pub fn capability(
    settings: &ProbeSettings,
    config: &NodeConfig,
    name: &str,
    offers: &Offers,
    checked: &Checked,
) -> Capability {
    let mut found = mloc_runtime::probe(settings);
    gpu_check::mark(&mut found.gpus, checked);
    name.clone_into(&mut found.name);
    env!("CARGO_PKG_VERSION").clone_into(&mut found.version);
    found.cpu_millis = offers.cpu_millis.unwrap_or(found.cpu_millis);
    found.memory_bytes = offers.memory_bytes.unwrap_or(found.memory_bytes);
    for gpu in &offers.simulated {
        let index = u32::try_from(found.gpus.len()).unwrap_or(u32::MAX);
        found.gpus.push(Gpu { index, ..gpu.clone() });
    }
    found.features.clone_from(&offers.features);
    found.labels.clone_from(&config.labels);
    found.work = config.role.work;
    found.vote = config.role.vote == Vote::Auto && config.role.reachable;
    found.reachable = config.role.reachable;
    found
}

/// Gossips what this node offers whenever it changes, with the measured matmul rate once that is there, and with each GPU
/// once this program has computed on it.
pub async fn keep_capability(
    mesh: MeshHandle,
    settings: ProbeSettings,
    name: String,
    mut offers: watch::Receiver<(NodeConfig, Offers)>,
) {
    let measured = tokio::task::spawn_blocking(mloc_modules::measure_matmul).await.ok();
    let mut ticks = tokio::time::interval(LOAD_EVERY);
    // A GPU's first product takes many of them.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut checked = Checked::default();
    loop {
        let (again, named, (with, offered)) = (settings.clone(), name.clone(), offers.borrow_and_update().clone());
        let tried = checked.clone();
        let probed = tokio::task::spawn_blocking(move || capability(&again, &with, &named, &offered, &tried)).await;
        if let Ok(mut found) = probed {
            found.matmul_gflops = measured;
            // Disk in steps of 256 MiB: every byte would be news to the whole mesh.
            found.disk_bytes &= !((256 << 20) - 1);
            if let Err(error) = mesh.publish_capability(&found).await {
                warn!(%error, "this node's hardware is gossiped as it was before");
            }
            let held =
                |index| mesh.read(|ledger| ledger.live_attempts_on(mesh.node()).any(|a| a.grant.gpus.contains(&index)));
            if let Some(index) = gpu_check::next(&found.gpus, held) {
                let tried = gpu_check::check(index).await;
                match &tried {
                    Ok(found) => info!(index, gflops_bf16 = found.gflops_bf16, "this GPU computes"),
                    Err(why) => warn!(index, why, "this GPU is not offered"),
                }
                checked.insert(index, tried);
                continue;
            }
        }
        tokio::select! {
            _ = ticks.tick() => {}
            // Ends with the node, and this with it.
            Ok(()) = offers.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_offered_by_name_and_s3_always() {
        let config = NodeConfig::parse("secrets: {HUB_TOKEN: /run/secrets/hub}\n").unwrap();
        let of_store = mloc_store::Store::new(crate::settle::store(&config).unwrap()).unwrap().features();
        let offers = Offers::settle(&config, of_store).unwrap();
        for feature in ["secret:HUB_TOKEN", "source:s3", "destination:s3"] {
            assert!(offers.features.contains(feature), "{:?}", offers.features);
        }
    }

    #[test]
    fn programs_of_users_are_offered_only_where_that_is_switched_on() {
        let features = |yaml: &str| Offers::settle(&NodeConfig::parse(yaml).unwrap(), vec![]).unwrap().features;
        assert!(!features("name: a").contains(COMMAND) && features("name: a").contains("sft"));
        let on = features("modules: {offer: [echo], command: {enabled: true, sandbox: off}}");
        assert!(on.contains(COMMAND) && on.contains("echo") && !on.contains("sft"), "{on:?}");
        let held = features("modules: {command: {enabled: true, sandbox: best-effort}}");
        assert!(on.contains(UNFENCED) && !held.contains(UNFENCED));
    }
}
