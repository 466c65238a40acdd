//! What a run began with, as digests in each checkpoint. A resumed run must find the same: otherwise it would train on,
//! and its result would be of neither the old data nor the new.

use mloc_burn::{formats::dataset::TokenizedExample, model::Decoder};
use mloc_exec::{ModuleError, RunContext};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::finetune::Data;

/// Digests and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    training: Rows,
    held_out: Rows,
    /// Of config.json, the adapter's settings, and names, shapes and first values of all weights; SHA-256, hex.
    model: String,
}

/// Rows in tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rows {
    samples: usize,
    /// Of token ids and labels; SHA-256, hex.
    sha256: String,
}

impl Origin {
    /// Of data in tokens, and of a model that nothing has trained yet.
    ///
    /// # Errors
    /// That it was asked to stop.
    pub fn of(ctx: &RunContext, data: &Data, model: &Decoder) -> Result<Self, ModuleError> {
        Ok(Self {
            training: Rows::of(ctx, &data.train)?,
            held_out: Rows::of(ctx, &data.eval)?,
            model: digest_of(ctx, model)?,
        })
    }

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
    fn of(ctx: &RunContext, rows: &[TokenizedExample]) -> Result<Self, ModuleError> {
        let mut hash = Sha256::new();
        for row in rows {
            ctx.check()?;
            // The length first: where a row ends matters too.
            let mut bytes = Vec::with_capacity(8 + 12 * row.len());
            bytes.extend((row.len() as u64).to_le_bytes());
            bytes.extend(row.input_ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(row.labels.iter().flat_map(|label| label.to_le_bytes()));
            hash.update(bytes);
        }
        Ok(Self { samples: rows.len(), sha256: hex::encode(hash.finalize()) })
    }
}

fn digest_of(ctx: &RunContext, model: &Decoder) -> Result<String, ModuleError> {
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

/// Enough of a digest to see that two differ.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
