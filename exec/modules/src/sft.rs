//! `taskType: sft`: supervised fine-tuning of a decoder, all weights or an adapter, on weights as they are or in 4 bits.

use mloc_core::task::settings::Training;
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};

use crate::adapter;
use crate::finetune::{
    artifacts,
    data::{self, Form},
    examples::{self, Examples},
    over_data::OverData,
    session, start,
};

/// The module.
pub struct Sft;

impl Module for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn features(&self) -> Vec<String> {
        adapter::features()
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let settings = Training::of(&ctx.run().spec);
        let mut base = start::load(ctx, &settings)?;
        base.must_be_a_language_model()?;
        start::prepare(ctx, &mut base.model, &settings)?;
        let rows = data::training_rows(ctx, Form::Examples)?;
        let data = examples::data(ctx, &rows, &base.tokenizer, &settings)?;
        drop(rows);
        let tokenizer = &base.tokenizer;
        let recipe = Examples::new(tokenizer, &settings, |ctx, model| artifacts::save_tuned(ctx, model, tokenizer));
        let method = OverData::new(ctx, recipe, data, &base.model, tokenizer, &settings)?;
        session::run(ctx, method, base.model, &settings)
    }
}
