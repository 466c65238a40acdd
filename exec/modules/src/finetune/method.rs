//! A way to train, as a session sees it.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    model::Parameters,
    objective::Figures,
    train::{StepReport, Trainer},
};
use mloc_exec::{ModuleError, Output, RunContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::origin::Origin;

/// When something is measured, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the first step.
    Before,
    /// After a step on the way.
    Step(u64),
    /// After the last one.
    After,
}

impl When {
    /// As a log says it.
    pub fn words(self) -> String {
        match self {
            When::Before => "before training".to_owned(),
            When::Step(step) => format!("after step {step}"),
            When::After => "after training".to_owned(),
        }
    }
}

/// The steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// In all.
    pub total: u64,
    /// In a pass over the data; at least one.
    pub in_epoch: u64,
}

impl Steps {
    /// Passes over the data after `done` steps.
    pub fn epoch(self, done: u64) -> f64 {
        done as f64 / self.in_epoch as f64
    }
}

/// What the model did before training, or after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The loss on held-out data.
    pub eval_loss: Option<f64>,
    /// Figures on held-out data that the task's summary is to show.
    #[serde(default)]
    pub figures: Figures,
    /// An answer to each of the prompts.
    pub answers: Vec<String>,
}

/// A way to train. A session drives it: it logs, saves and resumes, and knows nothing of batches.
pub trait Method {
    /// What is trained.
    type Model: Parameters;

    /// How many steps there are. A step is what is counted, logged and checkpointed; a method may do several updates of
    /// the optimizer in one.
    fn steps(&self) -> Steps;

    /// What a resumed run must find as it was.
    ///
    /// # Errors
    /// That it was asked to stop.
    fn origin(&self, ctx: &RunContext, model: &Self::Model) -> Result<Origin, ModuleError>;

    /// Settings of the method itself that a resumed run must have too, by name.
    fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::new()
    }

    /// Called once in a run, before its first step: a resumed attempt has [`Self::load`] instead.
    ///
    /// # Errors
    /// The method's own, and that it was asked to stop.
    fn begin(&mut self, _ctx: &mut RunContext, _model: &Self::Model) -> Result<(), ModuleError> {
        Ok(())
    }

    /// The next step. Where it ends with an error, trainer and method must be as they were before it: what was computed
    /// until then is kept in a checkpoint.
    ///
    /// # Errors
    /// Those of training, and that it was asked to stop.
    fn step(&mut self, ctx: &mut RunContext, trainer: &mut Trainer<Self::Model>) -> Result<StepReport, ModuleError>;

    /// What the model does on held-out data and prompts.
    ///
    /// # Errors
    /// Numbers out of range, and that it was asked to stop.
    fn measure(&self, ctx: &mut RunContext, model: &Self::Model, when: When) -> Result<Measured, ModuleError>;

    /// All figures on held-out data, `loss` among them, under the reference's names without `eval_`; `None` of a method
    /// that measures none.
    ///
    /// # Errors
    /// Numbers out of range, and that it was asked to stop.
    fn evaluate(
        &self,
        _ctx: &mut RunContext,
        _model: &Self::Model,
        _when: When,
    ) -> Result<Option<Figures>, ModuleError> {
        Ok(None)
    }

    /// Puts state of the method's own into a checkpoint's folder.
    ///
    /// # Errors
    /// Those of the disk.
    fn save(&self, _folder: &Path) -> Result<(), ModuleError> {
        Ok(())
    }

    /// Goes on from what [`Self::save`] wrote.
    ///
    /// # Errors
    /// Those of the disk, and files that are not what was written.
    fn load(&mut self, _folder: &Path) -> Result<(), ModuleError> {
        Ok(())
    }

    /// Writes what is published into the folder of artifacts.
    ///
    /// # Errors
    /// Those of the disk, and that it was asked to stop.
    fn export(&self, ctx: &mut RunContext, model: &Self::Model) -> Result<Vec<Output>, ModuleError>;
}
