//! One message and its answer on a stream: bytes with their length before them. What they mean is the caller's.
//!
//! Bytes and not libp2p's cbor of a type: both channels share the codec, a body is not encoded twice, and its size is
//! checked before it is read.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response::Codec};

/// How large messages may be, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub request: usize,
    pub answer: usize,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Body(Vec<u8>),
    /// Nobody handled it, with the reason.
    Refused(String),
    /// The answer had this many bytes.
    TooLarge(u32),
}

/// Longest reason that travels, bytes.
const REASON_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Framed(pub Limits);

impl Codec for Framed {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_bytes(io, self.0.request).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut kind = [0];
        io.read_exact(&mut kind).await?;
        match kind[0] {
            0 => Ok(Answer::Body(read_bytes(io, self.0.answer).await?)),
            1 => {
                let reason = read_bytes(io, REASON_BYTES_MAX).await?;
                Ok(Answer::Refused(String::from_utf8_lossy(&reason).into_owned()))
            }
            2 => Ok(Answer::TooLarge(read_length(io).await?)),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("answer of unknown kind {other}"))),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_bytes(io, &request).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match answer {
            Answer::Body(body) if body.len() > self.0.answer => {
                io.write_all(&[2]).await?;
                io.write_all(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes()).await
            }
            Answer::Body(body) => {
                io.write_all(&[0]).await?;
                write_bytes(io, &body).await
            }
            Answer::Refused(reason) => {
                io.write_all(&[1]).await?;
                write_bytes(io, &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]).await
            }
            Answer::TooLarge(bytes) => {
                io.write_all(&[2]).await?;
                io.write_all(&bytes.to_be_bytes()).await
            }
        }
    }
}

async fn read_length(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<u32> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    Ok(u32::from_be_bytes(length))
}

async fn read_bytes(io: &mut (impl AsyncRead + Unpin + Send), max: usize) -> io::Result<Vec<u8>> {
    let length = read_length(io).await? as usize;
    if length > max {
        let reason = format!("a message of {length} bytes, at most {max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // Grows with what arrives: the length alone makes nobody allocate.
    let mut bytes = Vec::with_capacity(length.min(64 * 1024));
    io.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

async fn write_bytes(io: &mut (impl AsyncWrite + Unpin + Send), bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(bytes).await
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn there_and_back(answer: Answer) -> io::Result<Answer> {
        let mut codec = Framed(Limits { request: 10, answer: 10 });
        let protocol = StreamProtocol::new("/t/1");
        let mut wire = Cursor::new(Vec::new());
        codec.write_response(&protocol, &mut wire, answer).await?;
        codec.read_response(&protocol, &mut Cursor::new(wire.into_inner())).await
    }

    #[tokio::test]
    async fn answers_arrive_as_they_were_or_say_why_not() {
        let body = Answer::Body(vec![7; 10]);
        assert_eq!(there_and_back(body.clone()).await.unwrap(), body);
        assert_eq!(there_and_back(Answer::Body(vec![7; 11])).await.unwrap(), Answer::TooLarge(11));
        let refused = Answer::Refused("busy".into());
        assert_eq!(there_and_back(refused.clone()).await.unwrap(), refused);
    }

    #[tokio::test]
    async fn a_request_that_lies_about_its_length_is_no_request() {
        let mut codec = Framed(Limits { request: 10, answer: 10 });
        let protocol = StreamProtocol::new("/t/1");
        for wire in [vec![0xff; 4], vec![0, 0, 0, 5, 1], vec![0, 0], vec![0, 0, 0, 11]] {
            assert!(codec.read_request(&protocol, &mut Cursor::new(wire)).await.is_err());
        }
    }
}
