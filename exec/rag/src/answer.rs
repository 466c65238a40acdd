//! From hits to an answer with citations: what the model is told ([`quote`]), and what it cited ([`cite`]).
//!
//! Deliberately absent: a check that a cited passage says what the answer says it does.

pub mod cite;
pub mod quote;

pub use cite::{Citation, Finder, cited};
pub use quote::{Quoting, messages};

/// What is answered where the documents say nothing, without a model.
pub const NOT_IN_DOCUMENTS: &str = "I found nothing about this in the documents.";

/// A sentence about shards that said nothing, or have not all of their documents yet; empty where there are none.
pub fn about_missing(missing: &[u32], count: u32) -> String {
    match missing {
        [] => String::new(),
        [one] => format!("Part of the documents could not be searched: shard {one} of {count} did not answer in full."),
        many => {
            let many: Vec<_> = many.iter().map(u32::to_string).collect();
            format!(
                "Part of the documents could not be searched: shards {} of {count} did not answer in full.",
                many.join(", ")
            )
        }
    }
}
