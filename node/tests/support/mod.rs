//! Real daemons on free ports, spoken to as a user would. (Building this builds the binary that the end-to-end cases
//! start.)
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Far above what anything here takes: only a real fault reaches it.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mloc"));
    // Port 1 answers nobody.
    command.args(args).env("MLOC_NODE", "127.0.0.1:1").env_remove("MLOC_JOIN_TOKEN").stdin(Stdio::null());
    command
}

pub fn mloc(args: &[&str]) -> Output {
    command(args).output().expect("mloc starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn configs(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(file).display().to_string()
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
}

/// A daemon on free ports, killed at the end.
pub struct Daemon {
    pub child: Child,
    pub dir: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it has greeted.
    pub fn start(dir: &Path, verb: &[&str], flags: &[&str], env: &[(&str, &str)]) -> Self {
        let args = Self::args(dir, verb, flags);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut daemon = Self::spawn(dir, command(&args).envs(env.iter().copied()));
        daemon.until_it_greets();
        daemon
    }

    /// The arguments of a daemon with this folder and free ports.
    pub fn args(dir: &Path, verb: &[&str], flags: &[&str]) -> Vec<String> {
        let data = dir.join("data").display().to_string();
        let listen = ["--bind", "127.0.0.1:0", "--link-bind", "127.0.0.1:0", "--rest-bind", "127.0.0.1:0"];
        [verb, &listen, &["--data-dir", &data], flags].concat().into_iter().map(str::to_owned).collect()
    }

    /// Starts a command whose output goes to `dir/out` and `dir/err`.
    pub fn spawn(dir: &Path, command: &mut Command) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let (out, err) = (File::create(dir.join("out")).unwrap(), File::create(dir.join("err")).unwrap());
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("it starts");
        Self { child, dir: dir.to_owned() }
    }

    pub fn until_it_greets(&mut self) {
        until("the daemon greets", || {
            self.lives();
            self.greeting().contains("\nsafety   ").then_some(())
        });
    }

    pub fn lives(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended with {ended:?}: {}", self.read("err"));
    }

    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    pub fn greeting(&self) -> String {
        self.read("out")
    }

    pub fn address(&self, which: &str) -> String {
        let node: serde_json::Value = serde_json::from_str(&self.read("data/node.json")).unwrap();
        node[which].as_str().unwrap().to_owned()
    }

    pub fn ask(&self, args: &[&str]) -> Output {
        command(args).env("MLOC_NODE", self.address("rest")).output().expect("mloc starts")
    }

    /// One GET, as text with its head.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address("rest")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn stop(mut self) -> Option<i32> {
        signal(&self.child, "-TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
