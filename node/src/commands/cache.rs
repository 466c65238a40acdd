//! `mloc cache`: what pulled models and data sets are on this machine, whether they are whole, and room.

use mloc_core::quantity::show_bytes;
use mloc_store::Cache;

use super::up::settle;
use crate::{
    cli::{CacheArgs, CacheVerb, DaemonArgs},
    client::Refusal,
    show::{self, say},
};

/// `mloc cache`.
pub fn cache(args: &CacheArgs) -> Result<(), Refusal> {
    let flags = DaemonArgs { config: args.config.clone(), data_dir: args.data_dir.clone(), ..DaemonArgs::default() };
    let config = settle(&flags)?.cache()?;
    let dir = config.dir.display().to_string();
    let cache = Cache::new(config);
    match args.what {
        CacheVerb::Ls => {
            show::holdings(&cache.holdings());
            say!("{} in {dir}", show_bytes(cache.bytes()));
        }
        CacheVerb::Verify => {
            let verified = cache.verify().map_err(anyhow::Error::from)?;
            verified.damaged.iter().for_each(|said| say!("{said}"));
            say!("{} files read, {}", verified.files, show_bytes(verified.bytes));
            if !verified.damaged.is_empty() {
                return Err(Refusal::new(
                    1,
                    format!(
                        "the cache in {dir} held damaged files\nhint: nothing else is to be done: they are fetched again when a task needs them"
                    ),
                ));
            }
        }
        CacheVerb::Prune => {
            let before = cache.bytes();
            cache.tidy();
            cache.prune();
            let after = cache.bytes();
            say!("{} freed, {} in use stay in {dir}", show_bytes(before.saturating_sub(after)), show_bytes(after));
        }
    }
    Ok(())
}
