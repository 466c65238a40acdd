//! The Hub's calls.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    Answered, Inner, Seen, State,
    repos::{self, File, Kind},
    store,
};

/// Largest body of a call.
const BODY_MAX: usize = 256 << 20;

/// Answers one request.
pub(crate) async fn answer(state: Arc<State>, request: Request) -> Answered {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_MAX).await else {
        return refused(StatusCode::BAD_REQUEST, "", "the body was cut short");
    };
    let bearer = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = bearer.and_then(|v| v.strip_prefix("Bearer ")).map(str::to_owned);
    let path: Vec<String> = head.uri.path().trim_start_matches('/').split('/').map(decoded).collect();
    let mut inner = state.lock();
    inner.seen.push(Seen {
        store: false,
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        token: token.is_some(),
    });
    if inner.busy.0 > 0 {
        inner.busy.0 -= 1;
        let mut response = refused(StatusCode::TOO_MANY_REQUESTS, "", "We had to rate limit you");
        put(&mut response, "retry-after", &inner.busy.1.to_string());
        return response;
    }
    if token.as_ref().is_some_and(|token| !inner.tokens.contains(token)) {
        return refused(StatusCode::UNAUTHORIZED, "", "Invalid credentials in Authorization header");
    }
    let may = Caller { known: token.is_some() };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match &path[..] {
        ["api", "repos", "create"] => create(&state, &mut inner, may, &body),
        ["api", "validate-yaml"] => answered(&json!({"errors": [], "warnings": []})),
        ["api", "complete", sha256] => complete(&mut inner, sha256, &body),
        ["api", "models", owner, name, rest @ ..] => {
            api(&state, &mut inner, may, (Kind::Model, &format!("{owner}/{name}")), rest, &head, &body)
        }
        ["api", "datasets", owner, name, rest @ ..] => {
            api(&state, &mut inner, may, (Kind::Dataset, &format!("{owner}/{name}")), rest, &head, &body)
        }
        ["datasets", owner, name, rest @ ..] => {
            files(&state, &mut inner, may, (Kind::Dataset, &format!("{owner}/{name}")), rest, &head, &body)
        }
        [owner, name, rest @ ..] => {
            files(&state, &mut inner, may, (Kind::Model, &format!("{owner}/{name}")), rest, &head, &body)
        }
        _ => refused(StatusCode::NOT_FOUND, "", "Sorry, we can't find the page you are looking for."),
    }
}

/// Who asks.
#[derive(Clone, Copy)]
struct Caller {
    /// Showed a token that is known.
    known: bool,
}

impl Caller {
    /// Why a repository is not for this caller, if it is not.
    fn turned_away(self, inner: &Inner, (kind, id): (Kind, &str), gate: bool) -> Option<Response> {
        match inner.repos.get(kind, id) {
            Some(repo) if repo.private && !self.known => {}
            Some(repo) if repo.gated && gate => {
                return Some(refused(
                    StatusCode::FORBIDDEN,
                    "GatedRepo",
                    &format!("Access to {id} is restricted and you are not in the authorized list."),
                ));
            }
            Some(_) => return None,
            None => {}
        }
        // Whether it exists is nobody's business.
        Some(match self.known {
            true => refused(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found"),
            false => refused(StatusCode::UNAUTHORIZED, "", "Invalid username or password."),
        })
    }
}

fn create(state: &State, inner: &mut Inner, may: Caller, body: &[u8]) -> Response {
    if !may.known {
        return refused(StatusCode::UNAUTHORIZED, "", "Invalid username or password.");
    }
    let wanted: Value = serde_json::from_slice(body).unwrap_or_default();
    let kind = if wanted["type"] == "dataset" { Kind::Dataset } else { Kind::Model };
    let (owner, name) = (wanted["organization"].as_str().unwrap_or("me"), wanted["name"].as_str().unwrap_or_default());
    let id = format!("{owner}/{name}");
    if inner.repos.get(kind, &id).is_some() {
        return refused(StatusCode::CONFLICT, "", "You already created this repo");
    }
    let repo = inner.repos.entry(kind, &id);
    repo.private = wanted["private"] == true || wanted["visibility"] == "private";
    repo.commit(
        "main",
        None,
        vec![(".gitattributes".to_owned(), File::small(Bytes::from_static(b"*.bin filter=lfs\n")))],
        &[],
    );
    answered(&json!({"url": page(state, (kind, &id)), "name": id, "id": id}))
}

fn api(
    state: &State,
    inner: &mut Inner,
    may: Caller,
    (kind, id): (Kind, &str),
    rest: &[&str],
    head: &Parts,
    body: &[u8],
) -> Response {
    // What there is is shown of gated ones too.
    let gate = head.method != Method::GET;
    if let Some(away) = may.turned_away(inner, (kind, id), gate) {
        return away;
    }
    match (&head.method, rest) {
        (&Method::GET, [] | ["revision", _]) => info(inner, (kind, id), rest.get(1).copied().unwrap_or("main")),
        (&Method::GET, ["refs"]) => refs(inner, (kind, id)),
        (&Method::GET, ["tree", revision, below @ ..]) => {
            tree(state, inner, (kind, id), revision, &below.join("/"), head)
        }
        (&Method::POST, _) if !may.known => refused(StatusCode::UNAUTHORIZED, "", "Invalid username or password."),
        (&Method::POST, ["branch", branch]) => {
            let Some(repo) = inner.repos.get_mut(kind, id) else { return no_revision(branch) };
            let Some(main) = repo.resolve("main") else { return no_revision("main") };
            repo.branches.entry((*branch).to_owned()).or_insert(main);
            answered(&json!({}))
        }
        (&Method::POST, ["preupload", revision]) => preupload(inner, (kind, id), revision, body),
        (&Method::POST, ["commit", branch]) => commit(state, inner, (kind, id), branch, body),
        _ => refused(StatusCode::NOT_FOUND, "", "no such call"),
    }
}

fn info(inner: &Inner, (kind, id): (Kind, &str), revision: &str) -> Response {
    let Some(repo) = inner.repos.get(kind, id) else { return no_revision(revision) };
    let Some(sha) = repo.resolve(revision) else { return no_revision(revision) };
    let siblings = repo.files(&sha).into_iter().flatten().map(|(path, _)| json!({"rfilename": path}));
    answered(&json!({
        "_id": "0", "id": id, "modelId": id, "author": id.split('/').next(), "sha": sha, "private": repo.private,
        "gated": repo.gated, "disabled": false, "tags": [], "downloads": 0, "likes": 0,
        "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": siblings.collect::<Vec<_>>()
    }))
}

fn refs(inner: &Inner, (kind, id): (Kind, &str)) -> Response {
    let Some(repo) = inner.repos.get(kind, id) else { return no_revision("main") };
    let (converts, branches): (Vec<_>, Vec<_>) = repo.branches.iter().partition(|(name, _)| name.starts_with("refs/"));
    let shown = |(name, commit): (&String, &String)| json!({"name": name, "ref": name, "targetCommit": commit});
    answered(&json!({
        "branches": branches.into_iter().map(shown).collect::<Vec<_>>(),
        "converts": converts.into_iter().map(shown).collect::<Vec<_>>(),
        "tags": repo.tags.iter().map(shown).collect::<Vec<_>>()
    }))
}

/// All files below a folder, page by page.
fn tree(state: &State, inner: &Inner, (kind, id): (Kind, &str), revision: &str, below: &str, head: &Parts) -> Response {
    let Some(repo) = inner.repos.get(kind, id) else { return no_revision(revision) };
    let files = repo.resolve(revision).and_then(|commit| repo.files(&commit));
    let Some(files) = files else { return no_revision(revision) };
    let query = head.uri.query().unwrap_or_default();
    let cursor: usize = query.split('&').find_map(|part| part.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
    let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
    let mut folders: Vec<&str> =
        files.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at])).collect();
    folders.sort_unstable();
    folders.dedup();
    let folders = folders.into_iter().map(|path| json!({"type": "directory", "oid": "0", "size": 0, "path": path}));
    let shown = files.iter().map(|(path, file)| {
        let mut entry = json!({"type": "file", "oid": file.oid, "size": file.size, "path": path});
        if let Some(sha256) = &file.large {
            entry["lfs"] = json!({"oid": sha256, "size": file.size, "pointerSize": file.bytes.len()});
            entry["xetHash"] = json!(sha256);
        }
        entry
    });
    let all: Vec<Value> =
        folders.chain(shown).filter(|entry| entry["path"].as_str().is_some_and(|p| p.starts_with(&prefix))).collect();
    let page: Vec<&Value> = all.iter().skip(cursor).take(inner.page).collect();
    let next = cursor + page.len();
    let mut response = answered(&json!(page));
    if next < all.len() {
        let url = format!("{}{}?recursive=true&cursor={next}", state.addresses[0], head.uri.path());
        put(&mut response, "link", &format!("<{url}>; rel=\"next\""));
    }
    response
}

fn preupload(inner: &Inner, (kind, id): (Kind, &str), revision: &str, body: &[u8]) -> Response {
    if inner.repos.get(kind, id).and_then(|repo| repo.resolve(revision)).is_none() {
        return no_revision(revision);
    }
    let wanted: Value = serde_json::from_slice(body).unwrap_or_default();
    let modes = wanted["files"].as_array().into_iter().flatten().map(|file| {
        let (path, size) = (file["path"].as_str().unwrap_or_default(), file["size"].as_u64().unwrap_or_default());
        let mode = if repos::is_large(path, size as usize) { "lfs" } else { "regular" };
        json!({"path": path, "uploadMode": mode, "shouldIgnore": false, "oid": null})
    });
    answered(&json!({"files": modes.collect::<Vec<_>>(), "commitOid": "0"}))
}

fn commit(state: &State, inner: &mut Inner, (kind, id): (Kind, &str), branch: &str, body: &[u8]) -> Response {
    if inner.races > 0 {
        inner.races -= 1;
        let repo = inner.repos.entry(kind, id);
        let at = repo.resolve(branch);
        repo.commit(
            branch,
            at.as_deref(),
            vec![("somebody-else.txt".to_owned(), File::small(Bytes::from_static(b"x")))],
            &[],
        );
    }
    let at = inner.repos.get(kind, id).and_then(|repo| repo.resolve(branch));
    let Some(at) = at else { return no_revision(branch) };
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else {
            return refused(StatusCode::BAD_REQUEST, "", "a line is no JSON");
        };
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => {
                if value["parentCommit"].as_str().is_some_and(|parent| parent != at) {
                    let words = "A commit has happened since. Please refresh and try again.";
                    return refused(StatusCode::PRECONDITION_FAILED, "", words);
                }
            }
            Some("file") => match BASE64_STANDARD.decode(value["content"].as_str().unwrap_or_default()) {
                Ok(bytes) => added.push((path, File::small(bytes.into()))),
                Err(_) => return refused(StatusCode::BAD_REQUEST, "", "content is no base64"),
            },
            Some("lfsFile") => {
                let oid = value["oid"].as_str().unwrap_or_default();
                let Some(bytes) = inner.large.get(oid) else {
                    return refused(
                        StatusCode::BAD_REQUEST,
                        "",
                        &format!("LFS pointer pointed to a file that does not exist: {path}"),
                    );
                };
                added.push((path, File::large(oid.to_owned(), bytes.len())));
            }
            Some("deletedFile" | "deletedFolder") => removed.push(path.trim_end_matches('/').to_owned()),
            _ => return refused(StatusCode::BAD_REQUEST, "", "a line of no known key"),
        }
    }
    let oid = inner.repos.entry(kind, id).commit(branch, Some(&at), added, &removed);
    if inner.lost_answers > 0 {
        inner.lost_answers -= 1;
        return refused(StatusCode::BAD_GATEWAY, "", "upstream is gone");
    }
    answered(
        &json!({"success": true, "commitOid": oid, "commitUrl": format!("{}/commit/{oid}", page(state, (kind, id))), "hookOutput": ""}),
    )
}

/// Calls below a repository's own address: its files, and git-lfs.
fn files(
    state: &State,
    inner: &mut Inner,
    may: Caller,
    (kind, id): (Kind, &str),
    rest: &[&str],
    head: &Parts,
    body: &[u8],
) -> Response {
    if let (Some(bare), ["info", "lfs", "objects", call]) = (id.strip_suffix(".git"), rest) {
        if let Some(away) = may.turned_away(inner, (kind, bare), true) {
            return away;
        }
        if !may.known {
            return refused(StatusCode::UNAUTHORIZED, "", "Invalid username or password.");
        }
        return match *call {
            "batch" => batch(state, inner, (kind, bare), body),
            _ => verify(inner, body),
        };
    }
    if let Some(away) = may.turned_away(inner, (kind, id), true) {
        return away;
    }
    match rest {
        ["resolve", revision, path @ ..] => resolve(state, inner, (kind, id), revision, &path.join("/"), &head.headers),
        _ => refused(StatusCode::NOT_FOUND, "", "no such page"),
    }
}

fn resolve(
    state: &State,
    inner: &Inner,
    (kind, id): (Kind, &str),
    revision: &str,
    path: &str,
    headers: &HeaderMap,
) -> Response {
    let Some(repo) = inner.repos.get(kind, id) else { return no_revision(revision) };
    let Some(commit) = repo.resolve(revision) else { return no_revision(revision) };
    let Some(file) = repo.files(&commit).and_then(|files| files.get(path)) else {
        return refused(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
    };
    let mut response = match &file.large {
        Some(sha256) => {
            let mut response = store::status(StatusCode::FOUND, "Found. Redirecting");
            put(&mut response, "location", &store::signed(state, inner.epoch, sha256));
            put(&mut response, "x-linked-etag", &format!("\"{sha256}\""));
            put(&mut response, "x-linked-size", &file.size.to_string());
            response
        }
        None => {
            let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
            let flipped = || file.bytes.iter().map(|b| b ^ 1).collect::<Bytes>();
            let bytes = if inner.flipped == Some(false) { flipped() } else { file.bytes.clone() };
            store::ranged(&bytes, range, &format!("\"{}\"", file.oid))
        }
    };
    put(&mut response, "x-repo-commit", &commit);
    response
}

fn batch(state: &State, inner: &Inner, (kind, id): (Kind, &str), body: &[u8]) -> Response {
    let wanted: Value = serde_json::from_slice(body).unwrap_or_default();
    let prefix = if kind == Kind::Dataset { "datasets/" } else { "" };
    let objects = wanted["objects"].as_array().into_iter().flatten().map(|object| {
        let (oid, size) =
            (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64().unwrap_or_default() as usize);
        if inner.large.contains_key(oid) {
            return json!({"oid": oid, "size": size});
        }
        let parts = size.div_ceil(inner.part);
        let upload = if parts > 1 {
            let number = |n: usize| (format!("{n:05}"), json!(store::upload(state, inner.epoch, oid, n as u32)));
            let mut header: serde_json::Map<String, Value> = (1..=parts).map(number).collect();
            header.insert("chunk_size".into(), json!(inner.part.to_string()));
            json!({"href": format!("{}/api/complete/{oid}", state.addresses[0]), "header": header})
        } else {
            json!({"href": store::upload(state, inner.epoch, oid, 0)})
        };
        let verify = json!({"href": format!("{}/{prefix}{id}.git/info/lfs/objects/verify", state.addresses[0])});
        json!({"oid": oid, "size": size, "authenticated": true, "actions": {"upload": upload, "verify": verify}})
    });
    answered(&json!({"transfer": "multipart", "objects": objects.collect::<Vec<_>>()}))
}

/// The parts of an upload become the file.
fn complete(inner: &mut Inner, sha256: &str, body: &[u8]) -> Response {
    let wanted: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut bytes = Vec::new();
    for part in wanted["parts"].as_array().into_iter().flatten() {
        let number = part["partNumber"].as_u64().unwrap_or_default() as u32;
        let Some(part_bytes) = inner.parts.remove(&(sha256.to_owned(), number)) else {
            return refused(StatusCode::BAD_REQUEST, "", "a part is missing");
        };
        if part["etag"] != format!("\"{number}-{}\"", part_bytes.len()) {
            return refused(StatusCode::BAD_REQUEST, "", "a part has another ETag");
        }
        bytes.extend_from_slice(&part_bytes);
    }
    if repos::sha256(&bytes) != sha256 {
        return refused(StatusCode::BAD_REQUEST, "", "the digest differs");
    }
    inner.large.insert(sha256.to_owned(), bytes.into());
    answered(&json!({}))
}

fn verify(inner: &Inner, body: &[u8]) -> Response {
    let wanted: Value = serde_json::from_slice(body).unwrap_or_default();
    let there = inner.large.get(wanted["oid"].as_str().unwrap_or_default());
    if there.is_some_and(|bytes| wanted["size"] == bytes.len()) {
        return answered(&json!({}));
    }
    refused(StatusCode::NOT_FOUND, "", "not uploaded")
}

/// Where a person looks at a repository.
fn page(state: &State, (kind, id): (Kind, &str)) -> String {
    let prefix = if kind == Kind::Dataset { "datasets/" } else { "" };
    format!("{}/{prefix}{id}", state.addresses[0])
}

fn no_revision(revision: &str) -> Response {
    refused(StatusCode::NOT_FOUND, "RevisionNotFound", &format!("Invalid rev id: {revision}"))
}

fn answered(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    put(&mut response, "content-type", "application/json");
    response
}

fn refused(status: StatusCode, code: &str, words: &str) -> Response {
    let mut response = answered(&json!({"error": words}));
    *response.status_mut() = status;
    put(&mut response, "x-error-message", words);
    if !code.is_empty() {
        put(&mut response, "x-error-code", code);
    }
    response
}

fn put(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A part of a path without its percent signs.
fn decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
