//! What a run began with, as digests in each checkpoint. A resumed run must find the same: otherwise it would train on,
//! and its result would be of neither the old data nor the new.

use mloc_burn::model::Decoder;
use mloc_exec::{ModuleError, RunContext};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Digests and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What is trained on.
    pub training: Rows,
    /// What is measured on.
    pub held_out: Rows,
    /// Of config.json, the adapter's settings, and names, shapes and first values of all weights; SHA-256, hex.
    pub model: String,
    /// Of the models beside it: what rewards, what it is held to, what values start from. Empty where there are none.
    #[serde(default)]
    pub beside: String,
}

/// Rows in tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    samples: usize,
    /// Of all that training depends on; SHA-256, hex.
    sha256: String,
}

impl Origin {
    /// Compares with what the run began with whose checkpoint of `step` this one goes on from.
    ///
    /// # Errors
    /// [`ModuleError::Fatal`]: what differs, and what would work.
    pub fn check(&self, began_with: &Self, step: u64) -> Result<(), ModuleError> {
        let mut changed = Vec::new();
        for (what, was, is) in [
            ("dataset.source: the data", &began_with.training, &self.training),
            ("dataset.eval: the held-out data", &began_with.held_out, &self.held_out),
        ] {
            if was != is {
                changed.push(format!(
                    "{what} changed since the checkpoint of step {step}: it had {} samples in tokens of SHA-256 {}, now \
                     {} of {}",
                    was.samples,
                    short(&was.sha256),
                    is.samples,
                    short(&is.sha256)
                ));
            }
        }
        if began_with.model != self.model {
            changed.push(format!(
                "model: the model or the adapter that it starts from changed since the checkpoint of step {step}: its \
                 SHA-256 was {}, is now {}",
                short(&began_with.model),
                short(&self.model)
            ));
        }
        if began_with.beside != self.beside {
            changed.push(format!(
                "reward.model, model.reference or model.value: one of them changed since the checkpoint of step {step}"
            ));
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(ModuleError::Fatal(format!(
            "{}\nhint: put back what was there, or submit the task anew: a new task begins at step 0",
            changed.join("\n")
        )))
    }
}

impl Rows {
    /// Of each row's bytes.
    ///
    /// # Errors
    /// What `rows` says, and that it was asked to stop.
    pub fn of(ctx: &RunContext, rows: impl Iterator<Item = Result<Vec<u8>, ModuleError>>) -> Result<Self, ModuleError> {
        let (mut hash, mut samples) = (Sha256::new(), 0);
        for bytes in rows {
            ctx.check()?;
            hash.update(bytes?);
            samples += 1;
        }
        Ok(Self { samples, sha256: hex::encode(hash.finalize()) })
    }
}

/// Of a model that nothing has trained yet.
///
/// # Errors
/// That it was asked to stop.
pub fn digest_of(ctx: &RunContext, model: &Decoder) -> Result<String, ModuleError> {
    let mut hash = Sha256::new();
    hash.update(format!("{}\n", model.config.raw));
    if let Some(adapter) = &model.adapter {
        hash.update(format!("{}\n", adapter.to_json("")));
    }
    for parameter in model.parameters() {
        ctx.check()?;
        hash.update(format!("{} {:?}\n", parameter.name, parameter.shape));
        hash.update(parameter.value.clone().into_data().as_bytes());
    }
    for (name, matrix) in model.four_bit() {
        ctx.check()?;
        hash.update(format!("{name} {:?} {:?}\n", matrix.dims(), matrix.settings()));
        hash.update(matrix.content());
    }
    Ok(hex::encode(hash.finalize()))
}

/// Of models that are not trained, one after the other.
///
/// # Errors
/// That it was asked to stop.
pub fn digest_of_all(ctx: &RunContext, models: &[&Decoder]) -> Result<String, ModuleError> {
    models.iter().map(|model| digest_of(ctx, model)).collect()
}

/// Enough of a digest to see that two differ.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
