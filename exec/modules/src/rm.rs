//! `taskType: rm`: a reward model from pairs of a chosen and a rejected answer, all weights or a LoRA adapter.

use std::collections::BTreeMap;

use mloc_burn::{
    batch::IGNORED,
    formats::{
        dataset::{Pair, PairText, TokenizedPair},
        tokenizer::TextTokenizer,
    },
    model::Decoder,
    preference::{BradleyTerry, RewardBatch},
};
use mloc_core::task::settings::{Reward, Training};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};
use serde_json::{Value, json};

use crate::{
    base_model,
    finetune::{
        artifacts,
        over_data::{Data, OverData, Recipe, Samples},
        pairs::{self, Cut, Judged, StoredPairs},
        session, start,
    },
};

/// The module.
pub struct Rm;

impl Module for Rm {
    fn name(&self) -> &'static str {
        "rm"
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (settings, reward) = (Training::of(&spec), Reward::of(&spec));
        let devices = base_model::open_devices(ctx)?;
        let mut base = start::load(ctx, &settings, &devices.first)?;
        base.model = with_one_score(ctx, base.model, settings.seed)?;
        start::prepare(ctx, &mut base.model, &settings)?;
        // An adapter of a language model knows of no head: a fresh one is of no use frozen, nor without being saved.
        if let (Some(adapter), Some(head)) = (&mut base.model.adapter, &mut base.model.score)
            && !head.weight.trainable
        {
            head.weight.trainable = true;
            adapter.modules_to_save.push("score".to_owned());
        }
        start::warn_of_dropout(ctx, &base.model, reward.disable_dropout);
        let tokenizer = &base.tokenizer;
        if let (Some(config), Some(pad)) = (base.model.config.raw.as_object_mut(), tokenizer.pad_id()) {
            // Readers find a text's last token by what it is not padded with.
            config.insert("pad_token_id".into(), json!(pad));
        }
        let replicas = devices.replicas(&base.model);
        let data = pairs::data(ctx, tokenizer, &Within(settings.max_length))?;
        all_or_no_margins(&data)?;
        let recipe = Rewards {
            objective: BradleyTerry {
                center_rewards_coefficient: reward.center_rewards_coefficient,
                dropout: !reward.disable_dropout,
            },
            tokenizer,
        };
        let method = OverData::new(ctx, recipe, data, &base.model, tokenizer, &settings, devices.count())?;
        session::run(ctx, method, base.model, replicas, &settings)
    }
}

/// The model with a head of one score: its own, or a fresh one in place of the vocabulary's.
fn with_one_score(ctx: &mut RunContext, model: Decoder, seed: u64) -> Result<Decoder, ModuleError> {
    match model.config.num_labels {
        Some(1) => Ok(model),
        Some(labels) => Err(ModuleError::Fatal(format!(
            "model.source: config.json: id2label has {labels} labels, and a reward is one score: start from a model with \
             one label, or from a …ForCausalLM"
        ))),
        None => {
            ctx.log("model.source is a language model: it gets a fresh head of one score");
            Ok(model.into_classifier(1, seed))
        }
    }
}

/// As in the reference, pairs that are too long are left out: half a text has no reward.
struct Within(Option<usize>);

impl Cut for Within {
    fn apply(&self, pair: TokenizedPair) -> Option<Pair> {
        let text = |answer: &[u32]| PairText { ids: [&pair.prompt, answer].concat(), given: pair.prompt.len() };
        let whole = Pair { chosen: text(&pair.chosen), rejected: text(&pair.rejected), margin: pair.margin };
        let fits = |text: &PairText| !text.ids.is_empty() && self.0.is_none_or(|longest| text.ids.len() <= longest);
        Some(whole).filter(|pair| fits(&pair.chosen) && fits(&pair.rejected))
    }

    fn why(&self) -> String {
        match self.0 {
            Some(longest) => format!("one of their sides has no tokens, or more than max_length {longest}"),
            None => "one of their sides has no tokens".to_owned(),
        }
    }
}

fn all_or_no_margins(data: &Data<StoredPairs>) -> Result<(), ModuleError> {
    for (what, pairs) in [("dataset.source", &data.train), ("dataset.eval", &data.eval)] {
        let (with, all) = (pairs.with_margin(), pairs.count());
        if with != 0 && with != all {
            return Err(ModuleError::Fatal(format!(
                "{what}: {with} of {all} pairs have a `margin`: give all of them one, or none"
            )));
        }
    }
    Ok(())
}

/// Bradley and Terry's loss over pairs.
struct Rewards<'a> {
    objective: BradleyTerry,
    tokenizer: &'a TextTokenizer,
}

impl Recipe for Rewards<'_> {
    type Samples = StoredPairs;
    type Objective = BradleyTerry;

    fn objective(&self) -> &BradleyTerry {
        &self.objective
    }

    fn batch(&self, samples: &[Judged]) -> RewardBatch {
        let mut rows = pairs::rows(samples, pairs::pad_id(self.tokenizer));
        rows.labels.iter_mut().flatten().for_each(|label| *label = IGNORED);
        RewardBatch { rows, margins: samples.iter().map(|judged| judged.pair.margin).collect() }
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let BradleyTerry { center_rewards_coefficient, dropout } = self.objective;
        BTreeMap::from([
            ("center_rewards_coefficient".to_owned(), json!(center_rewards_coefficient)),
            ("disable_dropout".to_owned(), json!(!dropout)),
        ])
    }

    fn shown(&self) -> &'static [&'static str] {
        &["accuracy", "margin"]
    }

    fn export(&self, ctx: &mut RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
        artifacts::save_tuned(ctx, model, self.tokenizer)
    }
}
