//! Which files of a model's repository are needed: many hold the same weights in five formats. Pure: file names in, file
//! names out.

use crate::hub::api::File;

/// Endings of files of weights, or of what was made from them.
const WEIGHTS: [&str; 20] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "ot",
    "onnx",
    "onnx_data",
    "tflite",
    "mlmodel",
    "gguf",
    "ggml",
    "npz",
    "pdparams",
    "engine",
    "pte",
    "safetensors.index.json",
    "bin.index.json",
];

/// What is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// How many files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Some of their names.
    pub names: Vec<String>,
}

/// Splits the files of a repository into those that are needed and those that are not: of weights, one copy; nothing of
/// git's own. Several GGUF files and nothing else are a choice that nobody made: `Err` names them.
pub(super) fn needed(files: Vec<File>) -> Result<(Vec<File>, LeftOut), Vec<String>> {
    let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let top = |ending: &str| names.iter().any(|name| !name.contains('/') && name.ends_with(ending));
    let (safe, gguf) = (top(".safetensors"), top(".gguf"));
    let any_above = names.iter().any(|name| !name.contains('/') && is_weights(name));
    if gguf && !safe {
        let several: Vec<_> = names.iter().filter(|n| !n.contains('/') && n.ends_with(".gguf")).collect();
        // A large one may come in parts; that is one choice.
        let choices = several.iter().filter(|n| !n.contains("-of-") || n.contains("-00001-of-")).count();
        if choices > 1 {
            return Err(several.into_iter().map(|n| (*n).to_owned()).collect());
        }
    }
    // The format whose files are taken; where there is none of these, all are, for the reader to say what it thinks of them.
    let kept = [("safetensors", safe), ("gguf", gguf), ("bin", top(".bin"))].into_iter().find(|(_, there)| *there);
    // Consolidated weights lie beside the same in shards; `model.fp16.safetensors` beside `model.safetensors`.
    let plain =
        names.iter().any(|n| *n == "model.safetensors" || n.starts_with("model-") && n.ends_with(".safetensors"));
    let is_needed = |path: &str| {
        if path.starts_with(".git") || path.contains("/.git") {
            return false;
        }
        if !is_weights(path) {
            return true;
        }
        if path.contains('/') {
            // `original/`, `onnx/`, `checkpoint-500/`: another copy, unless all weights lie in folders.
            return !any_above;
        }
        let variant = path.starts_with("consolidated")
            || path
                .strip_prefix("model.")
                .is_some_and(|rest| rest.contains(".safetensors") && !rest.starts_with("safetensors"));
        kept.is_none_or(|(kept, _)| format(path) == kept) && !(plain && variant)
    };
    let (needed, left): (Vec<File>, Vec<File>) = files.into_iter().partition(|file| is_needed(&file.path));
    let names = left.iter().map(|file| file.path.clone()).filter(|name| !name.starts_with(".git")).take(8).collect();
    Ok((needed, LeftOut { files: left.len(), bytes: left.iter().map(|file| file.bytes).sum(), names }))
}

fn is_weights(path: &str) -> bool {
    WEIGHTS.iter().any(|ending| path.strip_suffix(ending).is_some_and(|stem| stem.ends_with('.')))
}

/// The ending that says the format; an index goes with its weights.
fn format(path: &str) -> &str {
    let path = path.strip_suffix(".index.json").unwrap_or(path);
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<String, Vec<String>> {
        let file = |name: &&str| File { path: (*name).to_owned(), bytes: 1, oid: String::new(), sha256: None };
        let (needed, left) = needed(names.iter().map(file).collect())?;
        assert_eq!(needed.len() + left.files, names.len());
        Ok(needed.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "))
    }

    /// The layouts of repositories that many use.
    #[test]
    fn one_copy_of_the_weights_is_needed() {
        for (names, want) in [
            // gpt2
            (
                &[
                    ".gitattributes",
                    "64.tflite",
                    "README.md",
                    "config.json",
                    "flax_model.msgpack",
                    "merges.txt",
                    "model.safetensors",
                    "onnx/config.json",
                    "onnx/decoder_model.onnx",
                    "pytorch_model.bin",
                    "rust_model.ot",
                    "tf_model.h5",
                    "tokenizer.json",
                    "vocab.json",
                ][..],
                "README.md config.json merges.txt model.safetensors onnx/config.json tokenizer.json vocab.json",
            ),
            // Mistral-7B-Instruct-v0.3, Llama-3
            (
                &[
                    "config.json",
                    "consolidated.safetensors",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "original/consolidated.00.pth",
                    "original/params.json",
                    "params.json",
                    "tokenizer.model.v3",
                ],
                "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json \
                 original/params.json params.json tokenizer.model.v3",
            ),
            (&["config.json", "model.fp16.safetensors", "model.safetensors"], "config.json model.safetensors"),
            (&["consolidated.safetensors", "params.json"], "consolidated.safetensors params.json"),
            (
                &["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "tf_model.h5"],
                "config.json pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
            ),
            // An adapter that was saved by a trainer.
            (
                &["adapter_config.json", "adapter_model.safetensors", "checkpoint-9/optimizer.pt", "training_args.bin"],
                "adapter_config.json adapter_model.safetensors",
            ),
            (&["m.Q4_0.gguf", "README.md"], "m.Q4_0.gguf README.md"),
            (&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00001-of-00002.gguf m-00002-of-00002.gguf"),
            (&["unet/model.safetensors", "model_index.json"], "unet/model.safetensors model_index.json"),
        ] {
            assert_eq!(of(names).as_deref(), Ok(want));
        }
        let several = of(&["m.Q4_0.gguf", "m.Q8_0.gguf", "config.json"]).unwrap_err();
        assert_eq!(several, ["m.Q4_0.gguf", "m.Q8_0.gguf"]);
    }
}
