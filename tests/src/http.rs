//! A client of HTTP/1.1, as small as cases need it: one request a connection, and what broke is told from what ended.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Longest silence of a server: whoever hangs fails a case.
const SILENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {self:?}"))
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Sends a request and reads the answer to its end.
///
/// # Errors
/// When the connection breaks before the answer's end, or nothing comes for a minute.
pub fn request(address: &str, line: &str, headers: &[(&str, &str)], body: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )?;
    read(BufReader::new(stream)).with_context(|| format!("{line} at {address}"))
}

/// GET.
///
/// # Errors
/// As [`request`].
pub fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    request(address, &format!("GET {path}"), &[], "")
}

/// POST of JSON.
///
/// # Errors
/// As [`request`].
pub fn post(address: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
    request(address, &format!("POST {path}"), &[("content-type", "application/json")], &body.to_string())
}

fn read(mut from: impl BufRead) -> anyhow::Result<Answer> {
    let mut line = || -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(from.read_line(&mut line)? > 0, "the connection ended within the head");
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: String::new() };
    let chunked = answer.header("transfer-encoding") == Some("chunked");
    let length = answer.header("content-length").map(str::parse::<u64>).transpose()?;
    let mut bytes = Vec::new();
    match length {
        _ if chunked => chunks(from, &mut bytes)?,
        Some(length) => {
            from.take(length).read_to_end(&mut bytes)?;
            ensure!(bytes.len() as u64 == length, "the body broke off after {} of {length} bytes", bytes.len());
        }
        None => drop(from.read_to_end(&mut bytes)?),
    }
    answer.body = String::from_utf8(bytes)?;
    Ok(answer)
}

fn chunks(mut from: impl BufRead, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    loop {
        let mut line = String::new();
        ensure!(from.read_line(&mut line)? > 0, "the body broke off after {} bytes", bytes.len());
        let length = u64::from_str_radix(line.trim(), 16).with_context(|| format!("a chunk's length: {line:?}"))?;
        if length == 0 {
            return Ok(());
        }
        let before = bytes.len();
        (&mut from).take(length).read_to_end(bytes)?;
        if ((bytes.len() - before) as u64) < length {
            bail!("the body broke off within a chunk");
        }
        from.read_line(&mut line)?;
    }
}
