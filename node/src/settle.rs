//! What node.yaml says, in the words of the crates that do it. Files that it names are read here.

use std::{collections::BTreeMap, num::NonZeroUsize, path::Path, time::Duration};

use mloc_core::leader::Settings as LeaderSettings;
use mloc_exec::Programs;
use mloc_store::{Secret, StoreConfig};

use crate::{config::NodeConfig, uploads::Limits};

fn secret(path: &Path) -> anyhow::Result<String> {
    crate::client::read_secret(path)
}

/// Secrets that tasks may ask for, by name.
///
/// # Errors
/// A file that can't be read, or that others can read.
pub fn secrets(config: &NodeConfig) -> anyhow::Result<BTreeMap<String, String>> {
    config.secrets.iter().map(|(name, path)| Ok((name.clone(), secret(path)?))).collect()
}

/// Places, accounts, cache.
///
/// # Errors
/// Whatever can't be meant, with the key.
pub fn store(config: &NodeConfig) -> anyhow::Result<StoreConfig> {
    let cache = config.cache()?;
    let mut store = StoreConfig { volumes: config.volumes.clone(), cache, ..StoreConfig::default() };
    store.s3.endpoint = config.s3.endpoint.clone().or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
    store.s3.region.clone_from(&config.s3.region);
    store.s3.access_key_id = config.s3.access_key_id_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.secret_access_key = config.s3.secret_access_key_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.session_token = config.s3.session_token_file.as_deref().map(secret).transpose()?.map(Secret::new);
    store.s3.anonymous = config.s3.anonymous;
    config.store.settle(&mut store, secret)?;
    Ok(store)
}

/// An upload that says nothing for so long has broken off: its client goes on with another.
const UPLOAD_SILENCE: Duration = Duration::from_secs(60);

/// What clients may leave here.
///
/// # Errors
/// Amounts that are none.
pub fn upload_limits(config: &NodeConfig) -> anyhow::Result<Limits> {
    let (bytes_max, keep_for) = config.uploads.settle()?;
    let reserve = StoreConfig::default().reserve_bytes;
    Ok(Limits { bytes_max, reserve, keep_for, silence: UPLOAD_SILENCE })
}

/// How programs of users run here.
pub fn programs(config: &NodeConfig) -> Programs {
    let command = &config.modules.command;
    let processes = command.processes.map_or(Programs::PROCESSES, NonZeroUsize::get);
    Programs { sandbox: command.sandbox, hidden: config.secret_files(), processes }
}

/// The leader's pacing. A short lease (tests, small LANs) has short pacing too.
pub fn leader(lease: Duration) -> LeaderSettings {
    let ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    let default = LeaderSettings::default();
    LeaderSettings {
        lease_ms: ms,
        slack_ms: default.slack_ms.min(ms / 6),
        resend_ms: default.resend_ms.min(ms / 6),
        resend_max_ms: default.resend_max_ms.min(ms / 2),
        ..default
    }
}
