//! A real S3 server for end-to-end cases: moto, started by the fixture script on a port of its own choosing.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};

/// The server; it ends with this value.
pub struct S3 {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It ends when its standard input does; nothing is lost if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl S3 {
    /// Starts it and makes a bucket. `None`, and a line that is counted, where it can't be had.
    ///
    /// # Errors
    /// When it starts and does not serve.
    pub fn start(bucket: &str) -> anyhow::Result<Option<Self>> {
        let mut child = Command::new(crate::root().join("tests/fixtures/servers/moto.sh"))
            .arg(crate::target_tmp())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/fixtures/servers/moto.sh starts")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let server = Self { child, endpoint: line.trim().to_owned() };
        if server.endpoint.is_empty() {
            crate::skip(bucket, "no S3 server: moto[server] 5.2.5 is neither installed nor to be had from PyPI");
            return Ok(None);
        }
        server.put_bucket(bucket)?;
        Ok(Some(server))
    }

    /// The environment of a daemon that uses it.
    pub fn env(&self) -> [(&'static str, &str); 4] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "example"),
            ("AWS_REGION", "us-east-1"),
        ]
    }

    /// Keys of a bucket that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// When the server does not list them.
    pub fn keys(&self, bucket: &str, prefix: &str) -> anyhow::Result<Vec<String>> {
        let body = self.ask("GET", &format!("/{bucket}?list-type=2&prefix={prefix}"))?;
        let text = String::from_utf8(body).context("a listing is text")?;
        let mut keys: Vec<String> =
            text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect();
        keys.sort();
        Ok(keys)
    }

    /// An object, whole.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, bucket: &str, key: &str) -> anyhow::Result<Vec<u8>> {
        self.ask("GET", &format!("/{bucket}/{key}"))
    }

    fn put_bucket(&self, bucket: &str) -> anyhow::Result<()> {
        self.ask("PUT", &format!("/{bucket}")).map(drop)
    }

    /// One request, one connection; the body of a 200.
    fn ask(&self, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
        let address = self.endpoint.strip_prefix("http://").context("an http endpoint")?;
        let mut stream = TcpStream::connect(address)?;
        // Signed only for show: moto looks no closer.
        let auth = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: {auth}\r\ncontent-length: 0\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("a head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        ensure!(head.lines().next().is_some_and(|l| l.contains(" 200")), "{method} {path}: {head}");
        Ok(answer.split_off(end + 4))
    }
}
