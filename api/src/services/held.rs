//! The body of a request that may have to be sent again.

use std::pin::Pin;

use axum::body::{Body, BodyDataStream, Bytes};
use bytes::BytesMut;
use futures::{StreamExt, stream};

use super::HELD_BYTES_MAX;

/// A body: whole in memory, or its beginning and what is still to come.
pub(super) struct Held(State);

enum State {
    Whole(Bytes),
    Streams(Bytes, Pin<Box<BodyDataStream>>),
    Gone,
}

impl Held {
    /// All of it is here.
    pub fn whole(bytes: Bytes) -> Self {
        Self(State::Whole(bytes))
    }

    /// Reads as much as is held.
    pub async fn read(body: Body) -> Result<Self, axum::Error> {
        let mut rest = Box::pin(body.into_data_stream());
        let mut begun = BytesMut::new();
        while begun.len() <= HELD_BYTES_MAX {
            match rest.next().await {
                Some(piece) => begun.extend_from_slice(&piece?),
                None => return Ok(Self::whole(begun.freeze())),
            }
        }
        Ok(Self(State::Streams(begun.freeze(), rest)))
    }

    /// Whether it can be sent more than once.
    pub fn is_whole(&self) -> bool {
        matches!(self.0, State::Whole(_))
    }

    /// The body, to be sent; `None` when it was sent and is not held.
    pub fn take(&mut self) -> Option<Body> {
        match std::mem::replace(&mut self.0, State::Gone) {
            State::Whole(bytes) => {
                self.0 = State::Whole(bytes.clone());
                Some(Body::from(bytes))
            }
            State::Streams(begun, rest) => Some(Body::from_stream(stream::iter([Ok(begun)]).chain(rest))),
            State::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn sent(held: &mut Held) -> Option<usize> {
        Some(to_bytes(held.take()?, usize::MAX).await.unwrap().len())
    }

    #[tokio::test]
    async fn a_small_body_is_sent_again_and_a_large_one_once() {
        let mut small = Held::read(Body::from("abc")).await.unwrap();
        assert_eq!((sent(&mut small).await, sent(&mut small).await), (Some(3), Some(3)));
        let pieces = stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![7; 1 << 20]))));
        let mut large = Held::read(Body::from_stream(pieces)).await.unwrap();
        assert!(!large.is_whole());
        assert_eq!((sent(&mut large).await, sent(&mut large).await), (Some(40 << 20), None));
    }
}
