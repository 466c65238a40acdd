//! `taskType: ppo`: proximal policy optimisation. The model answers a batch of prompts, a reward model judges whole
//! answers, a model of values spreads that over tokens, and the policy moves by clipped steps and is held to a reference.
//!
//! A rollout is a batch of answers; several optimizer steps learn from each. Steps are counted and checkpointed one by one,
//! with the rollout they learn from; schedule, `logging_steps` and `save_steps` count rollouts, as in the reference.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    formats::tokenizer::TextTokenizer,
    generate::{Limits, Sampler},
    model::Decoder,
    objective::Figures,
    random::permutation,
    rl::{
        actor_critic::{ActorCritic, Critic, Ppo as Objective, Response},
        completions::{self, Text},
        ppo::{self, Episode, KlEstimator, PpoSettings},
    },
    train::{StepReport, Trainer},
};
use mloc_core::task::{
    reward::Reward,
    settings::{self, DataOrder, Interval, Save, Schedule, Span, StopToken, Training},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};
use serde::{Deserialize, Serialize};
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
    online::{self, prompts::Prompts},
    origin::Origin,
    reward::{self, Judges},
};

/// The module.
pub struct Ppo;

impl Module for Ppo {
    fn name(&self) -> &'static str {
        "ppo"
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (mut training, ppo) = (Training::of(&spec), settings::Ppo::of(&spec));
        let reward = spec.reward.clone().ok_or_else(|| fatal("spec.reward: there is nothing to learn from"))?;
        let mut base = start::load(ctx, &training, &base_model::open_device(ctx)?)?;
        base.must_be_a_language_model()?;
        artifacts::check(ctx, &base.model, &base.tokenizer)?;
        start::prepare(ctx, &mut base.model, &training)?;
        if let Some(adapter) = base.model.adapter.as_ref().filter(|adapter| adapter.lora_dropout > 0.0) {
            ctx.warn(format!(
                "model.adapter.lora_dropout: {} has no effect: dropout is off in ppo, as in the reference",
                adapter.lora_dropout
            ));
        }
        let tokenizer = &base.tokenizer;
        let stop = stop_tokens(&ppo, tokenizer)?;
        let judges = Judges::of(ctx, &reward, tokenizer, ppo.local_rollout_forward_batch_size)?;
        let reference = online::reference(ctx, &base.model, tokenizer)?;
        let critic = critic(ctx, &ppo, &base.model, judges.model(), tokenizer)?;
        let given_order = training.data_order == DataOrder::Given;
        let prompts = Prompts::read(ctx, tokenizer, &base.model, &training, given_order, ppo.response_length)?;
        let plan = Plan::of(&prompts, &training, &ppo)?;
        let sizes = Sizes::answers(&training, prompts.longest(), ppo.response_length);
        memory::before_first_step(ctx, &base.model.config, &sizes)?;
        plan.count_rollouts(&mut training);
        let method = Online {
            prompts,
            plan,
            judges,
            reward,
            reference,
            objective: objective(&ppo),
            stop,
            tokenizer,
            training: &training,
            ppo: &ppo,
            current: None,
        };
        session::run(ctx, method, ActorCritic { policy: base.model, critic }, Vec::new(), &training)
    }
}

fn stop_tokens(ppo: &settings::Ppo, tokenizer: &TextTokenizer) -> Result<Vec<i64>, ModuleError> {
    match ppo.stop {
        StopToken::None => Ok(Vec::new()),
        StopToken::Id(id) => Ok(vec![id]),
        StopToken::Eos => match tokenizer.eos_id() {
            Some(id) => Ok(vec![i64::from(id)]),
            None => Err(fatal("stop_token: the tokenizer has no end-of-sequence token: set `stop_token_id`")),
        },
    }
}

/// Values from a head on the policy, `model.value`, or a copy of the reward model.
fn critic(
    ctx: &RunContext,
    ppo: &settings::Ppo,
    policy: &Decoder,
    reward: Option<&Decoder>,
    tokenizer: &TextTokenizer,
) -> Result<Critic, ModuleError> {
    if ppo.value_head {
        return Ok(Critic::head(policy));
    }
    let mut model = match (ctx.run().inputs.value.clone(), reward) {
        (Some(path), _) => reward::classifier(ctx, "model.value", &path, tokenizer)?,
        (None, Some(reward)) => reward.clone(),
        (None, None) => {
            return Err(fatal("model.value: there is no model of values and no reward model to start from"));
        }
    };
    model.checkpointing = policy.checkpointing;
    model.set_compute(policy.compute());
    Critic::model(model).map_err(|said| fatal(format!("model.value: {said}")))
}

fn objective(ppo: &settings::Ppo) -> Objective {
    let settings = PpoSettings {
        kl_coef: ppo.kl_coef,
        kl_estimator: if ppo.kl_estimator == "k3" { KlEstimator::K3 } else { KlEstimator::K1 },
        whiten_rewards: ppo.whiten_rewards,
        gamma: ppo.gamma,
        lam: ppo.lam,
        cliprange: ppo.cliprange,
        cliprange_value: ppo.cliprange_value,
        vf_coef: ppo.vf_coef,
    };
    Objective { settings, temperature: ppo.temperature, response_length: ppo.response_length }
}

/// Sizes of the run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Responses of a rollout.
    batch: usize,
    mini_batch: usize,
    micro_batch: usize,
    /// Micro-batches of an optimizer step.
    accumulation: usize,
    epochs: usize,
    rollouts: u64,
    rollouts_in_epoch: u64,
}

impl Plan {
    fn of(prompts: &Prompts, training: &Training, ppo: &settings::Ppo) -> Result<Self, ModuleError> {
        let batch = training.per_device_train_batch_size * training.gradient_accumulation_steps;
        let episodes = match ppo.total_episodes {
            Some(episodes) => episodes,
            None => (training.num_train_epochs * prompts.len() as f64) as u64,
        };
        Ok(Self {
            batch,
            mini_batch: (batch / ppo.num_mini_batches).max(1),
            micro_batch: training.per_device_train_batch_size,
            accumulation: training.gradient_accumulation_steps,
            epochs: ppo.num_ppo_epochs,
            rollouts: episodes.div_ceil(batch as u64).max(1),
            rollouts_in_epoch: prompts.generations(batch)?,
        })
    }

    /// Optimizer steps on a rollout.
    fn steps(self) -> u64 {
        let in_mini_batch = self.mini_batch.div_ceil(self.micro_batch);
        let micro_batches = self.epochs * (self.batch / self.mini_batch) * in_mini_batch;
        micro_batches.div_ceil(self.accumulation) as u64
    }

    /// Places in the rollout of the responses of each micro-batch of one of its steps.
    fn step(self, rollout: u64, step: u64, seed: u64) -> Vec<Vec<usize>> {
        let mut all: Vec<Vec<usize>> = Vec::new();
        for epoch in 0..self.epochs {
            let shuffle = rollout * self.epochs as u64 + epoch as u64;
            let order = permutation(self.batch, seed ^ SHUFFLES, shuffle);
            for mini_batch in order.chunks(self.mini_batch) {
                all.extend(mini_batch.chunks(self.micro_batch).map(<[usize]>::to_vec));
            }
        }
        all.chunks(self.accumulation).nth(step as usize).map(<[_]>::to_vec).unwrap_or_default()
    }

    /// What the task counts in rollouts, in optimizer steps.
    fn count_rollouts(self, training: &mut Training) {
        let in_steps = |span: &mut Span| {
            if let Span::Steps(rollouts) = span {
                *rollouts = rollouts.saturating_mul(self.steps());
            }
        };
        in_steps(&mut training.warmup);
        match &mut training.lr_scheduler {
            Schedule::WarmupStableDecay { num_decay_steps, num_stable_steps, .. } => {
                for rollouts in std::iter::once(num_decay_steps).chain(num_stable_steps.as_mut()) {
                    *rollouts = rollouts.saturating_mul(self.steps());
                }
            }
            Schedule::InverseSqrt { timescale: Some(rollouts) } => *rollouts *= self.steps() as f64,
            _ => {}
        }
        if let Interval::Steps(every) = &mut training.logging {
            in_steps(every);
        }
        if let Save::At(Interval::Steps(every)) = &mut training.save {
            in_steps(every);
        }
    }
}

/// Tells the order within rollouts from that of the prompts.
const SHUFFLES: u64 = 0x5053_4855_4646_4c45;

/// PPO on the task's prompts.
struct Online<'a> {
    prompts: Prompts,
    plan: Plan,
    judges: Judges,
    reward: Reward,
    reference: Decoder,
    objective: Objective,
    stop: Vec<i64>,
    tokenizer: &'a TextTokenizer,
    training: &'a Training,
    ppo: &'a settings::Ppo,
    /// What is learnt from; absent before the first step.
    current: Option<Rollout>,
}

/// A batch of responses.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Rollout {
    /// From 0.
    number: u64,
    responses: Vec<Response>,
}

impl Online<'_> {
    fn roll_out(
        &mut self,
        ctx: &RunContext,
        model: &ActorCritic,
        number: u64,
    ) -> Result<(Rollout, Figures), ModuleError> {
        let ppo = self.ppo;
        let at_once = ppo.local_rollout_forward_batch_size;
        let asking = self.prompts.of(number, self.plan.batch, 1)?;
        let sampler = Sampler { temperature: ppo.temperature as f32, ..Sampler::default() };
        let limits = Limits { max_new_tokens: ppo.response_length, stop_ids: self.stop.clone() };
        let made = online::generate(ctx, &model.policy, &asking, sampler, &limits, at_once)?;
        let texts: Vec<Text<'_>> = asking
            .iter()
            .zip(&made)
            .map(|(asking, made)| Text { prompt: &asking.prompt.ids, completion: &made.ids })
            .collect();
        let stop = || ctx.stopping();
        let references = completions::score(&self.reference, &texts, ppo.temperature, at_once, &stop);
        let references = references.map_err(training_error)?;
        let values = model.values(&texts, ppo.response_length, at_once, &stop).map_err(training_error)?;
        let (rewards, _) = online::judged(ctx, &mut self.judges, self.tokenizer, &asking, &made)?;
        let end = self.tokenizer.eos_id().map(i64::from);
        let mut episodes = Vec::with_capacity(made.len());
        for (((made, reference), values), rewards) in made.iter().zip(references).zip(values).zip(rewards) {
            let mut score = self.score_of(&rewards)?;
            let ended = made.ids.iter().any(|id| Some(*id) == end);
            if let Some(penalty) = ppo.missing_eos_penalty.filter(|_| !ended) {
                score -= penalty;
            }
            let logprobs = made.logprobs.clone();
            episodes.push(Episode { logprobs, ref_logprobs: reference.logprobs, values, score });
        }
        let estimates = ppo::estimate(&episodes, &self.objective.settings);
        let mut figures = self.figures(&episodes, &estimates);
        let ends = made.iter().flat_map(|made| &made.ids).filter(|id| Some(**id) == end).count();
        figures.insert("val/num_eos_tokens".into(), ends as f64);
        figures.insert("episode".into(), ((number + 1) * self.plan.batch as u64) as f64);
        let parts = asking.iter().zip(made).zip(episodes.into_iter().zip(estimates));
        let responses = parts.map(|((asking, made), (episode, estimate))| Response {
            prompt: asking.prompt.ids.clone(),
            response: made.ids,
            episode,
            estimate,
        });
        Ok((Rollout { number, responses: responses.collect() }, figures))
    }

    /// The weighted sum of what the functions say.
    fn score_of(&self, rewards: &[Option<f64>]) -> Result<f64, ModuleError> {
        if rewards.iter().all(Option::is_none) {
            return Err(fatal("reward.funcs: none of them says anything of a response, and PPO needs a score of each"));
        }
        let weight = |index: usize| self.ppo.reward_weights.get(index).copied().unwrap_or(1.0);
        Ok(rewards.iter().enumerate().map(|(index, reward)| weight(index) * reward.unwrap_or(0.0)).sum())
    }

    /// Under the reference's names: means over responses of sums over their tokens.
    fn figures(&self, episodes: &[Episode], estimates: &[ppo::Estimate]) -> Figures {
        let count = episodes.len().max(1) as f64;
        let kl = estimates.iter().flat_map(|estimate| &estimate.kl).sum::<f64>() / count;
        let entropy = -episodes.iter().flat_map(|episode| &episode.logprobs).sum::<f64>() / count;
        let score = episodes.iter().map(|episode| episode.score).sum::<f64>() / count;
        let non_score = -self.ppo.kl_coef * kl;
        let figures = [
            ("objective/kl", kl),
            ("objective/entropy", entropy),
            ("objective/non_score_reward", non_score),
            ("objective/rlhf_reward", non_score + score),
            ("objective/scores", score),
        ];
        figures.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

impl Method for Online<'_> {
    type Model = ActorCritic;

    fn steps(&self) -> Steps {
        let steps = self.plan.steps();
        Steps { total: self.plan.rollouts * steps, in_epoch: self.plan.rollouts_in_epoch * steps }
    }

    fn origin(&self, ctx: &RunContext, model: &ActorCritic) -> Result<Origin, ModuleError> {
        let inputs = &ctx.run().inputs;
        let mut beside: Vec<&Decoder> = self.judges.model().into_iter().collect();
        beside.extend(Some(&self.reference).filter(|_| inputs.reference.is_some()));
        if let (Critic::Model(critic), true) = (&model.critic, inputs.value.is_some()) {
            beside.push(critic);
        }
        self.prompts.origin(ctx, &model.policy, &beside)
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("ppo".to_owned(), json!(self.ppo)),
            ("reward.funcs".to_owned(), json!(self.reward.funcs)),
            ("per_device_train_batch_size".to_owned(), json!(self.training.per_device_train_batch_size)),
            ("gradient_accumulation_steps".to_owned(), json!(self.training.gradient_accumulation_steps)),
        ])
    }

    fn step(&mut self, ctx: &mut RunContext, trainer: &mut Trainer<ActorCritic>) -> Result<StepReport, ModuleError> {
        let steps = self.plan.steps();
        let (number, step) = (trainer.steps_done() / steps, trainer.steps_done() % steps);
        let mut new = None;
        let rollout = match &self.current {
            Some(rollout) if rollout.number == number => rollout.clone(),
            _ => {
                let (rollout, figures) = self.roll_out(ctx, trainer.model(), number)?;
                new = Some(figures);
                rollout
            }
        };
        let places = self.plan.step(number, step, self.training.seed);
        let batch = |places: &Vec<usize>| places.iter().map(|place| rollout.responses[*place].clone()).collect();
        let batches: Vec<Vec<Response>> = places.iter().map(batch).collect();
        // The rate stays as it is while the rollout does.
        let done = trainer.step_at(number * steps, &self.objective, &batches, &|| ctx.stopping());
        let mut report = done.map_err(training_error)?;
        report.figures.extend(new.unwrap_or_default());
        trainer.data_position = report.step;
        self.current = Some(rollout);
        Ok(report)
    }

    fn measure(&self, ctx: &mut RunContext, model: &ActorCritic, when: When) -> Result<Measured, ModuleError> {
        let answers = measuring::answers(ctx, &model.policy, self.tokenizer, self.training, when)?;
        Ok(Measured { answers, ..Measured::default() })
    }

    fn save(&self, folder: &Path) -> Result<(), ModuleError> {
        online::save(folder, &self.current)
    }

    fn load(&mut self, folder: &Path) -> Result<(), ModuleError> {
        self.current = online::load(folder)?;
        Ok(())
    }

    fn export(&self, ctx: &mut RunContext, model: &ActorCritic) -> Result<Vec<Output>, ModuleError> {
        artifacts::save_tuned(ctx, &model.policy, self.tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_response_of_a_rollout_is_learnt_from_once_an_epoch() {
        let plan = Plan {
            batch: 12,
            mini_batch: 4,
            micro_batch: 3,
            accumulation: 4,
            epochs: 3,
            rollouts: 2,
            rollouts_in_epoch: 5,
        };
        // 3 epochs of 3 mini-batches of 2 micro-batches (3 and 1 responses), 4 of which make a step.
        assert_eq!(plan.steps(), 5);
        let steps: Vec<Vec<Vec<usize>>> = (0..5).map(|step| plan.step(0, step, 7)).collect();
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 4, 2]);
        let all: Vec<usize> = steps.iter().flatten().flatten().copied().collect();
        for epoch in all.chunks(12) {
            let mut seen = epoch.to_vec();
            seen.sort_unstable();
            assert_eq!(seen, (0..12).collect::<Vec<_>>());
        }
        assert_ne!(plan.step(0, 0, 7), plan.step(1, 0, 7));
    }
}
