//! A model's tokenizer with the files that belong to it: `tokenizer.json`, `tokenizer_config.json`, the chat template.
//!
//! The splitting and merging is the `tokenizers` crate's. This file reads what the reference library reads beside it
//! (special tokens, whether a begin token is added, the template) and can write all of it back, so that an adapter or
//! a model is published with its tokenizer.

mod config;
mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::{Tokenizer, TruncationParams};

use self::config::{Frame, add_missing_tokens, frame_of, named_template, template_text, token_text};
pub use self::stream::TextStream;
use super::chat_template::{ChatTemplate, Conversation, RenderOptions, TemplateError};

/// The special tokens a configuration may name.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What can be wrong with a tokenizer's files or their use.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{path}: {problem}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder has no tokenizer this build can read.
    #[error(
        "{0}: no tokenizer.json (hint: older models only have tokenizer.model or vocab.json; save them once with the `tokenizers` format)"
    )]
    Missing(PathBuf),
    /// The tokenizer refused a text or an id.
    #[error("tokenizer: {0}")]
    Use(String),
    /// The model has no chat template but a conversation was given.
    #[error(
        "the tokenizer has no chat template, and without one messages have no text (hint: give one as \
         `dataset.preprocessing.chat_template`, take the model that was trained for chat, or use data with `text` or string \
         prompts)"
    )]
    NoTemplate,
    /// The chat template's own trouble.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// A tokenizer, its special tokens and its chat template.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    config: Map<String, Value>,
    special: BTreeMap<String, String>,
    template: Option<ChatTemplate>,
    /// For conversations with tools, where a model has a template of its own for them.
    tool_template: Option<ChatTemplate>,
    frame: Frame,
}

impl TextTokenizer {
    /// Reads a model folder: `tokenizer.json`, and where present `tokenizer_config.json`, `special_tokens_map.json`
    /// and `chat_template.jinja` (which wins over the template in the configuration).
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let tokenizer = read_if_present(&path)?.ok_or_else(|| TokenizerError::Missing(folder.to_owned()))?;
        let mut config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        for (name, value) in read_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default() {
            config.entry(name).or_insert(value);
        }
        if let Some(template) = read_if_present(&folder.join("chat_template.jinja"))? {
            config.insert("chat_template".into(), Value::String(template));
        }
        Self::from_parts(tokenizer.as_bytes(), config).map_err(|e| match e {
            TokenizerError::Use(problem) => TokenizerError::Invalid { path, problem },
            TokenizerError::Template(t) => {
                TokenizerError::Invalid { path: folder.join("tokenizer_config.json"), problem: t.to_string() }
            }
            other => other,
        })
    }

    /// Builds a tokenizer from the bytes of `tokenizer.json` and the content of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] for the former, [`TokenizerError::Template`] for a template that does not parse.
    pub fn from_parts(tokenizer_json: &[u8], config: Map<String, Value>) -> Result<Self, TokenizerError> {
        let mut inner = Tokenizer::from_bytes(tokenizer_json).map_err(used)?;
        // Lengths and padding are the caller's business; what a file was saved with would cut texts silently.
        inner.with_truncation(None).map_err(used)?;
        inner.with_padding(None);
        add_missing_tokens(&mut inner, &config)?;
        let special = SPECIAL_NAMES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), token_text(config.get(*name)?)?)))
            .collect();
        let listed = config.get("chat_template");
        let compiled = |text: Option<String>| text.map(|t| ChatTemplate::new(&t)).transpose();
        let template = compiled(listed.and_then(template_text))?;
        let tool_template = compiled(listed.and_then(|listed| named_template(listed, "tool_use")))?;
        let frame = frame_of(&config);
        Ok(Self { inner, config, special, template, tool_template, frame })
    }

    /// This tokenizer with another chat template, which is also the one it is saved with.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] for a template that does not parse.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self, TokenizerError> {
        self.template = Some(ChatTemplate::new(source)?);
        self.tool_template = None;
        self.config.insert("chat_template".into(), json!(source));
        Ok(self)
    }

    /// Token ids of a text. With `add_special_tokens`, the begin and end tokens the model was trained with are added;
    /// special tokens spelled out in the text are recognised either way.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let by_file = add_special_tokens && self.frame == Frame::File;
        let encoding = self.inner.encode_fast(text, by_file).map_err(used)?;
        let mut ids = encoding.get_ids().to_vec();
        if let (true, Frame::Flags { bos, eos }) = (add_special_tokens, self.frame) {
            if let (true, Some(id)) = (bos, self.bos_id()) {
                ids.insert(0, id);
            }
            if let (true, Some(id)) = (eos, self.eos_id()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Token ids of a text, or of two beside one another, with the special tokens of tokenizer.json; and of each token which
    /// text it is of (0, 1), as that file says.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the tokenizer cannot represent a text.
    pub fn encode_pair(&self, first: &str, second: Option<&str>) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
        let encoding = match second {
            Some(second) => self.inner.encode_fast((first, second), true),
            None => self.inner.encode_fast(first, true),
        };
        let encoding = encoding.map_err(used)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// This tokenizer, giving no more than `length` tokens, special ones included: of two texts the longer is cut first.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the special tokens alone are more.
    pub fn cutting_at(mut self, length: usize) -> Result<Self, TokenizerError> {
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        self.inner.with_truncation(Some(truncation)).map_err(used)?;
        Ok(self)
    }

    /// The bytes of a text that each of its tokens stands for, in order; special tokens, which stand for none, are left out.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn spans(&self, text: &str) -> Result<Vec<std::ops::Range<usize>>, TokenizerError> {
        let encoding = self.inner.encode(text, false).map_err(used)?;
        Ok(encoding.get_offsets().iter().filter(|(start, end)| start < end).map(|(start, end)| *start..*end).collect())
    }

    /// The same, which cuts nothing.
    ///
    /// # Errors
    /// As [`Self::cutting_at`].
    pub fn uncut(mut self) -> Result<Self, TokenizerError> {
        self.inner.with_truncation(None).map_err(used)?;
        Ok(self)
    }

    /// The longest text that its configuration names, in tokens. Where none was meant it has a number beyond all texts.
    pub fn model_max_length(&self) -> Option<usize> {
        self.config.get("model_max_length").and_then(Value::as_u64).map(|length| length as usize)
    }

    /// The text of token ids. Ids outside the vocabulary are left out.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special_tokens).map_err(used)
    }

    /// Token ids of a conversation in the model's own format. The template prints every special token itself, so none
    /// is added.
    ///
    /// # Errors
    /// [`TokenizerError::NoTemplate`], or the template's own refusal.
    pub fn encode_chat(&self, talk: &Conversation, options: RenderOptions) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.render_chat(talk, options)?, false)
    }

    /// The text of a conversation in the model's own format.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode_chat`].
    pub fn render_chat(&self, talk: &Conversation, options: RenderOptions) -> Result<String, TokenizerError> {
        Ok(self.template_for(talk)?.render(talk, &self.special, options)?)
    }

    /// As [`TextTokenizer::encode_chat`], and which of the tokens lie in a `{% generation %}` block of the template: from
    /// the one that holds the first character of a block to the one that holds its last, as in the reference library.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode_chat`].
    pub fn encode_chat_marked(
        &self,
        talk: &Conversation,
        options: RenderOptions,
    ) -> Result<(Vec<u32>, Vec<bool>), TokenizerError> {
        let (text, answers) = self.template_for(talk)?.render_marked(talk, &self.special, options)?;
        let encoding = self.inner.encode_char_offsets(text, false).map_err(used)?;
        let ids = encoding.get_ids().to_vec();
        let mut marked = vec![false; ids.len()];
        for answer in answers.into_iter().filter(|answer| !answer.is_empty()) {
            let Some(first) = encoding.char_to_token(answer.start, 0) else { break };
            // A last character that no token holds, as a space that is stripped, is looked for before it; the reference
            // library would take all that follows for the answer.
            let last = answer.rev().find_map(|at| encoding.char_to_token(at, 0)).unwrap_or(first);
            marked[first..=last.max(first)].fill(true);
        }
        Ok((ids, marked))
    }

    fn template_for(&self, talk: &Conversation) -> Result<&ChatTemplate, TokenizerError> {
        let with_tools = self.tool_template.as_ref().filter(|_| talk.has_tools());
        with_tools.or(self.template.as_ref()).ok_or(TokenizerError::NoTemplate)
    }

    /// The chat template, when the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Highest token id plus one, added tokens included: the least number of rows an embedding must have.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The text of a special token by its configuration name, such as `eos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special.get(name).map(String::as_str)
    }

    /// Id of the token that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// Id of the token that ends a text or a turn.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// Id to fill short rows of a batch with: the padding token, or else the end token.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id("pad_token").or_else(|| self.eos_id())
    }

    /// Id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of a token as the vocabulary spells it (not decoded).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Use`] when it has parts that cannot be written.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner.to_string(true).map_err(used)
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.token_id(self.special.get(name)?)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into an existing folder, and says
    /// which files those are.
    ///
    /// # Errors
    /// [`TokenizerError::Io`] with the file.
    pub fn save(&self, folder: &Path) -> Result<Vec<PathBuf>, TokenizerError> {
        let special: Map<String, Value> = self.special.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let files = [
            ("tokenizer.json", self.to_json()?),
            ("tokenizer_config.json", pretty(&self.config)),
            ("special_tokens_map.json", pretty(&special)),
        ];
        let mut written = Vec::new();
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|source| TokenizerError::Io { path: path.clone(), source })?;
            written.push(path);
        }
        Ok(written)
    }
}

fn used(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Use(error.to_string())
}

fn pretty(map: &Map<String, Value>) -> String {
    // A map of JSON values always serialises; the plain form is the answer that cannot fail.
    serde_json::to_string_pretty(map).unwrap_or_else(|_| Value::Object(map.clone()).to_string())
}

fn read_if_present(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(TokenizerError::Invalid { path: path.to_owned(), problem: "not UTF-8 text".into() }),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { path: path.to_owned(), source }),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let Some(text) = read_if_present(path)? else {
        return Ok(None);
    };
    let invalid = |problem: String| TokenizerError::Invalid { path: path.to_owned(), problem };
    match serde_json::from_str(&text).map_err(|e| invalid(format!("not JSON: {e}")))? {
        Value::Object(map) => Ok(Some(map)),
        _ => Err(invalid("expected a JSON object".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three words and two markers; texts get no special token by themselves.
    const WORDS: &str = r#"{
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "added_tokens": [
            {"id": 3, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 4, "content": "</s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2, "<s>": 3, "</s>": 4}, "unk_token": "?"}
    }"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn open(files: &[(&str, &str)]) -> Result<TextTokenizer, TokenizerError> {
        TextTokenizer::from_folder(folder(files).path())
    }

    /// The message without the folder's name.
    fn complaint(files: &[(&str, &str)]) -> String {
        let folder = folder(files);
        let error = TextTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "model")
    }

    #[test]
    fn a_saved_length_limit_does_not_cut_texts() {
        let tokenizer = open(&[("tokenizer.json", WORDS)]).unwrap();
        assert_eq!(tokenizer.encode("a b a c", true).unwrap(), [0, 1, 0, 2]);
        assert_eq!((tokenizer.bos_id(), tokenizer.pad_id(), tokenizer.vocab_size()), (None, None, 5));
    }

    #[test]
    fn flags_for_begin_and_end_count_for_the_classes_that_have_them() {
        let ids = |class: &str, flags: &str| {
            let config = format!(
                r#"{{"bos_token": {{"content": "<s>"}}, "eos_token": "</s>", "tokenizer_class": "{class}"{flags}}}"#
            );
            let tokenizer = open(&[("tokenizer.json", WORDS), ("tokenizer_config.json", &config)]).unwrap();
            assert_eq!(tokenizer.encode("a", false).unwrap(), [0]);
            tokenizer.encode("a", true).unwrap()
        };
        assert_eq!(ids("LlamaTokenizer", ""), [0]);
        assert_eq!(ids("LlamaTokenizerFast", r#", "add_bos_token": true"#), [3, 0]);
        assert_eq!(ids("LlamaTokenizerFast", r#", "add_bos_token": false, "add_eos_token": true"#), [0, 4]);
        assert_eq!(ids("PreTrainedTokenizerFast", r#", "add_bos_token": true"#), [0]);
    }

    #[test]
    fn the_template_is_found_wherever_it_is() {
        let source = |files: &[(&str, &str)]| {
            let files = [&[("tokenizer.json", WORDS)], files].concat();
            open(&files).unwrap().chat_template().map(|t| t.source().to_owned())
        };
        let named =
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(source(&[]), None);
        assert_eq!(source(&[("tokenizer_config.json", r#"{"chat_template": "c"}"#)]), Some("c".into()));
        assert_eq!(source(&[("tokenizer_config.json", named)]), Some("d".into()));
        assert_eq!(source(&[("tokenizer_config.json", named), ("chat_template.jinja", "j")]), Some("j".into()));
        let without = open(&[("tokenizer.json", WORDS)]).unwrap();
        let talk = Conversation::from_turns([("user", "a")]);
        let error = without.encode_chat(&talk, RenderOptions::default()).unwrap_err();
        assert!(matches!(error, TokenizerError::NoTemplate));
    }

    #[test]
    fn tokens_that_only_the_configuration_lists_are_added() {
        let listed = |id: u32| {
            format!(
                r#"{{"added_tokens_decoder": {{"4": {{"content": "</s>"}}, "{id}": {{"content": "<x>", "special": true}}}}}}"#
            )
        };
        let tokenizer = open(&[("tokenizer.json", WORDS), ("tokenizer_config.json", &listed(5))]).unwrap();
        assert_eq!(tokenizer.encode("a<x>b", false).unwrap(), [0, 5, 1]);
        assert_eq!(tokenizer.vocab_size(), 6);
        let error = complaint(&[("tokenizer.json", WORDS), ("tokenizer_config.json", &listed(9))]);
        assert_eq!(error, "model/tokenizer.json: added token `<x>` is listed with id 9 but its place is 5");
    }

    #[test]
    fn bad_files_are_named() {
        assert!(complaint(&[]).starts_with("model: no tokenizer.json (hint: "));
        assert!(complaint(&[("tokenizer.json", "{")]).starts_with("model/tokenizer.json: "));
        let config = |text| complaint(&[("tokenizer.json", WORDS), ("tokenizer_config.json", text)]);
        assert_eq!(config("[]"), "model/tokenizer_config.json: expected a JSON object");
        assert!(config("{").starts_with("model/tokenizer_config.json: not JSON: EOF"));
        let broken = config(r#"{"chat_template": "{% for %}"}"#);
        assert!(broken.starts_with("model/tokenizer_config.json: chat template does not parse: "), "{broken}");
    }
}
