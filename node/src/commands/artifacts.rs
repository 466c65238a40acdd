//! `mloc artifacts`: what a task left, listed and fetched through any node. A fetch goes on where an earlier one stopped,
//! writes beside and renames, and gives no file its name before its digest is right.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode};
use mloc_api::view::ResultView;
use mloc_core::{files::is_below, ledger::entry::Artifact, quantity::show_bytes, task::artifacts::pattern};
use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::client::out;
use crate::{
    cli::{Format, GetArgs, Remote, TaskArgs},
    client::{Client, PATIENCE, Refusal, path_encode},
    show::{self, say},
    transfer_bar::TransferBar,
};

/// Files at once.
const AT_ONCE: usize = 4;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

fn place(id: &str) -> String {
    format!("/api/v1/tasks/{}/artifacts", path_encode(id))
}

/// `mloc artifacts ls`.
pub async fn ls(args: TaskArgs) -> Result<(), Refusal> {
    let result: ResultView = Client::new(&args.remote)?.get(&place(&args.id), &[]).await?;
    out(&args.remote, &result, show::artifacts)
}

/// `mloc artifacts get`.
pub async fn get(args: GetArgs) -> Result<(), Refusal> {
    let GetArgs { id, path, dir, force, node, api_token_file } = args;
    let client = Client::new(&Remote { node, api_token_file, output: Format::Table })?;
    let result: ResultView = client.get(&place(&id), &[]).await?;
    let chosen: Vec<&Artifact> =
        result.artifacts.iter().filter(|a| path.as_ref().is_none_or(|wanted| is_chosen(wanted, &a.path))).collect();
    if chosen.is_empty() {
        let of = path.map(|path| format!(" of `{path}`")).unwrap_or_default();
        return Err(Refusal::new(3, format!("{id} left no file{of}: `mloc artifacts ls {id}` lists what there is")));
    }
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let root = dir.canonicalize().with_context(|| format!("follow {}", dir.display()))?;
    let bar = TransferBar::new("fetching");
    bar.add(chosen.iter().map(|artifact| artifact.bytes).sum());
    let fetches = chosen.into_iter().map(|artifact| {
        let (client, root, bar, from) =
            (&client, &root, &bar, format!("{}/{}", place(&id), path_encode(&artifact.path)));
        async move {
            let goal = Goal::find(root, artifact, force)?;
            fetch(client, &from, artifact, &goal, bar).await?;
            Ok::<_, Refusal>(goal.file)
        }
    });
    let done: Result<Vec<PathBuf>, Refusal> = stream::iter(fetches).buffered(AT_ONCE).try_collect().await;
    bar.clear();
    for file in done? {
        say!("{}", dir.join(file.strip_prefix(&root).unwrap_or(&file)).display());
    }
    Ok(())
}

/// Where a file goes.
struct Goal {
    file: PathBuf,
    /// What has come so far.
    part: PathBuf,
    there: bool,
}

impl Goal {
    /// Finds the place of a file below a folder, whose path has no links. Its own folder exists afterwards.
    fn find(root: &Path, artifact: &Artifact, force: bool) -> Result<Self, Refusal> {
        let outside = |found: &str| Refusal::new(1, format!("artifact `{}` is not written: {found}", artifact.path));
        if !is_below(&artifact.path) {
            return Err(outside("its path leads out of the folder"));
        }
        let file = root.join(&artifact.path);
        let folder = file.parent().unwrap_or(root).to_owned();
        // What is there of the way may be a link; nothing is made beyond one that leads out.
        let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(root);
        let follow = |path: &Path| path.canonicalize().with_context(|| format!("follow {}", path.display()));
        if !follow(there)?.starts_with(root) {
            return Err(outside(&format!("{} is a link that leads out of {}", there.display(), root.display())));
        }
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        if !follow(&folder)?.starts_with(root) {
            return Err(outside(&format!("{} leads out of {}", folder.display(), root.display())));
        }
        let part = folder.join(format!(".mloc-get-{}.part", &artifact.sha256.get(..16).unwrap_or("unknown")));
        let there = match fs::symlink_metadata(&file) {
            Ok(meta) if meta.is_file() && meta.len() == artifact.bytes => {
                digest(&file).with_context(|| format!("read {}", file.display()))? == artifact.sha256
            }
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self { file, part, there: false }),
            Err(e) => return Err(outside(&e.to_string())),
        };
        if !there && !force {
            return Err(outside(&format!(
                "{} is there and is something else (hint: --force, or -o DIR)",
                file.display()
            )));
        }
        Ok(Self { file, part, there })
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut block) = (fs::File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&block[..n]),
        }
    }
}

async fn fetch(
    client: &Client,
    from: &str,
    artifact: &Artifact,
    goal: &Goal,
    bar: &TransferBar,
) -> Result<(), Refusal> {
    if goal.there {
        bar.moved(artifact.bytes);
        return Ok(());
    }
    let (mut moved, mut had, mut began_again) = (Instant::now(), 0, false);
    loop {
        let broke = match fetch_on(client, from, artifact, &goal.part, bar).await {
            Ok(()) => None,
            Err(refusal) if refusal.is_passing() => Some(refusal),
            Err(refusal) => return Err(refusal),
        };
        let has = fs::metadata(&goal.part).map_or(0, |meta| meta.len());
        if let Some(refusal) = broke {
            if has > had {
                (had, moved) = (has, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                return Err(refusal);
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let part = goal.part.clone();
        let found = tokio::task::spawn_blocking(move || digest(&part)).await.context("read what came")?;
        let found = found.with_context(|| format!("read {}", goal.part.display()))?;
        if found == artifact.sha256 {
            break;
        }
        // It is of no use to anybody who goes on from it.
        fs::remove_file(&goal.part).with_context(|| format!("remove {}", goal.part.display()))?;
        if std::mem::replace(&mut began_again, true) {
            let text =
                format!("`{}` came with SHA-256 {found}, and the ledger says {}", artifact.path, artifact.sha256);
            return Err(Refusal::new(1, text));
        }
    }
    let keep = || {
        fs::File::open(&goal.part)?.sync_all()?;
        fs::rename(&goal.part, &goal.file)
    };
    keep().with_context(|| format!("write {}", goal.file.display()))?;
    Ok(())
}

/// Fetches what a part lacks. A refusal that passes leaves what came.
async fn fetch_on(
    client: &Client,
    from: &str,
    artifact: &Artifact,
    part: &Path,
    bar: &TransferBar,
) -> Result<(), Refusal> {
    let write = |what: &'static str| move || format!("{what} {}", part.display());
    let mut options = fs::File::options();
    // A link in its place would lead who knows where.
    options.append(true).create(true).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(part).with_context(write("open"))?;
    let mut has = file.metadata().with_context(write("look at"))?.len();
    if has > artifact.bytes {
        file.set_len(0).with_context(write("empty"))?;
        has = 0;
    }
    if has == artifact.bytes {
        bar.moved(has);
        return Ok(());
    }
    let (range, etag) = (format!("bytes={has}-"), format!("\"{}\"", artifact.sha256));
    let empty = Full::default().map_err(|never| match never {}).boxed_unsync();
    let headers = [("range", range.as_str()), ("if-range", etag.as_str())];
    let answer = client.exchange(Method::GET, from, &[], &headers, empty).await?;
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        file.set_len(0).with_context(write("empty"))?;
    }
    let mut file = tokio::fs::File::from_std(file);
    let mut body = answer.into_body();
    let broke = loop {
        match body.frame().await {
            None => break None,
            Some(Err(error)) => break Some(error.to_string()),
            Some(Ok(frame)) => {
                if let Some(piece) = frame.data_ref() {
                    file.write_all(piece).await.with_context(write("write"))?;
                    bar.moved(piece.len() as u64);
                }
            }
        }
    };
    file.flush().await.with_context(write("write"))?;
    let has = file.metadata().await.with_context(write("look at"))?.len();
    match broke {
        None if has == artifact.bytes => Ok(()),
        why => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let text = format!(
                "`{}` broke off after {} of {}{why}",
                artifact.path,
                show_bytes(has),
                show_bytes(artifact.bytes)
            );
            Err(Refusal::new(4, text))
        }
    }
}

/// Whether a path is meant: itself, a folder above it, or a pattern of it.
fn is_chosen(wanted: &str, path: &str) -> bool {
    // As `files:` in a task has it. A name that is no pattern is a name.
    if wanted.contains(['*', '?', '[', '{']) && pattern(wanted).is_ok_and(|pattern| pattern.is_match(path)) {
        return true;
    }
    let wanted = wanted.trim_end_matches('/');
    path == wanted || path.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_a_folder_and_patterns_are_chosen() {
        for (wanted, path, chosen) in [
            ("logs/a.txt", "logs/a.txt", true),
            ("logs", "logs/a.txt", true),
            ("logs/", "logs/a.txt", true),
            ("log", "logs/a.txt", false),
            ("*.txt", "a.txt", true),
            ("*.txt", "logs/a.txt", false),
            ("{a,b}.txt", "b.txt", true),
            ("[odd].txt", "[odd].txt", true),
            ("**/*.txt", "a.txt", true),
            ("**/*.txt", "logs/deep/a.txt", true),
            ("logs/?.txt", "logs/a.txt", true),
            ("logs?a.txt", "logs/a.txt", false),
            ("*", "ü", true),
        ] {
            assert_eq!(is_chosen(wanted, path), chosen, "{wanted} {path}");
        }
    }

    fn artifact(path: &str, bytes: &[u8]) -> Artifact {
        let sha256 = hex::encode(Sha256::digest(bytes));
        Artifact { path: path.into(), kind: "logs".into(), bytes: bytes.len() as u64, sha256 }
    }

    #[test]
    fn nothing_is_written_outside_the_folder_or_over_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let root = top.join("out");
        fs::create_dir_all(root.join("own")).unwrap();
        fs::create_dir_all(top.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(top.join("elsewhere"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("own"), root.join("alias")).unwrap();
        std::os::unix::fs::symlink(top.join("nowhere"), root.join("dangling")).unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "link/x", "link/new/x", "dangling/x"] {
            assert!(Goal::find(&root, &artifact(path, b"x"), true).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(top.join("elsewhere")).unwrap().count(), 0);
        assert!(!top.join("nowhere").exists());
        assert_eq!(Goal::find(&root, &artifact("a/b/c", b"x"), false).unwrap().file, root.join("a/b/c"));
        assert!(Goal::find(&root, &artifact("alias/x", b"x"), false).is_ok());
        fs::write(root.join("own/x"), b"x").unwrap();
        assert!(Goal::find(&root, &artifact("own/x", b"x"), false).unwrap().there);
        let other = Goal::find(&root, &artifact("own/x", b"y"), false).map(|_| ()).unwrap_err();
        assert!(other.text.contains("--force"), "{}", other.text);
        assert!(!Goal::find(&root, &artifact("own/x", b"y"), true).unwrap().there);
    }
}
