//! A Hugging Face Hub for tests: repositories in memory, behind the Hub's own calls on one port, and its store for large
//! files on another.
//!
//! ```text
//! lib    what a case says: repositories, tokens, troubles; and what it has seen
//! repos  commits, refs, files: plain data
//! calls  the Hub's calls over them        store  large files: signed addresses, ranges, uploads in parts
//! ```
//! What it answers is what the `huggingface_hub` client takes: the case `hub_client` in exec/store runs that client against
//! it. Deliberately absent: accounts, spaces, pull requests, the Xet protocol itself (files only carry its hash).

mod calls;
mod repos;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, body::Bytes, extract::Request, response::Response};
use tokio::runtime::Runtime;

pub use repos::Kind;
use repos::Repos;

/// Files from this size on are kept in the store for large ones, as are those of some endings.
pub const LARGE: usize = 1 << 20;

/// A server. It ends with this value.
pub struct Hub {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// The same of its store.
    pub store: String,
    state: Arc<State>,
    // Ends the server with it.
    runtime: Option<Runtime>,
}

/// A request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether it came to the store.
    pub store: bool,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Whether it showed a token.
    pub token: bool,
}

/// What goes wrong, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// So many requests to the Hub are refused with 429 and `Retry-After: SECONDS`.
    Busy {
        /// Requests.
        times: u32,
        /// Seconds.
        seconds: u32,
    },
    /// So many commits are made, and the line breaks before it is said.
    LostAnswers(u32),
    /// Before so many commits somebody else commits to the branch.
    Races(u32),
    /// Bytes are flipped on their way from now on: of files that the store keeps, or of those that git keeps.
    Flipped {
        /// Of the store's.
        large: bool,
    },
}

/// All that a server knows.
pub(crate) struct State {
    inner: Mutex<Inner>,
    /// `http://127.0.0.1:PORT` of the Hub and of its store.
    pub addresses: [String; 2],
}

pub(crate) struct Inner {
    pub repos: Repos,
    /// Large files by SHA-256.
    pub large: BTreeMap<String, Bytes>,
    /// Parts of uploads.
    pub parts: BTreeMap<(String, u32), Bytes>,
    pub tokens: BTreeSet<String>,
    pub seen: Vec<Seen>,
    pub busy: (u32, u32),
    pub lost_answers: u32,
    pub races: u32,
    /// Of which files bytes are flipped: of the store's, or of git's.
    pub flipped: Option<bool>,
    /// Signed addresses of an earlier number are over.
    pub epoch: u32,
    /// Entries of one page of a listing.
    pub page: usize,
    /// Bytes of a part of an upload; larger files go up in parts.
    pub part: usize,
}

impl State {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// Starts it on two free ports.
    ///
    /// # Panics
    /// When this machine gives no port or thread: there is nothing to test then.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads for the server");
        // Bound without the runtime: a case of another runtime may be starting this.
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket of tokio's kind");
            listener
        };
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("its address"));
        let addresses = [address(&hub), address(&store)];
        let inner = Inner {
            repos: Repos::default(),
            large: BTreeMap::new(),
            parts: BTreeMap::new(),
            tokens: BTreeSet::new(),
            seen: Vec::new(),
            busy: (0, 0),
            lost_answers: 0,
            races: 0,
            flipped: None,
            epoch: 0,
            page: 1000,
            part: 16 << 20,
        };
        let state = Arc::new(State { inner: Mutex::new(inner), addresses: addresses.clone() });
        let of_hub = state.clone();
        let calls = Router::new().fallback(move |request: Request| calls::answer(of_hub.clone(), request));
        let of_store = state.clone();
        let stored = Router::new().fallback(move |request: Request| store::answer(of_store.clone(), request));
        for (listener, router) in [(hub, calls), (store, stored)] {
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, router).await
            });
        }
        let [endpoint, store] = addresses;
        Self { endpoint, store, state, runtime: Some(runtime) }
    }

    /// Commits files to the `main` of a repository, which is made where it is missing; the commit.
    pub fn commit(&self, kind: Kind, id: &str, files: &[(&str, &[u8])]) -> String {
        self.commit_to(kind, id, "main", files)
    }

    /// Commits files to a branch.
    pub fn commit_to(&self, kind: Kind, id: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let mut inner = self.state.lock();
        let files: Vec<_> = files.iter().map(|(path, bytes)| inner.keep(path, Bytes::copy_from_slice(bytes))).collect();
        let repo = inner.repos.entry(kind, id);
        let parent = repo.resolve(branch).or_else(|| repo.resolve("main"));
        repo.commit(branch, parent.as_deref(), files, &[])
    }

    /// Names a commit.
    pub fn tag(&self, kind: Kind, id: &str, tag: &str, commit: &str) {
        self.state.lock().repos.entry(kind, id).tags.insert(tag.to_owned(), commit.to_owned());
    }

    /// The files of a revision.
    pub fn files(&self, kind: Kind, id: &str, revision: &str) -> BTreeMap<String, Vec<u8>> {
        let inner = self.state.lock();
        let files = inner.repos.get(kind, id).and_then(|repo| repo.files(&repo.resolve(revision)?).cloned());
        let bytes = |file: &repos::File| match &file.large {
            Some(sha256) => inner.large.get(sha256).map(|b| b.to_vec()).unwrap_or_default(),
            None => file.bytes.to_vec(),
        };
        files.unwrap_or_default().iter().map(|(path, file)| (path.clone(), bytes(file))).collect()
    }

    /// How many commits a branch has.
    pub fn commits(&self, kind: Kind, id: &str, branch: &str) -> usize {
        self.state.lock().repos.get(kind, id).map_or(0, |repo| repo.history(branch))
    }

    /// Whether a repository is private; `None` when there is none.
    pub fn is_private(&self, kind: Kind, id: &str) -> Option<bool> {
        self.state.lock().repos.get(kind, id).map(|repo| repo.private)
    }

    /// Only who shows a token sees it.
    pub fn make_private(&self, kind: Kind, id: &str) {
        self.state.lock().repos.entry(kind, id).private = true;
    }

    /// Everybody sees it, and nobody gets its files.
    pub fn gate(&self, kind: Kind, id: &str) {
        self.state.lock().repos.entry(kind, id).gated = true;
    }

    /// A token that is known: it may do everything.
    pub fn let_in(&self, token: &str) {
        self.state.lock().tokens.insert(token.to_owned());
    }

    /// The token is known no more.
    pub fn revoke(&self, token: &str) {
        self.state.lock().tokens.remove(token);
    }

    /// Something goes wrong.
    pub fn trouble(&self, trouble: Trouble) {
        let mut inner = self.state.lock();
        match trouble {
            Trouble::Busy { times, seconds } => inner.busy = (times, seconds),
            Trouble::LostAnswers(times) => inner.lost_answers = times,
            Trouble::Races(times) => inner.races = times,
            Trouble::Flipped { large } => inner.flipped = Some(large),
        }
    }

    /// The bytes of all large files are gone; the repositories still name them.
    pub fn lose_large_files(&self) {
        self.state.lock().large.clear();
    }

    /// All signed addresses are over.
    pub fn end_signatures(&self) {
        self.state.lock().epoch += 1;
    }

    /// Entries of one page of a listing.
    pub fn pages_of(&self, entries: usize) {
        self.state.lock().page = entries;
    }

    /// Bytes of a part of an upload.
    pub fn parts_of(&self, bytes: usize) {
        self.state.lock().part = bytes;
    }

    /// What came in so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test's own runtime may be dropping this: it must not block there.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    /// A file as a commit keeps it: large ones go to the store.
    pub fn keep(&mut self, path: &str, bytes: Bytes) -> (String, repos::File) {
        let file = if repos::is_large(path, bytes.len()) {
            let sha256 = repos::sha256(&bytes);
            let size = bytes.len();
            self.large.insert(sha256.clone(), bytes);
            repos::File::large(sha256, size)
        } else {
            repos::File::small(bytes)
        };
        (path.to_owned(), file)
    }
}

/// What both servers answer.
pub(crate) type Answered = Response;
