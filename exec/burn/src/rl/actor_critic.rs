//! PPO's losses on a model of policy and one of values, or on one model that is both.

use serde::{Deserialize, Serialize};

use burn::tensor::{Device, Tensor};

use super::completions::{Text, batch, by_text};
use super::ppo::{self, Episode, Estimate, PpoSettings, Seen};
use crate::logprobs::{self, Slopes};
use crate::loss::Targets;
use crate::model::packed::int_tensor;
use crate::model::parameter::{Parameters, host_values, matrix, on_device};
use crate::model::{Decoder, Gradients, Head, Packed, Parameter, ScoreHead};
use crate::objective::{BatchReport, Figures, Objective, Pass, check_rows};
use crate::train::TrainError;

/// Before the names of a value model's parameters, which are otherwise those of the policy.
const PREFIX: &str = "value.";

/// A policy, and what says what its texts will be worth.
#[derive(Debug, Clone)]
pub struct ActorCritic {
    /// What is rewarded.
    pub policy: Decoder,
    /// Values.
    pub critic: Critic,
}

/// Where values come from.
#[derive(Debug, Clone)]
pub enum Critic {
    /// A classifier of one label.
    Model(Decoder),
    /// One more output of the policy's last hidden states, whose gradient goes on into the policy.
    Head(ScoreHead),
}

impl Critic {
    /// A model of values; all of it is trained.
    ///
    /// # Errors
    /// That it has no score head of one label.
    pub fn model(mut model: Decoder) -> Result<Self, String> {
        let wanted = [1, model.config.hidden_size];
        match model.score.as_ref().map(|head| head.weight.shape.clone()) {
            Some(shape) if shape == wanted => {}
            Some(shape) => return Err(format!("its score head has shape {shape:?}, expected {wanted:?}")),
            None => return Err(format!("{} has no score head", model.config.architecture)),
        }
        for parameter in model.parameters_mut() {
            parameter.name.insert_str(0, PREFIX);
            parameter.trainable = true;
        }
        Ok(Self::Model(model))
    }

    /// A head on `policy` that says 0 of everything so far.
    pub fn head(policy: &Decoder) -> Self {
        let width = policy.config.hidden_size;
        let weight = Parameter::new(format!("{PREFIX}score.weight"), &[1, width], vec![0.0; width], policy.device());
        Self::Head(ScoreHead { weight: Parameter { trainable: true, ..weight } })
    }
}

impl Parameters for ActorCritic {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let (model, head) = match &self.critic {
            Critic::Model(model) => (Some(model), None),
            Critic::Head(head) => (None, Some(&head.weight)),
        };
        self.policy.parameters().chain(model.into_iter().flat_map(|model| model.parameters())).chain(head)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let (model, head) = match &mut self.critic {
            Critic::Model(model) => (Some(model), None),
            Critic::Head(head) => (None, Some(&mut head.weight)),
        };
        self.policy.parameters_mut().chain(model.into_iter().flat_map(|model| model.parameters_mut())).chain(head)
    }

    fn on_device(&self, device: &Device) -> Self {
        let critic = match &self.critic {
            Critic::Model(model) => Critic::Model(model.on_device(device)),
            Critic::Head(head) => {
                let value = on_device(&head.weight.value, device);
                Critic::Head(ScoreHead { weight: Parameter { value, ..head.weight.clone() } })
            }
        };
        Self { policy: self.policy.on_device(device), critic }
    }
}

impl ActorCritic {
    /// The value before each token of each response, and behind the last one of those shorter than `response_length`;
    /// `at_once` texts in a forward pass. `stop` is asked before each.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`]; [`TrainError::Batch`] of tokens that the model does not know.
    pub fn values(
        &self,
        texts: &[Text<'_>],
        response_length: usize,
        at_once: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f64>>, TrainError> {
        let (model, head) = match &self.critic {
            Critic::Model(model) => (model, model.score.as_ref()),
            Critic::Head(head) => (&self.policy, Some(head)),
        };
        let mut values = Vec::with_capacity(texts.len());
        for texts in texts.chunks(at_once.max(1)) {
            if stop() {
                return Err(TrainError::Interrupted);
            }
            let rows = batch(texts);
            check_rows(&rows, model.config.vocab_size)?;
            let packed = Packed::new(&rows, &model.config, model.device());
            let places = Places::of(texts, response_length);
            let hidden = places.select(&model.hidden(&packed));
            let all: Vec<f64> = match head {
                Some(head) => host_values(head.forward(&hidden)).into_iter().map(f64::from).collect(),
                None => Vec::new(),
            };
            values.extend(places.by_text(&all));
        }
        Ok(values)
    }
}

/// Where values stand among the packed tokens of some texts.
struct Places {
    indices: Vec<i64>,
    /// Of each text.
    counts: Vec<usize>,
}

impl Places {
    fn of(texts: &[Text<'_>], response_length: usize) -> Self {
        let (mut indices, mut counts) = (Vec::new(), Vec::new());
        let mut start = 0;
        for text in texts {
            let count = (text.completion.len() + 1).min(response_length);
            // The state before the first token is that at the prompt's last one.
            let first = start + text.prompt.len() - 1;
            indices.extend((first..first + count).map(|index| index as i64));
            counts.push(count);
            start += text.tokens();
        }
        Self { indices, counts }
    }

    fn select(&self, hidden: &Tensor<2>) -> Tensor<2> {
        hidden.clone().select(0, int_tensor(self.indices.clone(), &hidden.device()))
    }

    /// Places what was selected back among zeros.
    fn scatter(&self, like: &Tensor<2>, selected: Tensor<2>) -> Tensor<2> {
        let zeros = Tensor::zeros(like.dims(), &like.device());
        let indices = int_tensor(self.indices.clone(), &like.device());
        zeros.select_assign(0, indices, selected, burn::tensor::IndexingUpdateOp::Add)
    }

    fn by_text(&self, values: &[f64]) -> Vec<Vec<f64>> {
        let mut rest = values;
        let mut next = |count: &usize| {
            let (own, others) = rest.split_at((*count).min(rest.len()));
            rest = others;
            own.to_vec()
        };
        self.counts.iter().map(&mut next).collect()
    }
}

/// A response that is learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// At least one token.
    pub prompt: Vec<i64>,
    /// At least one token.
    pub response: Vec<i64>,
    /// What it was when it was sampled.
    pub episode: Episode,
    /// What that came to.
    pub estimate: Estimate,
}

impl Response {
    /// Its tokens.
    pub fn text(&self) -> Text<'_> {
        Text { prompt: &self.prompt, completion: &self.response }
    }
}

/// PPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ppo {
    /// Settings of rewards and losses.
    pub settings: PpoSettings,
    /// Logits are divided by it, as they were in sampling.
    pub temperature: f64,
    /// Tokens of the longest response.
    pub response_length: usize,
}

impl Objective for Ppo {
    type Model = ActorCritic;
    type Batch = Vec<Response>;

    fn check(&self, model: &ActorCritic, given: &Vec<Response>) -> Result<(), TrainError> {
        let texts: Vec<Text<'_>> = given.iter().map(Response::text).collect();
        let batch = batch(&texts);
        check_rows(&batch, model.policy.config.vocab_size)?;
        match &model.critic {
            Critic::Model(critic) => check_rows(&batch, critic.config.vocab_size),
            Critic::Head(_) => Ok(()),
        }
    }

    /// The mean is over micro-batches.
    fn weight(&self, _: &Vec<Response>) -> f64 {
        1.0
    }

    fn tokens(&self, given: &Vec<Response>) -> usize {
        given.iter().map(|row| row.text().tokens()).sum()
    }

    fn accumulate(
        &self,
        model: &ActorCritic,
        given: &Vec<Response>,
        pass: &mut Pass<'_>,
    ) -> Result<BatchReport, TrainError> {
        let texts: Vec<Text<'_>> = given.iter().map(Response::text).collect();
        let batch = batch(&texts);
        let packed = Packed::new(&batch, &model.policy.config, model.policy.device());
        let targets = Targets::of(&batch, &packed);
        let scale = pass.scale;
        let part = Part { objective: self, given, texts: &texts, scale };
        let (policy, value) = match &model.critic {
            Critic::Head(head) => pass.through(&model.policy, &packed, |hidden, gradients| {
                let (policy, d_policy) = part.policy(model.policy.head(), &targets, hidden, gradients);
                let (value, d_value) = part.value(head, hidden, gradients);
                ((policy, value), d_policy + d_value)
            })?,
            Critic::Model(critic) => {
                let policy = pass.through(&model.policy, &packed, |hidden, gradients| {
                    part.policy(model.policy.head(), &targets, hidden, gradients)
                })?;
                let packed = Packed::new(&batch, &critic.config, critic.device());
                let value = pass.through(critic, &packed, |hidden, gradients| match &critic.score {
                    Some(head) => part.value(head, hidden, gradients),
                    None => (Figures::new(), hidden.zeros_like()),
                })?;
                (policy, value)
            }
        };
        let mut figures = policy;
        figures.extend(value);
        let of = |name: &str| figures.get(name).copied().unwrap_or(0.0);
        let loss = of("loss/policy_avg") + self.settings.vf_coef * of("loss/value_avg");
        Ok(BatchReport { loss, figures })
    }
}

/// A micro-batch on its way through the models.
struct Part<'a> {
    objective: &'a Ppo,
    given: &'a [Response],
    texts: &'a [Text<'a>],
    scale: f64,
}

impl Part<'_> {
    fn seen<'n>(&'n self, now: &'n [Vec<f64>]) -> Vec<Seen<'n>> {
        let pairs = self.given.iter().zip(now);
        pairs.map(|(row, now)| Seen { episode: &row.episode, estimate: &row.estimate, now }).collect()
    }

    fn policy(
        &self,
        head: Head<'_>,
        targets: &Targets,
        hidden: &Tensor<2>,
        gradients: &mut Gradients,
    ) -> (Figures, Tensor<2>) {
        let Ppo { settings, temperature, response_length } = self.objective;
        let scores = logprobs::score(hidden, head, targets, *temperature);
        let now = by_text(self.texts, &scores.logprobs);
        let found = ppo::policy_loss(&self.seen(&now), *response_length, settings);
        let scaled = found.slopes.iter().flatten().map(|slope| self.scale * slope).collect();
        let slopes = Slopes { logprobs: scaled, entropies: Vec::new() };
        let d_hidden = logprobs::backward(hidden, head, targets, *temperature, &slopes, gradients);
        let entropy = scores.entropies.iter().sum::<f64>() / scores.entropies.len().max(1) as f64;
        let figures = [
            ("loss/policy_avg", found.loss),
            ("policy/approxkl_avg", found.approx_kl),
            ("policy/clipfrac_avg", found.clipfrac),
            ("policy/entropy_avg", entropy),
            ("val/ratio", found.ratio),
        ];
        (figures.map(|(name, value)| (name.to_owned(), value)).into(), d_hidden)
    }

    fn value(&self, head: &ScoreHead, hidden: &Tensor<2>, gradients: &mut Gradients) -> (Figures, Tensor<2>) {
        let Ppo { settings, response_length, .. } = self.objective;
        let places = Places::of(self.texts, *response_length);
        let selected = places.select(hidden);
        let all: Vec<f64> = host_values(head.forward(&selected)).into_iter().map(f64::from).collect();
        let now = places.by_text(&all);
        let found = ppo::value_loss(&self.seen(&now), settings);
        let weight = self.scale * settings.vf_coef;
        let slopes: Vec<f32> = found.slopes.iter().flatten().map(|slope| (weight * slope) as f32).collect();
        let count = slopes.len();
        let d_scores = matrix(slopes, &[count, 1], &hidden.device());
        let d_selected = head.backward(&selected, d_scores, gradients);
        let d_hidden = places.scatter(hidden, d_selected);
        let figures = [("loss/value_avg", found.loss), ("val/clipfrac_avg", found.clipfrac)];
        (figures.map(|(name, value)| (name.to_owned(), value)).into(), d_hidden)
    }
}
