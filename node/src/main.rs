//! `mloc`: the command line, and the daemon behind `up`, `join` and `run`.

mod addresses;
mod bring;
mod cli;
mod client;
mod commands;
mod config;
mod control;
mod files;
mod follow;
mod front;
mod gpu_check;
mod init;
mod logs;
mod members;
mod memory;
mod metrics;
mod node;
mod offers;
mod places;
mod reload;
mod services;
mod settle;
mod show;
mod tail;
mod telemetry;
mod transfer_bar;
mod uploads;
mod views;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use cli::{BenchVerb, Cli, Command};

fn main() -> ExitCode {
    // Two TLS providers are linked (libp2p brings the second): name ours before anything speaks TLS.
    mloc_mesh::tls::install_crypto_provider();
    let cli = Cli::parse();
    // A child runs on plain threads: no runtime, no sockets.
    if let Command::Attempt { run } = &cli.command {
        // Its standard error is the attempt's log.
        telemetry::start_child();
        return mloc_runtime::child::main(run, mloc_modules::registry());
    }
    if matches!(cli.command, Command::Parse) {
        return mloc_modules::read_document();
    }
    if matches!(cli.command, Command::GpuCheck) {
        return gpu_check::main();
    }
    if let Command::Bench { verb } = cli.command {
        let done = match verb {
            BenchVerb::Train(args) => commands::bench::train(args),
            BenchVerb::Serve(args) => commands::bench::serve(&args),
        };
        return done.map_or_else(|refusal| refusal.report(), |()| ExitCode::SUCCESS);
    }
    if init::is_first() && matches!(cli.command, Command::Up(_) | Command::Join(_) | Command::Run(_)) {
        return init::stand_before().unwrap_or_else(|error| client::Refusal::from(error).report());
    }
    init::unblock();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => refusal.report(),
    }
}

async fn dispatch(command: Command) -> Result<(), client::Refusal> {
    use cli::ArtifactsVerb;
    use commands::{agent, artifacts, backup, chat, client as ask, doctor, healthz, restore, run, up};
    match command {
        Command::Up(args) => up::up(args).await,
        Command::Join(args) => up::join(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Submit(args) => ask::submit(args).await,
        Command::Tasks(args) => ask::tasks(args).await,
        Command::Task(args) => ask::task(args).await,
        Command::Logs(args) => ask::logs(args).await,
        Command::Cancel(args) => ask::cancel(args).await,
        Command::Explain(args) => ask::explain(args).await,
        Command::Artifacts { verb: ArtifactsVerb::Ls(args) } => artifacts::ls(args).await,
        Command::Artifacts { verb: ArtifactsVerb::Get(args) } => artifacts::get(args).await,
        Command::Services(args) => ask::services(args).await,
        Command::Chat(args) => chat::chat(args).await,
        Command::Agent { verb } => agent::agent(verb).await,
        Command::Nodes(args) => ask::nodes(args).await,
        Command::Drain(args) => ask::drain(args).await,
        Command::Revoke(args) => ask::revoke(args).await,
        Command::Stats(args) => ask::stats(args).await,
        Command::Mesh(args) => ask::mesh(args).await,
        Command::Cache(args) => commands::cache::cache(&args),
        Command::Doctor(args) => doctor::doctor(args).await,
        Command::Healthz(args) => healthz::healthz(args).await,
        Command::Token(args) => up::token(&args),
        Command::Backup(args) => backup::backup(args).await,
        Command::Restore(args) => restore::restore(args),
        // Handled before the runtime was built.
        Command::Attempt { .. } | Command::GpuCheck | Command::Parse | Command::Bench { .. } => Ok(()),
    }
}
