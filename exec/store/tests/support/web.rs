//! A web server of our own: it answers what a case says, and remembers what it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// A header; empty when it was not sent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `bytes=A-B` as A..B+1.
    pub fn range(&self) -> Option<std::ops::Range<usize>> {
        let (from, to) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        Some(from.parse().ok()?..to.parse::<usize>().ok()? + 1)
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Says no length: the body comes in pieces.
    pub in_pieces: bool,
    /// The connection breaks after so many bytes of the body.
    pub breaks_at: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file as servers with ranges give it.
    pub fn file(asked: &Asked, bytes: &[u8], etag: &str) -> Self {
        let held = asked.header("if-range");
        match asked.range().filter(|_| held.is_empty() || held == etag) {
            Some(range) if range.start >= bytes.len() => {
                Self::new(416, "").with("content-range", format!("bytes */{}", bytes.len()))
            }
            Some(range) => {
                let end = range.end.min(bytes.len());
                let at = format!("bytes {}-{}/{}", range.start, end - 1, bytes.len());
                Self::new(206, &bytes[range.start..end]).with("content-range", at).with("etag", etag)
            }
            None => Self::new(200, bytes).with("etag", etag),
        }
    }
}

/// The server; it ends with this value.
pub struct Web {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Web {
    pub async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (heard, answer) = (asked.clone(), Arc::new(answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (heard, answer) = (heard.clone(), answer.clone());
                connections.spawn(async move {
                    // Who asks may go at any time.
                    drop(serve(stream, &heard, &*answer).await);
                });
            }
        });
        Self { endpoint, asked, _tasks: tasks }
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// One request, one connection.
async fn serve(
    mut stream: TcpStream,
    heard: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(&Asked) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length && stream.read_buf(&mut body).await? > 0 {}
    let asked =
        Asked { method: first.next().unwrap_or_default(), path: first.next().unwrap_or_default(), headers, body };
    let reply = answer(&asked);
    let no_body = asked.method == "HEAD";
    heard.lock().unwrap().push(asked);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let framing = match reply.in_pieces {
        true => "transfer-encoding: chunked\r\n\r\n".into(),
        false => format!("content-length: {}\r\n\r\n", reply.body.len()),
    };
    stream.write_all((head + &framing).as_bytes()).await?;
    if no_body {
        return stream.shutdown().await;
    }
    let goes = &reply.body[..reply.breaks_at.unwrap_or(reply.body.len()).min(reply.body.len())];
    if reply.in_pieces {
        for piece in goes.chunks(100_000) {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            stream.write_all(piece).await?;
            stream.write_all(b"\r\n").await?;
        }
        if reply.breaks_at.is_none() {
            stream.write_all(b"0\r\n\r\n").await?;
        }
    } else {
        stream.write_all(goes).await?;
    }
    stream.shutdown().await
}
