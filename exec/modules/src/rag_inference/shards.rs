//! The way to other shards of the task: the daemon's socket, which passes a request on to the node where the shard is.

use std::{path::PathBuf, time::Duration};

use axum::{
    body::Bytes,
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use mloc_core::{id::AttemptId, service::shard::shard_of};
use mloc_exec::run::{LOST, NEWER, OLDER, SHARD, SIBLING};
use mloc_rag::{
    http::{Call, NoReply, Peers, Reply, To},
    shard::Sharding,
};
use tokio::{net::UnixStream, time::timeout};

/// How long a shard has to begin its answer: a search is a matter of milliseconds, and it may be indexing.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a file that go over the mesh in a second, at least: for so long an answer is waited for besides.
const BYTES_PER_S: u64 = 1 << 20;
/// Between two pieces of an answer.
const GOES_ON_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of an answer: the largest document, and what is said of it.
const ANSWER_BYTES_MAX: usize = (64 << 20) + (1 << 20);

/// Which shard an attempt's replica is. Whoever takes its place has another number and is the same.
pub(super) fn sharding(attempt: &AttemptId, shards: Option<u32>) -> Sharding {
    let count = shards.unwrap_or(1).max(1);
    Sharding { index: shard_of(attempt.replica, count), count }
}

/// Whether nobody was this shard before: there is nothing that it could have lost.
pub(super) fn is_first(attempt: &AttemptId, sharding: Sharding) -> bool {
    attempt.replica < sharding.count && attempt.attempt <= 1
}

/// Lets in what the daemon says is another shard's.
pub(super) async fn shards_alone(request: Request, next: Next) -> Response {
    if request.headers().contains_key(SIBLING) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "only shards of this service ask each other this\n").into_response()
}

/// The daemon's socket.
pub(super) struct Siblings {
    /// Its path.
    pub socket: PathBuf,
    /// The service, as paths say it.
    pub service: String,
}

impl Peers for Siblings {
    fn call(&self, to: To, call: Call) -> BoxFuture<'static, Result<Reply, NoReply>> {
        let (socket, service) = (self.socket.clone(), self.service.clone());
        Box::pin(async move {
            let bytes = call.body.len() as u64;
            let request = request(to, &service, call).map_err(NoReply::Failed)?;
            let daemon = |error: &dyn std::fmt::Display| NoReply::Failed(format!("this node's daemon: {error}"));
            let stream = UnixStream::connect(&socket).await.map_err(|e| daemon(&e))?;
            let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = shaken.map_err(|e| daemon(&e))?;
            let within = ANSWERS_WITHIN + Duration::from_secs(bytes / BYTES_PER_S);
            let answer = async {
                let answer = timeout(within, sender.send_request(request)).await;
                let late = |_| NoReply::Failed(format!("it does not answer within {} s", within.as_secs()));
                read(answer.map_err(late)?.map_err(|e| NoReply::Failed(format!("it broke off: {e}")))?).await
            };
            tokio::pin!(answer);
            tokio::select! {
                answered = &mut answer => return answered,
                // Either way: what it has read is still to be taken.
                _ = connection => {}
            }
            answer.await
        })
    }
}

fn request(to: To, service: &str, call: Call) -> Result<hyper::Request<Full<Bytes>>, String> {
    let path: Vec<String> = call.path.split('/').map(encoded).collect();
    let query: Vec<String> = call.query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let uri = format!("/v1/rag/{}/{}?{}", encoded(service), path.join("/"), query.join("&"));
    let whom = match to {
        To::Shard(shard) => shard.to_string(),
        To::Older(number) => format!("{OLDER}{number}"),
        To::Newer => NEWER.to_owned(),
    };
    let mut request = hyper::Request::builder().method(call.method).uri(uri).header(SHARD, whom);
    // The daemon writes another one; HTTP/1.1 wants one.
    request = request.header(header::HOST, "shard");
    if let Some(kind) = call.content_type {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    request.body(Full::from(call.body)).map_err(|error| error.to_string())
}

async fn read(answer: hyper::Response<hyper::body::Incoming>) -> Result<Reply, NoReply> {
    let (head, mut body) = answer.into_parts();
    if let Some(why) = head.headers.get(LOST) {
        let why = String::from_utf8_lossy(why.as_bytes()).into_owned();
        let nobody = head.status == StatusCode::NOT_FOUND;
        return Err(if nobody { NoReply::Nobody(why) } else { NoReply::Failed(why) });
    }
    let failed = |why: String| NoReply::Failed(why);
    let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
    let mut bytes = Vec::new();
    loop {
        let frame = timeout(GOES_ON_WITHIN, body.frame()).await;
        let Some(frame) = frame.map_err(|_| failed("its answer does not go on".to_owned()))? else { break };
        let frame = frame.map_err(|error| failed(format!("its answer broke off: {error}")))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(failed(format!("its answer has more than {ANSWER_BYTES_MAX} bytes")));
        }
    }
    Ok(Reply { status: head.status.as_u16(), retry_after, body: bytes })
}

/// For a part of a path or a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use mloc_core::id::TaskId;

    use super::*;

    #[test]
    fn a_call_is_a_path_of_the_service() {
        let query = vec![("name".to_owned(), "a b&c=é.txt".to_owned()), ("local".to_owned(), "true".to_owned())];
        let (path, body) = ("documents/..".to_owned(), b"words".to_vec());
        let call = Call { method: Method::PUT, path, query, content_type: Some("text/plain".into()), body };
        let request = request(To::Shard(2), "org/docs", call).unwrap();
        assert_eq!(request.uri().to_string(), "/v1/rag/org%2Fdocs/documents/..?name=a%20b%26c%3D%C3%A9.txt&local=true");
        assert!(request.headers()[SHARD] == "2" && request.headers()["content-type"] == "text/plain");
    }

    #[test]
    fn a_replica_is_the_shard_of_its_number() {
        let attempt = |replica, attempt| AttemptId { task: TaskId::new("t"), replica, attempt };
        assert_eq!(sharding(&attempt(3, 1), Some(2)), Sharding { index: 1, count: 2 });
        assert_eq!(sharding(&attempt(3, 1), None), Sharding { index: 0, count: 1 });
        let first = |replica, number| is_first(&attempt(replica, number), Sharding { index: 0, count: 2 });
        assert!(first(0, 1) && first(1, 1));
        assert!(!first(0, 2) && !first(2, 1), "somebody was this shard before");
    }
}
