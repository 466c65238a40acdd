//! A git server for cases: `git http-backend` as a CGI program behind a small HTTP server, and an LFS server beside it
//! that takes uploads, so that the real `git` and `git-lfs` can be its clients too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode, header},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

/// What the server does and saw.
#[derive(Default)]
pub struct Inner {
    root: PathBuf,
    url: Mutex<String>,
    /// `user:password` that is asked for.
    pub credentials: Mutex<Option<String>>,
    /// Objects of LFS by their digests.
    pub large: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Whether downloads are signed: their URLs work with a header that only the batch answer gives.
    pub signed: AtomicBool,
    /// How many downloads of large files break off in the middle, still.
    pub breaks: AtomicUsize,
    /// How many leaves to download are worth nothing, still.
    pub stale: AtomicUsize,
    /// Method, path and whether it had an `Authorization`.
    pub seen: Mutex<Vec<(String, String, bool)>>,
}

/// A server with bare repositories.
pub struct Gits {
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// What it does and saw.
    pub inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Gits {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether there is a `git` to test with; a line that is counted where there is none.
pub fn git_is_here() -> bool {
    let version = Command::new("git").arg("--version").stdout(Stdio::null()).status();
    let here = version.is_ok_and(|status| status.success());
    if !here {
        super::skip("no `git` program to serve repositories with");
    }
    here
}

/// The `git-lfs` program, where there is one.
pub fn git_lfs() -> Option<()> {
    let version =
        git_command(Path::new("/")).args(["lfs", "version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success()).then_some(())
}

/// `git`, whatever this machine's own configuration says.
pub fn git_command(at: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(at)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0");
    for (who, what) in [("AUTHOR", "A"), ("COMMITTER", "C")] {
        git.env(format!("GIT_{who}_NAME"), what).env(format!("GIT_{who}_EMAIL"), "a@example.org");
        git.env(format!("GIT_{who}_DATE"), "2026-01-02T03:04:05Z");
    }
    git
}

/// Runs `git`; what it printed.
pub fn git(at: &Path, args: &[&str]) -> String {
    let output = git_command(at).args(args).output().expect("git starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A text that stands for a large file.
pub fn pointer(bytes: &[u8]) -> String {
    let oid = hex::encode(Sha256::digest(bytes));
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n", bytes.len())
}

impl Gits {
    /// Starts the server.
    pub async fn start() -> Option<Self> {
        if !git_is_here() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let inner = Arc::new(Inner { root: dir.path().canonicalize().expect("it is there"), ..Inner::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        url.clone_into(&mut inner.url.lock().unwrap());
        let app = Router::new().fallback(answer).with_state(inner.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Some(Self { dir, url, inner, task })
    }

    /// Makes a bare repository, and a work tree beside it with that as its `origin` by file.
    pub fn repository(&self, name: &str) -> Work {
        let bare = self.inner.root.join(format!("{name}.git"));
        git(&self.inner.root, &["init", "--quiet", "--bare", "--initial-branch=main", bare.to_str().unwrap()]);
        for (key, value) in [("http.receivepack", "true"), ("uploadpack.allowFilter", "true")] {
            git(&bare, &["config", key, value]);
        }
        let work = self.inner.root.join("work").join(name);
        fs::create_dir_all(&work).expect("a folder");
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        git(&work, &["remote", "add", "origin", bare.to_str().unwrap()]);
        Work { path: work, bare, url: format!("{}/{name}.git", self.url) }
    }

    /// A folder of this server's, for what a case writes.
    pub fn top(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("it is there").join("top")
    }

    /// Keeps a large file.
    pub fn keep(&self, bytes: &[u8]) -> String {
        let oid = hex::encode(Sha256::digest(bytes));
        self.inner.large.lock().unwrap().insert(oid.clone(), bytes.to_vec());
        oid
    }

    /// Paths that were asked for since the last time.
    pub fn seen(&self) -> Vec<(String, String, bool)> {
        std::mem::take(&mut *self.inner.seen.lock().unwrap())
    }
}

/// A work tree and the bare repository it pushes to.
pub struct Work {
    /// The work tree.
    pub path: PathBuf,
    /// The bare repository.
    pub bare: PathBuf,
    /// Its URL.
    pub url: String,
}

impl Work {
    /// Writes files, commits and pushes them; the commit.
    pub fn commit(&self, files: &[(&str, &[u8])]) -> String {
        super::fill(&self.path, files);
        self.commit_all()
    }

    /// Commits and pushes what is there; the commit.
    pub fn commit_all(&self) -> String {
        git(&self.path, &["add", "--all"]);
        git(&self.path, &["commit", "--quiet", "--message=a change", "--allow-empty"]);
        self.push(&["HEAD"]);
        git(&self.path, &["rev-parse", "HEAD"])
    }

    /// Pushes.
    pub fn push(&self, what: &[&str]) {
        let mut args = vec!["push", "--quiet", "--force", "origin"];
        args.extend(what);
        git(&self.path, &args);
    }
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 30).await.expect("a body");
    let path = head.uri.path().to_owned();
    let authorization = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    inner.seen.lock().unwrap().push((head.method.to_string(), path.clone(), authorization.is_some()));
    if let Some(oid) = path.strip_prefix("/large/") {
        return large(&inner, head.method.as_str(), oid, &head.headers, &body);
    }
    let wanted = inner.credentials.lock().unwrap().clone();
    if let Some(wanted) = wanted {
        use base64::Engine;
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(wanted));
        if authorization.as_deref() != Some(&wanted) {
            let answer = Response::builder().status(401).header("www-authenticate", "Basic realm=\"git\"");
            return answer.body(Body::from("who are you?")).unwrap();
        }
    }
    if path.ends_with("/info/lfs/objects/batch") {
        return batch(&inner, &body);
    }
    if path.contains("/info/lfs/") {
        return Response::builder().status(404).body(Body::empty()).unwrap();
    }
    backend(&inner, head.method.as_str(), &path, head.uri.query().unwrap_or(""), &head.headers, body).await
}

/// `git http-backend`, as a web server would run it.
async fn backend(
    inner: &Inner,
    method: &str,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut git = tokio::process::Command::from(git_command(&inner.root));
    git.arg("http-backend").env("GIT_PROJECT_ROOT", &inner.root).env("GIT_HTTP_EXPORT_ALL", "1");
    git.env("REQUEST_METHOD", method).env("PATH_INFO", path).env("QUERY_STRING", query);
    git.env("CONTENT_TYPE", header("content-type")).env("HTTP_CONTENT_ENCODING", header("content-encoding"));
    git.env("GIT_PROTOCOL", header("git-protocol")).env("CONTENT_LENGTH", body.len().to_string());
    git.env("REMOTE_ADDR", "127.0.0.1");
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = git.spawn().expect("git http-backend starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    let feed = tokio::spawn(async move {
        // A backend that has refused reads no further.
        drop(stdin.write_all(&body).await);
    });
    let output = child.wait_with_output().await.expect("git http-backend ends").stdout;
    feed.await.expect("it was fed");
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    let mut answer = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").expect("a header");
        answer = match name {
            "Status" => answer.status(value[..3].parse::<u16>().expect("a status")),
            _ => answer.header(name, value),
        };
    }
    answer.body(Body::from(output[end + 4..].to_vec())).unwrap()
}

fn batch(inner: &Inner, body: &[u8]) -> Response<Body> {
    let question: Value = serde_json::from_slice(body).expect("a question");
    let upload = question["operation"] == "upload";
    let large = inner.large.lock().unwrap();
    let url = inner.url.lock().unwrap().clone();
    let objects = question["objects"].as_array().expect("objects").iter().map(|object| {
        let oid = object["oid"].as_str().expect("a digest");
        let action = |header: Value| json!({ "href": format!("{url}/large/{oid}"), "header": header });
        if upload {
            return json!({ "oid": oid, "size": object["size"], "actions": { "upload": action(json!({})) } });
        }
        if !large.contains_key(oid) {
            let error = json!({ "code": 404, "message": "Object does not exist" });
            return json!({ "oid": oid, "size": object["size"], "error": error });
        }
        let take = |n: usize| n.checked_sub(1);
        let stale = inner.stale.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        let signature = if stale { "worn out" } else { "fresh" };
        let header = if inner.signed.load(Ordering::SeqCst) { json!({ "X-Signature": signature }) } else { json!({}) };
        json!({ "oid": oid, "size": object["size"], "actions": { "download": action(header) } })
    });
    let answer = json!({ "transfer": "basic", "objects": objects.collect::<Vec<_>>() });
    let head = Response::builder().header(header::CONTENT_TYPE, "application/vnd.git-lfs+json");
    head.body(Body::from(answer.to_string())).unwrap()
}

fn large(inner: &Inner, method: &str, oid: &str, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let status = |status: StatusCode| Response::builder().status(status).body(Body::empty()).unwrap();
    if method == "PUT" {
        inner.large.lock().unwrap().insert(oid.to_owned(), body.to_vec());
        return status(StatusCode::OK);
    }
    let signed = headers.get("x-signature").is_some_and(|v| v == "fresh");
    if inner.signed.load(Ordering::SeqCst) && !signed {
        return status(StatusCode::FORBIDDEN);
    }
    let Some(bytes) = inner.large.lock().unwrap().get(oid).cloned() else { return status(StatusCode::NOT_FOUND) };
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("bytes="));
    let Some((from, to)) = range.and_then(|r| r.split_once('-')) else {
        return Response::builder().body(Body::from(bytes)).unwrap();
    };
    let from: usize = from.parse().expect("a number");
    let to = to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
    let part = bytes[from..to].to_vec();
    let answer = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{}", to - 1, bytes.len()));
    if inner.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
        let half = Bytes::from(part[..part.len() / 2].to_vec());
        let broken = futures::stream::iter([Ok(half), Err(std::io::Error::other("the line breaks"))]);
        return answer.header(header::CONTENT_LENGTH, part.len()).body(Body::from_stream(broken)).unwrap();
    }
    answer.body(Body::from(part)).unwrap()
}
