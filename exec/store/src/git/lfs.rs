//! Large files of a repository: asked for with LFS's batch API, fetched by [`crate::transfer`] in ranges, side by side,
//! going on where the line broke, and held to their digests.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    process::Stdio,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use mloc_core::task::spec::Pin;
use reqwest::{RequestBuilder, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    address::{self, Way},
    pointer::Pointer,
    tree::File,
    trouble,
    wire::Peer,
};
use crate::{
    answer::root_cause,
    cache::Shelf,
    error::StoreError,
    patience::{Patience, patiently},
    remote::{Body, Digest, Listing, Object, Remote},
};

/// What the API speaks.
const MEDIA: &str = "application/vnd.git-lfs+json";
/// Objects of one question.
const BATCH: usize = 100;
/// Longest answer to one.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The large files of a plan.
pub(super) struct Lfs {
    peer: Peer,
    http: reqwest::Client,
    /// Where the API is, without the last `/`.
    api: String,
    /// What opens the API, when the server gave something of its own.
    header: BTreeMap<String, String>,
    /// Which file each is, for messages.
    names: BTreeMap<String, String>,
    /// Where each is.
    found: Mutex<BTreeMap<String, Action>>,
}

impl fmt::Debug for Lfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "large files at {}", self.api)
    }
}

#[derive(Serialize)]
struct Question<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    objects: Vec<Asked<'a>>,
    hash_algo: &'static str,
}

#[derive(Serialize)]
struct Asked<'a> {
    oid: &'a str,
    size: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    objects: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    oid: String,
    #[serde(default)]
    actions: BTreeMap<String, Action>,
    error: Option<Refusal>,
}

#[derive(Clone, Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u16,
    #[serde(default)]
    message: String,
}

/// What these files point to, each once.
pub(super) fn objects(files: &[&File]) -> Vec<Object> {
    let pointers: BTreeMap<_, _> = files.iter().filter_map(|f| f.pointer.as_ref()).map(|p| (&p.oid, p)).collect();
    let object = |pointer: &Pointer| Object {
        name: pointer.oid.clone(),
        key: pointer.oid.clone(),
        bytes: pointer.bytes,
        etag: Some(pointer.oid.clone()),
        digest: Some(Digest::Sha256(pointer.oid.clone())),
    };
    pointers.into_values().map(object).collect()
}

impl Lfs {
    /// Finds the API: the repository's own word where it names the same host, what the server says over ssh, or where
    /// such a URL has it by custom.
    pub async fn of(
        peer: Peer,
        http: reqwest::Client,
        configured: Option<String>,
        files: &[&File],
        shelf: &Shelf,
    ) -> Self {
        let mut api = peer.address.lfs();
        let mut header = BTreeMap::new();
        match configured {
            Some(url) if address::same_host(&url, &peer.address.lfs()) => api = url,
            Some(url) => {
                shelf.say(&format!(
                    "lfs.url in .lfsconfig, {url}, names another host and is left out of account: {api} is asked for large files"
                ));
            }
            None if peer.address.way == Way::Ssh => match authenticate(&peer).await {
                Ok(told) => (api, header) = (told.href.trim_end_matches('/').to_owned(), told.header),
                Err(found) => {
                    tracing::info!(
                        repository = peer.address.url,
                        found,
                        asked = api,
                        "no word on large files over ssh"
                    );
                }
            },
            None => {}
        }
        let mut names = BTreeMap::new();
        for (file, pointer) in files.iter().filter_map(|file| Some((file, file.pointer.as_ref()?))) {
            names.entry(pointer.oid.clone()).or_insert_with(|| file.path.clone());
        }
        Self { peer, http, api, header, names, found: Mutex::default() }
    }

    /// Asks where these are. Tries again by itself.
    pub async fn find(&self, objects: &[Object]) -> Result<(), StoreError> {
        let pointers: Vec<_> = objects.iter().map(|o| Pointer { oid: o.key.clone(), bytes: o.bytes }).collect();
        for some in pointers.chunks(BATCH) {
            let some: Vec<_> = some.iter().collect();
            patiently(self.patience(), || self.ask(&some)).await?;
        }
        Ok(())
    }

    /// One question; its answer is kept.
    async fn ask(&self, pointers: &[&Pointer]) -> Result<(), StoreError> {
        let objects = pointers.iter().map(|p| Asked { oid: &p.oid, size: p.bytes }).collect();
        let question = Question { operation: "download", transfers: ["basic"], objects, hash_algo: "sha256" };
        let body = serde_json::to_vec(&question).map_err(|e| self.strange(&e.to_string()))?;
        let url = format!("{}/objects/batch", self.api);
        let request = self.http.post(&url).header(header::ACCEPT, MEDIA).header(header::CONTENT_TYPE, MEDIA).body(body);
        let response = self.open(request, &url, &self.header).send().await.map_err(|e| self.broken(&e))?;
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(status)),
            status if again(status) => return Err(self.unreachable(format!("HTTP {status}"))),
            status => {
                let Some(file) = pointers.first().map(|p| self.name(&p.oid)) else { return Ok(()) };
                return Err(StoreError::NotFound {
                    place: self.url(""),
                    found: format!("`{file}` is a Git LFS pointer, and no LFS answers at {} (HTTP {status})", self.api),
                    hint: "turn LFS on at the server, or name a `path` without such files".into(),
                });
            }
        }
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(block) = stream.try_next().await.map_err(|e| self.broken(&e))? {
            bytes.extend_from_slice(&block);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(self.strange(&format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|e| self.strange(&e.to_string()))?;
        let mut told: BTreeMap<_, _> = answer.objects.into_iter().map(|told| (told.oid.clone(), told)).collect();
        for pointer in pointers {
            let action = match told.remove(&pointer.oid) {
                Some(told) => match (told.actions.into_iter().find(|(name, _)| name == "download"), told.error) {
                    (Some((_, action)), _) => action,
                    (None, Some(error)) => return Err(self.refused(pointer, error.code, &error.message)),
                    (None, None) => return Err(self.refused(pointer, 404, "it says nothing of a download")),
                },
                None => return Err(self.refused(pointer, 404, "it says nothing of this object")),
            };
            self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(pointer.oid.clone(), action);
        }
        Ok(())
    }

    /// A request with what opens that URL: the server's own word, else this node's account for that host.
    fn open(&self, mut request: RequestBuilder, url: &str, header: &BTreeMap<String, String>) -> RequestBuilder {
        for (name, value) in header {
            request = request.header(name, value);
        }
        let opened = header.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
        match self.peer.account(url).filter(|_| !opened) {
            Some(account) => request.basic_auth(account.username(), Some(account.token.reveal())),
            None => request,
        }
    }

    fn action(&self, oid: &str) -> Option<Action> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(oid).cloned()
    }

    /// A file of this digest.
    fn name(&self, oid: &str) -> String {
        self.names.get(oid).cloned().unwrap_or_else(|| oid.to_owned())
    }

    fn broken(&self, error: &reqwest::Error) -> StoreError {
        self.unreachable(root_cause(error))
    }

    fn unreachable(&self, found: String) -> StoreError {
        let endpoint = address::origin(&self.api).map_or(self.api.as_str(), |(_, host)| host).to_owned();
        StoreError::Unreachable { place: self.api.clone(), endpoint, tries: 1, found }
    }

    fn denied(&self, status: StatusCode) -> StoreError {
        let account = self.peer.account(&self.api).is_some();
        trouble::denied(&self.peer.address, account, format!("large files at {}: HTTP {status}", self.api))
    }

    fn strange(&self, found: &str) -> StoreError {
        StoreError::Damaged { place: self.api.clone(), found: format!("no answer of Git LFS: {found}") }
    }

    fn refused(&self, pointer: &Pointer, code: u16, message: &str) -> StoreError {
        let (file, oid, bytes, api) = (self.name(&pointer.oid), &pointer.oid, pointer.bytes, &self.api);
        if StatusCode::from_u16(code).is_ok_and(again) {
            return self.unreachable(format!("`{file}`: {code} {message}"));
        }
        StoreError::NotFound {
            place: self.url(""),
            found: format!(
                "the bytes of `{file}` (Git LFS object {oid}, {bytes} bytes) are not at {api}: {code} {message}"
            ),
            hint: "push them there with `git lfs push --all`, or name a `path` without this file".into(),
        }
    }
}

#[async_trait]
impl Remote for Lfs {
    fn url(&self, name: &str) -> String {
        match self.names.get(name) {
            Some(file) => format!("{}: {file}", self.peer.address.url),
            None => self.peer.address.url.clone(),
        }
    }

    fn patience(&self) -> Patience {
        self.peer.patience
    }

    async fn list(&self, _: Option<&Pin>) -> Result<Listing, StoreError> {
        Ok(Listing { objects: Vec::new(), one: false, version: None })
    }

    async fn read(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let pointer = Pointer { oid: object.key.clone(), bytes: object.bytes };
        for fresh in [false, true] {
            let action = self.action(&object.key).filter(|_| !fresh);
            let action = match action {
                Some(action) => action,
                // Leave to fetch is given for minutes; a large file may take hours.
                None => {
                    self.ask(&[&pointer]).await?;
                    self.action(&object.key).ok_or_else(|| self.refused(&pointer, 404, "gone"))?
                }
            };
            let part = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            let request = self.http.get(&action.href).header(header::RANGE, part);
            let response =
                self.open(request, &action.href, &action.header).send().await.map_err(|e| self.broken(&e))?;
            let status = response.status();
            let skip = match status {
                StatusCode::PARTIAL_CONTENT => 0,
                // A server without ranges sends all of it.
                StatusCode::OK => range.start,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if !fresh => continue,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(status)),
                status if again(status) => return Err(self.unreachable(format!("HTTP {status}"))),
                status => return Err(self.refused(&pointer, status.as_u16(), status.canonical_reason().unwrap_or(""))),
            };
            let (api, host) = (self.api.clone(), self.peer.address.host.clone());
            let lost = move |e: reqwest::Error| StoreError::Unreachable {
                place: api.clone(),
                endpoint: host.clone(),
                tries: 1,
                found: root_cause(&e),
            };
            let stream = response.bytes_stream().map_err(lost);
            return Ok(stream.scan(skip, |left, block| futures::future::ready(Some(after(left, block)))).boxed());
        }
        Err(self.refused(&pointer, 404, "gone"))
    }

    /// Its name is its digest: there are no versions.
    async fn again(&self, object: &Object) -> Result<Object, StoreError> {
        Ok(object.clone())
    }

    fn cut_short(&self, object: &Object, at: u64) -> StoreError {
        self.unreachable(format!("`{}`: the answer ended at byte {at} of {}", self.name(&object.key), object.bytes))
    }
}

/// A block without what is before the range.
fn after(left: &mut u64, block: Result<bytes::Bytes, StoreError>) -> Result<bytes::Bytes, StoreError> {
    let mut block = block?;
    let skip = (*left).min(block.len() as u64);
    *left -= skip;
    Ok(block.split_off(skip as usize))
}

/// Whether another try may do.
fn again(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// What a server says of its large files over ssh.
async fn authenticate(peer: &Peer) -> Result<Action, String> {
    let address = &peer.address;
    if address.path.contains('\'') {
        return Err("its path has a quote".into());
    }
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("exec {} \"$@\"", peer.ssh), "ssh"]);
    if let Some(port) = address.port {
        command.args(["-p", &port.to_string()]);
    }
    let login = address.login.rsplit_once(':').filter(|_| address.port.is_some()).map_or(&*address.login, |(l, _)| l);
    command.arg(login).arg(format!("git-lfs-authenticate '{}' download", address.path));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(peer.patience.silence, command.output()).await;
    let output = output.map_err(|_| "no answer")?.map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}
