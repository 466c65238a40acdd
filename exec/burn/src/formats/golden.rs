//! The reference library's own numbers (tests/fixtures/golden): tokens, rendered chats, training rows. All exact.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::chat_template::{Conversation, RenderOptions};
use super::dataset::{IGNORED, LoadOptions, TokenizeOptions, TokenizedExample, Truncation, load, tokenize_all};
use super::gguf::{GgufFile, GgufModel, testing::GgufWriter};
use super::tokenizer::{TextStream, TextTokenizer};

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(path)
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

fn tokenizer(family: &str) -> TextTokenizer {
    TextTokenizer::from_folder(&golden(&format!("models/{family}"))).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn cases(family: &str, kind: &str) -> Vec<Value> {
    let cases = read_json(&format!("models/{family}/expected.json"))[kind].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn check_tokens(tokenizer: &TextTokenizer, family: &str) {
    for case in cases(family, "tokenizer") {
        let text = case["text"].as_str().unwrap();
        let plain = tokenizer.encode(text, false).unwrap();
        assert_eq!(plain, ids(&case["ids_no_special"]), "{family}: {text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{family}: {text:?}");
        let decoded = case["decoded_no_special"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&plain, false).unwrap(), decoded, "{family}");
    }
}

#[test]
fn tokens() {
    for family in FAMILIES {
        check_tokens(&tokenizer(family), family);
    }
}

#[test]
fn text_that_comes_token_by_token_is_the_whole_text() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        for case in cases(family, "tokenizer") {
            let ids = ids(&case["ids"]);
            for skip in [false, true] {
                let mut stream = TextStream::new(skip);
                let mut text = String::new();
                for id in &ids {
                    let piece = stream.push(&tokenizer, *id).unwrap();
                    assert!(!piece.as_deref().is_some_and(|p| p.contains('\u{FFFD}')));
                    text.extend(piece);
                }
                text.push_str(&stream.finish(&tokenizer).unwrap());
                assert_eq!(text, tokenizer.decode(&ids, skip).unwrap(), "{family}");
            }
        }
    }
}

#[test]
fn chats() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        for case in cases(family, "chat") {
            let talk = Conversation::from_json(&case["messages"].to_string()).unwrap();
            let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
            let options = RenderOptions { add_generation_prompt, now_unix: 0 };
            assert_eq!(tokenizer.render_chat(&talk, options).unwrap(), case["text"].as_str().unwrap());
            assert_eq!(tokenizer.encode_chat(&talk, options).unwrap(), ids(&case["ids"]));
        }
    }
}

/// `tests/fixtures/data/chat/make.py` rendered these with the reference library: tools, documents, dates, generation blocks.
#[test]
fn chats_with_all_that_templates_may_use() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/chat/cases.json");
    let text = std::fs::read(path).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    // Once more, with the keys in the order in which they stand there.
    let ordered: Vec<minijinja::Value> = serde_json::from_slice(&text).unwrap();
    assert!(cases.len() >= 8);
    for (case, ordered) in cases.iter().zip(ordered) {
        let part = |name: &str| ordered.get_attr(name).unwrap();
        let (name, family) = (&case["name"], case["family"].as_str().unwrap());
        let tokenizer = tokenizer(family).with_chat_template(case["template"].as_str().unwrap()).unwrap();
        let mut talk = Conversation::from_value(&part("messages")).unwrap();
        if !case["tools"].is_null() {
            talk = talk.with_tools(part("tools"));
        }
        let names = case["variables"].as_object().unwrap().keys();
        let mut variables: Vec<(String, minijinja::Value)> =
            names.map(|name| (name.clone(), part("variables").get_attr(name).unwrap())).collect();
        if !case["documents"].is_null() {
            variables.push(("documents".into(), part("documents")));
        }
        let talk = talk.with_variables(variables);
        // 2024-07-26.
        let options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            now_unix: 1_721_952_000,
        };
        assert_eq!(tokenizer.render_chat(&talk, options).unwrap(), case["text"].as_str().unwrap(), "{name} {family}");
        let (tokens, marked) = tokenizer.encode_chat_marked(&talk, options).unwrap();
        assert_eq!(tokens, ids(&case["ids"]), "{name} {family}");
        assert_eq!(tokens, tokenizer.encode_chat(&talk, options).unwrap());
        let masks: Vec<bool> = ids(&case["assistant_masks"]).iter().map(|mask| *mask == 1).collect();
        assert_eq!(marked, masks, "{name} {family}");
    }
}

#[test]
fn special_tokens_and_saved_copies() {
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let generation = read_json(&format!("models/{family}/generation_config.json"));
        let id = |name: &str| generation[name].as_u64().map(|id| id as u32);
        assert_eq!(tokenizer.bos_id(), id("bos_token_id"), "{family}");
        assert_eq!(tokenizer.eos_id(), id("eos_token_id"), "{family}");
        assert_eq!(tokenizer.pad_id(), id("pad_token_id"), "{family}");
        let config = read_json(&format!("models/{family}/config.json"));
        assert!(tokenizer.vocab_size() <= config["vocab_size"].as_u64().unwrap() as usize);

        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let copy = TextTokenizer::from_folder(folder.path()).unwrap();
        check_tokens(&copy, family);
        let template = |t: &TextTokenizer| t.chat_template().unwrap().source().to_owned();
        assert_eq!(template(&copy), template(&tokenizer));
    }
}

/// One row of a recorded batch, without its padding.
fn row_of(batch: &Value, row: usize) -> TokenizedExample {
    let kept: Vec<bool> = ids(&batch["attention_mask"][row]).iter().map(|m| *m == 1).collect();
    let real = |values: Vec<i64>| -> Vec<i64> {
        values.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(v, _)| *v).collect()
    };
    let numbers =
        |key: &str| -> Vec<i64> { batch[key][row].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect() };
    assert!(numbers("labels").iter().zip(&kept).all(|(label, kept)| *kept || *label == IGNORED));
    let input_ids = real(numbers("input_ids")).into_iter().map(|id| id as u32).collect();
    TokenizedExample { input_ids, labels: real(numbers("labels")) }
}

#[test]
fn training_rows() {
    for family in FAMILIES {
        let expected = read_json(&format!("lora/{family}/expected.json"));
        let max_length = expected["hyperparameters"]["max_length"].as_u64().map(|n| n as usize);
        let data = golden(&format!("lora/{family}/train.jsonl"));
        let rows = load(&data, &LoadOptions::default(), &|| false).unwrap();
        let options = TokenizeOptions { max_length, ..Default::default() };
        let ours = tokenize_all(&rows, &tokenizer(family), options, &|| false).unwrap();
        let batches = expected["batches"].as_array().unwrap();
        let theirs: Vec<TokenizedExample> = batches
            .iter()
            .flat_map(|batch| (0..batch["input_ids"].as_array().unwrap().len()).map(|row| row_of(batch, row)))
            .collect();
        // The run goes round the file when it has fewer rows than the steps need.
        assert!(!theirs.is_empty());
        for (index, want) in theirs.iter().enumerate() {
            assert_eq!(&ours.examples[index % ours.examples.len()], want, "{family}, row {index}");
        }
        let targets: usize = ours.examples.iter().map(TokenizedExample::num_targets).sum();
        assert!(targets > 0 && ours.counts.without_target == 0);
    }
}

#[test]
fn all_tokens_or_the_completion_only() {
    for family in FAMILIES {
        let sft = &read_json(&format!("models/{family}/expected.json"))["sft"];
        let tokenizer = tokenizer(family);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        let talks = sft["messages"].as_array().unwrap();
        let lines: Vec<String> = talks.iter().map(|m| json!({ "messages": m }).to_string()).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let rows = load(&file, &LoadOptions::default(), &|| false).unwrap();
        for (key, completion_only) in
            [("all_tokens", None), ("all_tokens", Some(false)), ("completion_only", Some(true))]
        {
            let options = TokenizeOptions { completion_only, ..Default::default() };
            let ours = tokenize_all(&rows, &tokenizer, options, &|| false).unwrap();
            let batch = json!({ "input_ids": sft["input_ids"], "attention_mask": sft["attention_mask"],
                                "labels": sft[key]["labels"] });
            for (row, example) in ours.examples.iter().enumerate() {
                assert_eq!(*example, row_of(&batch, row), "{family}, {key}");
            }
            let targets: usize = ours.examples.iter().map(TokenizedExample::num_targets).sum();
            assert_eq!(targets as u64, sft[key]["num_target_tokens"].as_u64().unwrap());
        }
    }
}

#[test]
fn a_row_the_template_refuses_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let talk =
        json!({ "messages": [{ "role": "system", "content": "be brief" }, { "role": "user", "content": "hi" }] });
    std::fs::write(&file, talk.to_string()).unwrap();
    let rows = load(&file, &LoadOptions::default(), &|| false).unwrap();
    let error =
        tokenize_all(&rows, &tokenizer("mistral"), TokenizeOptions::default(), &|| false).unwrap_err().to_string();
    let want = "rows.jsonl:1: chat template refuses these messages: Only user and assistant roles are supported!";
    assert!(error.ends_with(want), "{error}");
}

/// The metadata that a converter would write for a golden tokenizer, in a file with next to no weights.
fn gguf_with_tokenizer(family: &str, model: &str, pre: Option<&str>) -> GgufWriter {
    let tokenizer_json = read_json(&format!("models/{family}/tokenizer.json"));
    let config = read_json(&format!("models/{family}/tokenizer_config.json"));
    let generation = read_json(&format!("models/{family}/generation_config.json"));
    let vocab = tokenizer_json["model"]["vocab"].as_object().unwrap();
    let added = tokenizer_json["added_tokens"].as_array().unwrap();
    let mut tokens: Vec<(u64, String, i32)> =
        vocab.iter().map(|(t, id)| (id.as_u64().unwrap(), t.clone(), 1)).collect();
    tokens.retain(|(id, ..)| !added.iter().any(|a| a["id"].as_u64() == Some(*id)));
    tokens.extend(added.iter().map(|a| (a["id"].as_u64().unwrap(), a["content"].as_str().unwrap().to_owned(), 3)));
    tokens.sort();
    let merges: Vec<(String, String)> = tokenizer_json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let pair = |m: &Value| Some((m[0].as_str()?.to_owned(), m[1].as_str()?.to_owned()));
            pair(m).unwrap_or_else(|| {
                let (left, right) = m.as_str().unwrap().split_once(' ').unwrap();
                (left.to_owned(), right.to_owned())
            })
        })
        .collect();

    let mut file = GgufWriter::new();
    file.text("general.architecture", "llama");
    for key in ["block_count", "context_length", "feed_forward_length", "attention.head_count"] {
        file.uint(&format!("llama.{key}"), 1);
    }
    file.uint("llama.embedding_length", 2);
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.f32_tensor("token_embd.weight", &[tokens.len() as u64, 2], &vec![0.0; tokens.len() * 2]);
    file.text("tokenizer.ggml.model", model);
    if let Some(pre) = pre {
        file.text("tokenizer.ggml.pre", pre);
    }
    file.texts("tokenizer.ggml.tokens", &tokens.iter().map(|t| t.1.as_str()).collect::<Vec<_>>());
    file.ints("tokenizer.ggml.token_type", &tokens.iter().map(|t| t.2).collect::<Vec<_>>());
    let texts: Vec<String> = merges.iter().map(|(l, r)| format!("{l} {r}")).collect();
    if model == "gpt2" {
        file.texts("tokenizer.ggml.merges", &texts);
    } else {
        let rank = |token: &str| merges.iter().position(|(l, r)| format!("{l}{r}") == token);
        let scores: Vec<f32> = tokens.iter().map(|t| rank(&t.1).map_or(-1e6, |r| -(r as f32))).collect();
        file.floats("tokenizer.ggml.scores", &scores);
    }
    for (key, name) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(id) = generation[name].as_u64() {
            file.uint(&format!("tokenizer.ggml.{key}_token_id"), id as u32);
        }
    }
    file.text("tokenizer.chat_template", config["chat_template"].as_str().unwrap());
    file
}

#[test]
fn a_gguf_tokenizer_gives_the_same_tokens() {
    let kinds = [
        ("llama", "gpt2", Some("llama-bpe")),
        ("qwen2", "gpt2", Some("qwen2")),
        ("qwen3", "gpt2", Some("qwen2")),
        ("mistral", "llama", None),
    ];
    for (family, model, pre) in kinds {
        let bytes = gguf_with_tokenizer(family, model, pre).bytes(3);
        let gguf = GgufModel::from_file(GgufFile::from_bytes(bytes).unwrap()).unwrap();
        let ours = gguf.tokenizer().unwrap();
        if family == "mistral" {
            // The fixture has no unknown-token key; byte fallback makes it unnecessary.
            assert_eq!(ours.special_token("unk_token"), None);
        }
        check_tokens(&ours, family);
        let original = tokenizer(family);
        assert_eq!((ours.bos_id(), ours.eos_id()), (original.bos_id(), original.eos_id()));
        let talk = Conversation::from_turns([("user", "Is node-2 up?")]);
        let options = RenderOptions { add_generation_prompt: true, now_unix: 0 };
        assert_eq!(ours.encode_chat(&talk, options).unwrap(), original.encode_chat(&talk, options).unwrap());
    }
}

#[test]
fn a_gguf_tokenizer_of_another_kind_is_refused() {
    let refused = |file: GgufWriter| {
        GgufModel::from_file(GgufFile::from_bytes(file.bytes(3)).unwrap()).unwrap().tokenizer().unwrap_err().to_string()
    };
    let error = refused(gguf_with_tokenizer("llama", "gpt2", Some("tekken")));
    assert!(error.contains("tokenizer split `tekken`; known are default"), "{error}");
    let error = refused(gguf_with_tokenizer("llama", "bert", None));
    assert!(error.contains("tokenizer model `bert`; known are gpt2 and llama"), "{error}");
    let mut file = gguf_with_tokenizer("llama", "gpt2", Some("llama-bpe"));
    file.uint("tokenizer.ggml.unknown_token_id", 9999);
    let error = refused(file);
    assert!(error.contains("`tokenizer.ggml.unknown_token_id`: 9999 is outside the 512 tokens"), "{error}");
}

#[test]
fn plain_text_gets_the_models_begin_and_end() {
    let tokenizer = tokenizer("llama");
    let (bos, eos) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let rows = [
        json!({ "text": "a lease ends" }),
        json!({ "text": "a lease ends<|eot_id|>" }),
        json!({ "prompt": "2 + 2 =", "completion": " 4" }),
    ];
    std::fs::write(&file, rows.map(|r| r.to_string()).join("\n")).unwrap();
    let rows = load(&file, &LoadOptions::default(), &|| false).unwrap();
    let all = |options| tokenize_all(&rows, &tokenizer, options, &|| false).unwrap();
    let ours = all(TokenizeOptions::default());
    let [plain, ended, sum] = &ours.examples[..] else { panic!("three rows") };
    assert_eq!((plain.input_ids[0], *plain.input_ids.last().unwrap()), (bos, eos));
    assert_eq!(plain, ended);
    assert_eq!(plain.num_targets(), plain.len() - 1);
    assert_eq!(tokenizer.decode(&sum.input_ids, true).unwrap(), "2 + 2 = 4");
    let targets: Vec<u32> = sum.labels.iter().filter(|l| **l != IGNORED).map(|l| *l as u32).collect();
    assert_eq!(tokenizer.decode(&targets, false).unwrap(), " 4<|eot_id|>");
    assert_eq!(
        all(TokenizeOptions { completion_only: Some(false), ..Default::default() }).examples[2].num_targets(),
        sum.len() - 1
    );

    let cut = all(TokenizeOptions { max_length: Some(4), ..Default::default() });
    assert_eq!((cut.counts.truncated, cut.counts.without_target), (3, 1));
    assert_eq!(cut.examples[0].input_ids, plain.input_ids[..4]);
}

#[test]
fn the_assistants_words_alone_are_learnt_where_the_template_marks_them() {
    let rows = |rows: &[Value]| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")).unwrap();
        load(&file, &LoadOptions::default(), &|| false).unwrap()
    };
    let talk = json!([
        { "role": "user", "content": "one" }, { "role": "assistant", "content": "two" },
        { "role": "user", "content": "three" }, { "role": "assistant", "content": "four" },
    ]);
    let plain = tokenizer("llama");
    let options = TokenizeOptions { assistant_only: true, ..TokenizeOptions::default() };
    let error =
        tokenize_all(&rows(&[json!({ "messages": talk })]), &plain, options, &|| false).unwrap_err().to_string();
    assert!(error.contains("it has no `{% generation %}` block (hint: give a template with"), "{error}");

    let marking = "{% for m in messages %}{{ m.role }}|{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                   <|eot_id|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let tokenizer = plain.with_chat_template(marking).unwrap();
    let learnt = |row: Value, options| {
        let all = tokenize_all(&rows(&[row]), &tokenizer, options, &|| false).unwrap();
        let labels = all.examples[0].labels.iter().filter(|label| **label != IGNORED);
        tokenizer.decode(&labels.map(|label| *label as u32).collect::<Vec<_>>(), false).unwrap()
    };
    assert_eq!(learnt(json!({ "messages": talk }), options), "two<|eot_id|>four<|eot_id|>");
    let (prompt, completion) = (json!(talk.as_array().unwrap()[..3]), json!([talk[3]]));
    let pair = json!({ "prompt": prompt, "completion": completion });
    assert_eq!(learnt(pair.clone(), options), "four<|eot_id|>");
    // What is given may be learnt too, but only the assistant's words of it.
    let all = TokenizeOptions { completion_only: Some(false), ..options };
    assert_eq!(learnt(pair, all), "two<|eot_id|>four<|eot_id|>");

    let refused = |row: Value| tokenize_all(&rows(&[row]), &tokenizer, options, &|| false).unwrap_err().to_string();
    let error = refused(json!({ "messages": [{ "role": "user", "content": "alone" }] }));
    assert!(error.ends_with("marks no token of this row as the assistant's"), "{error}");
    let error = refused(json!({ "text": "plain" }));
    assert!(error.ends_with("assistant_only_loss is for messages, and this row is text"), "{error}");
}

#[test]
fn alpacas_rows_take_the_models_own_format_or_alpacas() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let row = json!({ "instruction": "Add.", "input": "1 and 2", "output": "3" });
    std::fs::write(&file, row.to_string()).unwrap();
    let rows = load(&file, &LoadOptions::default(), &|| false).unwrap();
    let texts = |tokenizer: &TextTokenizer| {
        let all = tokenize_all(&rows, tokenizer, TokenizeOptions::default(), &|| false).unwrap();
        let example = &all.examples[0];
        let learnt = example.labels.iter().filter(|label| **label != IGNORED).map(|label| *label as u32);
        let learnt: Vec<u32> = learnt.collect();
        (tokenizer.decode(&example.input_ids, true).unwrap(), tokenizer.decode(&learnt, true).unwrap())
    };
    let chat = tokenizer("qwen2");
    let talk = Conversation::from_turns([("user", "Add.\n\n1 and 2"), ("assistant", "3")]);
    let ids = chat.encode_chat(&talk, RenderOptions::default()).unwrap();
    let (text, learnt) = texts(&chat);
    assert_eq!((text, learnt.trim()), (chat.decode(&ids, true).unwrap(), "3"));

    let json = std::fs::read(golden("models/qwen2/tokenizer.json")).unwrap();
    let without = TextTokenizer::from_parts(&json, serde_json::Map::new()).unwrap();
    let (text, learnt) = texts(&without);
    let want = "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
                response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### \
                Response:\n3";
    assert_eq!((text.as_str(), learnt.as_str()), (want, "3"));
}

#[test]
fn long_rows_are_cut_at_the_end_that_is_asked_for_and_foreign_tokens_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    std::fs::write(&file, json!({ "text": "one two three four five six seven" }).to_string()).unwrap();
    let rows = load(&file, &LoadOptions::default(), &|| false).unwrap();
    let tokenizer = tokenizer("qwen2");
    let all = |options| tokenize_all(&rows, &tokenizer, options, &|| false);
    let whole = all(TokenizeOptions::default()).unwrap().examples.remove(0);
    let cut = |truncation| {
        let options = TokenizeOptions { max_length: Some(5), truncation, ..TokenizeOptions::default() };
        all(options).unwrap().examples.remove(0)
    };
    assert_eq!(cut(Truncation::KeepStart).input_ids, whole.input_ids[..5]);
    assert_eq!(cut(Truncation::KeepEnd).input_ids, whole.input_ids[whole.len() - 5..]);
    assert_eq!(cut(Truncation::KeepEnd).labels.len(), 5);
    let largest = *whole.input_ids.iter().max().unwrap();
    let small = TokenizeOptions { vocab_size: Some(largest as usize), ..TokenizeOptions::default() };
    let error = all(small).unwrap_err().to_string();
    let want =
        format!("has the id {largest}, and the model's vocabulary has {largest}: the tokenizer is not this model's");
    assert!(error.contains("rows.jsonl:1: token `") && error.ends_with(&want), "{error}");
}
