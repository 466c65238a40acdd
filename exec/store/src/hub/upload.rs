//! A result as one commit. Large files go ahead to the Hub's store, where nobody sees them; the commit names them, brings
//! the small ones and the manifest with it, and holds only on top of the commit that was looked at. So a repository has
//! all of a result or nothing of it.

mod large;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use mloc_core::{ledger::entry::Artifact, task::spec::Location};
use mloc_exec::failpoint;
use reqwest::{Method, RequestBuilder, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Store,
    disk::{self, Stamp, off_thread},
    error::StoreError,
    hub::{
        api::{Failed, Head},
        repo::Place,
        source::Hub,
    },
    meter::Meter,
    place::Area,
    remote::{Body, Object, Remote as _},
};

/// What of a file the Hub looks at to say how it is to be kept.
const SAMPLE: usize = 512;
/// How often the commit is tried while others commit to the same branch.
const RACES_MAX: u32 = 16;

/// A folder of a repository that a result is published to.
pub(super) struct Branch {
    place: Place,
    create: bool,
    /// What was put and waits for the commit.
    put: Arc<Mutex<Vec<Put>>>,
}

impl fmt::Debug for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// A `huggingface` destination.
pub(crate) fn area(store: &Store, location: &Location) -> Result<Box<dyn Area>, StoreError> {
    let place = Place::of(store, location)?;
    Ok(Box::new(Branch { place, create: store.config.hugging_face.create_repos, put: Arc::default() }))
}

/// A file that waits for the commit.
enum Put {
    /// Goes with it.
    Small { path: String, bytes: Vec<u8> },
    /// Lies in the Hub's store already.
    Large { path: String, stamp: Stamp },
}

impl Put {
    fn path(&self) -> &str {
        match self {
            Put::Small { path, .. } | Put::Large { path, .. } => path,
        }
    }

    /// Its line of the commit.
    fn line(&self) -> Value {
        match self {
            Put::Small { path, bytes } => json!({
                "key": "file",
                "value": {"path": path, "encoding": "base64", "content": BASE64_STANDARD.encode(bytes)}
            }),
            Put::Large { path, stamp } => json!({
                "key": "lfsFile",
                "value": {"path": path, "algo": "sha256", "oid": stamp.sha256, "size": stamp.bytes}
            }),
        }
    }
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
struct Mode {
    #[serde(rename = "uploadMode")]
    mode: String,
}

impl Branch {
    /// The path in the repository.
    fn path(&self, name: &str) -> String {
        match &self.place.path {
            Some(folder) => format!("{folder}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Makes the repository and the branch where they are missing and may be made.
    async fn ready(&self) -> Result<(), StoreError> {
        let (api, revision) = (&self.place.api, &self.place.revision);
        let place = self.place.url("");
        if let Head::NoRepo(error) = api.head(revision).await? {
            if !self.create {
                return Err(error);
            }
            let (owner, name) = match api.repo.id.split_once('/') {
                Some((owner, name)) => (Some(owner), name),
                None => (None, api.repo.id.as_str()),
            };
            // Private: what a task made is shown to the world by a person, not by a default.
            let body = json!({"type": api.repo.api().trim_end_matches('s'), "name": name, "organization": owner, "private": true});
            let fill = |request: RequestBuilder| request.json(&body);
            match api.ask(&place, Method::POST, &api.at(["api", "repos", "create"]), &fill).await {
                Ok(_) => tracing::info!(place, "made the repository, private"),
                Err(failed) if failed.status() == Some(StatusCode::CONFLICT) => {}
                Err(failed) => return Err(failed.into_error(api, &place)),
            }
        }
        if let Head::NoRevision = api.head(revision).await? {
            let fill = |request: RequestBuilder| request.json(&json!({}));
            match api.ask(&place, Method::POST, &api.api(["branch", revision]), &fill).await {
                Ok(_) => tracing::info!(place, revision, "made the branch"),
                Err(failed) if failed.status() == Some(StatusCode::CONFLICT) => {}
                Err(failed) => return Err(failed.into_error(api, &place)),
            }
        }
        Ok(())
    }

    /// Whether the Hub wants a file in its store for large ones.
    async fn is_large(&self, path: &str, sample: &[u8], bytes: u64) -> Result<bool, StoreError> {
        let api = &self.place.api;
        let place = self.place.api.repo.url(&self.place.revision, path);
        let body = json!({"files": [{"path": path, "size": bytes, "sample": BASE64_STANDARD.encode(sample)}]});
        let url = api.api(["preupload", &self.place.revision]);
        let modes = api.tell::<Modes>(&place, &url, &|request| request.json(&body)).await;
        let modes = modes.map_err(|failed| failed.into_error(api, &place))?;
        // Its store takes no empty files.
        Ok(bytes > 0 && modes.files.first().is_some_and(|file| file.mode == "lfs"))
    }

    /// Everything that was put, as a commit on top of this one.
    async fn commit(&self, parent: &str, manifest: &Put) -> Result<(), Failed> {
        let api = &self.place.api;
        let header = json!({"key": "header", "value": {
            "summary": "Publish a result", "description": "By MLOC; mloc-manifest.json says what is in it.", "parentCommit": parent
        }});
        let mut body = format!("{header}\n");
        {
            let put = self.put.lock().unwrap_or_else(PoisonError::into_inner);
            for file in put.iter().chain([manifest]) {
                body.push_str(&format!("{}\n", file.line()));
            }
        }
        let place = self.place.url("");
        let url = api.api(["commit", &self.place.revision]);
        let fill = |request: RequestBuilder| request.header(CONTENT_TYPE, "application/x-ndjson").body(body.clone());
        let (_, response) = api.once(&place, &Method::POST, &url, &fill).await.map_err(Failed::Line)?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(Failed::Said(api.refusal(response).await))
    }

    fn unsuited(&self) -> StoreError {
        StoreError::Hub {
            place: self.place.url(""),
            found: "checkpoints cannot lie in a repository of the Hub: each would stay in its history for ever".into(),
            hint: "write them to local, s3, gcs or azblob, and publish the result here".into(),
            here: false,
        }
    }
}

#[async_trait]
impl Area for Branch {
    /// A result is one commit, its manifest among it.
    fn appears_whole(&self) -> bool {
        true
    }

    fn url(&self) -> String {
        self.place.url("")
    }

    fn join(&self, name: &str) -> Box<dyn Area> {
        let place = Place { path: Some(self.path(name)), ..self.place.clone() };
        Box::new(Self { place, create: self.create, put: Arc::default() })
    }

    async fn read(&self, name: &str, range: std::ops::Range<u64>) -> Result<Body, StoreError> {
        let api = &self.place.api;
        let commit = api.commit(&self.place.revision).await?;
        let key = api.resolve(&commit, &self.path(name)).to_string();
        let object = Object { name: name.to_owned(), key, bytes: range.end, etag: None, digest: None };
        Hub::of(self.place.clone()).read(&object, range).await
    }

    async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        match self.place.api.head(&self.place.revision).await? {
            Head::Commit(commit) => self.place.api.get(&commit, &self.path(name), bytes_max).await,
            Head::NoRevision => Ok(None),
            Head::NoRepo(_) if self.create => Ok(None),
            Head::NoRepo(error) => Err(with_hint(error)),
        }
    }

    async fn put(&self, name: &str, from: &Path, meter: &Meter) -> Result<Stamp, StoreError> {
        self.ready().await?;
        let path = self.path(name);
        let file = from.to_owned();
        let (stamp, sample) = off_thread(move || Ok::<_, StoreError>((disk::stamp(&file)?, sample(&file)?))).await?;
        let put = if self.is_large(&path, &sample, stamp.bytes).await? {
            self.send(&path, from, &stamp, meter).await?;
            Put::Large { path, stamp: stamp.clone() }
        } else {
            let file = from.to_owned();
            let bytes =
                off_thread(move || std::fs::read(&file).map_err(|e| StoreError::disk("read", &file, e))).await?;
            if disk::stamp_bytes(&bytes) != stamp {
                return Err(StoreError::Changed { place: from.display().to_string() });
            }
            meter.pass(stamp.bytes).await;
            meter.moved(stamp.bytes);
            Put::Small { path, bytes }
        };
        let mut all = self.put.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.path() != put.path());
        all.push(put);
        Ok(stamp)
    }

    /// Commits what was put, with this file, where the branch has none of this name.
    async fn put_new(&self, name: &str, bytes: Vec<u8>, _meter: &Meter) -> Result<bool, StoreError> {
        self.ready().await?;
        let api = &self.place.api;
        let place = self.place.url("");
        let file = Put::Small { path: self.path(name), bytes };
        let (mut races, mut failures) = (0, 0);
        loop {
            let Head::Commit(parent) = api.head(&self.place.revision).await? else {
                return Err(StoreError::Changed { place });
            };
            // Somebody else's, or our own commit whose answer was lost: the caller looks.
            if api.get(&parent, file.path(), crate::manifest::MANIFEST_BYTES_MAX).await?.is_some() {
                return Ok(false);
            }
            let error = match self.commit(&parent, &file).await {
                Ok(()) => {
                    failpoint::reached("store.manifest.placed");
                    return Ok(true);
                }
                // Another commit came between.
                Err(failed)
                    if matches!(failed.status(), Some(StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT)) =>
                {
                    races += 1;
                    if races > RACES_MAX {
                        return Err(StoreError::Changed { place });
                    }
                    continue;
                }
                Err(failed) => failed.into_error(api, &place),
            };
            failures += 1;
            let Some(wait) = api.patience.wait_for(&error, failures) else { return Err(error.after(failures)) };
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        }
    }

    async fn put_bytes(&self, _: &str, _: Vec<u8>, _: &Meter) -> Result<(), StoreError> {
        Err(self.unsuited())
    }

    async fn folders(&self) -> Result<Vec<String>, StoreError> {
        Err(self.unsuited())
    }

    async fn fetch(&self, _: &[Artifact], _: &Path, _: &Meter) -> Result<Vec<Stamp>, StoreError> {
        Err(self.unsuited())
    }

    async fn remove(&self, _: &str) -> Result<(), StoreError> {
        Err(self.unsuited())
    }

    async fn remove_all(&self) -> Result<(), StoreError> {
        Err(self.unsuited())
    }
}

/// That a node may be allowed to make repositories.
fn with_hint(error: StoreError) -> StoreError {
    match error {
        StoreError::Hub { place, found, hint, here } => {
            let hint = format!("{hint}; or let the node make it, with store.huggingface.createRepos in node.yaml");
            StoreError::Hub { place, found, hint, here }
        }
        other => other,
    }
}

fn sample(path: &Path) -> Result<Vec<u8>, StoreError> {
    use std::io::Read;
    let mut sample = Vec::with_capacity(SAMPLE);
    let file = std::fs::File::open(path).map_err(|e| StoreError::disk("open", path, e))?;
    file.take(SAMPLE as u64).read_to_end(&mut sample).map_err(|e| StoreError::disk("read", path, e))?;
    Ok(sample)
}
