//! Code that a model writes, run apart from all else: behind a fence, as a user of its own where this process may choose, with
//! limits on memory, files, processes and time, in a folder that goes with it. Off unless a node permits it.
//!
//! ```text
//! a leader of a group is started, which waits for its end
//! a thread enters the fence ─ starts in that group ─→ sh, which limits itself and becomes the interpreter
//! the group is killed, whatever is in it
//! ```

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc,
    time::Duration,
};

use async_trait::async_trait;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{
    Tool,
    fence::{self, Fence},
};
use crate::{
    event::{Outcome, ToolSpec},
    settings::tools::Code,
};

mod user;

use user::User;

/// Bytes of each of its outputs that are kept; what is beyond is read and let go.
const OUTPUT_BYTES: usize = 256 << 10;
/// Bytes of its outputs after which it is a flood, and ended.
const FLOOD_BYTES: usize = 64 << 20;
/// Open files of each of its processes.
const FILES: u64 = 256;
/// What it starts holds its outputs open; all of that is killed first, so this is a wait for the kernel.
const DRAIN: Duration = Duration::from_secs(2);
/// Sets limits on itself, those after which others follow, and becomes what comes behind them. Shells differ in the letter for
/// processes.
const GATE: &str = r#"ulimit -c 0 && ulimit -v "$1" && ulimit -f "$2" && ulimit -n "$3" && ulimit -t "$4" &&
{ [ "$5" = 0 ] || ulimit -p "$5" 2>/dev/null || ulimit -u "$5"; } || exit 125; shift 5; exec "$@""#;
/// What `ulimit -f` counts in.
const BLOCK_BYTES: u64 = 512;
/// Waits until it is killed, or until this process is gone.
const LEADER: &str = "read -r end";
const SCRIPT: &str = "main";

/// Runs code.
pub struct CodeTool {
    spec: ToolSpec,
    settings: Code,
    timeout: Duration,
}

/// All processes of one piece of code. None outlives this. Its leader is none of them: as long as that is not reaped, the
/// group's number is nobody else's.
struct Group {
    number: i32,
    _leader: Child,
}

impl Group {
    fn new() -> Result<Self, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", LEADER]).env_clear().process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let leader = command.spawn().map_err(|e| format!("cannot start a group for it: {e}"))?;
        let number = leader.id().and_then(|id| i32::try_from(id).ok()).ok_or("the group for it has gone")?;
        Ok(Self { number, _leader: leader })
    }

    fn kill(&self) {
        // It is there: its leader is.
        killpg(Pid::from_raw(self.number), Signal::SIGKILL).ok();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl CodeTool {
    /// As it is written; `timeout` bounds the time it computes.
    pub fn new(settings: Code, timeout: Duration) -> Self {
        let languages: Vec<&str> = settings.interpreters.keys().map(String::as_str).collect();
        let schema = json!({
            "type": "object",
            "properties": {
                "language": { "type": "string", "enum": languages },
                "code": { "type": "string", "description": "a whole program; what it prints is returned" },
            },
            "required": ["language", "code"],
            "additionalProperties": false,
        });
        let seconds = timeout.as_secs();
        let description = format!(
            "Runs a program and returns what it prints. It has no network and no files of others; its folder is empty and \
             gone afterwards. It has {seconds} seconds."
        );
        // Nothing of it is left when it is over, whatever it did.
        let spec = ToolSpec { name: settings.name.clone(), description, schema, idempotent: true };
        Self { spec, settings, timeout }
    }

    async fn run(&self, language: &str, code: &str) -> Result<Outcome, String> {
        let interpreter =
            self.settings.interpreters.get(language).ok_or_else(|| format!("no interpreter for {language}"))?;
        // Who may become anybody does; anybody else stays who it is, and the fence is what holds.
        let user = User::take(self.settings.uid).await;
        let (uid, code) = (user.as_ref().map(|user| user.uid), code.to_owned());
        let folder = blocking(move || folder(&code, uid)).await?;
        let group = Group::new()?;
        let mut child = self.start(interpreter, folder.path(), uid, group.number).await?;
        let (out, err) = child.stdout.take().zip(child.stderr.take()).ok_or("its pipes are not there")?;
        let mut outputs = tokio::spawn(async move { tokio::join!(keep(out), keep(err)) });
        let kept = tokio::select! { biased;
            kept = &mut outputs => Some(kept),
            _ = child.wait() => None,
        };
        let (out, err) = match kept {
            // It closed them, or is a flood.
            Some(kept) => kept.map_err(|e| e.to_string())?,
            None => {
                group.kill();
                let kept = tokio::time::timeout(DRAIN, &mut outputs).await;
                outputs.abort();
                kept.map_err(|_| "what it printed could not be read to its end")?.map_err(|e| e.to_string())?
            }
        };
        if out.flooded || err.flooded {
            group.kill();
        }
        let status = child.wait().await.map_err(|e| e.to_string())?;
        group.kill();
        blocking(move || folder.close().map_err(|e| e.to_string())).await.ok();
        drop(user);
        Ok(told(status, &out, &err))
    }

    /// Starts the gate within the fence.
    async fn start(&self, interpreter: &str, folder: &Path, uid: Option<u32>, group: i32) -> Result<Child, String> {
        let readable = self.settings.readable.iter().map(PathBuf::from).collect();
        let fence = Fence { writable: folder.to_owned(), readable, changes_user: uid.is_some(), group };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GATE, "sh"]).args(self.limits(uid.is_some())).args([interpreter, SCRIPT]);
        command.current_dir(folder).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8");
        command.env("HOME", folder).env("TMPDIR", folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(group).kill_on_drop(true);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let runtime = tokio::runtime::Handle::current();
        let (tell, told) = mpsc::channel();
        let enter = move || {
            let _runtime = runtime.enter();
            let spawned =
                fence::enter(&fence).and_then(|()| command.spawn().map_err(|e| format!("cannot start it: {e}")));
            // Whoever waited is gone: so is what was started.
            tell.send(spawned).ok();
        };
        // It never comes out again, so it ends here.
        std::thread::Builder::new()
            .name("fence".into())
            .spawn(enter)
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        blocking(move || told.recv().map_err(|_| "the thread that starts it panicked".to_owned())?).await
    }

    /// What the gate sets, in its order and units. Processes are counted by user: of a user with other programs it would be a
    /// limit on those.
    fn limits(&self, is_own_user: bool) -> [String; 5] {
        let kib = self.settings.memory_bytes / 1024;
        let blocks = self.settings.file_bytes.div_ceil(BLOCK_BYTES);
        let seconds = self.timeout.as_secs().saturating_add(1);
        let processes = if is_own_user { self.settings.processes } else { 0 };
        [kib, blocks, FILES, seconds, processes].map(|limit| limit.to_string())
    }
}

#[async_trait]
impl Tool for CodeTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        let ran = self.run(&text("language"), &text("code")).await;
        ran.unwrap_or_else(|found| Outcome::failed(format!("error: the code could not be run: {found}")))
    }
}

/// A folder with the code in it, for that user alone.
fn folder(code: &str, uid: Option<u32>) -> Result<TempDir, String> {
    let said = |e: std::io::Error| format!("make its folder: {e}");
    let folder = tempfile::Builder::new().prefix("mloc-code-").tempdir().map_err(said)?;
    let script = folder.path().join(SCRIPT);
    std::fs::write(&script, code).map_err(said)?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o600)).map_err(said)?;
    if uid.is_some() {
        chown(&script, uid, uid).map_err(said)?;
        chown(folder.path(), uid, uid).map_err(said)?;
    }
    Ok(folder)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// One of its outputs.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    seen: usize,
    flooded: bool,
}

impl Kept {
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let more = self.seen - self.bytes.len();
        if more == 0 { text.into_owned() } else { format!("{text}\n[… and {more} bytes more]") }
    }
}

async fn keep(mut from: impl AsyncRead + Unpin) -> Kept {
    let mut kept = Kept::default();
    let mut piece = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let room = OUTPUT_BYTES.saturating_sub(kept.bytes.len()).min(read);
        kept.bytes.extend_from_slice(&piece[..room]);
        kept.seen += read;
        if kept.seen > FLOOD_BYTES {
            kept.flooded = true;
            break;
        }
    }
    kept
}

fn told(status: std::process::ExitStatus, out: &Kept, err: &Kept) -> Outcome {
    let mut text = out.text();
    let complaints = err.text();
    if !complaints.trim().is_empty() {
        text.push_str(&format!("\n[stderr]\n{complaints}"));
    }
    if out.flooded || err.flooded {
        return Outcome::failed(format!("error: ended: it printed more than {FLOOD_BYTES} bytes\n{text}"));
    }
    match status.code() {
        Some(0) if text.trim().is_empty() => Outcome::done("it printed nothing"),
        Some(0) => Outcome::done(text),
        // A signal: of a limit, or of its own.
        _ => Outcome::failed(format!("error: {status}\n{text}")),
    }
}
