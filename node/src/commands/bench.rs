//! `mloc bench train` and `mloc bench serve`: this machine at its work.

mod serve;

use anyhow::Context;
use mloc_core::quantity::show_bytes;
use mloc_modules::bench::{Method, Model, TrainBench, TrainReport};

pub use self::serve::serve;
use crate::{
    cli::{BenchFormat, BenchMethod, BenchTrainArgs},
    client::Refusal,
    show::say,
};

/// Measures and prints.
pub fn train(args: BenchTrainArgs) -> Result<(), Refusal> {
    let bench = TrainBench {
        model: match args.model {
            Some(path) => Model::Files(path),
            None => Model::Architecture(args.architecture),
        },
        method: match args.method {
            BenchMethod::Lora => Method::Lora,
            BenchMethod::Full => Method::Full,
            BenchMethod::Qlora => Method::Qlora,
        },
        data: args.data,
        batch: usize::from(args.batch),
        max_length: args.max_length as usize,
        rank: args.rank,
        targets: args.targets,
        checkpointing: args.gradient_checkpointing,
        steps: args.steps as usize,
    };
    let report = bench.run(&mut |line| eprintln!("{line}")).map_err(|why| Refusal::new(2, why))?;
    match args.format {
        BenchFormat::Json => say!("{}", serde_json::to_string_pretty(&report).context("print the figures")?),
        BenchFormat::Text => say!("{}", page(&bench, &report)),
    }
    Ok(())
}

/// The figures, each with its unit.
fn page(bench: &TrainBench, report: &TrainReport) -> String {
    let what = match report.method {
        Method::Full => "all weights".to_owned(),
        Method::Lora => format!("LoRA of rank {} on {}", bench.rank, bench.targets.join(", ")),
        Method::Qlora => {
            format!("LoRA of rank {} on {} beside weights in 4 bits", bench.rank, bench.targets.join(", "))
        }
    };
    let steps = report.steps as f64;
    let sizes: Vec<String> = report.matmul.iter().map(|rate| format!("{:.1} at {}²", rate.gflops, rate.size)).collect();
    let memory = match report.peak_memory_bytes {
        0 => "not known here".to_owned(),
        // Its number stands below those of the other rows.
        bytes => {
            show_bytes(bytes).split_once(' ').map_or_else(String::new, |(number, unit)| format!("{number:>9} {unit}"))
        }
    };
    let rows = [
        ("model", format!("{}, {:.1} million weights", report.model, report.parameters as f64 / 1e6)),
        ("trained", format!("{what}: {:.3} million, in f32", report.trainable as f64 / 1e6)),
        ("data", format!("{}; {} samples a step of at most {} tokens", report.data, bench.batch, bench.max_length)),
        ("", String::new()),
        ("speed", format!("{:>9.1} real tokens/s", report.tokens_per_second)),
        ("step", format!("{:>9.3} s, {:.1} real tokens", report.seconds / steps, report.tokens as f64 / steps)),
        ("memory", format!("{memory} at the fullest; planned {}", show_bytes(report.planned_memory_bytes))),
        ("arithmetic", format!("{:>9.1} GFLOP/s, {:.1} GFLOP a step", report.gflops, report.operations / steps / 1e9)),
        (
            "products",
            format!("{:>9.1} GFLOP/s, f32, {} threads: {}", report.matmul_gflops, report.threads, sizes.join(", ")),
        ),
        ("share", format!("{:>9.1} % of the rate of products", 100.0 * report.share_of_matmul)),
        ("loss", format!("{:>9.4} nats at first, {:.4} at last", report.loss[0], report.loss[1])),
    ];
    let lines = rows.iter().map(|(name, value)| format!("{name:<11} {value}").trim_end().to_owned());
    let spent = report.spent.iter().enumerate().map(|(index, spent)| {
        let name = if index == 0 { "time" } else { "" };
        let share = 100.0 * spent.seconds / report.seconds;
        format!("{name:<11} {:>9.3} s a step, {share:4.1} %: {}", spent.seconds / steps, spent.on)
    });
    lines.chain(spent).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use mloc_modules::bench::{MatmulRate, Spent};

    use super::*;

    #[test]
    fn every_figure_has_its_unit() {
        let bench = TrainBench {
            model: Model::Architecture("smollm2-135m".into()),
            method: Method::Lora,
            data: None,
            batch: 4,
            max_length: 256,
            rank: 16,
            targets: vec!["q_proj".into(), "v_proj".into()],
            checkpointing: false,
            steps: 20,
        };
        let report = TrainReport {
            model: "smollm2-135m, random weights".into(),
            method: Method::Lora,
            data: "mloc_qa.jsonl in its order".into(),
            parameters: 135_436_608,
            trainable: 921_600,
            threads: 2,
            steps: 20,
            tokens: 10_000,
            seconds: 40.0,
            tokens_per_second: 250.0,
            peak_memory_bytes: 1_200_000_000,
            planned_memory_bytes: 1_300_000_000,
            operations: 6e12,
            gflops: 150.0,
            matmul: vec![MatmulRate { size: 512, gflops: 180.0 }, MatmulRate { size: 1024, gflops: 200.0 }],
            matmul_gflops: 200.0,
            share_of_matmul: 0.75,
            spent: vec![
                Spent { on: "matrix products of layers".into(), seconds: 30.0 },
                Spent { on: "everything else".into(), seconds: 2.0 },
            ],
            loss: [2.5, 2.25],
        };
        let wanted = "\
model       smollm2-135m, random weights, 135.4 million weights
trained     LoRA of rank 16 on q_proj, v_proj: 0.922 million, in f32
data        mloc_qa.jsonl in its order; 4 samples a step of at most 256 tokens

speed           250.0 real tokens/s
step            2.000 s, 500.0 real tokens
memory            1.1 GiB at the fullest; planned 1.2 GiB
arithmetic      150.0 GFLOP/s, 300.0 GFLOP a step
products        200.0 GFLOP/s, f32, 2 threads: 180.0 at 512², 200.0 at 1024²
share            75.0 % of the rate of products
loss           2.5000 nats at first, 2.2500 at last
time            1.500 s a step, 75.0 %: matrix products of layers
                0.100 s a step,  5.0 %: everything else";
        assert_eq!(page(&bench, &report), wanted);
    }
}
