//! Which other settings would fit: tried one by one, then several together, with the plan's own arithmetic.

use mloc_core::{
    quantity::show_bytes,
    task::{
        kind::TaskType,
        settings::{Optimizer, Precision},
        spec::AdapterKind,
    },
};

use super::{Choice, Task, sizes::Sizes};

/// Shorter ones teach little.
const LENGTH_MIN: usize = 64;
/// More than these are no help to anybody.
const SHOWN: usize = 4;

/// Other settings, as a task would have them, and what it would need with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// `gradient_checkpointing: true`.
    pub settings: String,
    /// In bytes.
    pub needs: u64,
}

/// Up to four settings that fit into so many bytes, those first that change least about what is learnt.
pub fn settings_that_fit(task: &Task, sizes: &Sizes, bytes: u64) -> Vec<Fit> {
    let now = task.choice();
    let singly: Vec<Fit> = changes(task, now, sizes, bytes).into_iter().filter(|fit| fit.needs <= bytes).collect();
    if !singly.is_empty() {
        return singly.into_iter().take(SHOWN).collect();
    }
    // Together: each step keeps what was changed before it.
    let mut choice = now;
    for step in STEPS {
        let Some(next) = step(task, choice, sizes) else { continue };
        choice = next;
        if fits_into(task, choice, sizes, bytes) {
            return fit(task, now, needed(task, now, choice, sizes, bytes), sizes).into_iter().collect();
        }
    }
    Vec::new()
}

/// Without what it fits without as well: what changes most about what is learnt is given back first.
fn needed(task: &Task, now: Choice, all: Choice, sizes: &Sizes, bytes: u64) -> Choice {
    let give_back: [fn(Choice, Choice) -> Choice; 5] = [
        |now, choice| Choice { adapter: now.adapter, ..choice },
        |now, choice| Choice { precision: now.precision, ..choice },
        |now, choice| Choice { eight_bit: now.eight_bit, ..choice },
        |now, choice| Choice { batch: now.batch, accumulation: now.accumulation, ..choice },
        |now, choice| Choice { checkpointing: now.checkpointing, ..choice },
    ];
    let fewer = give_back.iter().fold(all, |choice, give_back| {
        let fewer = give_back(now, choice);
        if fits_into(task, fewer, sizes, bytes) { fewer } else { choice }
    });
    // The largest batch that has room.
    let larger =
        smaller_batches(now).into_iter().map(|of| Choice { batch: of.batch, accumulation: of.accumulation, ..fewer });
    let larger = larger.filter(|choice| choice.batch > fewer.batch);
    larger.into_iter().find(|choice| fits_into(task, *choice, sizes, bytes)).unwrap_or(fewer)
}

fn fits_into(task: &Task, choice: Choice, sizes: &Sizes, bytes: u64) -> bool {
    needs(task, choice, sizes).is_some_and(|needs| needs <= bytes)
}

/// What needs least of all, where nothing fits.
pub fn least(task: &Task, sizes: &Sizes) -> Option<Fit> {
    let now = task.choice();
    let all = STEPS.iter().fold(now, |choice, step| step(task, choice, sizes).unwrap_or(choice));
    fit(task, now, all, sizes)
}

/// The settings that would need less, in a line: for the words about a process that was killed.
pub fn less(task: &Task, sizes: &Sizes) -> String {
    let now = task.choice();
    let Some(planned) = needs(task, now, sizes) else { return String::new() };
    let fewer = changes(task, now, sizes, planned / 2).into_iter().filter(|fit| 20 * fit.needs < 19 * planned);
    let said: Vec<String> =
        fewer.take(SHOWN).map(|fit| format!("{} ({})", fit.settings, show_bytes(fit.needs))).collect();
    said.join(", ")
}

type Step = fn(&Task, Choice, &Sizes) -> Option<Choice>;

/// From what changes no result to what changes most.
const STEPS: [Step; 6] = [checkpointing, one_at_a_time, eight_bit, half, four_bit, |task, choice, sizes| {
    shorter(task, choice, sizes, sizes.longest_row() / 4)
}];

fn changes(task: &Task, now: Choice, sizes: &Sizes, bytes: u64) -> Vec<Fit> {
    let lengths = [3, 2, 1].map(|quarters| sizes.longest_row() * quarters / 4);
    let shorter = lengths.into_iter().filter_map(|length| shorter(task, now, sizes, length));
    let first_that_fits = |choices: Vec<Choice>| {
        let fits = choices.iter().find(|choice| fits_into(task, **choice, sizes, bytes));
        fits.or(choices.last()).copied()
    };
    let all = [
        checkpointing(task, now, sizes),
        first_that_fits(smaller_batches(now)),
        half(task, now, sizes),
        eight_bit(task, now, sizes),
        four_bit(task, now, sizes),
        first_that_fits(shorter.collect()),
    ];
    all.into_iter().flatten().filter_map(|choice| fit(task, now, choice, sizes)).collect()
}

fn needs(task: &Task, choice: Choice, sizes: &Sizes) -> Option<u64> {
    task.plan_of(choice, sizes).ok().map(|plan| task.needs(&plan))
}

fn fit(task: &Task, now: Choice, choice: Choice, sizes: &Sizes) -> Option<Fit> {
    let settings = difference(now, choice);
    (!settings.is_empty()).then(|| Some(Fit { settings, needs: needs(task, choice, sizes)? }))?
}

fn checkpointing(_: &Task, choice: Choice, _: &Sizes) -> Option<Choice> {
    (!choice.checkpointing).then_some(Choice { checkpointing: true, ..choice })
}

/// Divisors of the batch, the largest first, with as many samples in a step as before.
fn smaller_batches(choice: Choice) -> Vec<Choice> {
    let divisors = (1..choice.batch).rev().filter(|batch| choice.batch.is_multiple_of(*batch));
    let with = |batch| Choice { batch, accumulation: choice.accumulation * (choice.batch / batch), ..choice };
    divisors.map(with).collect()
}

fn one_at_a_time(_: &Task, choice: Choice, _: &Sizes) -> Option<Choice> {
    smaller_batches(choice).pop()
}

fn eight_bit(task: &Task, choice: Choice, _: &Sizes) -> Option<Choice> {
    let could = task.training.optimizer == Optimizer::AdamW && !choice.eight_bit;
    could.then_some(Choice { eight_bit: true, ..choice })
}

/// Frozen weights in 16 bits.
fn half(_: &Task, choice: Choice, _: &Sizes) -> Option<Choice> {
    let could = choice.precision == Precision::F32 && choice.adapter == Some(AdapterKind::Lora);
    could.then_some(Choice { precision: Precision::Bf16, ..choice })
}

/// Frozen weights in 4 bits, and an adapter beside them.
fn four_bit(task: &Task, choice: Choice, _: &Sizes) -> Option<Choice> {
    let could = choice.adapter != Some(AdapterKind::Qlora) && task.spec.task_type != TaskType::Pretrain;
    could.then_some(Choice { adapter: Some(AdapterKind::Qlora), ..choice })
}

/// Rows of at most so many tokens. What is written by the model itself has a length of its own.
fn shorter(task: &Task, choice: Choice, sizes: &Sizes, length: usize) -> Option<Choice> {
    let online = matches!(task.spec.task_type, TaskType::Ppo | TaskType::Grpo);
    let length = length / 8 * 8;
    let could = !online && length >= LENGTH_MIN && length < sizes.longest_row();
    could.then_some(Choice { max_length: Some(length), ..choice })
}

/// What is different, as a task has it.
fn difference(now: Choice, choice: Choice) -> String {
    let mut said = Vec::new();
    if choice.batch != now.batch {
        said.push(format!("per_device_train_batch_size: {}", choice.batch));
        said.push(format!("gradient_accumulation_steps: {}", choice.accumulation));
    }
    if choice.checkpointing != now.checkpointing {
        said.push("gradient_checkpointing: true".to_owned());
    }
    if choice.eight_bit != now.eight_bit {
        said.push("optim: adamw_8bit".to_owned());
    }
    if choice.adapter != now.adapter {
        said.push("model.adapter.type: qlora".to_owned());
    } else if choice.precision != now.precision {
        said.push("bf16: true".to_owned());
    }
    if let Some(length) = choice.max_length {
        said.push(format!("max_length: {length}"));
    }
    said.join(", ")
}
