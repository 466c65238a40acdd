//! `taskType: grpo`: group-relative policy optimisation. The model answers each prompt several times; what an answer is
//! worth is how much better its rewards are than those of the others.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    formats::tokenizer::TextTokenizer,
    generate::{Limits, Sampler, many::Continuation},
    model::Decoder,
    objective::Figures,
    random::permutation,
    rl::{
        completions::{self, Text},
        grpo::{Aggregation, GrpoSettings, Normalizer, Rewards, ScaleRewards},
        policy::{Grpo as Objective, GrpoBatch, Judged},
    },
    train::{StepReport, Trainer},
};
use mloc_core::task::{
    reward::Reward,
    settings::{self, Training},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    base_model, fatal,
    finetune::{
        artifacts, measuring,
        method::{Measured, Method, Steps, When},
        session::{self, training_error},
        start,
    },
    memory::{self, sizes::Sizes},
    online::{self, mean_and_deviation, prompts::Prompts},
    origin::Origin,
    reward::Judges,
};

/// The module.
pub struct Grpo;

impl Module for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (training, grpo) = (Training::of(&spec), settings::Grpo::of(&spec));
        let reward = spec.reward.clone().ok_or_else(|| fatal("spec.reward: there is nothing to learn from"))?;
        let mut base = start::load(ctx, &training, &base_model::open_device(ctx)?)?;
        base.must_be_a_language_model()?;
        artifacts::check(ctx, &base.model, &base.tokenizer)?;
        start::prepare(ctx, &mut base.model, &training)?;
        let tokenizer = &base.tokenizer;
        let judges = Judges::of(ctx, &reward, tokenizer, training.per_device_eval_batch_size)?;
        let reference = match grpo.beta == 0.0 {
            true => None,
            false => Some(online::reference(ctx, &base.model, tokenizer)?),
        };
        let answer = grpo.max_completion_length;
        let prompts = Prompts::read(ctx, tokenizer, &base.model, &training, grpo.given_order, answer)?;
        let plan = Plan::of(&prompts, &training, &grpo)?;
        let sizes = Sizes::answers(&training, prompts.longest(), answer);
        memory::before_first_step(ctx, &base.model.config, &sizes)?;
        let objective = objective(&grpo)?;
        let ends = online::end_tokens(&base.model, tokenizer);
        let method = Online {
            prompts,
            plan,
            judges,
            reward,
            reference,
            objective,
            ends,
            tokenizer,
            training: &training,
            grpo: &grpo,
            current: None,
        };
        session::run(ctx, method, base.model, Vec::new(), &training)
    }
}

/// Which generation makes which micro-batch.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Micro-batches that learn from one generation, repetitions included.
    per_generation: u64,
    /// Different ones among them.
    parts: u64,
    /// In an optimizer step.
    per_step: u64,
    steps: Steps,
}

impl Plan {
    fn of(prompts: &Prompts, training: &Training, grpo: &settings::Grpo) -> Result<Self, ModuleError> {
        let generations = prompts.generations(grpo.generation_batch_size / grpo.num_generations)?;
        let parts = grpo.steps_per_generation as u64;
        let per_generation = parts * grpo.num_iterations as u64;
        let per_step = training.gradient_accumulation_steps as u64;
        let in_epoch = (generations * per_generation).div_ceil(per_step).max(1);
        let by_epochs = (training.num_train_epochs * in_epoch as f64).ceil() as u64;
        let total = training.max_steps.unwrap_or(by_epochs).max(1);
        Ok(Self { per_generation, parts, per_step, steps: Steps { total, in_epoch } })
    }

    /// Whether completions are only ever learnt from by the model that wrote them.
    fn is_on_policy(self) -> bool {
        self.per_step.is_multiple_of(self.per_generation)
    }
}

/// A setting that names a variant.
fn variant<T: DeserializeOwned>(name: &str) -> Result<T, ModuleError> {
    serde_json::from_value(json!(name)).map_err(fatal)
}

fn objective(grpo: &settings::Grpo) -> Result<Objective, ModuleError> {
    let settings = GrpoSettings {
        loss_type: variant(&grpo.loss_type)?,
        beta: grpo.beta,
        epsilon: grpo.epsilon,
        epsilon_high: grpo.epsilon_high,
        delta: grpo.delta,
        importance_sampling_level: variant(&grpo.importance_sampling_level)?,
        use_bias_correction_kl: grpo.use_bias_correction_kl,
        top_entropy_quantile: grpo.top_entropy_quantile,
        entropy_coef: grpo.entropy_coef,
        sapo_temperature_pos: grpo.sapo_temperature_pos,
        sapo_temperature_neg: grpo.sapo_temperature_neg,
        max_completion_length: grpo.max_completion_length,
    };
    Ok(Objective { settings, temperature: grpo.temperature, dropout: !grpo.disable_dropout })
}

/// GRPO on the task's prompts.
struct Online<'a> {
    prompts: Prompts,
    plan: Plan,
    judges: Judges,
    reward: Reward,
    /// Absent where nothing is held to it.
    reference: Option<Decoder>,
    objective: Objective,
    ends: Vec<i64>,
    tokenizer: &'a TextTokenizer,
    training: &'a Training,
    grpo: &'a settings::Grpo,
    /// What is learnt from; absent before the first step.
    current: Option<Generation>,
}

/// What was written together.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Generation {
    /// From 0.
    number: u64,
    /// Shuffled, so that each part is of many prompts.
    rows: Vec<Judged>,
    normalizer: Normalizer,
}

impl Online<'_> {
    /// Answers, rewards and advantages of a generation, and what is logged of them.
    fn generate(
        &mut self,
        ctx: &mut RunContext,
        model: &Decoder,
        number: u64,
    ) -> Result<(Generation, Figures), ModuleError> {
        let grpo = self.grpo;
        let asking =
            self.prompts.of(number, grpo.generation_batch_size / grpo.num_generations, grpo.num_generations)?;
        let sampler = Sampler {
            temperature: grpo.temperature as f32,
            top_k: grpo.top_k,
            top_p: grpo.top_p as f32,
            min_p: grpo.min_p as f32,
        };
        let limits = Limits { max_new_tokens: grpo.max_completion_length, stop_ids: self.ends.clone() };
        let made = online::generate(ctx, model, &asking, sampler, &limits, asking.len())?;
        let (by_function, texts) = online::judged(ctx, &mut self.judges, self.tokenizer, &asking, &made)?;
        let weights = match grpo.reward_weights.is_empty() {
            true => vec![1.0; self.reward.funcs.len()],
            false => grpo.reward_weights.clone(),
        };
        let rewards = Rewards { by_function: &by_function, weights: &weights, group: grpo.num_generations };
        let scale: ScaleRewards = variant(&grpo.scale_rewards)?;
        let aggregation: Aggregation = variant(&grpo.multi_objective_aggregation)?;
        let advantages = rewards.advantages(scale, aggregation);
        let unjudged = advantages.rewards.iter().filter(|reward| reward.is_none()).count();
        if unjudged > 0 {
            ctx.warn(format!("generation {number}: no reward function says anything of {unjudged} completions"));
        }
        for (text, reward) in texts.iter().zip(&advantages.rewards).take(grpo.completions_shown) {
            let reward = reward.map_or_else(|| "none".to_owned(), |reward| reward.to_string());
            ctx.log(format!("generation {number}: reward {reward}: {text:?}"));
        }
        let mut rows: Vec<Judged> = asking
            .iter()
            .zip(&made)
            .zip(&advantages.values)
            .map(|((asking, made), advantage)| Judged {
                prompt: asking.prompt.ids.clone(),
                completion: match grpo.mask_truncated_completions && !made.ended {
                    true => Vec::new(),
                    false => made.ids.clone(),
                },
                old: None,
                reference: Vec::new(),
                advantage: *advantage,
            })
            .collect();
        self.score(ctx, model, &mut rows)?;
        let tokens = rows.iter().map(|row| row.completion.len()).sum();
        // As in TRL 1.16.0 a micro-batch is divided by its share of the generation, whatever a step is made of.
        let normalizer = Normalizer { micro_batches: grpo.steps_per_generation, tokens };
        let order = permutation(rows.len(), self.training.seed, number);
        let mut shuffled: Vec<Option<Judged>> = rows.into_iter().map(Some).collect();
        let rows = order.iter().filter_map(|place| shuffled[*place].take()).collect();
        let mut figures = lengths(&made);
        figures.extend(self.rewards(&by_function, &advantages.rewards));
        figures.insert("frac_reward_zero_std".into(), advantages.frac_reward_zero_std);
        Ok((Generation { number, rows, normalizer }, figures))
    }

    /// Adds what the models say of the completions as they were written.
    fn score(&self, ctx: &RunContext, model: &Decoder, rows: &mut [Judged]) -> Result<(), ModuleError> {
        let texts: Vec<Text<'_>> = rows.iter().map(Judged::text).collect();
        let score = |model: &Decoder| {
            let at_once = self.training.per_device_train_batch_size;
            let scores = completions::score(model, &texts, self.grpo.temperature, at_once, &|| ctx.stopping());
            scores.map_err(training_error)
        };
        let old = if self.plan.is_on_policy() { None } else { Some(score(model)?) };
        let reference = self.reference.as_ref().map(score).transpose()?;
        drop(texts);
        for (row, scores) in rows.iter_mut().zip(old.into_iter().flatten()) {
            row.old = Some(scores.logprobs);
        }
        for (row, scores) in rows.iter_mut().zip(reference.into_iter().flatten()) {
            row.reference = scores.logprobs;
        }
        Ok(())
    }

    fn rewards(&self, by_function: &[Vec<Option<f64>>], summed: &[Option<f64>]) -> Figures {
        let mut figures = Figures::new();
        for (index, name) in self.judges.names().enumerate() {
            let said = by_function.iter().filter_map(|row| row[index]);
            // A function that said nothing of any completion has no mean.
            if said.clone().next().is_some() {
                let (mean, deviation) = mean_and_deviation(said);
                figures.insert(format!("rewards/{name}/mean"), mean);
                figures.insert(format!("rewards/{name}/std"), deviation);
            }
        }
        let (mean, deviation) = mean_and_deviation(summed.iter().flatten().copied());
        figures.insert("reward".into(), mean);
        figures.insert("reward_std".into(), deviation);
        figures
    }
}

/// Lengths of completions, under the reference's names.
fn lengths(made: &[Continuation]) -> Figures {
    let mut figures = Figures::new();
    let mut say = |kind: &str, lengths: Vec<f64>| {
        if lengths.is_empty() {
            return;
        }
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        figures.insert(format!("completions/mean_{kind}"), mean);
        figures.insert(format!("completions/min_{kind}"), lengths.iter().copied().fold(f64::INFINITY, f64::min));
        figures.insert(format!("completions/max_{kind}"), lengths.iter().copied().fold(0.0, f64::max));
    };
    say("length", made.iter().map(|made| made.ids.len() as f64).collect());
    let ended = || made.iter().filter(|made| made.ended);
    say("terminated_length", ended().map(|made| made.ids.len() as f64).collect());
    let clipped = 1.0 - ended().count() as f64 / made.len().max(1) as f64;
    figures.insert("completions/clipped_ratio".into(), clipped);
    figures
}

impl Method for Online<'_> {
    type Model = Decoder;

    fn steps(&self) -> Steps {
        self.plan.steps
    }

    fn origin(&self, ctx: &RunContext, model: &Decoder) -> Result<Origin, ModuleError> {
        let reference = self.reference.as_ref().filter(|_| ctx.run().inputs.reference.is_some());
        let beside: Vec<&Decoder> = self.judges.model().into_iter().chain(reference).collect();
        self.prompts.origin(ctx, model, &beside)
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("grpo".to_owned(), json!(self.grpo)),
            ("reward.funcs".to_owned(), json!(self.reward.funcs)),
            ("per_device_train_batch_size".to_owned(), json!(self.training.per_device_train_batch_size)),
            ("gradient_accumulation_steps".to_owned(), json!(self.training.gradient_accumulation_steps)),
        ])
    }

    fn step(&mut self, ctx: &mut RunContext, trainer: &mut Trainer) -> Result<StepReport, ModuleError> {
        let Plan { per_generation, parts, per_step, .. } = self.plan;
        let first = trainer.steps_done() * per_step;
        // Kept only when the step is done: one that is stopped begins again with what was there before.
        let mut current = self.current.clone();
        let mut new: Vec<Figures> = Vec::new();
        let mut batches = Vec::with_capacity(per_step as usize);
        for micro in first..first + per_step {
            let number = micro / per_generation;
            let generation = match current.take() {
                Some(generation) if generation.number == number => generation,
                _ => {
                    let (generation, figures) = self.generate(ctx, trainer.model(), number)?;
                    new.push(figures);
                    generation
                }
            };
            let part = (micro % per_generation % parts) as usize;
            let size = self.training.per_device_train_batch_size;
            let rows = generation.rows.iter().skip(part * size).take(size).cloned().collect();
            batches.push(GrpoBatch { rows, normalizer: generation.normalizer });
            current = Some(generation);
        }
        let done = trainer.step_on(&self.objective, &batches, &|| ctx.stopping());
        let mut report = done.map_err(training_error)?;
        report.figures.extend(means(new));
        trainer.data_position = report.step;
        self.current = current;
        Ok(report)
    }

    fn measure(&self, ctx: &mut RunContext, model: &Decoder, when: When) -> Result<Measured, ModuleError> {
        let answers = measuring::answers(ctx, model, self.tokenizer, self.training, when)?;
        Ok(Measured { answers, ..Measured::default() })
    }

    fn save(&self, folder: &Path) -> Result<(), ModuleError> {
        online::save(folder, &self.current)
    }

    fn load(&mut self, folder: &Path) -> Result<(), ModuleError> {
        self.current = online::load(folder)?;
        Ok(())
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        artifacts::save_tuned(ctx, model, self.tokenizer)
    }
}

/// Means over those that have each figure.
fn means(all: Vec<Figures>) -> Figures {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (name, value) in all.into_iter().flatten() {
        let (sum, count) = sums.entry(name).or_default();
        *sum += value;
        *count += 1.0;
    }
    sums.into_iter().map(|(name, (sum, count))| (name, sum / count)).collect()
}
