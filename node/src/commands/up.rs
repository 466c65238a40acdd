//! `mloc up` and `mloc join`: a daemon in the foreground, until SIGINT or SIGTERM.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, bail};
use mloc_mesh::token::{JoinToken, TOKEN_VARIABLE};

use crate::{
    cli::{DaemonArgs, JoinArgs, TokenArgs, UpArgs},
    client::Refusal,
    config::NodeConfig,
    node::{Node, user_tokens},
    telemetry,
};

/// `mloc up`.
pub async fn up(args: UpArgs) -> Result<(), Refusal> {
    let mut config = settle(&args.node)?;
    if !args.seeds.is_empty() {
        config.seeds = args.seeds;
    }
    serve(config, &args.node).await
}

/// `mloc join`.
pub async fn join(args: JoinArgs) -> Result<(), Refusal> {
    let mut config = settle(&args.node)?;
    config.seeds.insert(0, args.seed);
    serve(config, &args.node).await
}

/// `mloc token`.
pub fn token(args: &TokenArgs) -> Result<(), Refusal> {
    let dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    let file = dir.join(mloc_mesh::start::TOKEN_FILE);
    let token = JoinToken::from_file(&file)
        .with_context(|| format!("{}: user tokens are printed on a member, from its data directory", file.display()))?;
    println!("{}", user_tokens(&token).issue(&args.user));
    Ok(())
}

/// File, then environment and flags (clap reads both; a flag stands above its variable).
fn settle(args: &DaemonArgs) -> anyhow::Result<NodeConfig> {
    let mut config = match &args.config {
        Some(path) => NodeConfig::read(path)?,
        None => NodeConfig::default(),
    };
    fn over<T: Clone>(slot: &mut Option<T>, given: &Option<T>) {
        if given.is_some() {
            slot.clone_from(given);
        }
    }
    over(&mut config.name, &args.name);
    over(&mut config.data_dir, &args.data_dir);
    over(&mut config.gossip.bind, &args.bind);
    over(&mut config.gossip.advertise, &args.advertise);
    over(&mut config.links.bind, &args.link_bind);
    over(&mut config.links.advertise, &args.link_advertise);
    over(&mut config.rest.bind, &args.rest_bind);
    over(&mut config.token_file, &args.token_file);
    if let Some(profile) = args.profile {
        config.profile = profile;
    }
    for volume in &args.volumes {
        let Some((name, path)) = volume.split_once('=') else {
            bail!("--volume {volume}: expected NAME=PATH");
        };
        config.volumes.insert(name.to_owned(), PathBuf::from(path));
    }
    if config.data_dir.is_none() {
        config.data_dir = Some(default_data_dir());
    }
    config.check()?;
    Ok(config)
}

/// `$XDG_DATA_HOME/mloc`, or `~/.local/share/mloc`; `./mloc-data` for a user without a home.
fn default_data_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
    base.map_or_else(|| PathBuf::from("mloc-data"), |base| base.join("mloc"))
}

/// The join token, where one was given.
fn given_token(config: &NodeConfig) -> anyhow::Result<Option<JoinToken>> {
    match &config.token_file {
        Some(path) => Ok(Some(JoinToken::from_file(path)?)),
        None if std::env::var_os(TOKEN_VARIABLE).is_some_and(|v| !v.is_empty()) => {
            Ok(Some(JoinToken::from_env(TOKEN_VARIABLE)?))
        }
        None => Ok(None),
    }
}

async fn serve(config: NodeConfig, args: &DaemonArgs) -> Result<(), Refusal> {
    telemetry::start(args.log_json);
    let token = given_token(&config)?;
    let stop = stop_signal()?;
    let node = tokio::select! {
        started = Node::start(config, token) => started?,
        () = stop.clone().cancelled_owned() => return Ok(()),
    };
    greet(&node);
    tokio::select! {
        () = stop.cancelled_owned() => tracing::info!("stopping: attempts save a checkpoint, the lead is handed over"),
        why = node.failed() => {
            node.stop().await;
            return Err(Refusal::new(1, why));
        }
    }
    node.stop().await;
    Ok(())
}

/// Cancelled by the first SIGINT or SIGTERM.
fn stop_signal() -> anyhow::Result<tokio_util::sync::CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = tokio_util::sync::CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cancel = token.clone();
    // Lives as long as the process.
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// What a person needs next.
fn greet(node: &Node) {
    let mesh = &node.mesh;
    println!("node     {} ({})", node.name, mesh.handle.node());
    println!("mesh     {}{}", mesh.handle.mesh_id(), if mesh.founded { " (founded just now)" } else { "" });
    println!("REST     http://{}", node.rest);
    if mesh.founded {
        println!("join     MLOC_JOIN_TOKEN={} mloc join {}", mesh.token.reveal(), advertised(node));
        println!("         the token is in {} too; whoever has it can join", node.token_file().display());
    }
    if !node.rest.ip().is_loopback() {
        println!("bearer   {}", user_tokens(&mesh.token).issue(mloc_api::auth::ADMIN));
        println!("         `mloc token USER` prints one for a user; metadata.owner must match it");
    }
}

fn advertised(node: &Node) -> SocketAddr {
    node.mesh.gossip_advertised
}
