//! `taskType: sft`: supervised fine-tuning of a decoder, all weights or an adapter, on weights as they are or in 4 bits.

use mloc_core::task::{settings::Training, spec::SEVERAL_GPUS};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};

use crate::finetune::{
    artifacts,
    examples::{self, Examples},
    over_data::OverData,
    session, start,
};
use crate::{adapter, base_model};

/// The module.
pub struct Sft;

impl Module for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn features(&self) -> Vec<String> {
        adapter::features().into_iter().chain([SEVERAL_GPUS.to_owned()]).collect()
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let settings = Training::of(&ctx.run().spec);
        let devices = base_model::open_devices(ctx)?;
        let mut base = start::load(ctx, &settings, &devices.first)?;
        base.must_be_a_language_model()?;
        start::prepare(ctx, &mut base.model, &settings)?;
        let replicas = devices.replicas(&base.model);
        let data = examples::data(ctx, &base.tokenizer, &base.model, &settings)?;
        let tokenizer = &base.tokenizer;
        let recipe = Examples::new(tokenizer, &settings, |ctx, model| artifacts::save_tuned(ctx, model, tokenizer));
        let method = OverData::new(ctx, recipe, data, &base.model, tokenizer, &settings, devices.count())?;
        session::run(ctx, method, base.model, replicas, &settings)
    }
}
