//! `mloc bench serve`: a served model under requests.

mod load;

use std::{thread, time::Duration};

use anyhow::Context;
use mloc_core::quantity::show_bytes;
use mloc_modules::serve::{
    Number, On, Served, Settings,
    listen::{Listening, routes},
    openai::Limits,
};
use serde::Serialize;

use self::load::{Ask, Server, Timed};
use crate::{
    cli::{BenchFormat, BenchQuantization, BenchServeArgs},
    client::Refusal,
    show::say,
};

/// Tokens of the prompt that is measured for prefill.
const LONG: usize = 512;
/// Of the others.
const SHORT: usize = 16;
/// Tokens that are answered.
const ANSWER: usize = 128;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// The model and what it is held in, for people.
    model: String,
    /// Threads that compute, where it is known.
    threads: Option<usize>,
    /// Prompt tokens a second of one request.
    prefill_tokens_per_second: f64,
    /// Figures for each number of requests at once.
    streams: Vec<Streams>,
    /// Largest resident size of the server's process, in bytes, where it is known.
    peak_memory_bytes: Option<u64>,
}

/// Some requests at once.
#[derive(Debug, Serialize)]
struct Streams {
    /// How many.
    streams: u16,
    /// Tokens a second of all of them.
    tokens_per_second: f64,
    /// Seconds to the first token: the median of all requests.
    first_token_seconds: f64,
    /// Seconds between tokens of one of them: the median.
    between_tokens_seconds: f64,
}

/// Measures and prints.
pub fn serve(args: &BenchServeArgs) -> Result<(), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let own = args.model.as_ref().map(|path| Own::open(path, args)).transpose()?;
    let server = match (&own, &args.url, &args.name) {
        (Some(own), ..) => Server::socket(own.listening.socket(), "bench", own.vocabulary),
        (None, Some(url), Some(name)) => {
            let token = args.token_env.as_ref().map(|variable| {
                std::env::var(variable).map_err(|_| Refusal::new(2, format!("--token-env {variable}: it is not set")))
            });
            Server::url(url, name, token.transpose()?).map_err(|why| Refusal::new(2, why))?
        }
        (None, ..) => {
            return Err(Refusal::new(2, "name a --model to serve, or a server's --url and the model's --name there"));
        }
    };
    let report = runtime.block_on(measure(&server, args, own.as_ref()))?;
    match args.format {
        BenchFormat::Json => say!("{}", serde_json::to_string_pretty(&report).context("print the figures")?),
        BenchFormat::Text => say!("{}", page(&report)),
    }
    if let Some(own) = own {
        own.listening.stop(Duration::from_secs(1));
    }
    Ok(())
}

/// A model that this process serves.
struct Own {
    listening: Listening,
    model: String,
    threads: usize,
    vocabulary: u32,
    _folder: tempfile::TempDir,
}

impl Own {
    fn open(path: &std::path::Path, args: &BenchServeArgs) -> Result<Self, Refusal> {
        let threads = args.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let mut settings = Settings::new("bench", threads);
        if let Some(gpu) = args.gpu {
            settings.on = On::gpu(gpu);
        }
        settings.number = match args.quantization {
            None => Number::AsStored,
            Some(BenchQuantization::Float32) => Number::F32,
            Some(BenchQuantization::Bfloat16) => Number::Bf16,
            Some(BenchQuantization::Int8) => Number::Int8,
            Some(BenchQuantization::Int4) => Number::Int4,
        };
        eprintln!("loading {}", path.display());
        let served = mloc_modules::serve::open(path, &settings, &|| false)
            .map_err(|error| Refusal::new(2, format!("--model: {error}")))?;
        let Served::Decoder(decoder) = served else {
            return Err(Refusal::new(2, format!("--model: {} makes no text", path.display())));
        };
        let facts = decoder.facts.clone();
        let folder = tempfile::tempdir().context("make a folder for the server's socket")?;
        let threads_to_serve = Listening::threads().context("start threads")?;
        let routes = routes(decoder.generator.clone(), Vec::new(), Limits::default(), 1);
        let listening = Listening::start(threads_to_serve, routes, folder.path());
        let listening = listening.context("start the server")?;
        Ok(Self {
            listening,
            model: format!(
                "{} of {:.1} million weights in {}, {}",
                facts.architecture,
                facts.parameters as f64 / 1e6,
                facts.format,
                show_bytes(facts.weight_bytes)
            ),
            threads,
            vocabulary: facts.vocabulary,
            _folder: folder,
        })
    }
}

async fn measure(server: &Server, args: &BenchServeArgs, own: Option<&Own>) -> Result<Report, Refusal> {
    let failed = |why: String| Refusal::new(1, why);
    let mut asks = Ask::fresh(server.vocabulary());
    // Threads are started, and what is compiled at first use is.
    server.ask(&asks.next(SHORT, 4)).await.map_err(failed)?;
    let rounds = usize::from(args.rounds);
    let mut prefill = Vec::new();
    for round in 0..rounds {
        eprintln!("prefill, round {} of {rounds}", round + 1);
        let timed = server.ask(&asks.next(LONG, 1)).await.map_err(failed)?;
        prefill.push(LONG as f64 / timed.first.as_secs_f64());
    }
    let mut streams = Vec::new();
    for count in &args.streams {
        let mut all = Vec::new();
        for round in 0..rounds {
            eprintln!("{count} at once, round {} of {rounds}", round + 1);
            let requests: Vec<_> = (0..*count).map(|_| asks.next(SHORT, ANSWER)).collect();
            let answers = server.ask_all(&requests).await.map_err(failed)?;
            if let Some(short) = answers.iter().find(|timed| timed.tokens < 2 || timed.whole == timed.first) {
                let found = short.tokens;
                return Err(failed(format!(
                    "an answer of {found} tokens at once, where {ANSWER} were asked for one by one: does the server know \
                     ignore_eos, and does it stream?"
                )));
            }
            all.push(answers);
        }
        streams.push(summed(*count, &all));
    }
    let pid = match own {
        Some(_) => Some("self".to_owned()),
        None => args.pid.map(|pid| pid.to_string()),
    };
    Ok(Report {
        model: own.map_or_else(
            || format!("{} at {}", server.model(), args.url.as_deref().unwrap_or_default()),
            |own| own.model.clone(),
        ),
        threads: own.map(|own| own.threads),
        prefill_tokens_per_second: median(prefill),
        streams,
        peak_memory_bytes: pid.and_then(|pid| peak_memory_bytes(&pid)),
    })
}

/// Rounds of `count` requests each.
fn summed(count: u16, rounds: &[Vec<Timed>]) -> Streams {
    let rate = |round: &Vec<Timed>| {
        let tokens: usize = round.iter().map(|timed| timed.tokens).sum();
        let whole = round.iter().map(|timed| timed.whole).max().unwrap_or_default().as_secs_f64();
        match round.as_slice() {
            // Of one alone the prompt is no part of it.
            [one] => tokens.saturating_sub(1) as f64 / (one.whole - one.first).as_secs_f64(),
            _ => tokens as f64 / whole,
        }
    };
    let each = || rounds.iter().flatten();
    let between = |timed: &Timed| (timed.whole - timed.first).as_secs_f64() / (timed.tokens.max(2) - 1) as f64;
    Streams {
        streams: count,
        tokens_per_second: median(rounds.iter().map(rate).collect()),
        first_token_seconds: median(each().map(|timed| timed.first.as_secs_f64()).collect()),
        between_tokens_seconds: median(each().map(between).collect()),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of a process on this machine.
fn peak_memory_bytes(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn page(report: &Report) -> String {
    let mut lines = vec![format!("model       {}", report.model)];
    lines.extend(report.threads.map(|threads| format!("threads     {threads}")));
    lines.push(format!("prefill     {:>9.1} tokens/s, {LONG} tokens", report.prefill_tokens_per_second));
    for one in &report.streams {
        let name = if one.streams == 1 { "decode".to_owned() } else { format!("{} streams", one.streams) };
        lines.push(format!(
            "{name:<11} {:>9.1} tokens/s, first token after {:.0} ms, then one every {:.1} ms",
            one.tokens_per_second,
            one.first_token_seconds * 1e3,
            one.between_tokens_seconds * 1e3
        ));
    }
    lines.push(format!("memory      {}", report.peak_memory_bytes.map_or("not known here".to_owned(), show_bytes)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_came_and_how_long_it_took() {
        let timed = |first: u64, whole: u64, tokens| Timed {
            first: Duration::from_millis(first),
            whole: Duration::from_millis(whole),
            tokens,
        };
        let alone = summed(1, &[vec![timed(500, 1500, 11)], vec![timed(100, 600, 11)], vec![timed(100, 1100, 11)]]);
        assert_eq!((alone.tokens_per_second, alone.first_token_seconds), (10.0, 0.1));
        assert_eq!(alone.between_tokens_seconds, 0.1);
        let two = summed(2, &[vec![timed(100, 1000, 5), timed(300, 2000, 15)]]);
        assert_eq!((two.tokens_per_second, two.first_token_seconds), (10.0, 0.3));
    }
}
