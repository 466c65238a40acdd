//! `taskType: dpo`: direct preference optimisation from pairs of a chosen and a rejected answer, all weights or a LoRA
//! adapter.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    export::{Storage, Stored, write_safetensors},
    formats::{
        dataset::{Pair, PairText, TokenizedPair},
        tokenizer::TextTokenizer,
    },
    model::Decoder,
    preference::{Dpo as Objective, DpoBatch, Preference, Reference, dpo::log_probabilities, losses::PAIR_LOSSES},
    weights::{SafetensorsSource, TensorSource},
};
use mloc_core::task::settings::{Dpo as Settings, Training, Truncation};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};
use serde_json::{Value, json};

use crate::{
    base_model, fatal,
    finetune::{
        artifacts,
        over_data::{Data, OverData, Recipe, Samples},
        pairs::{self, Cut, Judged, StoredPairs},
        session, start,
    },
    online,
};

/// Log-probabilities under the reference, in each checkpoint of a run that computed them first.
const REFERENCE: &str = "reference_logps.safetensors";

/// The module.
pub struct Dpo;

impl Module for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (training, settings) = (Training::of(&spec), Settings::of(&spec));
        let preference = preference(&settings)?;
        let devices = base_model::open_devices(ctx)?;
        let mut base = start::load(ctx, &training, &devices.first)?;
        base.must_be_a_language_model()?;
        start::prepare(ctx, &mut base.model, &training)?;
        start::warn_of_dropout(ctx, &base.model, settings.disable_dropout);
        let tokenizer = &base.tokenizer;
        let replicas = devices.replicas(&base.model);
        let data = pairs::data(ctx, tokenizer, &Shortened::new(&settings, training.max_length))?;
        if data.train.with_margin() > 0 {
            ctx.warn("training data: the column `margin` has no part in dpo: it is read by rm only");
        }
        let reference = match (settings.reference_free, settings.precompute_ref_log_probs) {
            (true, _) => Reference::Free,
            (_, true) => Reference::Precomputed,
            (false, false) => {
                let policies = std::iter::once(&base.model).chain(&replicas);
                let references = policies.map(|policy| online::reference(ctx, policy, tokenizer));
                Reference::Models(references.collect::<Result<_, _>>()?)
            }
        };
        let precomputes = matches!(reference, Reference::Precomputed) && ctx.resume().is_none();
        let asked_first = match precomputes && ctx.run().inputs.reference.is_some() {
            true => Some(online::reference(ctx, &base.model, tokenizer)?),
            false => None,
        };
        let recipe = Preferences {
            asked_first,
            objective: Objective { preference, reference, dropout: !settings.disable_dropout },
            precompute_batch: settings.precompute_ref_batch_size.unwrap_or(training.per_device_train_batch_size).max(1),
            settings: &settings,
            tokenizer,
        };
        let method = OverData::new(ctx, recipe, data, &base.model, tokenizer, &training, devices.count())?;
        session::run(ctx, method, base.model, replicas, &training)
    }
}

fn preference(settings: &Settings) -> Result<Preference, ModuleError> {
    let of = |(name, weight): &(String, f64)| {
        let known = PAIR_LOSSES.iter().find(|(known, _)| known == name);
        let (_, loss) =
            known.ok_or_else(|| fatal(format!("hyperparameters.loss_type: {name} is not in this build")))?;
        Ok((*loss, *weight))
    };
    let losses = settings.losses.iter().map(of).collect::<Result<_, ModuleError>>()?;
    Ok(Preference { losses, beta: settings.beta, label_smoothing: settings.label_smoothing })
}

/// How pairs are brought to length.
struct Shortened {
    keep: Truncation,
    max_length: Option<usize>,
    max_prompt_length: Option<usize>,
    max_completion_length: Option<usize>,
}

impl Shortened {
    fn new(settings: &Settings, max_length: Option<usize>) -> Self {
        Self {
            keep: settings.truncation,
            max_length,
            max_prompt_length: settings.max_prompt_length,
            max_completion_length: settings.max_completion_length,
        }
    }

    fn text(&self, prompt: &[u32], answer: &[u32]) -> PairText {
        let mut text = PairText { ids: [prompt, answer].concat(), given: prompt.len() };
        let over = text.ids.len().saturating_sub(self.max_length.unwrap_or(usize::MAX));
        match self.keep {
            Truncation::KeepStart => text.ids.truncate(text.ids.len() - over),
            Truncation::KeepEnd => {
                text.ids.drain(..over);
                text.given = text.given.saturating_sub(over);
            }
        }
        text
    }
}

impl Cut for Shortened {
    fn apply(&self, pair: TokenizedPair) -> Option<Pair> {
        let TokenizedPair { mut prompt, mut chosen, mut rejected, margin } = pair;
        // The end of a prompt is what an answer answers.
        prompt.drain(..prompt.len().saturating_sub(self.max_prompt_length.unwrap_or(usize::MAX)));
        let longest = self.max_completion_length.unwrap_or(usize::MAX);
        chosen.truncate(longest);
        rejected.truncate(longest);
        let (chosen, rejected) = (self.text(&prompt, &chosen), self.text(&prompt, &rejected));
        // A first token is predicted by nothing.
        let has_target = |text: &PairText| text.ids.len() > text.given.max(1);
        Some(Pair { chosen, rejected, margin }).filter(|pair| has_target(&pair.chosen) && has_target(&pair.rejected))
    }

    fn why(&self) -> String {
        match self.max_length {
            Some(longest) => {
                format!("no token of an answer is left within max_length {longest}, as where a prompt alone fills it")
            }
            None => "one of their answers has no tokens".to_owned(),
        }
    }
}

/// Losses over pairs of log-ratios.
struct Preferences<'a> {
    /// What log-probabilities are computed with before the first step, where that is a model of its own.
    asked_first: Option<Decoder>,
    objective: Objective,
    precompute_batch: usize,
    settings: &'a Settings,
    tokenizer: &'a TextTokenizer,
}

impl Preferences<'_> {
    /// Puts beside each pair what the model, untrained yet, makes of its answers.
    fn precompute(&self, ctx: &RunContext, model: &Decoder, all: &mut StoredPairs) -> Result<(), ModuleError> {
        let numbers: Vec<usize> = (0..all.count()).collect();
        for some in numbers.chunks(self.precompute_batch) {
            ctx.check()?;
            let some = some.iter().map(|number| all.get(*number)).collect::<Result<Vec<_>, _>>()?;
            let rows = pairs::rows(&some, pairs::pad_id(self.tokenizer));
            let values = log_probabilities(model, &rows, &|| ctx.stopping()).map_err(session::training_error)?;
            let (chosen, rejected) = values.split_at(some.len());
            // In the precision that a checkpoint keeps, so that a resumed run has the same.
            all.reference
                .extend(chosen.iter().zip(rejected).map(|(chosen, rejected)| [*chosen as f32, *rejected as f32]));
        }
        Ok(())
    }
}

impl Recipe for Preferences<'_> {
    type Samples = StoredPairs;
    type Objective = Objective;

    fn objective(&self) -> &Objective {
        &self.objective
    }

    fn batch(&self, samples: &[Judged]) -> DpoBatch {
        let side = |which: usize| samples.iter().map(move |pair| Some(f64::from(pair.reference?[which])));
        DpoBatch {
            rows: pairs::rows(samples, pairs::pad_id(self.tokenizer)),
            reference: side(0).chain(side(1)).collect(),
        }
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let s = self.settings;
        let names: Vec<&str> = s.losses.iter().map(|(name, _)| name.as_str()).collect();
        let weights: Vec<f64> = s.losses.iter().map(|(_, weight)| *weight).collect();
        let all = [
            ("beta", json!(s.beta)),
            ("loss_type", json!(names)),
            ("loss_weights", json!(weights)),
            ("label_smoothing", json!(s.label_smoothing)),
            ("reference_free", json!(s.reference_free)),
            ("precompute_ref_log_probs", json!(s.precompute_ref_log_probs)),
            ("disable_dropout", json!(s.disable_dropout)),
        ];
        all.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn beside(&self, ctx: &RunContext) -> Vec<&Decoder> {
        // Log-probabilities that were computed before are kept, whatever the reference is by now.
        match &self.objective.reference {
            Reference::Models(models) if ctx.run().inputs.reference.is_some() => models.first().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn shown(&self) -> &'static [&'static str] {
        &["rewards/accuracies", "rewards/margins"]
    }

    fn begin(
        &mut self,
        ctx: &mut RunContext,
        model: &Decoder,
        data: &mut Data<StoredPairs>,
    ) -> Result<(), ModuleError> {
        if matches!(self.objective.reference, Reference::Precomputed) {
            ctx.log("reference: the log-probabilities of all answers are computed before the first step");
            let asked = self.asked_first.take();
            let reference = asked.as_ref().unwrap_or(model);
            self.precompute(ctx, reference, &mut data.train)?;
            self.precompute(ctx, reference, &mut data.eval)?;
        }
        Ok(())
    }

    fn save(&self, folder: &Path, data: &Data<StoredPairs>) -> Result<(), ModuleError> {
        if !matches!(self.objective.reference, Reference::Precomputed) {
            return Ok(());
        }
        let stored = |name: &str, all: &'_ StoredPairs| {
            let values: Vec<f32> = all.reference.as_flattened().to_vec();
            Stored { name: name.to_owned(), shape: vec![values.len() / 2, 2], values: Box::new(move || values.clone()) }
        };
        let tensors = vec![stored("train", &data.train), stored("eval", &data.eval)];
        write_safetensors(&folder.join(REFERENCE), tensors, Storage::F32)
            .map_err(|e| ModuleError::Retryable(e.to_string()))
    }

    fn load(&mut self, folder: &Path, data: &mut Data<StoredPairs>) -> Result<(), ModuleError> {
        if !matches!(self.objective.reference, Reference::Precomputed) {
            return Ok(());
        }
        let path = folder.join(REFERENCE);
        let source = SafetensorsSource::open_file(&path).map_err(fatal)?;
        for (name, all) in [("train", &mut data.train), ("eval", &mut data.eval)] {
            let values = source.read_f32(name).map_err(fatal)?;
            let (of_pairs, _) = values.as_chunks::<2>();
            if of_pairs.len() != all.count() {
                let (found, wanted) = (of_pairs.len(), all.count());
                return Err(fatal(format!("{}: {name}: {found} pairs, expected {wanted}", path.display())));
            }
            all.reference = of_pairs.to_vec();
        }
        Ok(())
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        artifacts::save_tuned(ctx, model, self.tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use mloc_core::task::hyperparameters::dpo::LOSSES;

    use super::*;

    #[test]
    fn every_loss_that_a_task_may_name_is_there() {
        let known: Vec<&str> = PAIR_LOSSES.iter().map(|(name, _)| *name).collect();
        assert_eq!(LOSSES, known);
    }
}
