//! Prints what becomes of every hyperparameter, as Markdown:
//! `cargo run -p mloc-core --example hyperparameters -- sft` (or rm, dpo, grpo, ppo, pretrain, echo, inference).

use std::{collections::BTreeSet, process::ExitCode};

use mloc_core::task::{
    hyperparameters::rows::{Row, Status, tables},
    kind::TASK_TYPES,
};

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let known = || TASK_TYPES.iter().filter(|row| !tables(row.task_type).is_empty());
    if let Some(unknown) = asked.iter().find(|name| known().all(|row| row.name != **name)) {
        let names: Vec<_> = known().map(|row| row.name).collect();
        eprintln!("{unknown} has no hyperparameters of ours; those that have: {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for row in known().filter(|row| asked.is_empty() || asked.iter().any(|name| name == row.name)) {
        println!("## {}\n\n| name | status | default | values, or why |\n|---|---|---|---|", row.name);
        let mut seen = BTreeSet::new();
        // The first table that has a name wins.
        let rows = tables(row.task_type).iter().copied().flatten().filter(|row| seen.insert(row.name));
        rows.for_each(|row| println!("{}", line(row)));
        println!();
    }
    ExitCode::SUCCESS
}

fn line(row: &Row) -> String {
    let default = row.default.value();
    let (status, why) = match row.status {
        Status::Works => ("supported".to_owned(), row.kind.expected()),
        Status::OldName(new, _) => (format!("old name of `{new}`"), row.kind.expected()),
        Status::NoEffect(why) => ("accepted, no effect".to_owned(), why.to_owned()),
        Status::OnlyDefault(why) => ("refused but for its default".to_owned(), why.to_owned()),
        Status::Secret(why) => ("refused: a secret".to_owned(), why.to_owned()),
    };
    let default = match row.status {
        Status::Works | Status::OnlyDefault(_) => format!("`{default}`"),
        _ => String::new(),
    };
    format!("| `{}` | {status} | {default} | {} |", row.name, why.replace('|', "\\|"))
}
