//! The endpoints as clients meet them, without sockets.

mod scripted;

use std::sync::Arc;

use mloc_engine::{
    forward::ForwardError,
    request::{Constraint, FinishReason, RequestError},
};
use mloc_openai::{Limits, Server, calls::Format, model::Card};
use scripted::{End, Plan, Scripted, answer, ask, card, error_of, json_of, server, stream_of};
use serde_json::{Value, json};

const CHAT: &str = "POST /v1/chat/completions";
const TEXT: &str = "POST /v1/completions";
const RESPONSES: &str = "POST /v1/responses";

fn plans() -> Vec<Plan> {
    let call = |city: &str| {
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {{\"city\": \"{city}\"}}}}\n</tool_call>")
    };
    let two = format!("Let me look.\n{}\n{}", call("Paris"), call("Rome"));
    vec![
        Plan::says("weather", &two),
        Plan::says("think", "<think>\nTwo and two.\n</think>\n\nFour."),
        Plan { says: vec!["one".into(), "zwei".into()], ..Plan::says("several", "") },
        Plan { ends: End::Finish(FinishReason::StopString("END".into())), ..Plan::says("until", "up to") },
        Plan { ends: End::Fail(ForwardError::Device("lost".into()).into()), ..Plan::says("break", "Not who") },
        Plan { ends: End::Vanish, ..Plan::says("vanish", "Not who") },
        Plan { ends: End::Finish(FinishReason::Cancelled), ..Plan::says("cancel", "Not who") },
        Plan::says("crab", "é🦀"),
        Plan::says("list", "\u{1}[{\"name\": \"get_weather\", \"arguments\": {}}]"),
    ]
}

fn with(card: Card) -> (Arc<Scripted>, Arc<Server>) {
    let model = Scripted::new(card, plans());
    let server = server(&model, Limits::default());
    (model, server)
}

fn plain() -> Arc<Server> {
    with(card()).1
}

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({ "model": "script", "messages": [{ "role": "user", "content": text }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    json!([{ "type": "function", "function": { "name": "get_weather", "description": "Tells the weather", "parameters": parameters } }])
}

#[tokio::test]
async fn a_chat() {
    let server = plain();
    insta::assert_json_snapshot!("chat", json_of(&server, CHAT, &chat("Hi", json!({}))).await);
    let more = json!({ "stream": true, "max_tokens": 2, "stream_options": { "include_usage": true } });
    insta::assert_snapshot!("chat_stream", stream_of(&server, CHAT, &chat("Hi", more)).await.join("\n"));
}

#[tokio::test]
async fn several_answers_and_what_ends_them() {
    let server = plain();
    let told = json_of(&server, CHAT, &chat("several", json!({ "n": 3 }))).await;
    let texts: Vec<&Value> = told["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts, ["one", "zwei", "one"]);
    assert_eq!(told["usage"]["completion_tokens"], 10);
    let told = json_of(&server, CHAT, &chat("until", json!({ "stop": "END" }))).await;
    assert_eq!(
        (&told["choices"][0]["finish_reason"], &told["choices"][0]["stop_reason"]),
        (&json!("stop"), &json!("END"))
    );
    let told = json_of(&server, CHAT, &chat("Hi", json!({ "max_completion_tokens": 5 }))).await;
    assert_eq!(
        (&told["choices"][0]["finish_reason"], &told["choices"][0]["message"]["content"]),
        (&json!("length"), &json!("Hello"))
    );
}

#[tokio::test]
async fn log_probabilities_of_a_chat() {
    let more = json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 2, "return_token_ids": true });
    let told = json_of(&plain(), CHAT, &chat("crab", more)).await;
    insta::assert_json_snapshot!(told["choices"]);
    let more = json!({ "logprobs": true, "stream": true });
    let chunks = stream_of(&plain(), CHAT, &chat("crab", more)).await;
    let sent: usize = chunks
        .iter()
        .filter_map(|chunk| serde_json::from_str::<Value>(chunk.strip_prefix("data: ")?).ok())
        .map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(sent, "é🦀".len(), "every token's, also of those whose text came later");
}

#[tokio::test]
async fn tool_calls() {
    let (model, server) = with(card());
    let body = chat("weather?", json!({ "tools": weather() }));
    insta::assert_json_snapshot!("calls", json_of(&server, CHAT, &body).await["choices"]);
    assert_eq!(model.seen().chats[0].tools, weather().as_array().cloned());

    let body = chat("weather?", json!({ "tools": weather(), "stream": true }));
    insta::assert_snapshot!("calls_stream", stream_of(&server, CHAT, &body).await.join("\n"));

    let body = chat("weather?", json!({ "tools": weather(), "parallel_tool_calls": false }));
    let told = json_of(&server, CHAT, &body).await;
    assert_eq!(told["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);

    let body = chat("weather?", json!({ "tools": weather(), "tool_choice": "none" }));
    let told = json_of(&server, CHAT, &body).await;
    assert!(told["choices"][0]["message"].get("tool_calls").is_none(), "{told}");
    assert_eq!(model.seen().chats.last().unwrap().tools, None, "what may not be called is not shown");
}

#[tokio::test]
async fn a_forced_call_is_a_grammar() {
    let (model, server) = with(card());
    for (choice, reason) in [
        (json!("required"), "tool_calls"),
        (json!({ "type": "function", "function": { "name": "get_weather" } }), "stop"),
    ] {
        let body = chat("Hi", json!({ "tools": weather(), "tool_choice": choice }));
        let told = json_of(&server, CHAT, &body).await;
        assert_eq!(told["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "get_weather");
        assert_eq!(told["choices"][0]["finish_reason"], reason);
        let constraint = model.seen().requests.last().unwrap().constraint.clone();
        assert!(matches!(constraint, Some(Constraint::Lark(grammar)) if grammar.contains("get_weather")));
    }
    // To the letter, though none must come.
    let mut tools = weather();
    tools[0]["function"]["strict"] = true.into();
    json_of(&server, CHAT, &chat("weather?", json!({ "tools": tools }))).await;
    let constraint = model.seen().requests.last().unwrap().constraint.clone();
    assert!(matches!(constraint, Some(Constraint::Lark(grammar)) if grammar.starts_with("start: free")));
    assert_eq!(
        model.seen().chats.last().unwrap().tools,
        weather().as_array().cloned(),
        "that is not the model's business"
    );
}

#[tokio::test]
async fn a_special_token_that_marks_calls_is_seen() {
    let (_, server) = with(Card { calls: Some(Format::Mistral), ..card() });
    let told = json_of(&server, CHAT, &chat("list", json!({ "tools": weather() }))).await;
    let call = &told["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let text = json_of(&server, CHAT, &chat("list", json!({}))).await;
    assert!(
        text["choices"][0]["message"]["content"].as_str().unwrap().starts_with("[{"),
        "without tools it is no text"
    );
    let id = call["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "as Mistral's templates want it: {id}");
}

#[tokio::test]
async fn a_conversation_with_calls_comes_to_the_template_as_objects() {
    let (model, server) = with(card());
    let body = json!({ "tools": weather(), "messages": [
        { "role": "developer", "content": [{ "type": "text", "text": "Be" }, { "type": "text", "text": "brief." }] },
        { "role": "user", "content": "Rome?", "name": "ada" },
        { "role": "assistant", "content": null, "reasoning_content": "Ask.", "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "get_weather", "arguments": "{\"city\": \"Rome\"}" } }] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ] });
    json_of(&server, CHAT, &body).await;
    insta::assert_json_snapshot!(model.seen().chats[0].messages);
}

#[tokio::test]
async fn thoughts() {
    let (_, server) = with(Card { thinks: true, ..card() });
    let told = json_of(&server, CHAT, &chat("think", json!({}))).await;
    let message = &told["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("Two and two."), &json!("Four.")));
    let thought = "\nTwo and two.\n</think>".len();
    assert_eq!(told["usage"]["completion_tokens_details"]["reasoning_tokens"], thought);
    let told = json_of(&server, CHAT, &chat("think", json!({ "include_reasoning": false }))).await;
    assert!(told["choices"][0]["message"].get("reasoning_content").is_none());
    let body = json!({ "input": "think", "stream": true });
    insta::assert_snapshot!("thoughts_in_a_response", names(&stream_of(&server, RESPONSES, &body).await));
}

/// Runs of the same event as one line.
fn names(events: &[String]) -> String {
    let mut names: Vec<(String, usize)> = Vec::new();
    for event in events {
        let name = event.lines().next().unwrap_or_default().to_owned();
        match names.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => names.push((name, 1)),
        }
    }
    names.iter().map(|(name, count)| format!("{name} × {count}")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn forms_of_answers() {
    let (model, server) = with(card());
    let schema =
        json!({ "type": "object", "properties": { "zeta": { "type": "integer" }, "answer": { "type": "integer" } } });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema, "strict": true } });
    let asked = [
        json!({ "response_format": format }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "guided_json": schema }),
        json!({ "guided_json": schema.to_string() }),
        json!({ "structured_outputs": { "json": schema } }),
        json!({ "guided_choice": ["yes", "no"] }),
        json!({ "structured_outputs": { "regex": "a+" } }),
        json!({ "guided_grammar": "start: \"a\"" }),
        json!({ "response_format": { "type": "text" } }),
    ];
    for more in asked {
        json_of(&server, CHAT, &chat("Hi", more)).await;
    }
    let seen = model.seen();
    let constraints: Vec<&Option<Constraint>> = seen.requests.iter().map(|request| &request.constraint).collect();
    insta::assert_json_snapshot!(constraints);
}

#[tokio::test]
async fn completions() {
    let server = plain();
    insta::assert_json_snapshot!("text", json_of(&server, TEXT, &json!({ "prompt": "Hi", "max_tokens": 3 })).await);
    let many = json!({ "prompt": ["several", "crab"], "n": 2, "max_tokens": 6 });
    let told = json_of(&server, TEXT, &many).await;
    let texts: Vec<&Value> = told["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["one", "zwei", "é🦀", "é🦀"]);
    for (prompt, tokens) in [(json!([72, 105]), 2), (json!([[72], [105]]), 2), (json!(["H", "i"]), 2), (json!("Hi"), 2)]
    {
        let told = json_of(&server, TEXT, &json!({ "prompt": prompt, "max_tokens": 1 })).await;
        assert_eq!(told["usage"]["prompt_tokens"], tokens, "{prompt}");
    }
    let streamed = json!({ "prompt": "Hi", "max_tokens": 2, "stream": true, "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
    insta::assert_snapshot!("text_stream", stream_of(&server, TEXT, &streamed).await.join("\n"));
}

/// What lm-eval's local-completions asks for.
#[tokio::test]
async fn a_prompt_is_scored() {
    let (model, server) = with(card());
    let body = json!({ "prompt": [72, 195, 169], "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0, "seed": 1234 });
    insta::assert_json_snapshot!(json_of(&server, TEXT, &body).await);
    assert_eq!(model.seen().requests[0].prompt_logprobs, Some(1));
    let body = json!({ "prompt": "Hi", "max_tokens": 1, "echo": true, "stream": true, "logprobs": 0 });
    insta::assert_snapshot!("echo_stream", stream_of(&server, TEXT, &body).await.join("\n"));
    let told = json_of(&server, TEXT, &json!({ "prompt": "Hi", "max_tokens": 1, "prompt_logprobs": 1 })).await;
    insta::assert_json_snapshot!("prompt_logprobs", told["choices"]);
}

#[tokio::test]
async fn what_the_engine_is_asked() {
    let (model, server) = with(card());
    let body = chat(
        "Hi",
        json!({
            "model": "script:pirate", "n": 2, "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
            "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": -1, "logit_bias": { "65": 5 },
            "stop": ["a", "b"], "stop_token_ids": [7], "ignore_eos": true, "include_stop_str_in_output": true,
            "truncate_prompt_tokens": 4,
        }),
    );
    let told = json_of(&server, CHAT, &body).await;
    assert_eq!(told["model"], "script:pirate");
    json_of(&server, TEXT, &json!({ "prompt": "Hi", "best_of": 3, "top_p": 0, "top_k": -1, "model": "pirate" })).await;
    insta::assert_debug_snapshot!(model.seen().requests);
}

#[tokio::test]
async fn responses() {
    let (model, server) = with(card());
    insta::assert_json_snapshot!(
        "response",
        json_of(&server, RESPONSES, &json!({ "input": "Hi", "instructions": "Be brief." })).await
    );
    let body =
        json!({ "input": "Hi", "max_output_tokens": 2, "stream": true, "include": ["message.output_text.logprobs"] });
    insta::assert_snapshot!("response_stream", stream_of(&server, RESPONSES, &body).await.join("\n"));

    let mut tool = weather()[0]["function"].clone();
    tool["type"] = json!("function");
    let body = json!({ "input": "weather?", "tools": [tool], "stream": true });
    insta::assert_snapshot!("response_calls_stream", names(&stream_of(&server, RESPONSES, &body).await));
    let body = json!({ "input": "weather?", "tools": [tool] });
    insta::assert_json_snapshot!("response_calls", json_of(&server, RESPONSES, &body).await["output"]);
    assert_eq!(
        model.seen().chats.last().unwrap().tools,
        weather().as_array().cloned(),
        "templates know one shape of tools"
    );

    let items = json!([
        { "role": "user", "content": [{ "type": "input_text", "text": "Rome?" }] },
        { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Ask." }] },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "Let me look." }] },
        { "type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{\"city\": \"Rome\"}" },
        { "type": "function_call", "call_id": "call_2", "name": "get_weather", "arguments": "" },
        { "type": "function_call_output", "call_id": "call_1", "output": "sunny" },
        { "type": "function_call_output", "call_id": "call_2", "output": [{ "type": "input_text", "text": "wet" }] },
        { "role": "developer", "content": "Compare." },
    ]);
    json_of(&server, RESPONSES, &json!({ "input": items, "text": { "format": { "type": "json_schema", "name": "a", "schema": { "type": "object" } } } })).await;
    insta::assert_json_snapshot!("response_items", model.seen().chats.last().unwrap().messages);
    assert!(matches!(&model.seen().requests.last().unwrap().constraint, Some(Constraint::JsonSchema(_))));
    let form = json!({ "type": "json_schema", "name": "a", "schema": { "type": "object" } });
    let told = json_of(&server, RESPONSES, &json!({ "input": "Hi", "text": { "format": form } })).await;
    let mut whole = form;
    (whole["description"], whole["strict"]) = (Value::Null, false.into());
    assert_eq!(told["text"]["format"], whole, "with what was left out");
}

#[tokio::test]
async fn embeddings() {
    let server = plain();
    let line = "POST /v1/embeddings";
    insta::assert_json_snapshot!(
        "embeddings",
        json_of(&server, line, &json!({ "input": ["Hi", "you"], "model": "script" })).await
    );
    let told =
        json_of(&server, line, &json!({ "input": [72, 105], "encoding_format": "base64", "dimensions": 1 })).await;
    assert_eq!(told["data"][0]["embedding"], "AACAPw==", "1.0, of unit length again");
}

#[tokio::test]
async fn rerank() {
    let server = plain();
    let body = json!({ "query": "a", "documents": ["b", { "text": "aa" }, "a"], "top_n": 2 });
    insta::assert_json_snapshot!("rerank", json_of(&server, "POST /v1/rerank", &body).await);
    let told = json_of(
        &server,
        "POST /v2/rerank",
        &json!({ "query": "a", "documents": ["b", "a"], "return_documents": false }),
    )
    .await;
    assert_eq!(
        told["results"],
        json!([{ "index": 1, "relevance_score": 0.25 }, { "index": 0, "relevance_score": 0.0 }])
    );
}

#[tokio::test]
async fn tokens() {
    let server = plain();
    let told = json_of(&server, "POST /tokenize", &json!({ "prompt": "Hé", "return_token_strs": true })).await;
    let expected = json!({ "count": 3, "max_model_len": 4096, "tokens": [72, 195, 169], "token_strs": ["H", "bytes:\\xc3", "bytes:\\xa9"] });
    assert_eq!(told, expected);
    assert_eq!(
        json_of(&server, "POST /detokenize", &json!({ "tokens": [72, 195, 169] })).await,
        json!({ "prompt": "Hé" })
    );
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "add_generation_prompt": false });
    assert_eq!(json_of(&server, "POST /tokenize", &chat).await["count"], "user: Hi\n".len());
    let info = json_of(&server, "GET /tokenizer_info", &json!({})).await;
    assert_eq!(info, json!({ "bos_token": null, "eos_token": "<end>", "pad_token": null, "chat_template": null }));
}

#[tokio::test]
async fn models_and_adapters() {
    let (model, server) = with(card());
    insta::assert_json_snapshot!("models", json_of(&server, "GET /v1/models", &Value::Null).await);
    assert_eq!(json_of(&server, "GET /v1/models/script:pirate", &Value::Null).await["parent"], "script");
    let load = json!({ "lora_name": "sailor", "lora_path": "/adapters/sailor" });
    let (status, text) = answer(&server, "POST /v1/load_lora_adapter", &load).await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (200, "Success: LoRA adapter 'sailor' added successfully: ask for model 'script:sailor'.")
    );
    let told = json_of(&server, CHAT, &chat("Hi", json!({ "model": "script:sailor" }))).await;
    assert_eq!(told["model"], "script:sailor");
    let again = error_of(&server, "POST /v1/load_lora_adapter", &load).await;
    assert_eq!(
        again,
        "400 invalid_request_error - [lora_name] lora_name: an adapter \"sailor\" is loaded already: unload it first, or set load_inplace to true"
    );
    let in_place = json!({ "lora_name": "sailor", "lora_path": "/adapters/new", "load_inplace": true });
    assert_eq!(answer(&server, "POST /v1/load_lora_adapter", &in_place).await.0, 200);
    assert_eq!(model.seen().adapters.len(), 1, "the older one is gone");
    let missing = json!({ "lora_name": "x", "lora_path": "/missing" });
    assert_eq!(
        error_of(&server, "POST /v1/load_lora_adapter", &missing).await,
        "404 invalid_request_error - [lora_path] /missing: no such folder on this machine"
    );
    let unload = json!({ "lora_name": "sailor" });
    assert_eq!(
        answer(&server, "POST /v1/unload_lora_adapter", &unload).await.1,
        "Success: LoRA adapter 'sailor' removed successfully."
    );
    assert_eq!(
        error_of(&server, "POST /v1/unload_lora_adapter", &unload).await,
        "404 invalid_request_error adapter_not_found [lora_name] no adapter \"sailor\" is loaded; GET /v1/models lists those that are"
    );
    assert!(model.seen().adapters.is_empty());
}

#[tokio::test]
async fn errors_are_openais_and_say_what_would_work() {
    let (model, server) = with(card());
    let mut told = Vec::new();
    let call = json!({ "type": "function", "function": { "name": "f" } });
    let table: Vec<(&str, Value)> = vec![
        (CHAT, chat("Hi", json!({ "model": "scirpt" }))),
        (CHAT, chat("Hi", json!({ "temperature": -1, "top_p": "x", "n": 0 }))),
        (CHAT, chat("Hi", json!({ "temprature": 1 }))),
        (CHAT, json!({})),
        (CHAT, json!([])),
        (CHAT, json!({ "messages": [] })),
        (
            CHAT,
            json!({ "messages": [{ "role": "usr", "content": "Hi" }, { "content": "Hi" }, { "role": "tool", "content": "x" }] }),
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:" } }] }] }),
        ),
        (CHAT, json!({ "messages": [{ "role": "user", "content": 3 }] })),
        (CHAT, json!({ "messages": [{ "role": "user" }] })),
        (CHAT, json!({ "messages": [{ "role": "function", "name": "f", "content": "x" }] })),
        (CHAT, chat("refuse me", json!({}))),
        (CHAT, chat("Hi", json!({ "functions": [{ "name": "f" }] }))),
        (CHAT, chat("Hi", json!({ "tools": [{ "type": "web_search" }] }))),
        (CHAT, chat("Hi", json!({ "tools": [call, call] }))),
        (CHAT, chat("Hi", json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }))),
        (CHAT, chat("Hi", json!({ "tool_choice": "required" }))),
        (
            CHAT,
            chat("Hi", json!({ "tools": [call], "tool_choice": { "type": "function", "function": { "name": "g" } } })),
        ),
        (CHAT, chat("Hi", json!({ "response_format": { "type": "json_schema" } }))),
        (CHAT, chat("Hi", json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a" } } }))),
        (CHAT, chat("Hi", json!({ "response_format": { "type": "xml" } }))),
        (CHAT, chat("Hi", json!({ "guided_json": "{", }))),
        (CHAT, chat("Hi", json!({ "guided_choice": ["a"], "structured_outputs": { "regex": "a" } }))),
        (CHAT, chat("Hi", json!({ "guided_grammar": "root ::= \"a\"" }))),
        (CHAT, chat("Hi", json!({ "top_logprobs": 21, "logprobs": true }))),
        (CHAT, chat("Hi", json!({ "top_logprobs": 2 }))),
        (CHAT, chat("Hi", json!({ "stream_options": { "include_usage": true } }))),
        (CHAT, chat("Hi", json!({ "max_tokens": 10_000 }))),
        (CHAT, chat("Hi", json!({ "max_tokens": 5, "max_completion_tokens": 6 }))),
        (CHAT, chat("Hi", json!({ "max_tokens": 5, "min_tokens": 6 }))),
        (CHAT, chat("Hi", json!({ "logit_bias": { "hello": 1, "7": 101 } }))),
        (CHAT, chat("Hi", json!({ "stop": "" }))),
        (CHAT, chat(&"long ".repeat(1000), json!({}))),
        (TEXT, json!({ "prompt": "" })),
        (TEXT, json!({ "prompt": [] })),
        (TEXT, json!({ "prompt": [1, "a"] })),
        (TEXT, json!({ "prompt": [[1], [9999]] })),
        (TEXT, json!({ "prompt": "Hi", "suffix": "!" })),
        (TEXT, json!({ "prompt": "Hi", "n": 3, "best_of": 2 })),
        (TEXT, json!({ "prompt": "Hi", "stream": true, "prompt_logprobs": 1 })),
        (TEXT, json!({ "prompt": vec!["a"; 3000] })),
        (RESPONSES, json!({ "input": "Hi", "previous_response_id": "resp_1" })),
        (RESPONSES, json!({ "input": [{ "type": "item_reference", "id": "x" }, { "role": "tool", "content": "x" }] })),
        (RESPONSES, json!({ "input": [{ "type": "function_call", "name": "f" }] })),
        ("POST /v1/embeddings", json!({ "input": "Hi", "dimensions": 5 })),
        ("POST /v1/embeddings", json!({ "input": "no embedding" })),
        ("POST /v1/embeddings", json!({ "input": "Hi", "model": "script:pirate" })),
        ("POST /v1/embeddings", json!({ "input": "long ".repeat(1000) })),
        ("POST /v1/rerank", json!({ "query": "a" })),
        ("POST /v1/rerank", json!({ "query": "a", "documents": [3] })),
        ("POST /tokenize", json!({})),
        ("POST /tokenize", json!({ "prompt": "a", "messages": [{ "role": "user", "content": "a" }] })),
        ("POST /detokenize", json!({ "tokens": [9999] })),
        ("POST /v1/load_lora_adapter", json!({ "lora_name": "a:b", "lora_path": "/a" })),
        ("GET /v1/models/other", Value::Null),
        ("GET /v1/chat/completions", Value::Null),
        ("DELETE /v1/models/script", Value::Null),
        ("POST /v1/chat/completion", Value::Null),
        (CHAT, Value::Null),
    ];
    for (line, body) in table {
        let asked =
            if body.to_string().len() > 200 { body.to_string()[..80].to_owned() + "…" } else { body.to_string() };
        told.push(format!("{line} {asked}\n  {}", error_of(&server, line, &body).await));
    }
    for error in [
        RequestError::Busy { waiting: 9 },
        RequestError::ShuttingDown,
        RequestError::Invalid {
            field: "structured_outputs",
            detail: "schema: no such type \"strng\"; string works".into(),
        },
    ] {
        *model.refuses.lock().unwrap() = Some(error.clone());
        told.push(format!("{error:?}\n  {}", error_of(&server, CHAT, &chat("Hi", json!({}))).await));
    }
    told.push(format!("GET /health\n  {}", error_of(&server, "GET /health", &Value::Null).await));
    insta::assert_snapshot!(told.join("\n"));
}

#[tokio::test]
async fn an_answer_that_breaks_off_says_so() {
    let server = plain();
    for key in ["break", "vanish", "cancel"] {
        let whole = error_of(&server, CHAT, &chat(key, json!({}))).await;
        let events = stream_of(&server, CHAT, &chat(key, json!({ "stream": true }))).await;
        let last = events.last().unwrap();
        let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(whole.ends_with(message), "{whole} {last}");
        assert!(events.len() > 4, "what came before it has come: {events:?}");
        let events = stream_of(&server, RESPONSES, &json!({ "input": key, "stream": true })).await;
        assert!(events.last().unwrap().starts_with("event: response.failed\n"), "{events:?}");
    }
    assert_eq!(
        error_of(&server, CHAT, &chat("break", json!({}))).await,
        "500 server_error internal_error [-] device failed: lost"
    );
}

#[tokio::test]
async fn a_model_that_can_less_says_so() {
    let less = Card { generates: false, calls: None, embedding: None, reranks: false, ..card() };
    let (_, server) = with(less.clone());
    let mut told = Vec::new();
    for (line, body) in [
        (CHAT, chat("Hi", json!({}))),
        ("POST /v1/embeddings", json!({ "input": "Hi" })),
        ("POST /v1/rerank", json!({ "query": "a", "documents": ["a"] })),
    ] {
        told.push(error_of(&server, line, &body).await);
    }
    let (_, server) = with(Card { generates: true, ..less });
    told.push(error_of(&server, CHAT, &chat("Hi", json!({ "tools": weather() }))).await);
    let (_, server) = with(Card { embedding_shortens: false, ..card() });
    told.push(error_of(&server, "POST /v1/embeddings", &json!({ "input": "Hi", "dimensions": 2 })).await);
    insta::assert_snapshot!(told.join("\n"));
}

#[tokio::test]
async fn small_things() {
    let server = plain();
    assert_eq!(answer(&server, "GET /health", &Value::Null).await, (axum::http::StatusCode::OK, String::new()));
    assert_eq!(json_of(&server, "GET /version", &Value::Null).await["version"], env!("CARGO_PKG_VERSION"));
    json_of(&server, CHAT, &chat("Hi", json!({}))).await;
    let (_, metrics) = answer(&server, "GET /metrics", &Value::Null).await;
    for line in [
        "vllm:num_requests_running{model_name=\"script\",engine=\"0\"} 0",
        "vllm:request_success_total{model_name=\"script\",engine=\"0\",finished_reason=\"stop\"} 1",
        "vllm:generation_tokens_total{model_name=\"script\",engine=\"0\"} 16",
        "http_requests_total{model_name=\"script\",engine=\"0\",handler=\"/v1/chat/completions\",method=\"POST\",status=\"200\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let response = ask(&server, "GET /v1/chat/completions", "").await;
    assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str().unwrap()), (405, "POST"));
}

#[tokio::test]
async fn what_cannot_fit_is_not_tokenized() {
    let (model, server) = with(Card { token_bytes: Some(2), ..card() });
    let long = "a".repeat(2 * 4097 + 1);
    let wanted = "400 invalid_request_error context_length_exceeded [messages] messages: 8195 bytes are 4097 tokens or more, \
                  and 4096 fit: shorten the prompt";
    assert_eq!(error_of(&server, CHAT, &chat(&long, json!({}))).await, wanted);
    assert!(model.seen().chats.is_empty(), "nor rendered");
    let told = error_of(&server, TEXT, &json!({ "prompt": ["a", long] })).await;
    assert!(told.contains("context_length_exceeded [prompt[1]]"), "{told}");
    let told = error_of(&server, RESPONSES, &json!({ "input": long })).await;
    assert!(told.contains("context_length_exceeded [input]"), "{told}");
    // Of what is cut anyway the end is taken.
    json_of(&server, CHAT, &chat(&long, json!({ "truncate_prompt_tokens": 8, "max_tokens": 2 }))).await;
}
