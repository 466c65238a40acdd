//! A TCP line of our own: it counts what comes down, and breaks when told to.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};

/// A line to one server.
pub struct Line {
    /// Its near end, as a URL.
    pub endpoint: String,
    state: Arc<State>,
    // Ends all connections with the line.
    _tasks: JoinSet<()>,
}

struct State {
    /// Bytes that came down, over all connections.
    down: AtomicU64,
    /// Requests that went up: heads of HTTP/1 messages.
    requests: AtomicU64,
    /// A connection breaks after so many bytes down.
    breaks_after: AtomicU64,
    /// So often.
    breaks_left: AtomicU64,
    /// A connection breaks after so many bytes up.
    breaks_up_after: AtomicU64,
    /// What happens when so many bytes came down: told once, answered before the next byte.
    pause: Mutex<Option<u64>>,
    paused: Notify,
    go_on: Notify,
}

impl Line {
    /// A line to a server.
    pub async fn to(endpoint: &str) -> Self {
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = listener.local_addr().unwrap();
        let state = Arc::new(State {
            down: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            breaks_after: AtomicU64::new(u64::MAX),
            breaks_left: AtomicU64::new(u64::MAX),
            breaks_up_after: AtomicU64::new(u64::MAX),
            pause: Mutex::new(None),
            paused: Notify::new(),
            go_on: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        let of_all = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), of_all.clone());
                connections.spawn(async move {
                    // Either side may go at any time: that is what this line is for.
                    drop(carry(client, &server, &state).await);
                });
            }
        });
        Self { endpoint: format!("http://{near}"), state, _tasks: tasks }
    }

    /// Every connection breaks after so many bytes down.
    pub fn breaks_after(&self, bytes: u64) {
        self.state.breaks_after.store(bytes, Ordering::SeqCst);
    }

    /// So many connections break after so many bytes down, and no more after them.
    pub fn breaks(&self, times: u64, bytes: u64) {
        self.state.breaks_left.store(times, Ordering::SeqCst);
        self.breaks_after(bytes);
    }

    /// How many more times it will break.
    pub fn breaks_left(&self) -> u64 {
        self.state.breaks_left.load(Ordering::SeqCst)
    }

    /// Every connection breaks after so many bytes up.
    pub fn breaks_up_after(&self, bytes: u64) {
        self.state.breaks_up_after.store(bytes, Ordering::SeqCst);
    }

    /// Bytes that came down so far.
    pub fn down(&self) -> u64 {
        self.state.down.load(Ordering::SeqCst)
    }

    /// Requests that went up so far.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Holds everything once so many bytes came down; [`Line::paused`] tells, [`Line::go_on`] lets go.
    pub fn pause_at(&self, bytes: u64) {
        *self.state.pause.lock().unwrap() = Some(bytes);
    }

    /// Waits for the pause.
    pub async fn paused(&self) {
        self.state.paused.notified().await;
    }

    /// Ends the pause.
    pub fn go_on(&self) {
        self.state.go_on.notify_waiters();
    }
}

async fn carry(client: TcpStream, server: &str, state: &State) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    let up = async {
        let most = state.breaks_up_after.load(Ordering::SeqCst);
        let mut from_client = (&mut from_client).take(most);
        let mut block = vec![0; 16 << 10];
        loop {
            let n = from_client.read(&mut block).await?;
            if n == 0 {
                break;
            }
            // Bodies of ours hold no such line.
            let heads = block[..n].windows(11).filter(|w| *w == b" HTTP/1.1\r\n").count();
            state.requests.fetch_add(heads as u64, Ordering::SeqCst);
            to_server.write_all(&block[..n]).await?;
        }
        if from_client.limit() == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        to_server.shutdown().await
    };
    let down = async {
        let mut block = vec![0; 16 << 10];
        let mut here = 0;
        loop {
            let n = from_server.read(&mut block).await?;
            if n == 0 {
                return to_client.shutdown().await;
            }
            let go_on = state.go_on.notified();
            let all = state.down.fetch_add(n as u64, Ordering::SeqCst) + n as u64;
            let pauses = state.pause.lock().unwrap().take_if(|at| all >= *at).is_some();
            if pauses {
                state.paused.notify_one();
                go_on.await;
            }
            to_client.write_all(&block[..n]).await?;
            here += n as u64;
            let breaks = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
            if here >= state.breaks_after.load(Ordering::SeqCst)
                && state.breaks_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, breaks).is_ok()
            {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
        }
    };
    tokio::try_join!(up, down).map(drop)
}
