//! Models and data sets of a Hugging Face Hub, and results that become commits, against a Hub of our own
//! (`mloc-test-hub`, which `hub_client.rs` proves with the Hub's own client).

mod support;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{HubRepo, Location, Pin},
};
use mloc_exec::Moved;
use mloc_store::{HubConfig, MANIFEST, Secret, Store, StoreConfig, StoreError};
use mloc_test_hub::{Hub, Kind, Trouble};
use support::{attempt, config, contents, fill, noise, outputs, pull, unsaid, unseen};

const TOKEN: &str = "hf_of_this_test";

/// A Hub, and a node that may use it.
struct Bench {
    hub: Arc<Hub>,
    store: Store,
    top: PathBuf,
    // Keeps the folder.
    _dir: tempfile::TempDir,
}

fn node(hub: &Hub, top: &Path, token: Option<&str>, create_repos: bool) -> Store {
    let hugging_face = HubConfig { endpoint: Some(hub.endpoint.clone()), token: token.map(Secret::new), create_repos };
    Store::new(StoreConfig { hugging_face, ..config(top) }).unwrap()
}

impl Bench {
    fn new() -> Self {
        let hub = Arc::new(Hub::start());
        hub.let_in(TOKEN);
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let store = node(&hub, &top, Some(TOKEN), false);
        Self { hub, store, top, _dir: dir }
    }

    /// A source as a node of its own has it: the same by the same name.
    async fn pull(&self, source: &Location, pin: Option<&Pin>, name: &str) -> Result<mloc_store::Pulled, StoreError> {
        pull(&node(&self.hub, &self.top.join(name), Some(TOKEN), false), source, pin).await
    }

    /// Names of the files a source comes to.
    async fn names(&self, source: &Location) -> String {
        match self.pull(source, None, "names").await {
            Ok(pulled) => pulled.files.into_iter().map(|file| file.path).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }
}

fn model(id: &str) -> Location {
    of(HubRepo::Model, id, "main", None, None, None)
}

fn data(id: &str, config: Option<&str>, split: Option<&str>) -> Location {
    of(HubRepo::Dataset, id, "main", None, config, split)
}

fn of(
    repo: HubRepo,
    id: &str,
    revision: &str,
    path: Option<&str>,
    config: Option<&str>,
    split: Option<&str>,
) -> Location {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Location::HuggingFace {
        identifier: id.into(),
        revision: revision.into(),
        repo,
        path: owned(path),
        config: owned(config),
        split: owned(split),
    }
}

#[tokio::test]
async fn a_model_comes_once_in_the_form_that_training_needs() {
    let bench = Bench::new();
    let weights = noise(1, 20 << 20);
    let commit = bench.hub.commit(
        Kind::Model,
        "org/m",
        &[
            ("config.json", b"{}"),
            ("model.safetensors", &weights),
            ("pytorch_model.bin", &weights),
            ("onnx/model.onnx", b"onnx"),
            ("notes/a b+c%.txt", b"odd names"),
            (".gitattributes", b"x"),
            ("empty.txt", b""),
        ],
    );
    bench.hub.pages_of(2);
    let pulled = bench.pull(&model("org/m"), None, "m").await.unwrap();
    let names: Vec<_> = pulled.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(names, ["config.json", "empty.txt", "model.safetensors", "notes/a b+c%.txt"]);
    let there = contents(&pulled.path);
    assert!(there["model.safetensors"] == weights, "other weights arrived");
    assert_eq!(there["notes/a b+c%.txt"], b"odd names");
    let pin = pulled.pin.unwrap();
    assert_eq!((pin.version.as_str(), pin.files), (commit.as_str(), 4));

    // The store behind the Hub never saw the token, and one signed address served all chunks of a lane.
    let seen = bench.hub.seen();
    assert!(seen.iter().filter(|s| s.store).all(|s| !s.token), "the token went to another host");
    assert!(seen.iter().filter(|s| !s.store).all(|s| s.token), "the Hub was asked without the token");
    let asked = seen.iter().filter(|s| !s.store && s.path.ends_with("/model.safetensors")).count();
    assert!(asked <= 4, "{asked} requests to the Hub for three chunks");

    // Again nothing goes over the line; a file that changes goes alone.
    assert_eq!(bench.pull(&model("org/m"), None, "m").await.unwrap().fetched, 0);
    let before = bench.hub.files(Kind::Model, "org/m", "main");
    bench.hub.commit(Kind::Model, "org/m", &[("config.json", b"{\"a\": 1}")]);
    assert_eq!(bench.pull(&model("org/m"), None, "m").await.unwrap().fetched, 8);

    // A task that began with the old commit goes on with it, whatever the branch is now.
    let old = bench.pull(&model("org/m"), Some(&pin), "old").await.unwrap();
    assert_eq!(old.pin.as_ref(), Some(&pin));
    assert_eq!(contents(&old.path)["config.json"], before["config.json"]);
}

#[tokio::test]
async fn a_revision_a_folder_a_file_and_a_pattern_are_what_they_say() {
    let bench = Bench::new();
    let first = bench.hub.commit(Kind::Model, "org/m", &[("a/x.json", b"1"), ("a/b/y.json", b"2"), ("z.gguf", b"3")]);
    bench.hub.tag(Kind::Model, "org/m", "v1", &first);
    let second = bench.hub.commit_to(Kind::Model, "org/m", "dev/new", &[("a/x.json", b"other")]);
    let at = |revision: &str, path: Option<&str>| of(HubRepo::Model, "org/m", revision, path, None, None);
    assert_eq!(bench.names(&at("v1", Some("a"))).await, "b/y.json x.json");
    assert_eq!(bench.names(&at("v1", Some("a/*.json"))).await, "a/x.json");
    assert_eq!(bench.names(&at(&first, Some("**/*.json"))).await, "a/b/y.json a/x.json");
    let one = bench.pull(&at("dev/new", Some("a/x.json")), None, "one").await.unwrap();
    assert!(one.path.ends_with("x.json"));
    assert_eq!(std::fs::read(one.path).unwrap(), b"other");
    assert_eq!(one.pin.unwrap().version, second);

    // A tag that was moved takes no task with it.
    let source = at("v1", Some("a/x.json"));
    let pin = bench.pull(&source, None, "tag").await.unwrap().pin.unwrap();
    bench.hub.tag(Kind::Model, "org/m", "v1", &second);
    for (pin, node, bytes) in
        [(Some(&pin), "tag", b"1".as_slice()), (Some(&pin), "fresh", b"1"), (None, "tag", b"other")]
    {
        let pulled = bench.pull(&source, pin, node).await.unwrap();
        assert_eq!(std::fs::read(pulled.path).unwrap(), bytes, "{node}");
    }
}

#[tokio::test]
async fn signed_addresses_that_end_on_the_way_are_asked_for_again() {
    let bench = Bench::new();
    let weights = noise(2, 70 << 20);
    bench.hub.commit(Kind::Model, "org/m", &[("model.safetensors", &weights)]);
    let (hub, ended) = (bench.hub.clone(), AtomicBool::new(false));
    let tell = Arc::new(move |moved: Moved| {
        if moved.done > 5 << 20 && !ended.swap(true, Ordering::SeqCst) {
            hub.end_signatures();
        }
    });
    let pulled = bench.store.pull(&model("org/m"), None, tell, unsaid()).await.unwrap();
    assert!(contents(&pulled.path)["model.safetensors"] == weights, "other weights arrived");
    let seen = bench.hub.seen();
    let asked = seen.iter().filter(|s| !s.store && s.path.ends_with("/model.safetensors")).count();
    assert!((2..=8).contains(&asked), "{asked} requests to the Hub: addresses ended once, for four lanes");
}

#[tokio::test]
async fn the_wait_that_a_busy_hub_asks_for_is_kept() {
    let bench = Bench::new();
    bench.hub.commit(Kind::Model, "org/m", &[("config.json", b"{}")]);
    bench.hub.trouble(Trouble::Busy { times: 1, seconds: 1 });
    let start = Instant::now();
    bench.pull(&model("org/m"), None, "m").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not wait");
    // A wait that is longer than its window is the scheduler's.
    bench.hub.trouble(Trouble::Busy { times: 1, seconds: 4000 });
    let busy = bench.pull(&model("org/m"), None, "n").await.unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }) && busy.class() == FailureClass::Retryable, "{busy}");
}

#[tokio::test]
async fn each_refusal_says_what_was_found_and_what_would_work() {
    let bench = Bench::new();
    let hub = &bench.hub;
    let first = hub.commit(Kind::Model, "org/m", &[("config.json", b"{}"), ("model.safetensors", b"w")]);
    hub.tag(Kind::Model, "org/m", "v1", &first);
    hub.commit(Kind::Model, "org/gated", &[("config.json", b"{}")]);
    hub.gate(Kind::Model, "org/gated");
    hub.commit(Kind::Model, "org/private", &[("config.json", b"{}")]);
    hub.make_private(Kind::Model, "org/private");
    hub.commit(Kind::Model, "org/many", &[("m.Q4_0.gguf", b"4"), ("m.Q8_0.gguf", b"8")]);
    let card = b"---\nconfigs:\n- {config_name: en, data_files: [{split: train, path: en.jsonl}]}\n\
                 - {config_name: de, data_files: de.jsonl}\n---\n";
    hub.commit(Kind::Dataset, "org/d", &[("README.md", card), ("en.jsonl", b"{}"), ("de.jsonl", b"{}")]);
    hub.commit(Kind::Dataset, "org/pictures", &[("train/1.png", b"p"), ("train/2.png", b"p")]);
    hub.commit(Kind::Dataset, "org/torn", &[("README.md", b"---\nconfigs: [{data_files: 3}]\n---\n"), ("a.csv", b"")]);

    let nobody = node(hub, &bench.top, None, false);
    let at = |revision: &str, path: Option<&str>| of(HubRepo::Model, "org/m", revision, path, None, None);
    let mut said = String::new();
    let mut case = |what: &str, error: StoreError| {
        let class = if error.class() == FailureClass::Retryable { "retryable" } else { "fatal" };
        said.push_str(&format!("# {what} ({class})\n{error}\n"));
    };
    for (what, source) in [
        ("no such model", model("org/none")),
        ("a data set that is a model", data("org/m", None, None)),
        ("gated", model("org/gated")),
        ("no such revision", at("v2", None)),
        ("no such path", at("main", Some("weights"))),
        ("several GGUF files", model("org/many")),
        ("no such configuration", data("org/d", Some("fr"), None)),
        ("no configuration named", data("org/d", None, None)),
        ("no such split", data("org/d", Some("en"), Some("test"))),
        ("no format that is read", data("org/pictures", None, None)),
        ("a card that is wrong", data("org/torn", None, None)),
    ] {
        case(what, bench.pull(&source, None, "x").await.unwrap_err());
    }
    for (what, source) in
        [("private, without a token", model("org/private")), ("no model, without a token", model("org/none"))]
    {
        case(what, pull(&nobody, &source, None).await.unwrap_err());
    }
    hub.revoke(TOKEN);
    case("a token that was revoked", bench.pull(&model("org/m"), None, "x").await.unwrap_err());
    hub.let_in(TOKEN);
    let gone = Pin { version: "0".repeat(40), files: 1, bytes: 2 };
    case("a pinned commit that is gone", bench.pull(&model("org/m"), Some(&gone), "x").await.unwrap_err());
    hub.trouble(Trouble::Flipped { large: false });
    case("other bytes than git's name says", bench.pull(&model("org/m"), None, "z").await.unwrap_err());
    hub.trouble(Trouble::Flipped { large: true });
    case("other bytes than the listing says", bench.pull(&model("org/m"), None, "x").await.unwrap_err());
    hub.lose_large_files();
    case("large files that are lost", bench.pull(&model("org/m"), None, "y").await.unwrap_err());
    case("checkpoints", bench.store.list_checkpoints(&attempt("t", 1), &model("org/m")).await.unwrap_err());
    insta::assert_snapshot!(said.replace(&hub.endpoint, "http://HUB"));
}

#[tokio::test]
async fn a_split_of_a_configuration_is_found_by_the_card_or_the_layout() {
    let bench = Bench::new();
    let hub = &bench.hub;
    let card = b"---\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - {split: train, path: 'en/part-*.jsonl'}\n  \
                 - {split: test, path: en/t.jsonl}\n- config_name: de\n  data_dir: de\n---\n# Words\n";
    hub.commit(
        Kind::Dataset,
        "org/carded",
        &[
            ("README.md", card),
            ("en/part-1.jsonl", b"{\"text\": \"1\"}"),
            ("en/part-2.jsonl", b"{\"text\": \"2\"}"),
            ("en/t.jsonl", b"{\"text\": \"t\"}"),
            ("de/train.csv", b"text\nd\n"),
            ("de/dev.csv", b"text\ne\n"),
        ],
    );
    let names = |config, split| {
        let source = data("org/carded", config, split);
        let bench = &bench;
        async move { bench.names(&source).await }
    };
    assert_eq!(names(None, Some("train")).await, "train/en/part-1.jsonl train/en/part-2.jsonl");
    assert_eq!(names(None, Some("test[:50%]")).await, "test/en/t.jsonl");
    assert_eq!(names(Some("de"), Some("validation+train[:1]")).await, "train/de/train.csv validation/de/dev.csv");
    assert_eq!(names(Some("de"), None).await, "train/de/train.csv validation/de/dev.csv");

    hub.commit(
        Kind::Dataset,
        "org/plain",
        &[
            ("data/train-00000-of-00002.parquet", b"PAR1 a"),
            ("data/train-00001-of-00002.parquet", b"PAR1 b"),
            ("data/test-00000-of-00001.parquet", b"PAR1 c"),
            ("dataset_infos.json", b"{}"),
        ],
    );
    let train = "train/data/train-00000-of-00002.parquet train/data/train-00001-of-00002.parquet";
    assert_eq!(bench.names(&data("org/plain", None, Some("train"))).await, train);
    let path = of(HubRepo::Dataset, "org/plain", "main", Some("data/t*-00000-of-*"), None, Some("test"));
    assert_eq!(bench.names(&path).await, "test/data/test-00000-of-00001.parquet");
}

#[tokio::test]
async fn what_has_no_format_of_ours_comes_as_the_hub_has_converted_it() {
    let bench = Bench::new();
    let hub = &bench.hub;
    hub.commit(
        Kind::Dataset,
        "org/scripted",
        &[("scripted.py", b"raise"), ("data/train.tar", b"t"), ("data/test.tar", b"t")],
    );
    let parquet = "refs/convert/parquet";
    let converted = hub.commit_to(
        Kind::Dataset,
        "org/scripted",
        parquet,
        &[
            ("en/train/0000.parquet", b"PAR1 en"),
            ("en/train/0001.parquet", b"PAR1 en"),
            ("de/train/0000.parquet", b"PAR1 de"),
            ("de/partial-test/0000.parquet", b"PAR1 de"),
        ],
    );
    let source = data("org/scripted", Some("en"), Some("train"));
    let pulled = bench.pull(&source, None, "d").await.unwrap();
    let names: Vec<_> = pulled.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(names, ["train/en/train/0000.parquet", "train/en/train/0001.parquet"]);
    let pin = pulled.pin.unwrap();
    assert_eq!(pin.version, format!("refs/convert/parquet@{converted}"));
    // The conversion is made anew; a task that has begun keeps the one it began with.
    hub.commit_to(Kind::Dataset, "org/scripted", parquet, &[("en/train/0000.parquet", b"PAR1 EN")]);
    for (pin, bytes) in [(Some(&pin), b"PAR1 en"), (None, b"PAR1 EN")] {
        let pulled = bench.pull(&source, pin, "d").await.unwrap();
        assert_eq!(std::fs::read(pulled.path.join("train/en/train/0000.parquet")).unwrap(), bytes);
    }
    // Half a split is not the split.
    let half = bench.names(&data("org/scripted", Some("de"), Some("test"))).await;
    assert!(half.contains("has no split `test`\nhint: there are partial-test, train"), "{half}");
    let unsaid = bench.names(&data("org/scripted", None, Some("train"))).await;
    assert!(unsaid.contains("name one with `config`: there are de, en"), "{unsaid}");
}

/// A result of three files, one of them large.
fn result(bench: &Bench, folder: &str) -> PathBuf {
    let folder = bench.top.join(folder);
    fill(
        &folder,
        &[("adapter_model.safetensors", &noise(5, 3 << 20)), ("adapter_config.json", b"{}"), ("logs/empty.txt", b"")],
    );
    folder
}

const FILES: [&str; 3] = ["adapter_model.safetensors", "adapter_config.json", "logs/empty.txt"];

async fn publish(store: &Store, to: &Location, folder: &Path, task: &str, number: u32) -> Result<String, StoreError> {
    let attempt = attempt(task, number);
    let done = store.publish(&attempt, Some(to), folder, &outputs(&FILES), None, unseen()).await?;
    assert_eq!(done.artifacts.len(), FILES.len());
    Ok(done.location)
}

#[tokio::test]
async fn a_result_is_one_commit_and_is_published_once() {
    let bench = Bench::new();
    let hub = &bench.hub;
    hub.commit(Kind::Model, "org/out", &[("README.md", b"# Mine")]);
    // In parts that do not divide it.
    hub.parts_of(1_000_000);
    let folder = result(&bench, "out");
    let at = publish(&bench.store, &model("org/out"), &folder, "t", 1).await.unwrap();
    assert_eq!(at, "hf://org/out");
    assert_eq!(hub.commits(Kind::Model, "org/out", "main"), 2, "one commit more");
    let files = hub.files(Kind::Model, "org/out", "main");
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors", "logs/empty.txt", MANIFEST]);
    for (name, bytes) in contents(&folder) {
        assert!(files[&name] == bytes, "{name} is another file");
    }
    let seen = hub.seen();
    assert!(seen.iter().filter(|s| s.store).all(|s| !s.token), "the token went to another host");
    assert_eq!(seen.iter().filter(|s| s.store && s.method == "PUT").count(), 4, "3 MiB in parts of 1 MB");

    // The same task again adopts it, another one is told whose it is; neither commits.
    publish(&bench.store, &model("org/out"), &folder, "t", 2).await.unwrap();
    let taken = publish(&bench.store, &model("org/out"), &folder, "other", 1).await.unwrap_err();
    assert!(matches!(&taken, StoreError::Taken { task, .. } if task == "t"), "{taken}");
    assert_eq!(hub.commits(Kind::Model, "org/out", "main"), 2);

    // Into a folder of a branch that is made for it; what the store has already is not sent again.
    let sent = hub.seen().iter().filter(|s| s.method == "PUT").count();
    let to = of(HubRepo::Model, "org/out", "runs/7", Some("best"), None, None);
    assert_eq!(publish(&bench.store, &to, &folder, "other", 1).await.unwrap(), "hf://org/out@runs/7/best");
    assert!(hub.files(Kind::Model, "org/out", "runs/7").contains_key("best/mloc-manifest.json"));
    assert_eq!(hub.seen().iter().filter(|s| s.method == "PUT").count(), sent);

    // What was published is a source like any other, and its manifest is held to.
    let pulled = bench.pull(&to, None, "again").await.unwrap();
    assert_eq!(pulled.files.len(), 4);
    let large = "adapter_model.safetensors";
    assert!(contents(&pulled.path)[large] == contents(&folder)[large], "other bytes came back");
}

#[tokio::test]
async fn commits_of_others_and_lost_answers_make_no_second_result() {
    let bench = Bench::new();
    let hub = &bench.hub;
    let folder = result(&bench, "out");
    hub.commit(Kind::Model, "org/raced", &[("README.md", b"# Mine")]);
    hub.trouble(Trouble::Races(3));
    publish(&bench.store, &model("org/raced"), &folder, "t", 1).await.unwrap();
    assert_eq!(hub.commits(Kind::Model, "org/raced", "main"), 1 + 3 + 1);
    assert!(hub.files(Kind::Model, "org/raced", "main").contains_key("somebody-else.txt"));

    hub.commit(Kind::Model, "org/lost", &[("README.md", b"# Mine")]);
    hub.trouble(Trouble::LostAnswers(1));
    publish(&bench.store, &model("org/lost"), &folder, "t", 1).await.unwrap();
    assert_eq!(hub.commits(Kind::Model, "org/lost", "main"), 2, "the commit was made once, though nobody heard of it");
}

#[tokio::test]
async fn a_repository_is_made_only_where_the_node_may() {
    let bench = Bench::new();
    let folder = result(&bench, "out");
    let may_not = publish(&bench.store, &model("org/new"), &folder, "t", 1).await.unwrap_err().to_string();
    assert!(
        may_not.contains("has no model `org/new`") && may_not.contains("store.huggingface.createRepos"),
        "{may_not}"
    );
    assert_eq!(bench.hub.is_private(Kind::Model, "org/new"), None);
    let maker = node(&bench.hub, &bench.top, Some(TOKEN), true);
    publish(&maker, &model("org/new"), &folder, "t", 1).await.unwrap();
    assert_eq!(bench.hub.is_private(Kind::Model, "org/new"), Some(true));
    let nobody = node(&bench.hub, &bench.top, None, true);
    let no_token = publish(&nobody, &model("org/newer"), &folder, "t", 1).await.unwrap_err();
    assert!(no_token.to_string().contains("HF_TOKEN") && no_token.class() == FailureClass::Retryable, "{no_token}");
}
