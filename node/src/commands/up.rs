//! `mloc up` and `mloc join`: a daemon in the foreground, until SIGINT or SIGTERM.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use mloc_api::view::MeshView;
use mloc_mesh::token::{JoinToken, TOKEN_VARIABLE};

use crate::{
    cli::{DaemonArgs, JoinArgs, TokenArgs, UpArgs},
    client::{Client, Refusal},
    config::NodeConfig,
    front,
    node::{BadConfig, Node, user_tokens},
    reload::{Read, Source},
    show::{indented, say},
    telemetry,
};

/// How long the greeting waits for the leader's word on what the mesh survives.
const GREETING: Duration = Duration::from_secs(5);

/// `mloc up`.
pub async fn up(args: UpArgs) -> Result<(), Refusal> {
    let flags = args.node.clone();
    let read = move || {
        let mut config = settle(&args.node)?;
        if !args.seeds.is_empty() {
            config.seeds.clone_from(&args.seeds);
        }
        Ok(config)
    };
    serve(Arc::new(read), &flags).await
}

/// `mloc join`.
pub async fn join(args: JoinArgs) -> Result<(), Refusal> {
    let flags = args.node.clone();
    let read = move || {
        let mut config = settle(&args.node)?;
        config.seeds.insert(0, args.seed.clone());
        Ok(config)
    };
    serve(Arc::new(read), &flags).await
}

/// `mloc token`.
pub fn token(args: &TokenArgs) -> Result<(), Refusal> {
    let Some(user) = &args.user else {
        say!("{}", JoinToken::found(&mut rand::rng()).reveal());
        return Ok(());
    };
    let dir = data_dir_of(args.data_dir.as_deref(), args.config.as_deref())?;
    let file = dir.join(mloc_mesh::start::TOKEN_FILE);
    let token = JoinToken::from_file(&file)
        .with_context(|| format!("{}: user tokens are printed on a member, from its data directory", file.display()))?;
    say!("{}", user_tokens(&token).issue(user));
    Ok(())
}

/// File, then environment and flags (clap reads both; a flag stands above its variable).
pub(super) fn settle(args: &DaemonArgs) -> anyhow::Result<NodeConfig> {
    settled(args).context(BadConfig)
}

fn settled(args: &DaemonArgs) -> anyhow::Result<NodeConfig> {
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

/// Where a node of this machine keeps its data: as [`settle`] finds it. The file is read only where nothing stands above
/// it: one that broke since the daemon read it is no reason to call the daemon sick.
///
/// # Errors
/// When the file can't be read.
pub fn data_dir_of(given: Option<&Path>, config: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let of_file = config.map(NodeConfig::read).transpose().context(BadConfig)?.and_then(|config| config.data_dir);
    Ok(of_file.unwrap_or_else(default_data_dir))
}

/// `$XDG_DATA_HOME/mloc`, or `~/.local/share/mloc`; `./mloc-data` for a user without a home.
pub(super) fn default_data_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
    base.map_or_else(|| PathBuf::from("mloc-data"), |base| base.join("mloc"))
}

/// The join token, where one was given.
pub(super) fn given_token(file: Option<&Path>) -> anyhow::Result<Option<JoinToken>> {
    match file {
        Some(path) => Ok(Some(JoinToken::from_file(path)?)),
        None if std::env::var_os(TOKEN_VARIABLE).is_some_and(|v| !v.is_empty()) => {
            Ok(Some(JoinToken::from_env(TOKEN_VARIABLE)?))
        }
        None => Ok(None),
    }
}

async fn serve(read: Read, args: &DaemonArgs) -> Result<(), Refusal> {
    let config = read()?;
    // What changes from here on is read again, though the node may wait long to join.
    let source = args.config.clone().map(|file| Source::new(file, read));
    let seen = source.as_ref().map(|source| source.look(&config));
    let level = telemetry::start(args.log_json);
    level.choose(config.log.as_deref());
    let token = given_token(config.token_file.as_deref()).context(BadConfig)?;
    let stop = stop_signal()?;
    let node = tokio::select! {
        started = Node::start(config, token) => started?,
        () = stop.clone().cancelled_owned() => return Ok(()),
    };
    if let (Some(source), Some(seen)) = (source, seen) {
        node.follow(source, seen, level);
    }
    greet(&node);
    tokio::select! {
        said = survives(&node) => {
            tracing::info!("the mesh {}", said.replace('\n', "; "));
            say!("safety   {}", indented(&said));
        }
        () = stop.clone().cancelled_owned() => {}
    }
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
    say!("node     {} ({})", node.name, mesh.handle.node());
    say!("mesh     {}{}", mesh.handle.mesh_id(), if mesh.founded { " (founded just now)" } else { "" });
    say!("REST     http://{}", node.rest);
    // Secrets are for a person's eyes: what is no terminal is a log that somebody keeps.
    let for_eyes = std::io::stdout().is_terminal();
    if mesh.founded {
        let file = node.token_file();
        let token = if for_eyes { mesh.token.reveal() } else { format!("$(cat {})", file.display()) };
        say!("join     MLOC_JOIN_TOKEN={token} mloc join {}", advertised(node));
        say!("         the token is in {}; whoever has it can join", file.display());
    }
    if !node.rest.ip().is_loopback() {
        if for_eyes {
            say!("bearer   {}", user_tokens(&mesh.token).issue(mloc_api::auth::ADMIN));
        }
        say!("         REST asks for a bearer token: `mloc token USER` prints one; metadata.owner must match it");
    }
}

/// What the mesh survives with this node in it: the leader's word, by this node's own REST.
async fn survives(node: &Node) -> String {
    let ask = async {
        let token = user_tokens(&node.mesh.token).issue(mloc_api::auth::ADMIN);
        Client::at(&front::own(node.rest).to_string(), Some(token))?.get::<MeshView>("/api/v1/mesh", &[]).await
    };
    match tokio::time::timeout(GREETING, ask).await {
        Ok(Ok(mesh)) => mesh.advice,
        Ok(Err(refusal)) => format!("survives what is not known just now: {}", refusal.text),
        Err(_) => {
            "survives what is not known just now: it has no leader yet; `mloc mesh` says it when it has".to_owned()
        }
    }
}

fn advertised(node: &Node) -> SocketAddr {
    node.mesh.gossip_advertised
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_flag_stands_above_the_file_and_the_rest_of_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.yaml");
        let text =
            "name: in-file\ndataDir: /in/file\nprofile: wan\nrest: {bind: '127.0.0.1:1'}\nvolumes: {a: /a, b: /b}\n";
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let settled = |flags: &[&str]| {
            let command = Cli::parse_from([&["mloc", "up", "--config", &file], flags].concat()).command;
            let Command::Up(args) = command else { panic!("`mloc up` is {command:?}") };
            settle(&args.node).unwrap()
        };
        let plain = settled(&[]);
        assert_eq!((plain.name.as_deref(), plain.profile), (Some("in-file"), crate::config::Profile::Wan));
        let flags = ["--name", "in-flag", "--profile", "lan", "--rest-bind", "127.0.0.1:2", "--volume", "b=/flag"];
        let config = settled(&flags);
        assert_eq!((config.name.as_deref(), config.profile), (Some("in-flag"), crate::config::Profile::Lan));
        assert_eq!(config.rest.bind.map(|a| a.port()), Some(2));
        assert_eq!(config.data_dir, Some("/in/file".into()), "no flag, so it is the file's");
        assert_eq!(config.volumes["a"], PathBuf::from("/a"));
        assert_eq!(config.volumes["b"], PathBuf::from("/flag"));
    }
}
