//! The command line. Secrets never come by flag: argv is world-readable.

mod bench;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::bench::{BenchFormat, BenchMethod, BenchQuantization, BenchServeArgs, BenchTrainArgs, BenchVerb};
use crate::config::Profile;

/// Runs LLM work on machines nobody planned as a cluster.
///
/// Exit codes: 0 done; 1 it failed; 2 the command line or the task is wrong; 3 no such thing; 4 the mesh can't answer
/// just now; 5 not allowed; 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "mloc", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a node: found a mesh on an empty data directory, or go on where it was
    Up(UpArgs),
    /// Start a node that joins a mesh by one member's address; the token comes by --token-file or MLOC_JOIN_TOKEN
    Join(JoinArgs),
    /// Run one task file on an embedded one-node mesh, watch it, and show what came out
    Run(RunArgs),
    /// Submit a task file to any node
    Submit(SubmitArgs),
    /// List tasks
    Tasks(TasksArgs),
    /// Show one task
    Task(TaskArgs),
    /// Print a task's log
    Logs(LogsArgs),
    /// Cancel a task
    Cancel(TaskArgs),
    /// Say for each node why a task does not run there, and what would make it fit
    Explain(TaskArgs),
    /// List or fetch what a task left, through any node
    Artifacts {
        /// What to do.
        #[command(subcommand)]
        verb: ArtifactsVerb,
    },
    /// List services: their names at the API, their replicas and where those run
    Services(ListArgs),
    /// Talk to a model that is served, through any node, or to one whose files are here; with a prompt, or one on standard
    /// input, it answers that and ends
    Chat(ChatArgs),
    /// Have an agent work, and look at what it does
    Agent {
        /// What to do.
        #[command(subcommand)]
        verb: AgentVerb,
    },
    /// List nodes with their hardware
    Nodes(ListArgs),
    /// Let a node finish what it has and take nothing new
    Drain(DrainArgs),
    /// Forbid a node to speak to the mesh
    Revoke(NodeArgs),
    /// Show usage by user and project
    Stats(StatsArgs),
    /// Show leader, voters, and what the mesh survives
    Mesh(ListArgs),
    /// Show, read through or empty the cache of pulled models and data sets on this machine
    Cache(CacheArgs),
    /// Look at this machine: processor, memory, disk, GPUs with a first product on each; exit code 1 when something is broken
    Doctor(DoctorArgs),
    /// Measure this machine at its work
    Bench {
        /// What to measure.
        #[command(subcommand)]
        verb: BenchVerb,
    },
    /// Probe this machine's node: exit code 0 when its process lives (with --ready: when it has joined and serves), else 1
    Healthz(HealthzArgs),
    /// Print the REST bearer token of a user, from this node's data directory; or mint a join token for a new mesh
    Token(TokenArgs),
    /// Keep all that the mesh has committed in one file, checked: tasks, usage, members; from any node, while it works
    Backup(BackupArgs),
    /// Found a mesh anew from a backup, in an empty data directory
    Restore(RestoreArgs),
    /// Runs one attempt; started by the daemon
    #[command(name = "__attempt", hide = true)]
    Attempt {
        /// The run file the daemon wrote.
        run: PathBuf,
    },
    /// Reads one document, within limits; started by a service of documents
    #[command(name = mloc_modules::PARSE, hide = true)]
    Parse,
    /// Computes on the one GPU it sees; started by `doctor` and by the daemon
    #[command(name = "__gpu-check", hide = true)]
    GpuCheck,
}

/// Flags of a daemon. Each stands above its environment variable, which stands above node.yaml.
#[derive(Debug, Clone, Default, Args)]
pub struct DaemonArgs {
    /// node.yaml
    #[arg(long, env = "MLOC_CONFIG")]
    pub config: Option<PathBuf>,
    /// Name for people
    #[arg(long, env = "MLOC_NAME")]
    pub name: Option<String>,
    /// Key, ledger, journal, attempts [default: ~/.local/share/mloc]
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Gossip address [default: [::]:7946, or 0.0.0.0:7946 without IPv6]
    #[arg(long, env = "MLOC_BIND")]
    pub bind: Option<SocketAddr>,
    /// HOST:PORT others dial for gossip
    #[arg(long, env = "MLOC_ADVERTISE")]
    pub advertise: Option<String>,
    /// libp2p address [default: the gossip address's host, port 7947]
    #[arg(long, env = "MLOC_LINK_BIND")]
    pub link_bind: Option<SocketAddr>,
    /// HOST:PORT others dial for links
    #[arg(long, env = "MLOC_LINK_ADVERTISE")]
    pub link_advertise: Option<String>,
    /// REST address; any but loopback asks for a bearer token [default: 127.0.0.1:7948]
    #[arg(long, env = "MLOC_REST_BIND")]
    pub rest_bind: Option<SocketAddr>,
    /// File that holds the join token (or MLOC_JOIN_TOKEN)
    #[arg(long, env = "MLOC_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Durations for a LAN or a WAN
    #[arg(long, env = "MLOC_PROFILE")]
    pub profile: Option<Profile>,
    /// A folder tasks may use as `local`: NAME=PATH
    #[arg(long = "volume", value_name = "NAME=PATH")]
    pub volumes: Vec<String>,
    /// Logs as JSON lines
    #[arg(long, env = "MLOC_LOG_JSON")]
    pub log_json: bool,
}

/// `mloc up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The daemon's flags.
    #[command(flatten)]
    pub node: DaemonArgs,
    /// Members' gossip addresses; with seeds a node waits for a mesh rather than found one
    #[arg(long = "seed", env = "MLOC_SEEDS", value_delimiter = ',')]
    pub seeds: Vec<String>,
}

/// `mloc join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// HOST:PORT of a member's gossip address
    pub seed: String,
    /// The daemon's flags.
    #[command(flatten)]
    pub node: DaemonArgs,
}

/// `mloc run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The task file
    pub file: PathBuf,
    /// Where the embedded node keeps its data and the artifacts
    #[arg(long, default_value = ".mloc", env = "MLOC_RUN_DIR")]
    pub data_dir: PathBuf,
    /// The daemon's log on the terminal too
    #[arg(long, short)]
    pub verbose: bool,
    /// Check and explain only, with what memory the task will need
    #[arg(long)]
    pub dry_run: bool,
}

/// `mloc cache`. It looks at the folder itself, beside running nodes or without one.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// What to do
    #[arg(value_enum, default_value = "ls")]
    pub what: CacheVerb,
    /// node.yaml
    #[arg(long, env = "MLOC_CONFIG")]
    pub config: Option<PathBuf>,
    /// The node's data directory
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// What to do with a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheVerb {
    /// List what is there, newest use first
    Ls,
    /// Read every file; exit 1 when one is damaged (it is fetched again when a task needs it)
    Verify,
    /// Remove what nobody uses
    Prune,
}

/// Which node to ask.
#[derive(Debug, Clone, Args)]
pub struct Remote {
    /// A node's REST address, HOST:PORT or URL; any node will do
    #[arg(long, env = "MLOC_NODE", default_value = "127.0.0.1:7948")]
    pub node: String,
    /// File that holds the bearer token (or MLOC_API_TOKEN)
    #[arg(long, env = "MLOC_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `mloc submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The task file, or - for standard input
    pub file: PathBuf,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Check and explain only, with what memory the task will need where its model is at hand
    #[arg(long)]
    pub dry_run: bool,
    /// Stay until it has ended, showing progress; exit 1 unless it completed
    #[arg(long, short)]
    pub wait: bool,
    /// The same key makes one task, however often it is sent
    #[arg(long)]
    pub idempotency_key: Option<String>,
}

/// `mloc tasks`.
#[derive(Debug, Args)]
pub struct TasksArgs {
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Of this owner
    #[arg(long)]
    pub owner: Option<String>,
    /// Of this project
    #[arg(long)]
    pub project: Option<String>,
    /// In this state
    #[arg(long, ignore_case = true, value_parser = mloc_api::view::TASK_STATES)]
    pub state: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// The next page: what the page before named at its end
    #[arg(long)]
    pub cursor: Option<String>,
}

/// One task.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// The task's id
    pub id: String,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// `mloc logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The task's id
    pub id: String,
    /// Go on with what is still to come, over later attempts, until the task has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with this attempt: its number, or TASK.REPLICA.ATTEMPT [default: the newest]
    #[arg(long)]
    pub attempt: Option<String>,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// Verbs of `mloc artifacts`.
#[derive(Debug, Subcommand)]
pub enum ArtifactsVerb {
    /// List the files of a task's result
    Ls(TaskArgs),
    /// Fetch them: a fetch that was interrupted goes on, and every file is held to its digest
    Get(GetArgs),
}

/// `mloc artifacts get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The task's id
    pub id: String,
    /// One file, a folder, or a pattern: * and ? within a name, ** across folders [default: all files]
    pub path: Option<String>,
    /// The folder to write to; the paths of the files go below it
    #[arg(long, short = 'o', default_value = ".")]
    pub dir: PathBuf,
    /// Write over files of other content
    #[arg(long)]
    pub force: bool,
    /// A node's REST address, HOST:PORT or URL; any node will do
    #[arg(long, env = "MLOC_NODE", default_value = "127.0.0.1:7948")]
    pub node: String,
    /// File that holds the bearer token (or MLOC_API_TOKEN)
    #[arg(long, env = "MLOC_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
}

/// Verbs of `mloc agent`.
#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Give it something to do, and show what it does until it has an answer; Ctrl-C cancels it
    Run(AgentRunArgs),
    /// Show a run from its beginning, and go on with it while it works
    Follow(AgentFollowArgs),
}

/// `mloc agent run`.
#[derive(Debug, Args)]
pub struct AgentRunArgs {
    /// The agent's name, as `mloc services` lists it
    pub agent: String,
    /// What is to be done
    #[arg(required = true)]
    pub input: Vec<String>,
    /// Answers of the model, at most [default: the agent's own]
    #[arg(long)]
    pub steps: Option<u32>,
    /// Seconds of work, at most [default: the agent's own]
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Tokens read and written, at most [default: the agent's own]
    #[arg(long)]
    pub tokens: Option<u64>,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// `mloc agent follow`.
#[derive(Debug, Args)]
pub struct AgentFollowArgs {
    /// The agent's name
    pub agent: String,
    /// The run, as `mloc agent run` named it
    pub run: String,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// `mloc chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The model's name, as `mloc services` lists it (an adapter of it is NAME:ADAPTER); or the path of a model's folder or
    /// GGUF file, with a slash in it, which then answers in this process
    pub model: String,
    /// What to say [default: lines from the terminal, or all of standard input]
    pub prompt: Vec<String>,
    /// The folder of an adapter, for a model by its path
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// What the model is told to be
    #[arg(long)]
    pub system: Option<String>,
    /// Tokens an answer may have
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// 0 = always the likeliest token [default: the model's own]
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Makes an answer repeatable
    #[arg(long)]
    pub seed: Option<u64>,
    /// A node's REST address, HOST:PORT or URL; any node will do
    #[arg(long, env = "MLOC_NODE", default_value = "127.0.0.1:7948")]
    pub node: String,
    /// File that holds the bearer token (or MLOC_API_TOKEN)
    #[arg(long, env = "MLOC_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
}

/// A listing without further choice.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// One node.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node's id or name
    pub id: String,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// `mloc drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node's id or name
    pub id: String,
    /// Let it take work again
    #[arg(long)]
    pub off: bool,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

/// `mloc stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Of this user
    #[arg(long)]
    pub user: Option<String>,
    /// Of this project
    #[arg(long)]
    pub project: Option<String>,
    /// From this UTC day on, YYYY-MM-DD
    #[arg(long)]
    pub start_date: Option<String>,
    /// To this UTC day, included
    #[arg(long)]
    pub end_date: Option<String>,
}

/// `mloc token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The user; `admin` may act for any owner
    #[arg(required_unless_present = "new_mesh", conflicts_with = "new_mesh")]
    pub user: Option<String>,
    /// Print a join token for a mesh that does not exist yet: give it to the nodes that found one together
    /// (`bootstrapExpect` in node.yaml)
    #[arg(long)]
    pub new_mesh: bool,
    /// The node's data directory [default: node.yaml's dataDir]
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The node's node.yaml
    #[arg(long, env = "MLOC_CONFIG")]
    pub config: Option<PathBuf>,
}

/// `mloc doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// node.yaml
    #[arg(long, env = "MLOC_CONFIG")]
    pub config: Option<PathBuf>,
    /// Whose file system is looked at [default: as `up` has it]
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `mloc healthz`.
#[derive(Debug, Args)]
pub struct HealthzArgs {
    /// Ask whether it has joined and serves, not only whether it lives
    #[arg(long)]
    pub ready: bool,
    /// The node's REST address, HOST:PORT [default: the one in its data directory's node.json]
    #[arg(long)]
    pub node: Option<String>,
    /// The node's data directory [default: node.yaml's dataDir]
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The node's node.yaml
    #[arg(long, env = "MLOC_CONFIG")]
    pub config: Option<PathBuf>,
}

const ABOUT_BACKUPS: &str = "\
The file holds the ledger as of one moment: every task, attempt, usage row and member that was committed by then. It is \
written under another name, synced, read back and checked, and only then takes its name: FILE is never half a backup, and \
the one before stays until the new one is whole. Exit code 0 means that it is.

It does not hold private keys, the join token (a restored mesh gets new ones), models, checkpoints, artifacts or logs. It \
does hold tasks as they were submitted, values of `env` among them: keep it as safe as those. REST asks for the admin's \
token, except on loopback.

Every hour, one file a day:
  mloc backup /var/backups/mloc/$(date +%F).mlocbackup

The voters that are left are no majority; on one of them, mloc stopped:
  mloc backup --from-data-dir /var/lib/mloc last.mlocbackup";

/// `mloc backup`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT_BACKUPS)]
pub struct BackupArgs {
    /// The file to write, or - for standard output; with --verify the file to check, or - for standard input
    pub file: PathBuf,
    /// Check a backup and say what it holds; asks no node
    #[arg(long, conflicts_with = "from_data_dir")]
    pub verify: bool,
    /// Read the ledger from the data directory of a voter that does not run, instead of asking a node: for when the voters
    /// that are left are no majority. Nothing is lost that this voter knows to be committed
    #[arg(long, value_name = "DIR")]
    pub from_data_dir: Option<PathBuf>,
    /// The node to ask.
    #[command(flatten)]
    pub remote: Remote,
}

const ABOUT_RESTORES: &str = "\
For a mesh that is lost: half of its voters or more are gone for good. Stop what is left of it first. The restored mesh is \
a new one, with a new id and a new join token, so that no node of the old mesh that comes back is ever taken for one of its \
own.

Tasks, usage and idempotency keys are as they were at the backup. What ran then waits again, under attempt numbers that \
the old mesh never gave; a result that the old mesh published after the backup is found and adopted, not computed again. \
What was submitted after the backup is not known any more. All members of the old mesh are revoked: they join with empty \
data directories. What to do with them is printed, step by step.";

/// `mloc restore`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT_RESTORES)]
pub struct RestoreArgs {
    /// The backup, or - for standard input
    pub file: PathBuf,
    /// The empty data directory of the node that founds the mesh anew [default: ~/.local/share/mloc]
    #[arg(long, env = "MLOC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// That node's name for people [default: the host's]
    #[arg(long, env = "MLOC_NAME")]
    pub name: Option<String>,
    /// File that holds the new mesh's join token, from `mloc token --new-mesh` (or MLOC_JOIN_TOKEN); one is minted unless
    /// given
    #[arg(long, env = "MLOC_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}
