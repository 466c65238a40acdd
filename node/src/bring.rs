//! What lies beside a task file and comes along with it: `./train.jsonl`, `../model`. It is read once for its digests;
//! of its bytes the node gets what it does not have yet, and goes on where an upload broke.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{Method, body::Frame};
use mloc_api::view::{Accepted, Missing};
use mloc_core::{
    files::{Brought, BroughtTree, Tree, TreeFile},
    id::NodeId,
    quantity::show_bytes,
    task::{self, spec::Location},
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncSeekExt;
use tokio_util::io::ReaderStream;

use crate::{
    client::{Client, PATIENCE, Refusal},
    memory,
    transfer_bar::TransferBar,
};

/// Uploads at once: one connection does not fill a long line, and small files wait for round trips.
const AT_ONCE: usize = 6;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Folders in folders; a link to a folder above would go round for ever.
const DEPTH_MAX: usize = 32;
const BLOCK: usize = 1 << 20;

/// What lies beside a task file.
#[derive(Debug, Default)]
pub struct Beside {
    found: BTreeMap<String, Found>,
    /// Paths that the task names and that are not there, and where they were looked for.
    absent: BTreeMap<String, PathBuf>,
}

#[derive(Debug)]
struct Found {
    /// Where it lies here.
    at: PathBuf,
    /// The list's own bytes and their digest.
    list: Bytes,
    sha256: String,
    bytes: u64,
    /// Files by digest.
    files: BTreeMap<String, PathBuf>,
}

impl Beside {
    /// Reads what the sources of a task name beside its file (beside the current folder, for a task from standard
    /// input).
    ///
    /// # Errors
    /// When something that is there can't be read, or has names that nobody could write elsewhere.
    pub async fn look(task_file: &Path, body: &[u8]) -> Result<Self, Refusal> {
        let named = task::beside(body);
        if named.is_empty() {
            return Ok(Self::default());
        }
        let base = match task_file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && task_file.as_os_str() != "-" => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let looked = tokio::task::spawn_blocking(move || {
            let bar = TransferBar::new("reading");
            let mut beside = Self::default();
            for path in named {
                let at = base.join(&path);
                match fs::metadata(&at) {
                    Ok(meta) => drop(beside.found.insert(path, Found::read(&at, meta.is_dir(), &bar)?)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => drop(beside.absent.insert(path, at)),
                    Err(e) => return Err(Refusal::new(2, format!("read {}: {e}", at.display()))),
                }
            }
            bar.clear();
            Ok(beside)
        });
        looked.await.context("read what lies beside the task")?
    }

    /// By path as the task has it.
    pub fn trees(&self) -> BTreeMap<String, BroughtTree> {
        let tree = |found: &Found| BroughtTree { tree: found.sha256.clone(), bytes: found.bytes };
        self.found.iter().map(|(path, found)| (path.clone(), tree(found))).collect()
    }

    /// What can be said of the task's memory where its model lies beside it.
    pub fn memory(&self, task_file: &Path, body: &[u8]) -> Option<String> {
        let spec = task::parse_with(body, &task_file.display().to_string(), &self.brought("here")).ok()?.spec;
        match &spec.model.as_ref()?.source {
            Location::Submitted { path, .. } => memory::forecast(&spec, Some(&self.found.get(path)?.at)),
            _ => None,
        }
    }

    /// As a node of this name would have it.
    pub fn brought(&self, node: &str) -> Brought {
        Brought { node: Some(NodeId::new(node)), trees: self.trees() }
    }

    /// A refusal that says which of the paths are not there.
    pub fn explain(&self, mut refusal: Refusal) -> Refusal {
        for (path, at) in &self.absent {
            let at = std::path::absolute(at).unwrap_or_else(|_| at.clone());
            refusal.text.push_str(&format!(
                "\n  note: `{path}` was looked for here at {}: no such file or folder",
                at.display()
            ));
        }
        refusal
    }

    /// Submits a task with all that lies beside it.
    ///
    /// # Errors
    /// As [`Client::submit`]; when the upload does not get on for a while.
    pub async fn submit(
        &self,
        client: &Client,
        mut query: Vec<(&str, String)>,
        key: &str,
        body: Bytes,
    ) -> Result<Accepted, Refusal> {
        let dry = query.iter().any(|(name, _)| *name == "dry_run");
        if self.found.is_empty() {
            return client.submit(&query, key, body).await.map_err(|refusal| self.explain(refusal));
        }
        query.push(("files", serde_json::to_string(&self.trees()).context("describe what comes along")?));
        if !dry {
            // What is wrong with the task is said before anything is sent.
            let mut check = query.clone();
            check.push(("dry_run", "true".to_owned()));
            client.submit::<Accepted>(&check, key, body.clone()).await.map_err(|refusal| self.explain(refusal))?;
            self.upload(client).await?;
        }
        match client.submit(&query, key, body.clone()).await {
            // Something of it went between the upload and now.
            Err(refusal) if refusal.status == Some(409) && !dry => {
                self.upload(client).await?;
                client.submit(&query, key, body).await
            }
            done => done,
        }
    }

    async fn upload(&self, client: &Client) -> Result<(), Refusal> {
        let mut missing: BTreeMap<String, (Missing, PathBuf)> = BTreeMap::new();
        for found in self.found.values() {
            if !state(client, &format!("/api/v1/files/{}", found.sha256)).await?.1 {
                send(client, &found.sha256, 0, &Source::Memory(found.list.clone()), &TransferBar::hidden()).await?;
            }
            let of_this: Vec<Missing> = client.get(&format!("/api/v1/files/{}/missing", found.sha256), &[]).await?;
            for one in of_this {
                if let Some(path) = found.files.get(&one.sha256) {
                    missing.insert(one.sha256.clone(), (one, path.clone()));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let bytes: u64 = missing.values().map(|(one, _)| one.bytes.saturating_sub(one.there)).sum();
        let bar = TransferBar::new("sending");
        bar.say(&format!("sending {} files, {}, along with the task", missing.len(), show_bytes(bytes)));
        bar.add(bytes);
        let bar = &bar;
        let sends = missing.into_values().map(|(one, path)| async move {
            send(client, &one.sha256, one.there, &Source::File { path, bytes: one.bytes }, bar).await
        });
        stream::iter(sends).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        bar.clear();
        Ok(())
    }
}

impl Found {
    /// Blocks.
    fn read(at: &Path, folder: bool, bar: &TransferBar) -> Result<Self, Refusal> {
        let mut paths = Vec::new();
        if folder {
            walk(at, "", 0, &mut paths)?;
        } else {
            let name = at.file_name().map_or_else(|| "file".into(), |name| name.to_string_lossy().into_owned());
            paths.push((name, at.to_owned()));
        }
        paths.sort();
        let (mut tree, mut files) = (Tree { folder, files: Vec::with_capacity(paths.len()) }, BTreeMap::new());
        for (path, file) in paths {
            let (sha256, bytes) =
                digest(&file, bar).map_err(|e| Refusal::new(2, format!("read {}: {e}", file.display())))?;
            files.insert(sha256.clone(), file);
            tree.files.push(TreeFile { path, bytes, sha256 });
        }
        let list = tree.to_bytes().map_err(|e| Refusal::new(2, format!("{}: {e}", at.display())))?;
        Ok(Self {
            at: at.to_owned(),
            sha256: hex::encode(Sha256::digest(&list)),
            list: list.into(),
            bytes: tree.bytes(),
            files,
        })
    }
}

/// Files below a folder, as a worker would meet them: links are followed, `.mloc-*` is left out.
fn walk(folder: &Path, prefix: &str, depth: usize, into: &mut Vec<(String, PathBuf)>) -> Result<(), Refusal> {
    let unread = |path: &Path, e: io::Error| Refusal::new(2, format!("read {}: {e}", path.display()));
    for entry in fs::read_dir(folder).map_err(|e| unread(folder, e))? {
        let path = entry.map_err(|e| unread(folder, e))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Refusal::new(
                2,
                format!("{}: a name that is no UTF-8 can't be sent: rename it", path.display()),
            ));
        };
        if name.starts_with(".mloc-") {
            continue;
        }
        let meta = fs::metadata(&path).map_err(|e| unread(&path, e))?;
        let name = format!("{prefix}{name}");
        if meta.is_dir() && depth < DEPTH_MAX {
            walk(&path, &format!("{name}/"), depth + 1, into)?;
        } else if meta.is_file() {
            into.push((name, path));
        }
    }
    Ok(())
}

fn digest(path: &Path, bar: &TransferBar) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes, mut block) = (Sha256::new(), 0, vec![0; BLOCK]);
    bar.add(file.metadata()?.len());
    loop {
        let n = file.read(&mut block)?;
        if n == 0 {
            return Ok((hex::encode(hasher.finalize()), bytes));
        }
        hasher.update(&block[..n]);
        bytes += n as u64;
        bar.moved(n as u64);
    }
}

/// What is sent.
enum Source {
    Memory(Bytes),
    File { path: PathBuf, bytes: u64 },
}

/// Sends a file from a byte on, and goes on from wherever the node says it is, as long as something moves.
async fn send(client: &Client, sha256: &str, from: u64, source: &Source, bar: &TransferBar) -> Result<(), Refusal> {
    let path = format!("/api/v1/files/{sha256}");
    let (mut offset, mut moved, mut began_again) = (from, Instant::now(), false);
    loop {
        let refusal = match send_once(client, &path, offset, source, bar).await {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        // Its bytes are not what they were: a broken upload, or a file that somebody writes to.
        if refusal.status == Some(422) {
            if let Source::File { path, .. } = source {
                let now = {
                    let path = path.clone();
                    tokio::task::spawn_blocking(move || digest(&path, &TransferBar::hidden())).await
                };
                let now = now.context("read it again")?.with_context(|| format!("read {}", path.display()))?;
                if now.0 != sha256 {
                    let text =
                        format!("{} was changed while it was sent: submit again when it is whole", path.display());
                    return Err(Refusal::new(1, text));
                }
            }
            if std::mem::replace(&mut began_again, true) {
                return Err(refusal);
            }
            offset = 0;
            continue;
        }
        // What came before a break is kept there, and a broken body or a gap says where to go on.
        if !refusal.is_passing() && !matches!(refusal.status, Some(400 | 409)) {
            return Err(refusal);
        }
        if moved.elapsed() > PATIENCE {
            return Err(refusal);
        }
        tokio::time::sleep(PAUSE).await;
        if let Ok((there, whole)) = state(client, &path).await {
            if whole {
                return Ok(());
            }
            if there > offset {
                moved = Instant::now();
            }
            offset = there;
        }
    }
}

/// How much of it the node has, and whether that is all.
async fn state(client: &Client, path: &str) -> Result<(u64, bool), Refusal> {
    let empty = Full::default().map_err(|never| match never {}).boxed_unsync();
    let answer = client.exchange(Method::HEAD, path, &[], &[], empty).await?;
    let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let offset = text("upload-offset").and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok((offset, text("upload-complete") == Some("?1")))
}

async fn send_once(
    client: &Client,
    path: &str,
    offset: u64,
    source: &Source,
    bar: &TransferBar,
) -> Result<(), Refusal> {
    let (body, length) = match source {
        Source::Memory(bytes) => {
            let rest = bytes.slice(usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len())..);
            let length = rest.len() as u64;
            (Full::new(rest).map_err(|never| match never {}).boxed_unsync(), length)
        }
        Source::File { path, bytes } => {
            let opening = async {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(io::SeekFrom::Start(offset)).await?;
                Ok::<_, io::Error>(file)
            };
            let file = opening.await.with_context(|| format!("read {}", path.display()))?;
            let length = bytes.saturating_sub(offset);
            // A file that grew meanwhile is another file; its digest will tell.
            let file = tokio::io::AsyncReadExt::take(file, length);
            let bar = bar.clone();
            let pieces = ReaderStream::with_capacity(file, 256 << 10).map_ok(move |piece| {
                bar.moved(piece.len() as u64);
                Frame::data(piece)
            });
            (StreamBody::new(pieces).boxed_unsync(), length)
        }
    };
    let length = length.to_string();
    let headers = [("content-length", length.as_str()), ("content-type", "application/octet-stream")];
    let answer = client.exchange(Method::PUT, path, &[("offset", offset.to_string())], &headers, body).await?;
    // Read to its end, so that the connection serves again.
    answer.into_body().collect().await.map(drop).map_err(|e| Refusal::new(4, format!("the answer broke off: {e}")))
}

#[cfg(test)]
mod tests;
