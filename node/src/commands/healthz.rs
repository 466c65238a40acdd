//! `mloc healthz`: a probe for platforms that run a command in the container, where there is no curl.

use std::time::Duration;

use super::up::data_dir_of;
use crate::{
    cli::HealthzArgs,
    client::{Client, Refusal},
    front,
    show::say,
};

/// Shorter than the timeouts of those who probe.
const PATIENCE: Duration = Duration::from_secs(3);

/// Exit code 0 or 1 and nothing else: that is what HEALTHCHECK and exec probes know.
pub async fn healthz(args: HealthzArgs) -> Result<(), Refusal> {
    ask(args).await.map_err(|refusal| Refusal::new(1, refusal.text))
}

async fn ask(args: HealthzArgs) -> Result<(), Refusal> {
    let node = match args.node {
        Some(node) => node,
        None => front::rest_of(&data_dir_of(args.data_dir.as_deref(), args.config.as_deref())?)?.to_string(),
    };
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let client = Client::at(&node, None)?;
    let said = tokio::time::timeout(PATIENCE, client.text(path)).await;
    let late = |_| Refusal::new(1, format!("{node} does not answer {path} within {} s", PATIENCE.as_secs()));
    say!("{}", said.map_err(late)??.trim_end());
    Ok(())
}
