//! What a task may ask for in `output.artifacts`, and which files that means.

use globset::{Glob, GlobBuilder, GlobMatcher};

/// Kinds of artifact that modules of this build make.
pub const KINDS: [&str; 12] = [
    "adapter_weights",
    "full_model",
    "merged_model",
    "gguf",
    "gguf:f16",
    "gguf:q8_0",
    "gguf:q4_0",
    "tokenizer",
    "checkpoints",
    "training_logs",
    "eval_results",
    "model_card",
];
/// Before a pattern of paths: `files:plots/**/*.png`.
pub const FILES: &str = "files:";
/// The kind of a program's files that are of none of these.
pub const OTHER: &str = "files";
/// Kinds that cost time or room, and are made only when they are asked for by name.
pub const ON_REQUEST: [&str; 6] = ["merged_model", "checkpoints", "gguf", "gguf:f16", "gguf:q8_0", "gguf:q4_0"];

/// Whether a task that asks for `asked` wants artifacts of this kind at all. An empty list asks for whatever the module
/// makes unasked.
pub fn kind_wanted(asked: &[String], kind: &str) -> bool {
    match asked.is_empty() {
        true => !ON_REQUEST.contains(&kind),
        false => asked.iter().any(|wish| wish == kind),
    }
}

/// Whether a task that asks for `asked` wants this file.
pub fn wanted(asked: &[String], kind: &str, path: &str) -> bool {
    // What was made unasked was made to be kept.
    asked.is_empty()
        || kind_wanted(asked, kind)
        || asked.iter().filter_map(|wish| wish.strip_prefix(FILES)).any(|pattern| matches(pattern, path))
}

/// A pattern of `files:`, or what is wrong with it.
///
/// # Errors
/// Why it is no pattern of paths below a folder.
pub fn pattern(text: &str) -> Result<GlobMatcher, String> {
    if text.is_empty() || text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err("it must stay below the artifacts folder".to_owned());
    }
    let glob: Glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|e| e.kind().to_string())?;
    Ok(glob.compile_matcher())
}

fn matches(text: &str, path: &str) -> bool {
    pattern(text).is_ok_and(|glob| glob.is_match(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(wishes: &[&str]) -> Vec<String> {
        wishes.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn nothing_asked_is_all_but_what_costs() {
        assert!(wanted(&[], "training_logs", "training_log.jsonl") && wanted(&[], "files", "a/b"));
        assert!(!kind_wanted(&[], "merged_model") && kind_wanted(&[], "tokenizer"));
        assert!(ON_REQUEST.iter().all(|kind| KINDS.contains(kind)));
        // A program may make what our own modules do only on request.
        assert!(wanted(&[], "merged_model", "merged_model/config.json"));
    }

    #[test]
    fn kinds_and_patterns_add_up() {
        let some = asked(&["training_logs", "files:plots/**/*.png", "files:*.csv"]);
        for (kind, path, is) in [
            ("training_logs", "training_log.jsonl", true),
            ("files", "plots/a/b.png", true),
            ("files", "plots/b.png", true),
            ("files", "table.csv", true),
            ("files", "below/table.csv", false),
            ("tokenizer", "tokenizer.json", false),
            ("full_model", "model.csv", true),
        ] {
            assert_eq!(wanted(&some, kind, path), is, "{kind} {path}");
        }
    }

    #[test]
    fn patterns_stay_below() {
        for bad in ["", "/etc/*", "../x", "a/../../x", "a[", "{a"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
