//! Conversations by the chat template, and what the template tells of the model: how it calls and whether it thinks.

use std::collections::BTreeMap;

use mloc_burn::formats::{
    chat_template::{Conversation, RenderOptions},
    tokenizer::TextTokenizer,
};
use mloc_openai::{
    calls::Format,
    model::{Chat, ModelError, Prompt, TokenizerInfo},
};
use serde_json::Value;

/// Tokens whose text readers of calls and thoughts have to see.
const MARKERS: [&str; 8] =
    ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|eom_id|>"];

/// A conversation's ids.
///
/// # Errors
/// [`ModelError::Asked`] when there is no template, or it refuses the conversation.
pub fn render(tokenizer: &TextTokenizer, chat: &Chat, now_unix: i64) -> Result<Prompt, ModelError> {
    let asked = |error: &dyn std::fmt::Display| ModelError::Asked(error.to_string());
    let messages = Value::Array(chat.messages.clone()).to_string();
    let mut talk = Conversation::from_json(&messages).map_err(|error| asked(&error))?;
    if let Some(tools) = &chat.tools {
        let tools = Value::Array(tools.clone()).to_string();
        talk = talk.with_tools_json(&tools).map_err(|error| asked(&error))?;
    }
    let mut variables = Vec::new();
    for (name, value) in &chat.variables {
        let value: minijinja::Value = serde_json::from_value(value.clone()).map_err(|error| asked(&error))?;
        variables.push((name.clone(), value));
    }
    let talk = talk.with_variables(variables);
    let add_generation_prompt = chat.add_generation_prompt && !chat.continue_final_message;
    let options = RenderOptions { add_generation_prompt, now_unix };
    let mut text = tokenizer.render_chat(&talk, options).map_err(|error| asked(&error))?;
    if chat.continue_final_message {
        let last = chat.messages.last().and_then(|message| message.get("content")).and_then(Value::as_str);
        let said = last.ok_or_else(|| ModelError::Asked("the last message has no text to go on with".to_owned()))?;
        text.truncate(end_of(&text, said.trim()).ok_or_else(|| {
            ModelError::Asked(
                "the chat template does not write the last message as it is, so it can't be gone on with".to_owned(),
            )
        })?);
    }
    let ids = tokenizer.encode(&text, false).map_err(|error| asked(&error))?;
    Ok(Prompt { ids, thinking: ends_thinking(&text) })
}

/// Where a text's last occurrence of `said` ends.
fn end_of(text: &str, said: &str) -> Option<usize> {
    text.rfind(said).map(|at| at + said.len())
}

/// Whether a thought is open at the end.
fn ends_thinking(text: &str) -> bool {
    text.trim_end().ends_with("<think>")
}

/// The calls that a template is made for.
pub fn calls_of(template: &str) -> Option<Format> {
    let says = |word: &str| template.contains(word);
    if !says("tools") {
        None
    } else if says("[TOOL_CALLS]") {
        Some(Format::Mistral)
    } else if says("<tool_call>") {
        Some(Format::Hermes)
    } else if says("<|python_tag|>") || says("Environment: ipython") {
        Some(Format::Llama3)
    } else {
        None
    }
}

/// Whether a template is of a model that thinks.
pub fn thinks(template: &str) -> bool {
    template.contains("</think>")
}

/// What clients are told of a tokenizer.
pub fn info(tokenizer: &TextTokenizer) -> TokenizerInfo {
    let token = |name: &str| tokenizer.special_token(name).map(str::to_owned);
    TokenizerInfo {
        bos_token: token("bos_token"),
        eos_token: token("eos_token"),
        pad_token: token("pad_token"),
        chat_template: tokenizer.chat_template().map(|template| template.source().to_owned()),
    }
}

/// Special tokens that are markers, by id.
pub fn markers(tokenizer: &TextTokenizer, is_special: impl Fn(u32) -> bool) -> BTreeMap<u32, String> {
    let found = MARKERS.iter().filter_map(|marker| Some((tokenizer.token_id(marker)?, (*marker).to_owned())));
    found.filter(|(id, _)| is_special(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_tells_how_its_model_calls() {
        assert_eq!(calls_of("{% if tools %}<tool_call>{% endif %}"), Some(Format::Hermes));
        assert_eq!(calls_of("{% if tools %}[TOOL_CALLS]{% endif %}"), Some(Format::Mistral));
        assert_eq!(calls_of("{% if tools %}Environment: ipython{% endif %}"), Some(Format::Llama3));
        assert_eq!(calls_of("{{ messages }}<tool_call>"), None, "it takes no tools");
        assert!(thinks("{{ '<think>\\n\\n</think>' }}") && !thinks("{{ messages }}"));
        assert!(ends_thinking("<|im_start|>assistant\n<think>\n") && !ends_thinking("<think>\n\n</think>\n\n"));
    }
}
