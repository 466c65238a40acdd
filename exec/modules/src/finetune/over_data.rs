//! Methods whose step is some batches of a data set.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    formats::tokenizer::TextTokenizer,
    memory::Rows as BatchRows,
    model::Decoder,
    objective::{Evaluate, Figures, Objective},
    train::{StepReport, TrainError, Trainer},
};
use mloc_core::task::settings::Training;
use mloc_exec::{ModuleError, Output, RunContext};
use serde_json::Value;

use super::{
    artifacts, measuring,
    method::{Measured, Method, Steps, When},
    session::training_error,
};
use crate::{
    memory::{self, sizes::Sizes},
    origin::{self, Origin, Rows},
    plan::Plan,
};

/// Samples to train on and to measure on.
pub struct Data<S> {
    /// What is trained on; at least one.
    pub train: S,
    /// What is measured on; none without held-out data.
    pub eval: S,
}

/// One sample in tokens.
pub trait Sample {
    /// Tokens of each of its rows.
    fn rows(&self) -> Vec<usize>;

    /// All that training depends on, for a digest.
    fn bytes(&self) -> Vec<u8>;
}

/// Samples by number, wherever they are kept.
pub trait Samples {
    /// One of them.
    type Sample: Sample;

    /// How many.
    fn count(&self) -> usize;

    /// One of them; `number` is below [`Self::count`].
    ///
    /// # Errors
    /// Those of the disk.
    fn get(&self, number: usize) -> Result<Self::Sample, ModuleError>;
}

/// What a recipe's batches are made of.
pub type SampleOf<R> = <<R as Recipe>::Samples as Samples>::Sample;

/// What makes a method over data: its samples, its batches, its loss, what comes out.
pub trait Recipe {
    /// Where its samples are kept.
    type Samples: Samples;
    /// The loss.
    type Objective: Evaluate<Model = Decoder>;

    /// The loss.
    fn objective(&self) -> &Self::Objective;

    /// A micro-batch of some samples.
    fn batch(&self, samples: &[SampleOf<Self>]) -> <Self::Objective as Objective>::Batch;

    /// As [`Method::settings`].
    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::new()
    }

    /// Models that it computes with and does not train, where the task brings them: a resumed run must find the same.
    fn beside(&self, _ctx: &RunContext) -> Vec<&Decoder> {
        Vec::new()
    }

    /// Figures on held-out data that the task's summary shows beside the loss.
    fn shown(&self) -> &'static [&'static str] {
        &[]
    }

    /// As [`Method::begin`].
    ///
    /// # Errors
    /// The method's own, and that it was asked to stop.
    fn begin(
        &mut self,
        _ctx: &mut RunContext,
        _model: &Decoder,
        _data: &mut Data<Self::Samples>,
    ) -> Result<(), ModuleError> {
        Ok(())
    }

    /// As [`Method::save`].
    ///
    /// # Errors
    /// Those of the disk.
    fn save(&self, _folder: &Path, _data: &Data<Self::Samples>) -> Result<(), ModuleError> {
        Ok(())
    }

    /// As [`Method::load`].
    ///
    /// # Errors
    /// Those of the disk, and files that are not what was written.
    fn load(&mut self, _folder: &Path, _data: &mut Data<Self::Samples>) -> Result<(), ModuleError> {
        Ok(())
    }

    /// As [`Method::export`].
    ///
    /// # Errors
    /// Those of the disk, and that it was asked to stop.
    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError>;
}

/// A recipe with the data it is used on.
pub struct OverData<'a, R: Recipe> {
    recipe: R,
    data: Data<R::Samples>,
    plan: Plan,
    tokenizer: &'a TextTokenizer,
    settings: &'a Training,
}

impl<'a, R: Recipe> OverData<'a, R> {
    /// For so many devices. Says where samples are longer than the model's positions.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn new(
        ctx: &mut RunContext,
        recipe: R,
        data: Data<R::Samples>,
        model: &Decoder,
        tokenizer: &'a TextTokenizer,
        settings: &'a Training,
        devices: usize,
    ) -> Result<Self, ModuleError> {
        artifacts::check(ctx, model, tokenizer)?;
        let lengths = Lengths::of(ctx, &data.train, settings.per_device_train_batch_size)?;
        lengths.warn_of_positions(ctx, model);
        let (count, step) = (data.train.count(), samples_of_step(settings, devices));
        if count < step {
            ctx.warn(format!(
                "training data: {count} samples are fewer than a step takes, {step} (per_device_train_batch_size × \
                 gradient_accumulation_steps{}): every step sees all of them, and an epoch is one step",
                if devices > 1 { " × devices" } else { "" }
            ));
        }
        let Lengths { longest, each, heaviest } = lengths;
        let mut plan = Plan::new(data.train.count(), settings, devices).with_lengths(longest);
        let batch = settings.per_device_train_batch_size.max(1);
        let worst = worst(&mut plan, &each, &heaviest);
        let measured = Lengths::of(ctx, &data.eval, settings.per_device_eval_batch_size)?.heaviest;
        memory::before_first_step(ctx, &model.config, &Sizes::of(worst, batch, heaviest, measured))?;
        Ok(Self { recipe, data, plan, tokenizer, settings })
    }

    fn batch(&self, of: &R::Samples, numbers: &[usize]) -> Result<<R::Objective as Objective>::Batch, ModuleError> {
        let samples = numbers.iter().map(|number| of.get(*number)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.recipe.batch(&samples))
    }
}

impl<R: Recipe> Method for OverData<'_, R> {
    type Model = Decoder;

    fn steps(&self) -> Steps {
        Steps { total: self.plan.total_steps, in_epoch: self.plan.steps_per_epoch }
    }

    fn origin(&self, ctx: &RunContext, model: &Decoder) -> Result<Origin, ModuleError> {
        Ok(Origin {
            training: digest(ctx, &self.data.train)?,
            held_out: digest(ctx, &self.data.eval)?,
            model: origin::digest_of(ctx, model)?,
            beside: origin::digest_of_all(ctx, &self.recipe.beside(ctx))?,
        })
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        self.recipe.settings()
    }

    fn begin(&mut self, ctx: &mut RunContext, model: &Decoder) -> Result<(), ModuleError> {
        self.recipe.begin(ctx, model, &mut self.data)
    }

    fn step(&mut self, ctx: &mut RunContext, trainer: &mut Trainer) -> Result<StepReport, ModuleError> {
        let rows = self.plan.step(trainer.steps_done());
        let batches = rows.iter().map(|rows| self.batch(&self.data.train, rows)).collect::<Result<Vec<_>, _>>()?;
        let report = trainer.step_on(self.recipe.objective(), &batches, &|| ctx.stopping());
        let report = report.map_err(|error| of_samples(error, &rows, self.data.train.count()))?;
        trainer.data_position = report.step;
        Ok(report)
    }

    fn measure(&self, ctx: &mut RunContext, model: &Decoder, when: When) -> Result<Measured, ModuleError> {
        let mut measured = Measured::default();
        if let Some(mut figures) = self.evaluate(ctx, model, when)? {
            measured.eval_loss = figures.remove(LOSS);
            figures.retain(|name, _| self.recipe.shown().contains(&name.as_str()));
            measured.figures = figures;
        }
        measured.answers = measuring::answers(ctx, model, self.tokenizer, self.settings, when)?;
        Ok(measured)
    }

    fn evaluate(&self, ctx: &mut RunContext, model: &Decoder, when: When) -> Result<Option<Figures>, ModuleError> {
        if self.data.eval.count() == 0 {
            return Ok(None);
        }
        let numbers: Vec<usize> = (0..self.data.eval.count()).collect();
        let some = numbers.chunks(self.settings.per_device_eval_batch_size.max(1));
        let batches = some.map(|numbers| self.batch(&self.data.eval, numbers));
        let (loss, mut figures) = measuring::held_out(ctx, self.recipe.objective(), model, batches, when)?;
        figures.insert(LOSS.to_owned(), loss);
        Ok(Some(figures))
    }

    fn save(&self, folder: &Path) -> Result<(), ModuleError> {
        self.recipe.save(folder, &self.data)
    }

    fn load(&mut self, folder: &Path) -> Result<(), ModuleError> {
        self.recipe.load(folder, &mut self.data)
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        self.recipe.export(ctx, model)
    }
}

/// Samples of a step on so many devices: the reference's total_train_batch_size.
pub fn samples_of_step(settings: &Training, devices: usize) -> usize {
    let micro_batches = settings.gradient_accumulation_steps.saturating_mul(devices);
    settings.per_device_train_batch_size.saturating_mul(micro_batches)
}

fn digest<S: Samples>(ctx: &RunContext, samples: &S) -> Result<Rows, ModuleError> {
    Rows::of(ctx, (0..samples.count()).map(|number| Ok(samples.get(number)?.bytes())))
}

/// The figure that every method has on held-out data.
const LOSS: &str = "loss";

/// What failed in a step, with the samples that were in it where they may be the cause.
fn of_samples(error: TrainError, rows: &[Vec<usize>], all: usize) -> ModuleError {
    const SHOWN: usize = 16;
    let at_fault = matches!(error, TrainError::Diverged { .. } | TrainError::Batch { .. });
    let error = training_error(error);
    let ModuleError::Fatal(said) = error else { return error };
    if !at_fault {
        return ModuleError::Fatal(said);
    }
    let numbers: Vec<usize> = rows.iter().flatten().map(|number| number + 1).collect();
    let mut shown: Vec<String> = numbers.iter().take(SHOWN).map(ToString::to_string).collect();
    if numbers.len() > SHOWN {
        shown.push(format!("{} more", numbers.len() - SHOWN));
    }
    ModuleError::Fatal(format!("{said}\nits batch: samples {} of the {all} that are trained on", shown.join(", ")))
}

/// Tokens of samples.
struct Lengths {
    /// Of each one's longest row.
    longest: Vec<u32>,
    /// Of each one, as a batch.
    each: Vec<BatchRows>,
    /// Rows of those with the most tokens, the largest first.
    heaviest: Vec<Vec<usize>>,
}

impl Lengths {
    /// Looks at all samples, and keeps so many of the heaviest.
    fn of<S: Samples>(ctx: &RunContext, samples: &S, heaviest: usize) -> Result<Self, ModuleError> {
        let (mut longest, mut each) = (Vec::with_capacity(samples.count()), Vec::with_capacity(samples.count()));
        for number in 0..samples.count() {
            ctx.check()?;
            let rows = samples.get(number)?.rows();
            longest.push(u32::try_from(rows.iter().copied().max().unwrap_or(0)).unwrap_or(u32::MAX));
            each.push(BatchRows::lengths(rows));
        }
        let mut order: Vec<usize> = (0..each.len()).collect();
        order.sort_by_key(|number| std::cmp::Reverse(each[*number].tokens));
        let first = order.into_iter().take(heaviest.max(1));
        let heaviest = first.map(|number| Ok(samples.get(number)?.rows())).collect::<Result<_, ModuleError>>()?;
        Ok(Self { longest, each, heaviest })
    }

    /// Past the positions that a model was made for its answers are noise, and so is what it learns there: that is said.
    fn warn_of_positions(&self, ctx: &mut RunContext, model: &Decoder) {
        let made_for = model.config.max_position_embeddings;
        let too_long = self.longest.iter().filter(|tokens| **tokens as usize > made_for).count();
        if too_long > 0 {
            ctx.warn(format!(
                "{too_long} samples are longer than the {made_for} tokens that the model's positions are made for \
                 (max_position_embeddings)\nhint: set max_length to {made_for} or less"
            ));
        }
    }
}

/// Micro-batches that are looked at for the largest one: seconds, also of a run of months.
const LOOKED_AT: u64 = 4 << 20;

/// The largest micro-batch of a run; of one with very many what the heaviest samples would come to.
fn worst(plan: &mut Plan, each: &[BatchRows], heaviest: &[Vec<usize>]) -> BatchRows {
    let bound = BatchRows::lengths(heaviest.iter().flatten().copied());
    let samples = plan.total_steps.saturating_mul((each.len() as u64).div_ceil(plan.steps_per_epoch));
    if samples > LOOKED_AT {
        return bound;
    }
    let batch = |numbers: &Vec<usize>| {
        numbers.iter().map(|number| each[*number]).fold(BatchRows::default(), |sum, rows| BatchRows {
            tokens: sum.tokens + rows.tokens,
            squares: sum.squares + rows.squares,
        })
    };
    (0..plan.total_steps)
        .flat_map(|done| plan.step(done))
        .map(|numbers| batch(&numbers))
        .fold(BatchRows::default(), BatchRows::max)
}
