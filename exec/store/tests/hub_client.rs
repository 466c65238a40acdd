//! The Hub of these tests, proven with the Hub's own client, `huggingface_hub`: what that client gets, sends and is told
//! is what it gets, sends and is told by the real one; and what it and this crate bring from the same repository is the
//! same.

mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use mloc_core::task::spec::{HubRepo, Location};
use mloc_store::{HubConfig, Secret, Store, StoreConfig};
use mloc_test_hub::{Hub, Kind};
use support::{attempt, config, contents, fill, noise, outputs, pull, skip, unseen};

const TOKEN: &str = "hf_of_this_test";

/// Runs a program of the client's language against a Hub; `None`, and a line that is counted, where it cannot be had.
fn client(hub: &Hub, home: &Path, program: &str, arguments: &[&str]) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers/hub_client.sh");
    let mut command = Command::new(script);
    command.arg(env!("CARGO_TARGET_TMPDIR")).arg("-c").arg(program).args(arguments);
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", TOKEN).env("HF_HOME", home);
    let output = command.output().expect("tests/fixtures/servers/hub_client.sh starts");
    if output.status.code() == Some(3) {
        skip("no huggingface_hub 2.4.0: it is neither installed nor to be had from PyPI");
        return None;
    }
    Some(output)
}

/// What it printed; it must have ended well.
fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.trim().to_owned()
}

fn model(id: &str) -> Location {
    Location::HuggingFace {
        identifier: id.into(),
        revision: "main".into(),
        repo: HubRepo::Model,
        path: None,
        config: None,
        split: None,
    }
}

fn node(hub: &Hub, top: &Path) -> Store {
    let token = Some(Secret::new(TOKEN));
    let hugging_face = HubConfig { endpoint: Some(hub.endpoint.clone()), token, create_repos: false };
    Store::new(StoreConfig { hugging_face, ..config(top) }).unwrap()
}

#[tokio::test]
async fn the_client_and_this_crate_bring_the_same_files() {
    let hub = Hub::start();
    hub.let_in(TOKEN);
    let dir = tempfile::tempdir().unwrap();
    let weights = noise(3, 20 << 20);
    let commit = hub.commit(
        Kind::Model,
        "org/m",
        &[
            ("config.json", b"{\"model_type\": \"llama\"}"),
            ("model.safetensors", &weights),
            ("nested/deep/a b.txt", b"odd"),
            ("empty.txt", b""),
        ],
    );
    hub.make_private(Kind::Model, "org/m");
    hub.pages_of(2);
    let program = "import sys, huggingface_hub as h\nprint(h.snapshot_download('org/m', cache_dir=sys.argv[1]))";
    let Some(ran) = client(&hub, dir.path(), program, &[&dir.path().join("cache").display().to_string()]) else {
        return;
    };
    let snapshot = said(&ran);
    assert!(snapshot.ends_with(&commit), "the commit that the client found: {snapshot}");
    let theirs = contents(Path::new(&snapshot));
    let ours = node(&hub, dir.path());
    let ours = pull(&ours, &model("org/m"), None).await.unwrap();
    assert_eq!(ours.files.len(), 4);
    assert!(contents(&ours.path) == theirs, "other files, or other bytes");
    assert!(theirs["model.safetensors"] == weights);
    assert!(hub.seen().iter().filter(|s| s.store).all(|s| !s.token));
}

#[test]
fn the_client_is_told_what_is_wrong_in_its_own_terms() {
    let hub = Hub::start();
    hub.let_in(TOKEN);
    let dir = tempfile::tempdir().unwrap();
    hub.commit(Kind::Model, "org/m", &[("config.json", b"{}")]);
    hub.commit(Kind::Model, "org/gated", &[("config.json", b"{}")]);
    hub.gate(Kind::Model, "org/gated");
    let program = "
import huggingface_hub as h
from huggingface_hub import errors
api = h.HfApi()
def told(call):
    try:
        call()
        return 'nothing'
    except Exception as error:
        return type(error).__name__
print(told(lambda: api.model_info('org/none')))
print(told(lambda: api.model_info('org/m', revision='v2')))
print(told(lambda: h.hf_hub_download('org/m', 'none.json')))
print(told(lambda: h.hf_hub_download('org/gated', 'config.json')))
print(told(lambda: api.create_commit('org/m', [h.CommitOperationAdd('a', b'a')], commit_message='m', parent_commit='0' * 40)))
print([branch.name for branch in api.list_repo_refs('org/m').branches])
";
    let Some(ran) = client(&hub, dir.path(), program, &[]) else { return };
    let want = "RepositoryNotFoundError\nRevisionNotFoundError\nRemoteEntryNotFoundError\nGatedRepoError\nHfHubHTTPError\n['main']";
    assert_eq!(said(&ran), want);
}

#[tokio::test]
async fn what_the_client_uploads_arrives_and_what_this_crate_publishes_it_reads() {
    let hub = Hub::start();
    hub.let_in(TOKEN);
    // Larger files go up in parts.
    hub.parts_of(1 << 20);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    fill(
        &folder,
        &[
            ("weights.safetensors", &noise(9, 5_000_000)),
            ("small.bin", &noise(10, 1000)),
            ("notes/readme.txt", b"text"),
            ("empty.txt", b""),
        ],
    );
    let program = "
import sys, huggingface_hub as h
api = h.HfApi()
api.create_repo('org/up', exist_ok=True)
print(api.upload_folder(repo_id='org/up', folder_path=sys.argv[1], commit_message='up').oid)
";
    let Some(ran) = client(&hub, dir.path(), program, &[&folder.display().to_string()]) else { return };
    assert_eq!(said(&ran).len(), 40);
    let mut there = hub.files(Kind::Model, "org/up", "main");
    there.remove(".gitattributes");
    assert!(there == contents(&folder), "other files, or other bytes");

    let store = node(&hub, dir.path());
    let names = ["weights.safetensors", "small.bin", "notes/readme.txt", "empty.txt"];
    let published = store
        .publish(&attempt("t", 1), Some(&model("org/up")), &folder, &outputs(&names), None, unseen())
        .await
        .unwrap();
    let program = "
import sys, json, huggingface_hub as h
folder = h.snapshot_download('org/up', cache_dir=sys.argv[1])
manifest = json.load(open(folder + '/mloc-manifest.json'))
import hashlib
for file in manifest['files']:
    assert hashlib.sha256(open(folder + '/' + file['path'], 'rb').read()).hexdigest() == file['sha256'], file
print(len(manifest['files']))
";
    let cache = dir.path().join("cache").display().to_string();
    let ran = client(&hub, dir.path(), program, &[&cache]).expect("it was there just now");
    assert_eq!(said(&ran), published.artifacts.len().to_string());
}
