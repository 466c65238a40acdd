use std::path::Path;

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

/// What `load` says about a file of these lines, without the folder's name.
fn complaint(content: &str, options: &LoadOptions) -> String {
    let folder = folder(&[("d.jsonl", content)]);
    let error = load(folder.path(), options, &|| false).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "").replace(&folder.path().display().to_string(), "data")
}

#[test]
fn all_forms_are_read_in_order() {
    let rows = concat!(
        r#"{"text": "plain"}"#,
        "\n\n",
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        "\r\n",
        r#"{"prompt": "p", "completion": "c"}"#,
        "\n",
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
    );
    let folder = folder(&[("b.jsonl", rows), ("a.jsonl", "{\"text\": \"first\"}\n"), ("README.md", "no data")]);
    let rows = load(folder.path(), &LoadOptions::default(), &|| false).unwrap();
    let texts: Vec<_> = rows.iter().map(|r| (r.line, r.example.texts().join("|"))).collect();
    let want = [(1, "first"), (1, "plain"), (3, "q|a"), (4, "p|c"), (5, "q|a")];
    assert_eq!(texts, want.map(|(line, text)| (line, text.to_owned())));
}

/// The examples of rows, or what is wrong with them.
fn examples(rows: &str, options: &LoadOptions) -> Vec<Example> {
    let folder = folder(&[("d.jsonl", rows)]);
    load(folder.path(), options, &|| false).unwrap().into_iter().map(|row| row.example).collect()
}

fn turns(example: &Example) -> Vec<(String, String)> {
    let Example::Messages(talk) = example else { panic!("{example:?}") };
    talk.turns()
}

#[test]
fn rows_of_sharegpt_and_alpaca_are_read() {
    let rows = concat!(
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "judge", "value": "x"}]}"#,
        "\n",
        r#"{"instruction": "add", "input": "", "output": "2", "system": null}"#,
        "\n",
        r#"{"instruction": "add", "input": "1 1", "output": "2", "text": "not this"}"#,
    );
    let found = examples(rows, &LoadOptions::default());
    let spoken = [("user", "q"), ("assistant", "a"), ("judge", "x")];
    assert_eq!(turns(&found[0]), spoken.map(|(role, text)| (role.to_owned(), text.to_owned())));
    assert_eq!(
        (found[1].texts(), found[2].texts()),
        (vec!["add".into(), "2".into()], vec!["add".into(), "1 1".into(), "2".into()])
    );
    let wrong = complaint(r#"{"instruction": 1, "output": "x"}"#, &LoadOptions::default());
    assert_eq!(wrong, "d.jsonl:1: column `instruction` is a number, expected a string");
}

#[test]
fn columns_go_by_the_names_that_they_are_given() {
    let columns = |pairs: &[(&str, &str)]| {
        let columns = pairs.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
        LoadOptions { columns, ..LoadOptions::default() }
    };
    let row = r#"{"question": "q", "answer": "a", "text": "not this", "prompt": "nor this"}"#;
    let named = columns(&[("prompt", "question"), ("completion", "answer")]);
    let found = examples(row, &named);
    assert!(matches!(&found[0], Example::Continuation { prompt, completion } if prompt == "q" && completion == "a"));
    assert_eq!(
        complaint(r#"{"questions": "q", "answer": "a"}"#, &named),
        "d.jsonl:1: preprocessing.columns.prompt: no column `question`, found questions, answer (hint: did you mean \
         `questions`?)"
    );
    let text = LoadOptions { text_column: Some("body".into()), ..LoadOptions::default() };
    assert_eq!(examples(r#"{"body": "b", "text": "t"}"#, &text)[0].texts(), ["b"]);
    assert_eq!(complaint(r#"{"text": "t"}"#, &text), "d.jsonl:1: no column `body`, found text");
}

#[test]
fn a_split_picks_files() {
    let row = |t: &str| format!("{{\"text\": \"{t}\"}}");
    let folder = folder(&[
        ("train-00.jsonl", &row("a")),
        ("data/train-01.jsonl", &row("b")),
        ("test.jsonl", &row("c")),
        ("training.jsonl", &row("d")),
    ]);
    let texts = |split: &str| {
        let options = LoadOptions { split: Some(vec![Part::whole(split)]), ..Default::default() };
        load(folder.path(), &options, &|| false)
            .map(|rows| rows.iter().flat_map(|r| r.example.texts()).collect::<Vec<_>>())
    };
    assert_eq!(texts("train").unwrap(), ["b", "a"]);
    assert_eq!(texts("test").unwrap(), ["c"]);
    let error = texts("validation").unwrap_err().to_string();
    assert!(error.ends_with("no file for split `validation`, there are train-01, test, train-00, training"), "{error}");
}

#[test]
fn every_bad_row_is_named_with_its_line() {
    let rows = "{\"text\": \"fine\"}\n{\"text\": \n\"x\"\n{\"instruction\": 1, \"response\": 2}\n{\"text\": 3}\n\
                {\"messages\": [{\"role\": \"user\"}]}\n{\"prompt\": \"p\"}\n{\"prompt\": \"p\", \"completion\": []}\n";
    let want = "d.jsonl:2: not JSON: EOF while parsing a value at character 9\n\
                d.jsonl:3: expected a JSON object, found a string\n\
                d.jsonl:4: no column `messages`, found instruction, response; a row has `messages` (or `conversations`), or \
                `prompt` and `completion`, or `instruction` and `output`, or `text` (hint: say which columns those are with \
                preprocessing.columns, or set prompt_template to build a text from other columns)\n\
                d.jsonl:5: column `text` is a number, expected a string\n\
                d.jsonl:6: column `messages`: message 0 has no `content`\n\
                d.jsonl:7: no column `completion`, found prompt\n\
                d.jsonl:8: column `prompt` is a string but `completion` is a list: both must be strings or both lists \
                of messages";
    assert_eq!(complaint(rows, &LoadOptions::default()), want);
    let many = "nothing\n".repeat(25);
    assert!(
        complaint(&many, &LoadOptions::default())
            .ends_with("d.jsonl:20: not JSON: expected ident at character 2\nand 5 more rows")
    );
}

#[test]
fn nothing_to_read_is_said() {
    assert_eq!(complaint("\n \n", &LoadOptions::default()), "data: the data set is empty");
    let empty = folder(&[("train.arrow", "ARROW1"), ("dataset_info.json", "{}")]);
    let error = load(empty.path(), &LoadOptions::default(), &|| false).unwrap_err().to_string();
    assert!(error.ends_with(
        "no .jsonl, .parquet, .json, .csv or .tsv file in this folder, there is dataset_info.json, train.arrow (hint: \
             convert the data to JSON lines or Parquet)"
    ));
    let error = load(&empty.path().join("none"), &LoadOptions::default(), &|| false).unwrap_err();
    assert!(matches!(error, DatasetError::Io { .. }));
    let bytes = folder(&[]);
    let file = bytes.path().join("x.jsonl");
    std::fs::write(&file, b"{\"text\": \"\xff\"}").unwrap();
    let error = load(&file, &LoadOptions::default(), &|| false).unwrap_err().to_string();
    assert!(error.ends_with("x.jsonl:1: not UTF-8 text after byte 10"));
}

#[test]
fn a_template_is_filled_from_columns() {
    let template = PromptTemplate::parse("Q: {question}\n{context}A{{{n}}}: {answer}").unwrap();
    let options = LoadOptions { prompt_template: template, ..Default::default() };
    let row = r#"{"question": "why?", "context": null, "n": 2, "answer": "so"}"#;
    let data = folder(&[("d.jsonl", row)]);
    let rows = load(data.path(), &options, &|| false).unwrap();
    assert_eq!(rows[0].example.texts(), ["Q: why?\nA{2}: so"]);
    let missing = complaint(r#"{"question": "q", "context": "", "n": 1}"#, &options);
    assert_eq!(missing, "d.jsonl:1: no column `answer`, found question, context, n");
    let wrong = complaint(r#"{"question": ["q"]}"#, &options);
    assert_eq!(wrong, "d.jsonl:1: column `question` is a list, expected a text or a number");
}

#[test]
fn a_template_must_have_a_placeholder() {
    for own in ["...", "", " … "] {
        assert_eq!(PromptTemplate::parse(own).unwrap(), None);
    }
    let error = |source: &str| PromptTemplate::parse(source).unwrap_err().to_string();
    assert_eq!(
        error("Answer:"),
        "prompt_template: it has no `{column}` placeholder, so every row would give the same text"
    );
    assert!(error("{{text}}").contains("no `{column}` placeholder"));
    assert_eq!(error("{text"), "prompt_template: `{text` is never closed (hint: write `{{` for a plain brace)");
    assert_eq!(
        error("a } {b}"),
        "prompt_template: a `}` without `{` at character 2 (hint: write `}}` for a plain brace)"
    );
    assert_eq!(error("{ }"), "prompt_template: `{ }` names no column");
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/parquet").join(name)
}

/// The texts of what a path holds.
fn texts(path: &Path, split: Option<Vec<Part>>) -> Result<Vec<String>, String> {
    let rows = load(path, &LoadOptions { split, ..LoadOptions::default() }, &|| false).map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|row| row.example.texts().join("|")).collect())
}

/// The files were written by pyarrow 26.0.1, which is what the `datasets` library writes with; two row groups each.
#[test]
fn parquet_of_every_codec_gives_the_nested_rows_that_were_written() {
    for codec in ["none", "snappy", "gzip", "zstd"] {
        let path = fixture(&format!("nested-{codec}.parquet"));
        assert_eq!(super::read::count(&path).unwrap(), 3);
        let rows: Vec<_> = super::read::rows(&path, &Arc::default()).unwrap().map(|row| row.unwrap()).collect();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3], "{codec}");
        let json = |n: usize| serde_json::to_value(rows[n].value.as_ref().unwrap()).unwrap();
        let want = serde_json::json!({
            "messages": [
                {"role": "user", "content": "What does a lease span?"},
                {"role": "assistant", "content": "Many heartbeats — so that a slow link is no dead worker."}
            ],
            "tags": ["mesh", "lease"], "source": {"name": "handbook", "year": 2024},
            "score": 0.5, "votes": 7, "good": true, "day": "2024-07-26"
        });
        assert_eq!(json(0), want, "{codec}");
        assert_eq!(json(1)["messages"].as_array().unwrap().len(), 3);
        assert_eq!((&json(1)["tags"], &json(1)["source"]), (&serde_json::json!([]), &serde_json::Value::Null));
        assert_eq!(json(2)["messages"][1], serde_json::json!({"role": "assistant", "content": null}));
        assert_eq!((&json(2)["tags"], &json(2)["day"]), (&serde_json::Value::Null, &serde_json::json!("1999-12-31")));
    }
    let template = PromptTemplate::parse("{day}: {votes} {good} {score}").unwrap();
    let options = LoadOptions { prompt_template: template, ..LoadOptions::default() };
    let rows = load(&fixture("nested-zstd.parquet"), &options, &|| false).unwrap();
    let texts: Vec<_> = rows.iter().flat_map(|row| row.example.texts()).collect();
    assert_eq!(texts, ["2024-07-26: 7 True 0.5", ": -3 False ", "1999-12-31:   1.25"]);
}

#[test]
fn slices_and_sums_of_splits_are_taken_in_their_order() {
    let folder = folder(&[
        ("train/b.jsonl", "{\"text\": \"3\"}\n{\"text\": \"4\"}\n"),
        ("train/a/x.jsonl", "{\"text\": \"1\"}\n\n{\"text\": \"2\"}\n"),
        ("train/.hidden.jsonl", "nothing"),
        ("test/t.csv", "text,n\nseven,7\n\"eight\nlines\",8\n"),
    ]);
    let part = |name: &str, from, to, percent| Part { name: name.into(), slice: Some(Slice { from, to, percent }) };
    let texts = |parts: Vec<Part>| texts(folder.path(), Some(parts));
    assert_eq!(texts(vec![Part::whole("train")]).unwrap(), ["1", "2", "3", "4"]);
    assert_eq!(texts(vec![part("train", Some(1), Some(3), false)]).unwrap(), ["2", "3"]);
    let sum = vec![part("train", Some(-25), None, true), part("test", Some(1), None, false)];
    assert_eq!(texts(sum).unwrap(), ["4", "eight\nlines"]);
    let none = texts(vec![part("train", Some(9), None, false)]).unwrap_err();
    assert!(none.ends_with("train[9:] has none of the 4 rows that there are"), "{none}");
    let no_split = texts(vec![Part::whole("dev")]).unwrap_err();
    assert!(no_split.ends_with("no file and no folder for split `dev`, there are test, train"), "{no_split}");
    let pairs = super::load(
        &fixture("pairs.parquet"),
        &LoadOptions { split: Some(vec![part("train", Some(-10), None, true)]), ..LoadOptions::default() },
        &|| false,
    );
    let lines: Vec<_> = pairs.unwrap().iter().map(|row| row.line).collect();
    assert_eq!(lines, [24, 25], "two of 25, as the datasets library takes them");
}

#[test]
fn json_csv_and_packed_files_are_read() {
    let folder = folder(&[
        ("array.json", "\n [{\"text\": \"a\"}, {\"text\": 1}]"),
        ("lines.json", "{\"text\": \"b\"}\n{\"text\": \"c\"}"),
        ("t.tsv", "\u{feff}prompt\tcompletion\np\tc\nonly one\n"),
    ]);
    let path = |name: &str| folder.path().join(name);
    assert_eq!(texts(&path("lines.json"), None).unwrap(), ["b", "c"]);
    assert!(
        texts(&path("array.json"), None)
            .unwrap_err()
            .ends_with("array.json:2: column `text` is a number, expected a string")
    );
    for (array, complaint) in [
        ("[{\"text\": \"a\"}, 3]", "after 1 elements of the array: expected an object"),
        ("[{\"text\": \"a\"} {\"text\": \"b\"}]", "after 1 elements of the array: expected `,` or `]`"),
        ("[{\"text\": \"a\"},", "after 1 elements of the array: expected an object"),
        ("[{\"text\": ", "after 0 elements of the array: EOF while parsing a value at line 1 column 9"),
    ] {
        std::fs::write(path("bad.json"), array).unwrap();
        let error = texts(&path("bad.json"), None).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    }
    let tsv = texts(&path("t.tsv"), None).unwrap_err();
    assert!(tsv.ends_with("t.tsv:3: 1 values, and the first line names 2 columns"), "{tsv}");
    let text = b"{\"text\": \"packed\"}\n";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gz, text).unwrap();
    std::fs::write(path("p.jsonl.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(path("p.jsonl.zst"), zstd::encode_all(&text[..], 0).unwrap()).unwrap();
    assert_eq!(texts(&path("p.jsonl.gz"), None).unwrap(), ["packed"]);
    assert_eq!(texts(&path("p.jsonl.zst"), None).unwrap(), ["packed"]);
    // The same data in two formats is not read twice.
    let text = b"{\"text\": \"once\"}\n";
    let both = super::tests::folder(&[("d.jsonl", std::str::from_utf8(text).unwrap()), ("d.csv", "text\nonce\n")]);
    assert_eq!(texts(both.path(), None).unwrap(), ["once"]);
}

#[test]
fn what_is_no_parquet_is_said() {
    let folder = folder(&[("x.parquet", "PAR1 and then nothing")]);
    let error = texts(folder.path(), None).unwrap_err();
    assert!(error.contains("x.parquet: no Parquet file: "), "{error}");
}

#[test]
fn prompts_come_with_the_other_columns_of_their_rows() {
    let rows = concat!(
        r#"{"prompt": "1 + 1 = ", "answer": 2, "from": {"book": 7}}"#,
        "\n",
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
    );
    let folder = folder(&[("d.jsonl", rows)]);
    let prompts = load_prompts(folder.path(), &LoadOptions::default(), &|| false).unwrap();
    let json: Vec<String> =
        prompts.iter().map(|row| format!("{} {}", row.prompt.to_json(), serde_json::json!(row.columns))).collect();
    assert_eq!(
        json,
        [
            r#""1 + 1 = " {"answer":2,"from":{"book":7}}"#,
            r#"[{"role":"user","content":"q"}] {"completion":[{"role":"assistant","content":"a"}]}"#,
        ]
    );
    let options =
        LoadOptions { prompt_template: PromptTemplate::parse("{answer}?").unwrap(), ..LoadOptions::default() };
    let error = load_prompts(folder.path(), &options, &|| false).unwrap_err().to_string();
    assert!(error.contains("d.jsonl:2: ") && error.contains("no column `answer`"), "{error}");
    let error =
        load_prompts(folder.path(), &LoadOptions { split: Some(vec![Part::whole("test")]), ..options }, &|| false);
    assert!(error.unwrap_err().to_string().contains("no file for split `test`"));
}
