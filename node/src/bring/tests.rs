use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::{Body as AxumBody, to_bytes},
    extract::{Path as At, Query, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};

use super::*;

const TASK: &str = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: t}\nspec:\n  taskType: sft\n  \
                    model: {source: {type: local, path: ./model}}\n  dataset: {source: {type: local, path: ../set.jsonl}}\n";

/// A folder with a task and what lies beside it.
fn beside(top: &Path) -> PathBuf {
    for (name, text) in
        [("set.jsonl", "{}\n"), ("in/model/config.json", "{}"), ("in/model/a/w.bin", "www"), ("in/task.yaml", TASK)]
    {
        let path = top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(top.join("in/model/.mloc-used"), "").unwrap();
    top.join("in/task.yaml")
}

#[tokio::test]
async fn what_sources_name_is_read_beside_the_file_and_the_same_files_are_the_same_list() {
    let dir = tempfile::tempdir().unwrap();
    let file = beside(dir.path());
    let found = Beside::look(&file, TASK.as_bytes()).await.unwrap();
    let trees = found.trees();
    assert_eq!(trees.keys().collect::<Vec<_>>(), ["../set.jsonl", "./model"]);
    assert_eq!((trees["./model"].bytes, trees["../set.jsonl"].bytes), (5, 3));
    let list = Tree::read(&found.found["./model"].list).unwrap();
    assert_eq!(list.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a/w.bin", "config.json"]);
    assert!(list.folder);
    let list = Tree::read(&found.found["../set.jsonl"].list).unwrap();
    assert_eq!((list.folder, list.files[0].path.as_str()), (false, "set.jsonl"));

    let again = tempfile::tempdir().unwrap();
    let elsewhere = Beside::look(&beside(again.path()), TASK.as_bytes()).await.unwrap();
    assert_eq!(elsewhere.trees(), trees);
    fs::write(again.path().join("in/model/a/w.bin"), "wwx").unwrap();
    assert_ne!(Beside::look(&again.path().join("in/task.yaml"), TASK.as_bytes()).await.unwrap().trees(), trees);

    fs::remove_file(again.path().join("set.jsonl")).unwrap();
    let absent = Beside::look(&again.path().join("in/task.yaml"), TASK.as_bytes()).await.unwrap();
    let said = absent.explain(Refusal::new(2, "task.yaml:7: …")).text;
    assert!(said.contains("../set.jsonl") && said.contains("no such file"), "{said}");
}

/// A node that takes uploads and breaks them off where it is told to.
#[derive(Clone, Default)]
struct Shelf {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// How many bytes each body is read to, one after another; then all of it.
    breaks: Arc<Mutex<Vec<usize>>>,
    offsets: Arc<Mutex<Vec<u64>>>,
}

async fn head(State(shelf): State<Shelf>, At(sha256): At<String>) -> (HeaderMap, StatusCode) {
    let files = shelf.files.lock().unwrap_or_else(PoisonError::into_inner);
    let have = files.get(&sha256).map_or(0, Vec::len);
    let whole = files.get(&sha256).is_some_and(|bytes| hex::encode(Sha256::digest(bytes)) == sha256);
    let mut headers = HeaderMap::new();
    headers.insert("upload-offset", have.into());
    headers.insert("upload-complete", if whole { "?1" } else { "?0" }.parse().unwrap());
    (headers, StatusCode::NO_CONTENT)
}

async fn put(
    State(shelf): State<Shelf>,
    At(sha256): At<String>,
    Query(query): Query<HashMap<String, u64>>,
    body: AxumBody,
) -> StatusCode {
    shelf.offsets.lock().unwrap().push(query["offset"]);
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let stop = shelf.breaks.lock().unwrap().pop();
    let mut files = shelf.files.lock().unwrap();
    let file = files.entry(sha256.clone()).or_default();
    file.truncate(usize::try_from(query["offset"]).unwrap());
    file.extend_from_slice(&body[..stop.unwrap_or(body.len()).min(body.len())]);
    match stop {
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
        None if hex::encode(Sha256::digest(&*file)) == sha256 => StatusCode::NO_CONTENT,
        None => {
            files.remove(&sha256);
            StatusCode::UNPROCESSABLE_ENTITY
        }
    }
}

async fn serve(shelf: &Shelf) -> Client {
    let app = Router::new().route("/api/v1/files/{sha256}", get(head).put(put)).with_state(shelf.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    Client::at(&address, None).unwrap()
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_and_begins_again_when_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n * 31 / 7) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let (sha256, _) = digest(&path, &TransferBar::hidden()).unwrap();
    let shelf = Shelf { breaks: Arc::new(Mutex::new(vec![50_000, 100_000])), ..Shelf::default() };
    let client = serve(&shelf).await;
    let source = Source::File { path: path.clone(), bytes: bytes.len() as u64 };
    send(&client, &sha256, 0, &source, &TransferBar::hidden()).await.unwrap();
    assert!(shelf.files.lock().unwrap()[&sha256] == bytes);
    assert_eq!(*shelf.offsets.lock().unwrap(), [0, 100_000, 150_000]);

    // What an earlier upload left is damaged: it is said once, and begun again.
    shelf.files.lock().unwrap().insert(sha256.clone(), vec![7; 1000]);
    send(&client, &sha256, 1000, &source, &TransferBar::hidden()).await.unwrap();
    assert!(shelf.files.lock().unwrap()[&sha256] == bytes);
    assert_eq!(shelf.offsets.lock().unwrap()[3..], [1000, 0]);

    // It is another file by now.
    fs::write(&path, vec![1; bytes.len()]).unwrap();
    shelf.files.lock().unwrap().clear();
    let changed = send(&client, &sha256, 0, &source, &TransferBar::hidden()).await.unwrap_err();
    assert!(changed.text.contains("changed while it was sent"), "{}", changed.text);
}
