//! Requests to the Hub, and to where it sends them on.

use std::fmt;

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, LINK},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Store,
    answer::root_cause,
    client::Client,
    config::Secret,
    error::StoreError,
    hub::{
        answer::{Answer, Asked},
        repo::Repo,
    },
    patience::{Patience, patiently},
};

/// Pages of a listing: a thousand files each.
const PAGES_MAX: u32 = 1_000;
/// Larger answers of the API are none.
const JSON_MAX: u64 = 64 << 20;
/// What is read of the words of a refusal.
const WORDS_MAX: u64 = 64 << 10;

/// The way to one repository.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    endpoint: Url,
    token: Option<Secret>,
    /// How long it goes on without progress.
    pub patience: Patience,
    /// The repository.
    pub repo: Repo,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.repo.url("main", ""), self.endpoint)
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its name in git: SHA-1 of its bytes, or of the pointer in their stead.
    pub oid: String,
    /// SHA-256 of its bytes, where they lie in large file storage.
    pub sha256: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
}

/// Where a branch stands.
pub(super) enum Head {
    /// At this commit.
    Commit(String),
    /// The repository has no such branch.
    NoRevision,
    /// There is no repository, or it is not to be seen; as an error.
    NoRepo(StoreError),
}

/// An answer that is not a success, or none.
pub(super) enum Failed {
    /// The line, or the disk.
    Line(StoreError),
    /// The Hub's answer.
    Said(Answer),
}

impl Api {
    /// The way to a repository. Sends nothing.
    pub fn new(store: &Store, repo: Repo, endpoint: &str, token: Option<Secret>) -> Result<Self, StoreError> {
        let place = repo.url("main", "");
        let bad = |found: String| {
            StoreError::Hub {
            place,
            found,
            hint:
                "HF_ENDPOINT, or store.huggingface.endpoint in node.yaml, is an http:// or https:// URL without credentials"
                    .into(),
            here: true,
        }
        };
        let url = match Url::parse(endpoint.trim_end_matches('/')) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => return Err(bad("the endpoint of the Hub is no URL".into())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("the endpoint of the Hub holds credentials".into()));
        }
        store.client.speaks(endpoint)?;
        Ok(Self { client: store.client.clone(), endpoint: url, token, patience: store.config.patience, repo })
    }

    /// The Hub, for people.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// Whether this node has a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// An address of the Hub. Each part is one segment, whatever is in it.
    pub fn at<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // An http URL always has segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    /// An address of this repository's API.
    pub fn api<'a>(&'a self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        self.at(["api", self.repo.api()].into_iter().chain(self.repo.id.split('/')).chain(parts))
    }

    /// Where a file's bytes are.
    pub fn resolve(&self, commit: &str, path: &str) -> Url {
        let kind = self.repo.prefix().trim_end_matches('/');
        let parts = [kind].into_iter().filter(|kind| !kind.is_empty()).chain(self.repo.id.split('/'));
        self.at(parts.chain(["resolve", commit]).chain(path.split('/')))
    }

    /// What an answer means.
    pub fn error(&self, place: &str, answer: &Answer, writes: bool) -> StoreError {
        answer.error(&Asked { place, repo: &self.repo, endpoint: self.endpoint(), has_token: self.has_token(), writes })
    }

    /// The line broke.
    pub fn broken(&self, place: &str, found: String) -> StoreError {
        let endpoint = self.endpoint().to_owned();
        StoreError::Unreachable { place: place.to_owned(), endpoint, tries: 1, found }
    }

    /// Sends a request, and where it is sent on to; says where it ended. Tries once. The token goes to the Hub alone.
    pub async fn once(
        &self,
        place: &str,
        method: &Method,
        url: &Url,
        fill: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<(Url, Response), StoreError> {
        let request = |client: &reqwest::Client, url: &Url| {
            let request = fill(client.request(method.clone(), url.clone()));
            Ok(match self.token.as_ref().filter(|_| self.is_own(url)) {
                Some(token) => request.header(AUTHORIZATION, format!("Bearer {}", token.reveal())),
                None => request,
            })
        };
        self.client.send(place, url, &request).await
    }

    /// Whether an address is the Hub's own.
    pub fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Sends a request until it is answered: again when the line breaks or the Hub is out of order, and after the wait
    /// it asks for when it has had enough of this node.
    pub async fn ask(
        &self,
        place: &str,
        method: Method,
        url: &Url,
        fill: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<Response, Failed> {
        let writes = method != Method::GET && method != Method::HEAD;
        let asked = patiently(self.patience, || async {
            let (_, response) = self.once(place, &method, url, fill).await?;
            if response.status().is_success() {
                return Ok(Ok(response));
            }
            let answer = self.refusal(response).await;
            match self.error(place, &answer, writes) {
                error @ (StoreError::Unreachable { .. } | StoreError::Busy { .. }) => Err(error),
                _ => Ok(Err(Failed::Said(answer))),
            }
        });
        asked.await.map_err(Failed::Line)?
    }

    /// What a refusal says.
    pub async fn refusal(&self, response: Response) -> Answer {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // Words that do not arrive are no reason for another error than the one the status tells.
        let body = whole(response, WORDS_MAX).await.unwrap_or_default().unwrap_or_default();
        Answer::of(status, &headers, &body)
    }

    fn failed(&self, place: &str, failed: Failed, writes: bool) -> StoreError {
        match failed {
            Failed::Line(error) => error,
            Failed::Said(answer) => self.error(place, &answer, writes),
        }
    }

    /// The JSON that is answered, and the address of the next page.
    async fn json<T: DeserializeOwned>(&self, place: &str, url: &Url) -> Result<(T, Option<Url>), Failed> {
        let asked = patiently(self.patience, || async {
            let response = match self.ask(place, Method::GET, url, &|request| request).await {
                Ok(response) => response,
                // It has been patient already.
                Err(failed) => return Ok(Err(failed)),
            };
            let next = response.headers().get(LINK).and_then(|v| next_page(v.to_str().ok()?));
            let next = next.and_then(|next| url.join(&next).ok()).filter(|next| self.is_own(next));
            match whole(response, JSON_MAX).await {
                Ok(Some(body)) => match serde_json::from_slice(&body) {
                    Ok(value) => Ok(Ok((value, next))),
                    Err(e) => Err(self.broken(place, format!("its answer is not what it should be: {e}"))),
                },
                Ok(None) => Err(self.broken(place, format!("its answer is longer than {JSON_MAX} bytes"))),
                Err(e) => Err(self.broken(place, root_cause(&e))),
            }
        });
        asked.await.map_err(Failed::Line)?
    }

    /// Sends JSON, or anything else, and gives the JSON that is answered.
    pub async fn tell<T: DeserializeOwned>(
        &self,
        place: &str,
        url: &Url,
        fill: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<T, Failed> {
        let response = self.ask(place, Method::POST, url, fill).await?;
        let body = whole(response, JSON_MAX).await.map_err(|e| Failed::Line(self.broken(place, root_cause(&e))))?;
        serde_json::from_slice(&body.unwrap_or_default())
            .map_err(|e| Failed::Line(self.broken(place, format!("its answer is not what it should be: {e}"))))
    }

    /// The commit of a revision; `None` where there is none.
    pub async fn find_commit(&self, revision: &str) -> Result<Option<String>, StoreError> {
        match self.revision(revision, false).await? {
            Head::Commit(commit) => Ok(Some(commit)),
            Head::NoRevision => Ok(None),
            Head::NoRepo(error) => Err(error),
        }
    }

    /// Where a branch that is to be written to stands.
    pub async fn head(&self, revision: &str) -> Result<Head, StoreError> {
        self.revision(revision, true).await
    }

    async fn revision(&self, revision: &str, writes: bool) -> Result<Head, StoreError> {
        let place = self.repo.url(revision, "");
        match self.json::<Info>(&place, &self.api(["revision", revision])).await {
            Ok((Info { sha: Some(commit) }, _)) => Ok(Head::Commit(commit)),
            Ok((Info { sha: None }, _)) => Ok(Head::NoRevision),
            Err(Failed::Said(answer)) if answer.no_revision() => Ok(Head::NoRevision),
            Err(Failed::Said(answer)) if answer.no_repo() => Ok(Head::NoRepo(self.error(&place, &answer, writes))),
            Err(failed) => Err(self.failed(&place, failed, writes)),
        }
    }

    /// The commit of a revision.
    pub async fn commit(&self, revision: &str) -> Result<String, StoreError> {
        match self.find_commit(revision).await? {
            Some(commit) => Ok(commit),
            None => Err(self.no_revision(revision).await),
        }
    }

    /// That there is no such revision, and which there are.
    pub async fn no_revision(&self, revision: &str) -> StoreError {
        let place = self.repo.url("main", "");
        let names = |refs: &[Ref]| refs.iter().map(|r| r.name.as_str()).take(10).collect::<Vec<_>>().join(", ");
        let hint = match self.json::<Refs>(&place, &self.api(["refs"])).await {
            Ok((refs, _)) if refs.tags.is_empty() => {
                format!("there are branches {}; or name a commit", names(&refs.branches))
            }
            Ok((refs, _)) => format!("there are branches {} and tags {}", names(&refs.branches), names(&refs.tags)),
            Err(_) => format!("see {}/{}{}/refs", self.endpoint(), self.repo.prefix(), self.repo.id),
        };
        StoreError::NotFound { place, found: format!("it has no revision `{revision}`"), hint }
    }

    /// All files of a commit, sorted by path.
    pub async fn tree(&self, commit: &str) -> Result<Vec<File>, StoreError> {
        let place = self.repo.url(commit, "");
        let mut first = self.api(["tree", commit]);
        first.set_query(Some("recursive=true"));
        let mut next = Some(first);
        let mut files = Vec::new();
        let mut pages = 0;
        while let Some(url) = next {
            pages += 1;
            if pages > PAGES_MAX {
                return Err(self.broken(&place, format!("its listing has more than {PAGES_MAX} pages")));
            }
            let (entries, following) = match self.json::<Vec<Entry>>(&place, &url).await {
                Ok(page) => page,
                Err(Failed::Said(answer)) if answer.no_revision() => return Err(self.no_revision(commit).await),
                Err(failed) => return Err(self.failed(&place, failed, false)),
            };
            files.extend(entries.into_iter().filter(|entry| entry.kind == "file").map(|entry| {
                let bytes = entry.lfs.as_ref().map_or(entry.size, |lfs| lfs.size);
                File { path: entry.path, bytes, oid: entry.oid, sha256: entry.lfs.map(|lfs| lfs.oid) }
            }));
            next = following;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// A small file of a commit; `None` where there is none.
    pub async fn get(&self, commit: &str, path: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let place = self.repo.url(commit, path);
        let (place, url) = (&place, self.resolve(commit, path));
        let got = patiently(self.patience, || async {
            let response = match self.ask(place, Method::GET, &url, &|request| request).await {
                Ok(response) => response,
                Err(Failed::Said(answer)) if answer.no_entry() => return Ok(Ok(None)),
                Err(failed) => return Ok(Err(self.failed(place, failed, false))),
            };
            match whole(response, bytes_max).await {
                Ok(Some(body)) => Ok(Ok(Some(body))),
                Ok(None) => {
                    let found = format!("larger than {bytes_max} bytes");
                    Ok(Err(StoreError::Damaged { place: place.clone(), found }))
                }
                Err(e) => Err(self.broken(place, root_cause(&e))),
            }
        });
        got.await?
    }
}

impl Failed {
    /// As an error.
    pub fn into_error(self, api: &Api, place: &str) -> StoreError {
        api.failed(place, self, true)
    }

    /// The status that was answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Failed::Line(_) => None,
            Failed::Said(answer) => StatusCode::from_u16(answer.status).ok(),
        }
    }
}

/// A whole body; `None` when it is longer.
async fn whole(mut response: Response, bytes_max: u64) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(block) = response.chunk().await? {
        if (body.len() + block.len()) as u64 > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&block);
    }
    Ok(Some(body.freeze()))
}

/// The address in `<…>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let mut rest = link;
    while let Some((url, tail)) = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')) {
        // What follows an address, up to the next one.
        let (about, following) = tail.split_at(tail.find('<').unwrap_or(tail.len()));
        if about.contains("rel=\"next\"") {
            return Some(url.to_owned());
        }
        rest = following;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        let link = "<https://hub/a?cursor=x>; rel=\"prev\", <https://hub/b?cursor=y,z>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://hub/b?cursor=y,z"));
        assert_eq!(next_page("<https://hub/a>; rel=\"prev\""), None);
    }
}
