//! `optim` with `optim_args`: names as in transformers' `OptimizerNames` (5.23).

use serde_json::{Map, Value};

use super::arguments::{Arguments, BELOW_ONE, Wrong};

/// Names that this build follows.
pub(super) const NAMES: &[&str] = &[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
];

/// The rule by which weights move; AdamW's constants and the weight decay are settings of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// AdamW, in whatever spelling: fused or paged, the numbers are the same.
    AdamW,
    /// AdamW with 8-bit moments, as bitsandbytes has it.
    AdamW8bit,
    /// Adafactor without relative steps.
    Adafactor,
    /// Stochastic gradient descent.
    Sgd {
        /// What is kept of the former direction.
        momentum: f64,
        /// What is left out of the gradient.
        dampening: f64,
        /// Whether momentum looks ahead.
        nesterov: bool,
    },
}

impl Optimizer {
    /// The optimizer of a name that [`NAMES`] has, with its arguments: `momentum=0.9, nesterov=true`.
    ///
    /// # Errors
    /// Every argument that is none, unknown or out of bounds.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Vec<Wrong>> {
        let given = pairs(text)?;
        let mut a = Arguments::new(&given);
        let optimizer = match name {
            "sgd" => {
                let momentum = a.number("momentum", 0.0, BELOW_ONE).unwrap_or(0.0);
                let dampening = a.number("dampening", 0.0, 1.0).unwrap_or(0.0);
                let nesterov = a.truth("nesterov").unwrap_or(false);
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    a.refuse("nesterov", "`true`", "a momentum above 0 and no dampening with nesterov");
                }
                Self::Sgd { momentum, dampening, nesterov }
            }
            "adafactor" => Self::Adafactor,
            "adamw_8bit" | "adamw_bnb_8bit" | "paged_adamw_8bit" => Self::AdamW8bit,
            _ => Self::AdamW,
        };
        a.finish(name, optimizer).map_err(|wrong| wrong.into_iter().map(own_setting).collect())
    }
}

/// torch's SGD has a weight decay of its own, which the trainer's overrides.
fn own_setting(mut wrong: Wrong) -> Wrong {
    if ["weight_decay", "lr", "eps", "beta1", "beta2", "betas"].contains(&wrong.name.as_str()) {
        let hint = "it is a setting of its own: weight_decay, learning_rate, adam_epsilon, adam_beta1, adam_beta2";
        wrong.hint = Some(hint.to_owned());
    }
    wrong
}

/// `a=1, b=true` as a map.
fn pairs(text: &str) -> Result<Map<String, Value>, Vec<Wrong>> {
    let mut given = Map::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            let found = crate::task::problem::show(pair);
            let expected = "pairs such as `momentum=0.9, nesterov=true`".to_owned();
            return Err(vec![Wrong { name: String::new(), found, expected, hint: None }]);
        };
        let value = match value.trim() {
            word if word.eq_ignore_ascii_case("true") => Value::Bool(true),
            word if word.eq_ignore_ascii_case("false") => Value::Bool(false),
            word => word.parse::<f64>().map_or_else(|_| Value::from(word), Value::from),
        };
        given.insert(name.trim().to_owned(), value);
    }
    Ok(given)
}
