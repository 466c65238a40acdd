//! Requests of members to a replica here: HTTP/1 in, HTTP/1 out to the program's port or socket, both bodies as they
//! come. Whoever routed the request is told apart what the program answered and what it never saw: an answer with
//! [`LOST`] is this node's own, and another replica can be asked.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
    header::{self, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mloc_core::id::AttemptId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{Asks, Listens, Replicas, Ticket};

/// Header of a member's request: which attempt it is for.
pub const REPLICA: HeaderName = HeaderName::from_static("mloc-replica");
/// Header of an answer that is not the program's: why it was not asked ([`UNASKED`]), or was lost before it answered.
pub const LOST: HeaderName = HeaderName::from_static(mloc_exec::run::LOST);
/// Status of an answer with [`LOST`] when nothing of the request has reached the program.
pub const UNASKED: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// Header of a request that another replica of the same service makes: its attempt. Programs see it, and believe it: members
/// say it of their own replicas alone.
pub const SIBLING: HeaderName = HeaderName::from_static(mloc_exec::run::SIBLING);
/// Headers that begin so stay within the mesh, save [`USER`] and [`SIBLING`].
pub const OWN: &str = "mloc-";
/// Header in which a program is told who asks.
pub const USER: HeaderName = HeaderName::from_static("mloc-user");
/// What programs see as Host. No name of this machine: were the port that of this node's own REST, it would take none of
/// it for its own user's.
pub(crate) const HOST: &str = "service.mloc";
/// Headers that are of one connection (RFC 9110, 7.6.1).
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub(super) type AnyBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Answers the requests of one connection until it ends.
///
/// # Errors
/// When it broke.
pub async fn serve<S>(stream: S, replicas: Arc<Replicas>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let replicas = replicas.clone();
        async move { Ok::<_, Infallible>(ask(&replicas, request).await) }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
}

/// One request to its replica.
pub(super) async fn ask(replicas: &Arc<Replicas>, mut request: Request<Incoming>) -> Response<AnyBody> {
    let named = request.headers().get(&REPLICA).and_then(|value| value.to_str().ok());
    let Some(attempt) = named.and_then(|text| text.parse::<AttemptId>().ok()) else {
        return lost(UNASKED, &format!("a member's request names its replica in `{REPLICA}`"));
    };
    let sibling = request.headers_mut().remove(&SIBLING);
    let asks = if sibling.is_some() { Asks::Sibling } else { Asks::Client };
    let (listens, ticket) = match replicas.admit(&attempt, asks) {
        Ok(admitted) => admitted,
        Err(why) => return lost(UNASKED, &why.to_string()),
    };
    let mut sender = match connect(&listens).await {
        Ok(sender) => sender,
        Err(error) => return lost(UNASKED, &format!("its program does not listen: {error}")),
    };
    let headers = request.headers_mut();
    let user = headers.remove(&USER);
    clean(headers);
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, HeaderValue::from_static(HOST));
    headers.extend(user.map(|user| (USER, user)));
    headers.extend(sibling.map(|sibling| (SIBLING, sibling)));
    match sender.send_request(request).await {
        Ok(mut response) => {
            clean(response.headers_mut());
            let mut ticket = ticket;
            // Nobody may look into an empty one.
            if response.body().is_end_stream() {
                ticket.whole();
            }
            response.map(|inner| Counted { inner, ticket }.boxed_unsync())
        }
        Err(error) => lost(StatusCode::BAD_GATEWAY, &format!("its program broke off before it answered: {error}")),
    }
}

/// Takes out what is of one connection, and what is the mesh's own.
pub fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OWN)).cloned().collect();
    for name in HOP.iter().chain(&named).chain(&own) {
        headers.remove(name);
    }
}

pub(super) fn lost(status: StatusCode, why: &str) -> Response<AnyBody> {
    let body = Full::new(Bytes::from(format!("{why}\n"))).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    // A reason that no header can carry is in the body.
    let why = HeaderValue::from_str(&why.replace('\n', " ")).unwrap_or(HeaderValue::from_static("see the body"));
    response.headers_mut().insert(LOST, why);
    response
}

/// A connection to a program; it ends with the last of sender and answer.
pub(crate) async fn connect<B>(listens: &Listens) -> io::Result<SendRequest<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match listens {
        Listens::Port(port) => {
            let stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, *port)).await?;
            // Tokens are small, and each is waited for.
            stream.set_nodelay(true)?;
            handshake(stream).await
        }
        Listens::Socket(path) => handshake(UnixStream::connect(path).await?).await,
    }
}

pub(super) async fn handshake<S, B>(stream: S) -> io::Result<SendRequest<B>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends by itself: when the answer is read, or sender and answer are dropped by an asker that went away.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a replica's program broke");
        }
    });
    Ok(sender)
}

/// An answer on its way; the request is under way until its end.
struct Counted {
    inner: Incoming,
    ticket: Ticket,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            self.ticket.whole();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
