//! The flags of `mloc bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Verbs of `mloc bench`.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Some steps of supervised fine-tuning on the processor: tokens a second, memory, and the share of the machine's own
    /// matrix products
    Train(BenchTrainArgs),
    /// A served model under requests: prefill, decode, several streams at once, time to the first token, memory. A model that
    /// this command loads itself, or any server of OpenAI's API
    Serve(BenchServeArgs),
}

const ABOUT_BENCH: &str = "\
Real tokens are counted: padding is no work. Operations are those that the method needs, a multiplication and its addition \
counted as two: with frozen weights a layer's products once forward and once backward, with trained ones twice backward; \
attention over whole squares; logits at targets. They are set against products of square matrices in f32, timed before and \
after in the same run, since other work on the machine slows both. Memory is the largest resident size of the process.

With the reference's data and settings:
  mloc bench train --model SmolLM2-135M-Instruct.Q8_0.gguf --data mloc_qa.jsonl";

/// `mloc bench train`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT_BENCH)]
pub struct BenchTrainArgs {
    /// A model's folder, or a GGUF file [default: random weights of --architecture]
    #[arg(long, conflicts_with = "architecture")]
    pub model: Option<PathBuf>,
    /// The shape of random weights
    #[arg(long, default_value = mloc_modules::bench::ARCHITECTURES[0], value_parser = mloc_modules::bench::ARCHITECTURES)]
    pub architecture: String,
    /// What is trained
    #[arg(long, value_enum, default_value_t = BenchMethod::Lora)]
    pub method: BenchMethod,
    /// Data in any form that sft takes, in its order [default: random tokens]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Samples in a step
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Tokens after which a sample is cut
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_length: u32,
    /// Rank of adapters
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// Layers with adapters, or all-linear
    #[arg(long, value_delimiter = ',', default_value = "q_proj,v_proj")]
    pub targets: Vec<String>,
    /// Compute layers anew in the backward pass
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Steps that count; one more comes first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// How to print
    #[arg(long, value_enum, default_value_t = BenchFormat::Text)]
    pub format: BenchFormat,
}

/// What is trained in a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchMethod {
    /// Adapters.
    Lora,
    /// All weights.
    Full,
    /// Adapters on weights in 4 bits.
    Qlora,
}

/// How to print a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

const ABOUT_SERVE: &str = "\
Each figure is the median of --rounds. prefill: one request of 512 random tokens and one answered, over the time to that \
answer. decode: one request of 16, answered with 128; tokens after the first over the time after the first. N streams: as \
many such requests at once; all tokens of all answers over the time from the first request to the last token. Prompts are \
token ids that no request has in common, so that no cache of prompts helps; answers are greedy and ignore end tokens. \
Memory is the largest resident size of the server's process.

Both sides alike:
  mloc bench serve --model SmolLM2-135M-Instruct.Q8_0.gguf --quantization int8
  mloc bench serve --url http://127.0.0.1:8080 --name SmolLM2 --pid $(pgrep llama-server)";

/// `mloc bench serve`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT_SERVE)]
pub struct BenchServeArgs {
    /// A model's folder, or a GGUF file, to be served by this command
    #[arg(long, required_unless_present = "url", conflicts_with = "url")]
    pub model: Option<PathBuf>,
    /// What its matrices are held in [default: as stored]
    #[arg(long, value_enum, requires = "model")]
    pub quantization: Option<BenchQuantization>,
    /// Threads that compute [default: as many as there are cores]
    #[arg(long, requires = "model")]
    pub threads: Option<usize>,
    /// The GPU that computes, from 0, in a build for GPUs [default: the processor does]
    #[arg(long, requires = "model", conflicts_with = "threads")]
    pub gpu: Option<usize>,
    /// A server, http://HOST:PORT
    #[arg(long, requires = "name")]
    pub url: Option<String>,
    /// The model's name there
    #[arg(long, requires = "url")]
    pub name: Option<String>,
    /// The server's process, to say its memory
    #[arg(long, requires = "url")]
    pub pid: Option<u32>,
    /// Bearer token of the server: the name of the variable that holds it
    #[arg(long, requires = "url", value_name = "VARIABLE")]
    pub token_env: Option<String>,
    /// Requests at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub streams: Vec<u16>,
    /// How often each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// How to print
    #[arg(long, value_enum, default_value_t = BenchFormat::Text)]
    pub format: BenchFormat,
}

/// What a model's matrices are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchQuantization {
    /// 32 bits.
    Float32,
    /// 16 bits.
    Bfloat16,
    /// 8.5 bits.
    Int8,
    /// 4.5 bits.
    Int4,
}
