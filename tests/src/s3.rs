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

/// Says that this test is left out, past the harness that keeps what tests print to itself.
///
/// # Errors
/// When `MLOC_NO_SKIP=1` forbids it.
pub fn skip(why: &str) -> anyhow::Result<()> {
    let here = std::thread::current();
    let line = format!("SKIP {}: {why}", here.name().unwrap_or("a test"));
    writeln!(std::io::stderr(), "{line}")?;
    ensure!(std::env::var_os("MLOC_NO_SKIP").is_none_or(|v| v != "1"), "{line}, and MLOC_NO_SKIP=1 forbids it");
    Ok(())
}

impl S3 {
    /// Starts it and makes a bucket. `None`, and a line that is counted, where it can't be had.
    ///
    /// # Errors
    /// When it starts and does not serve, or may not be missing.
    pub fn start(bucket: &str) -> anyhow::Result<Option<Self>> {
        let mut child = Command::new(crate::root().join("tests/fixtures/servers/moto.sh"))
            .arg(std::env::temp_dir().join("mloc-test-servers"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/fixtures/servers/moto.sh starts")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let server = Self { child, endpoint: line.trim().to_owned() };
        if server.endpoint.is_empty() {
            skip("no S3 server: moto[server] 5.2.5 is neither installed nor to be had from PyPI")?;
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

    fn put_bucket(&self, bucket: &str) -> anyhow::Result<()> {
        let address = self.endpoint.strip_prefix("http://").context("an http endpoint")?;
        let mut stream = TcpStream::connect(address)?;
        // Signed only for show: moto looks no closer.
        let auth = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        write!(
            stream,
            "PUT /{bucket} HTTP/1.1\r\nhost: {address}\r\nauthorization: {auth}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "make the bucket: {answer}");
        Ok(())
    }
}
